"""`python -m brine.experiments`: the same as `brine experiments`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["experiments", *sys.argv[1:]]))
