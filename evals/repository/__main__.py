"""`python -m brine.evals.repository`, which is `brine repository`; see `brine.evals.cli`."""

import sys

from brine.evals.cli import repository

if __name__ == "__main__":
    sys.exit(repository())
