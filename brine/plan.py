"""`python -m brine.plan`: the same as `brine plan`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
