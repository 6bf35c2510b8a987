"""`python -m brine.data`; see `brine.data.cli.main`."""

import sys

from brine.data.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
