"""`brine train` from a checkout; see `brine/train.py`."""

import sys

from brine.train import main

if __name__ == "__main__":
    sys.exit(main(prog="train.py"))
