"""The evals room's commands: what is asked, what is printed, which exit code.

    python -m evals RUN --on DATA          a finished run on other documents
    python -m evals.compare RUN RUN        two evaluated runs, document by document
    python -m evals.report RUN             a run's summary and report, made again from its files
    python -m evals.needle, .repository    see there

The last line printed is one JSON object; what stands before it is for people, and progress goes to standard error. Exit
codes: 0 done, 2 a mistake in the request (said in a line), 130 ended by Ctrl-C. The other modules of the room are no
commands, which `data.as_command` says of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.closed_pipe import closed_pipe
from data.tables import safe
from evals.config import EvalConfig
from model.device import add_device_arguments, resolve_compute_dtype, resolve_device

_OTHERS = (
    "commands: python -m evals RUN --on DATA, evals.compare, evals.report, evals.needle, evals.repository "
    "(each has --help)"
)


def measure(argv: list[str] | None = None) -> int:
    """`python -m evals RUN --on DATA`."""
    parser = argparse.ArgumentParser(
        prog="python -m evals",
        description="Measure the final models of a finished run on other documents: loss, bits per byte, and what "
        "media are worth, per kind, with intervals over documents.",
        epilog=f"Documents are encoded as the run's own were. Nothing of the run is changed. {_OTHERS}",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run (runs/demo), a stage of it, or a model folder")
    parser.add_argument(
        "--on", metavar="DATA", type=Path, required=True,
        help="a folder, manifest, tar or table of any format that `python -m data check` reads, or a corpus that "
        "`python -m data build` wrote; all its splits count",
    )  # fmt: skip
    parser.add_argument("--format", metavar="NAME", help="of DATA, where it is not to be found out")
    parser.add_argument("--out", type=Path, help="a new folder that keeps what was measured (default: nothing is kept)")
    for name, text in (
        ("documents-per-cell", "documents of each kind and level whose loss is measured (default: 512)"),
        ("transcripts-per-cell", "documents of each kind and level that are transcribed (default: 0)"),
        ("row-tokens", "tokens of one row of a forward pass (default: the run's)"),
        ("rows-per-batch", "rows of one forward pass; fewer take less memory (default: the run's)"),
        ("seed", "chooses documents, partners and resamples (default: the run's)"),
        ("workers", "decoding servers (default: one for each core, at most 8)"),
        ("threads", "CPU threads (default: as many as this process may use)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    add_device_arguments(parser)
    options = parser.parse_args(argv)
    for name in ("workers", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")

    def go() -> dict[str, Any]:
        from evals.other import measure_on

        if options.threads:
            torch.set_num_threads(options.threads)
        device = resolve_device(options.device)
        with tempfile.TemporaryDirectory(prefix="brine-evals-") as scratch:
            found = measure_on(
                options.run,
                options.on,
                options.out or Path(scratch) / "out",
                device=device,
                compute_dtype=resolve_compute_dtype(options.dtype, device),
                workers=options.workers,
                format=options.format,
                documents_per_cell=512 if options.documents_per_cell is None else options.documents_per_cell,
                transcripts_per_cell=options.transcripts_per_cell or 0,
                row_tokens=options.row_tokens,
                rows_per_batch=options.rows_per_batch,
                seed=options.seed,
            )
        print(_measured(found))
        return found | {"out": str(options.out) if options.out else None}

    return _run(go)


def compare(argv: list[str] | None = None) -> int:
    """`python -m evals.compare RUN RUN`."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.compare",
        description="Compare two evaluated runs on the same documents: the first's loss minus the second's, in bits "
        "per byte, with intervals over documents.",
        epilog=f"Runs, or folders that `python -m evals RUN --on DATA --out FOLDER` wrote. {_OTHERS}",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs=2, help="an evaluated run")
    parser.add_argument("--models", metavar="NAME", nargs=2, default=(None, None),
                        help="a model of each, such as large_salt small (default: the main one)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws the resamples (default %(default)s)")
    options = parser.parse_args(argv)

    def go() -> dict[str, Any]:
        from evals.other import compare_evaluations, losses_of

        ours, theirs = (losses_of(run, name) for run, name in zip(options.runs, options.models, strict=True))
        found = compare_evaluations(ours, theirs, EvalConfig(seed=options.seed))
        print(_compared(found))
        return {"runs": [str(run) for run in options.runs], "models": [ours.model, theirs.model]} | found

    return _run(go)


