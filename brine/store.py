"""`python -m brine.store`: the same as `brine store`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["store", *sys.argv[1:]]))
