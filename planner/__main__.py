"""`python -m brine.planner`: the same as `brine plan`."""

import sys

from brine.planner.command import main

if __name__ == "__main__":
    sys.exit(main())
