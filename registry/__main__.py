"""`python -m brine.registry`: the same as `brine registry`."""

import sys

from brine.registry.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
