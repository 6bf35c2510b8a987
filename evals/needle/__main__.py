"""`python -m brine.evals.needle`, which is `brine needle`; see `brine.evals.cli`."""

import sys

from brine.evals.cli import needle

if __name__ == "__main__":
    sys.exit(needle())
