"""The evals room: what a run learned, measured on documents it never saw, and shown to a person.

    config.py            EvalConfig and Targets: how much is measured, and what it is held against
    rows.py              documents, as they are or altered, packed for a forward pass
    loss.py              held-out loss per document; everything else is arithmetic on it
    bootstrap.py         paired intervals over documents
    gain.py              media gain: what a picture, a sound, a video is worth
    text.py              edit distance, names recovered, alignment
    transcribe.py        greedy transcriptions and their rates
    validation.py        the small measurement repeated during training
    compare.py           two runs, at equal steps and at equal cost
    evaluate.py          the evaluate stage: all of it, written to files
    summary.py           summary.json
    documents.py         documents of any kind as a run's own tokens
    other.py             a finished run on other documents; two evaluated runs
    commands.py          `python -m evals`, `evals.compare`, `evals.report`
    report*.py, .css     report.html, one file that opens offline
    charts.py            its charts, as SVG

It reads models and encoded corpora and trains nothing; the report reads files alone.
"""

import sys

if sys.argv[:1] == ["-m"]:
    # a module of this room is about to be run
    from data.as_command import only_commands

    only_commands(
        __name__,
        "python -m evals RUN --on DATA, evals.compare, evals.report, evals.needle, evals.repository (each has --help)",
    )
