"""`python -m brine.generate`: the same as `brine generate`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
