"""`python -m brine.report`: the same as `brine report`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
