"""The small model's help: soft labels in the first stage of training, and a choice of what to learn from first.

SALT (small model aided large model training, 2410.18779) trains a small model first. The large one then learns from
its soft labels for a while (`distill`), optionally on documents that an early small model found hard but learnable
(`select`), and goes on alone. Nothing here knows how training is run; every cost is billed to a ledger.
"""

import sys

if sys.argv[:1] == ["-m"]:
    # a module of this room is about to be run
    from data.as_command import only_commands

    only_commands(
        __name__,
        "none here; a run is trained by train.py",
    )
