"""`python -m brine.needle`: the same as `brine needle`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["needle", *sys.argv[1:]]))
