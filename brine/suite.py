"""`python -m brine.suite`: the same as `brine suite`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["suite", *sys.argv[1:]]))
