"""The training room: the loop, what keeps it repeatable, and the line of stages around it.

    config.py        TrainConfig (the experiment) and RuntimeConfig (the machine)
    runtime.py       "auto" settled once per run folder; threads, precision, compilation, determinism
    schedule.py      the learning rate of a step
    optimizer.py     AdamW or Muon, and one flat tensor of gradients
    rows.py          rows from any place of the plan on
    step.py          forward, backward, the sum over ranks
    guard.py         is this step sound, and which rows to pass over if not
    loop.py          train()
    checkpoint.py    complete or absent
    ledger.py        who pays for what
    metrics.py       metrics.jsonl, events.jsonl
    console.py       the bar and the status line
    pace.py          tokens per second, MFU, time left
    peak.py          what MFU is quoted against
    clock.py         seconds of a step's phases by the device's clock
    distributed.py   ranks that read different rows, waiting for rank 0
    parallel.py      ranks that share rows
    stages.py        the line: locked folder, stages done once
    aside.py         what was made is kept, and what is said of it
    processes.py     children that end with their parent, signals that let a step finish
    files.py         written whole or not at all

Importing this package imports none of its files.
"""

import sys

if sys.argv[:1] == ["-m"]:
    # a module of this room is about to be run
    from data.as_command import only_commands

    only_commands(
        __name__,
        "python -m training.planner, training.check_cluster (each has --help); a run is trained by train.py",
    )
