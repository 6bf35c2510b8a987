"""`python -m brine.self_play`: the same as `brine self-play`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main(["self-play", *sys.argv[1:]]))
