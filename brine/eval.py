"""`python -m brine.eval`: the same as `brine eval`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
