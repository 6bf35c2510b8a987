"""`python -m brine.evals.compare`, which is `brine compare`; see `brine.evals.cli`."""

import sys

from brine.evals.cli import compare

if __name__ == "__main__":
    sys.exit(compare())
