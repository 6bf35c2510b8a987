"""`python -m brine.evals`, which is `brine eval`; see `brine.evals.cli`."""

import sys

from brine.evals.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