def report(argv: list[str] | None = None) -> int:
    """`python -m evals.report RUN`."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.report",
        description="Make a run's summary.json and report.html again from the files of the run; nothing is measured.",
        epilog=_OTHERS,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run (runs/demo)")
    options = parser.parse_args(argv)

    def go() -> dict[str, Any]:
        from evals.other import config_of
        from evals.report import write_report
        from evals.summary import read_json, write_summary

        run = options.run
        if not run.is_dir() or not any((run / name).exists() for name in ("recipe.json", "evaluate", "needle")):
            raise ValueError(
                f"{run} is no run folder (it has no recipe.json and no evaluate/): give one such as runs/demo"
            )
        evaluated = (run / "evaluate" / "results.json").is_file()
        if evaluated:
            # what only the line itself knows is kept
            before = read_json(run / "summary.json")
            before = before if isinstance(before, dict) else {}
            write_summary(run, wall_s=before.get("wall_s"), peak_rss_gib=before.get("peak_rss_gib"))
        else:
            print(f"{run} is not evaluated yet: the report shows what there is", file=sys.stderr)
        page = write_report(run, config=config_of(run))
        return {"report": str(page), "evaluated": evaluated}

    return _run(go)


def _run(go: Callable[[], dict[str, Any]]) -> int:
    """Do it, print its JSON, and tell mistakes in a line."""
    try:
        print(json.dumps(go(), allow_nan=False), flush=True)
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return closed_pipe()
    except torch.OutOfMemoryError:
        print("error: the device has too little memory: give fewer --rows-per-batch or --device cpu", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {str(error).replace('give format=', 'give --format')}", file=sys.stderr)
    return 2


def _span(entry: dict[str, Any], name: str, digits: int = 3) -> str:
    """A value with its interval, aligned."""
    if entry.get(name) is None:
        return f"{'·':>24}"
    return f"{entry[name]:8.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]".ljust(24)


def _measured(found: dict[str, Any]) -> str:
    """The table of a measurement."""
    lines = [safe(line, 1000) for line in found["told"]]
    lines += [f"set aside: {safe(reason, 1000)}" for reason in found["set_aside_for"]]
    lines += [f"{found['documents']} documents, {found['set_aside']} set aside, {found['measured']} measured"]
    if found["trained_on"] is None:
        lines.append(
            "whether the run was trained on these is not known: the documents that it saw are not there any more"
        )
    if found["trained_on"]:
        lines.append(f"of these the run was trained on {found['trained_on']}: on those it is no test")
    for name, model in found["models"].items():
        lines.append(f"\n{name:<20}{'documents':>10}  {'nats a token':<24}  bits a byte")
        for row in [{"kind": "all", **model}, *model["kinds"]]:
            loss, bits = _span(row["loss"], "value"), _span(row["bits_per_byte"], "value")
            lines.append(f"  {row['kind']:<18}{row['documents']:>10}  {loss}  {bits}".rstrip())
    for modality, gain in found["media_gain"].items():
        lines.append(f"\ngain from {modality:<10}{'documents':>10}  1 - L(own) / L(blank), {found['main_model']}")
        for row in [{"kind": "headline", **gain}, *gain["kinds"]]:
            lines.append(f"  {row['kind']:<18}{row['num_documents']:>10}  {_span(row, 'gain')}".rstrip())
    return "\n".join(lines)


def _compared(found: dict[str, Any]) -> str:
    """The table of a comparison."""
    lines = [f"{'first minus second':<20}{'documents':>10}  {'bits a byte':<24}  verdict for the first"]
    for row in [{"kind": "all", **found}, *found["kinds"]]:
        bits = row["bits_per_byte"]
        lines.append(f"  {row['kind']:<18}{row['documents']:>10}  {_span(bits, 'difference', 4)}  {bits['verdict']}")
    return "\n".join(lines)
