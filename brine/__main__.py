"""`python -m brine`: the same as the command `brine`."""

import sys

from brine.cli import main

if __name__ == "__main__":
    sys.exit(main())
