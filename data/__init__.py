"""The data room: documents in, packed batches out.

    document.py    what a document is: parts of text, picture, sound and film, read from one JSON line
    formats/       a path of any common format to documents; archive.py reads media inside tars and tables
    turns.py       who speaks in an encoded corpus
    readers.py     documents of a path, and their text; markdown.py the links of a page
    tokenizer.py   byte-level BPE and the special tokens
    config.py      EncodeConfig: every number that decides how media become tokens
    closed_pipe.py commands whose reader stops early
    deciding.py    which settings of any room decide what comes out
    lengths.py     the one length function, used by encoder and tests alike
    decode*.py     media files to patches, in subprocesses that can be killed
    encode.py      Document to Sequence: every token at (t, h, w)
    store.py       documents encoded once, memory-mapped ever after; shards.py writes them
    filters/       which documents are left out of training, in rounds that can be undone
    mixture.py     how often documents come, and when
    plan.py        which stretch goes into which row, decided ahead; segments.py cuts long ones, pack*.py packs
    counters.py    random choices as hashes of counters
    batch.py       rows to tensors; patches.py the map from stored patches to floats
    loader.py      batches in order; its state is one integer; prefetch.py batches on a device ahead of their step
    workbench/     a corpus made from any source tree

    __main__.py    the command line; options.py, commands.py
    check.py       reads a source through; tally.py counts, tables.py and check_plot.py show
    plan_report.py a plan for the eye
    show*.py       one document for the eye
    as_command.py  what is said where a module of any room is run that is no command

Nothing here knows the model. Importing this package imports none of its files (but the last, under `python -m`):
decoding servers start quickly because they import only what they use.
"""

import sys

if sys.argv[:1] == ["-m"]:
    # a module of this room is about to be run
    from data.as_command import only_commands

    only_commands(
        __name__,
        "python -m data check, build, filter, plan and show (each has --help)",
    )
