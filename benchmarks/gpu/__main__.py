"""A first hour on a GPU, as one command that leaves numbers whatever happens.

Before, where the libraries and the repository are (the second for a copy without .git; BRINE_COMMIT=... does too):

    python -m benchmarks.gpu --pack-corpus corpus.tar.xz
    git rev-parse --short=12 HEAD > COMMIT

On the GPU, in commands of ten minutes, in this order; the last two on fresh machines, or when there is time:

    python -m benchmarks.gpu --stage smoke tests attention --out FOLDER --host-gib 96
    python -m benchmarks.gpu --stage loss gluon gluon_backward sweep --out FOLDER
    python -m benchmarks.gpu --stage train generate --out FOLDER --host-gib 96 --corpus corpus.tar.xz
    python -m benchmarks.gpu --stage million --out FOLDER --host-gib 96
    python -m benchmarks.gpu --stage demo --out FOLDER --corpus corpus.tar.xz

`--stage all --minutes 60` runs all of it; `--stage all --toy` is the rehearsal, also on a CPU. Afterwards
`--write-table FOLDER` puts the winners into the tables that "auto" reads, and `--plot FILE` draws an image. `million`
needs a GPU of 141 GB. `--host-gib`: host memory that may be pinned, where a machine reports too little.

Each result is a line of `FOLDER/results.jsonl` with GPU, driver, versions, commit and chosen backends (`log.txt` is its
readable form). So are a failure ("error"), what does not fit into `--minutes` ("skipped") and test results; none of
them stops the rest. A stage takes 8 minutes at most, `million` 9. Exit code 0, 1 where nothing ran well, 2 for a
mistake in the command. Times on a GPU are between CUDA events; without one (or with --toy) sizes are toys and times
mean nothing. Not measured: several GPUs, Nsight counters, power.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gpu import suite
from benchmarks.gpu.record import show
from benchmarks.gpu.stage import STAGES
from benchmarks.gpu.work import check_folder

CORPUS_MIB = 24.0
"""Size of a packed corpus unless given."""


def print_refusal(error: Exception) -> int:
    """One line that reports a user's mistake -> exit code."""
    message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    print(f"error: {message}", file=sys.stderr)
    return 2


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__.splitlines()[0],
        epilog="stages:\n" + "\n".join(f"  {s.name:<14} {s.minutes:g} min at most: {s.what}" for s in STAGES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--stage", nargs="+", default=["all"], metavar="STAGE", help="some of those below, or all")
    made.add_argument("--minutes", type=float, default=9.5, help="of the whole command")
    made.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results, few and small")
    made.add_argument(
        "--work", type=Path, default=None, help="folder of corpora and runs; one of this commit among temporary files"
    )
    made.add_argument("--corpus", type=Path, default=None, help="what --pack-corpus wrote, for train and demo")
    made.add_argument("--items", nargs="+", default=[], metavar="WORD", help="only what has one of these in its name")
    made.add_argument("--host-gib", type=float, default=0.0, help="host memory that may be pinned; 0: 3/4 of all")
    made.add_argument("--gpu-gib", type=float, default=0.0, help="memory of the GPU that may be planned with; 0: all")
    made.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: leave a GPU alone")
    made.add_argument("--toy", action="store_true", help="toy sizes, as on a machine without a GPU: does it all run?")
    made.add_argument("--module", default="", help=argparse.SUPPRESS)
    made.add_argument("--list", action="store_true", help="print the stages' items and stop")
    made.add_argument(
        "--pack-corpus", type=Path, metavar="FILE", help="write an encoded corpus to bring along, and stop"
    )
    made.add_argument("--pack-mib", type=float, default=CORPUS_MIB, help="about how large that file may become")
    made.add_argument("--write-table", type=Path, metavar="FOLDER", help="winners of a results folder into the table")
    made.add_argument("--plot", type=Path, metavar="FILE", help="an image of a results file, beside it")
    return made


def side_work(options: argparse.Namespace) -> int | None:
    """What measures nothing -> exit code, or None where a run is asked for. Raises ValueError, OSError, ImportError."""
    if options.plot:
        from benchmarks.gpu.plot import plot

        return plot(options.plot)
    if options.pack_corpus:
        from benchmarks.gpu.corpus import pack

        return pack(options.pack_corpus, mib=options.pack_mib, toy=options.toy)
    if options.write_table:
        from benchmarks.gpu.table import write_table

        return write_table(options.write_table)
    if options.list:
        for stage in suite.stages_of(options.stage):
            show("\n  ".join([stage.name, *(item.name for item in stage.module(options.module).items(options.toy))]))
        return 0
    return None


def prepare(options: argparse.Namespace) -> None:
    """Look at stages, corpus and folders before anything starts. Raises ValueError or OSError."""
    suite.stages_of(options.stage)
    if not options.minutes > 0:
        raise ValueError(f"--minutes {options.minutes:g}: give the command more than none")
    for name in ("out", "work", "corpus"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    if options.corpus is not None:
        from benchmarks.gpu.corpus import validate_archive

        validate_archive(options.corpus)
    for folder in (options.out, options.work):
        if folder is not None:
            check_folder(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command -> exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code = side_work(options)
        if code is not None:
            return code
        prepare(options)
        state, lock = suite.begin(options)
    except ImportError as error:
        return print_refusal(ImportError(f"{error}: install {error.name or 'it'} where this is done"))
    except (OSError, ValueError) as error:
        return print_refusal(error)
    with lock:
        return suite.run_stages(state)


if __name__ == "__main__":
    sys.exit(main())
