"""`python -m brine.experiments`: the same as `brine experiments`."""

import sys

from brine.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
