"""`python -m evals RUN --on DATA`: a finished run on other documents; see `evals.commands`."""

import sys

from evals.commands import measure

if __name__ == "__main__":
    sys.exit(measure())
