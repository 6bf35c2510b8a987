"""`python -m brine.evals.report`, which is `brine report`; see `brine.evals.cli`."""

import sys

from brine.evals.cli import report

if __name__ == "__main__":
    sys.exit(report())
