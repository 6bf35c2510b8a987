"""`python -m brine.repository`: the same as `brine repository`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["repository", *sys.argv[1:]]))
