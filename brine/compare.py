"""`python -m brine.compare`: the same as `brine compare`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
