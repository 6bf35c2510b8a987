"""Command lines of `brine eval`, `compare` and `report`; `needle` and `repository` have theirs beside the evaluation.

Each is a dataclass of options, whose docstrings are its help (`brine.common.command_line`). The last line printed is
one JSON object; tables before it are human-readable, and progress goes to standard error.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from brine.common.command_line import command, parse
from brine.evals.config import EvalConfig
from brine.evals.run_files import eval_config_of, read_object, write_summary
from brine.inference.options import ComputeOptions, Run, positive


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(ComputeOptions):
    """Evaluate a trained model: on a frozen suite (--on), or on other documents (--data).

    On a suite: every measure that it declares, from a cache where equal weights were measured before. On documents:
    loss, bits per byte and media gain of the final models, per kind. Intervals are over cases or documents, which are
    encoded with the run's tokenizer and encoder. The run is not modified."""

    run_folder: Run
    """A run (runs/demo), a stage of it, or a model folder."""
    on: str | None = None
    """A suite: its folder, or its name in runs/suites (`brine suite make`)."""
    part: tuple[str, ...] = ("dev", "test")
    """Parts of the suite; the part gate is asked by `brine registry` alone."""
    model: str | None = None
    """Stage whose model is measured on the suite, e.g. small; the run's best if not given."""
    cache: Path | None = None
    """Folder that keeps encoded cases and results on suites; .store beside the run if not given."""
    timing: bool = True
    """Measure latency and memory too, where the suite has them."""
    data: Path | None = None
    """A folder, manifest, tar or Parquet file of any format that `brine data check` reads, or a corpus built by `brine
    data build`; all its splits are used."""
    format: str | None = None
    """Format of DATA; detected if not given."""
    out: Path | None = None
    """New folder for the results; without it they are only printed."""
    documents_per_cell: int = 512
    """Documents of each kind and level of DATA whose loss is measured."""
    transcripts_per_cell: int = 0
    """Documents of each kind and level of DATA that are transcribed."""
    seq_len: int | None = None
    """Tokens per packed sequence, with --data; the run's if not given."""
    batch_size: int | None = None
    """Packed sequences per forward pass, with --data; fewer take less memory; the run's if not given."""
    seed: int | None = None
    """Seed of document choice, mismatched media and resamples, with --data; the run's if not given."""
    workers: int | None = None
    """Decoding processes; one per core, at most 8, if not given."""

    def run(self) -> None:
        """Print tables and one JSON object. Raises ValueError for a mistake in the request."""
        if (self.on is None) == (self.data is None):
            raise ValueError("give either --on SUITE or --data DATA")
        only_suite = ("part", "model", "cache", "timing")
        only_data = ("format", "documents_per_cell", "transcripts_per_cell", "seq_len", "batch_size", "seed")
        without, with_ = (only_suite, "--on SUITE") if self.on is None else (only_data, "--data DATA")
        defaults = {field.name: field.default for field in fields(self)}
        if idle := [name for name in without if getattr(self, name) != defaults[name]]:
            raise ValueError(f"--{idle[0].replace('_', '-')} has an effect with {with_} alone: leave it out")
        workers = None if self.workers is None else positive("workers", self.workers)
        if self.data is None:
            self._run_on_suite(workers)
        else:
            self._run_on_data(self.data, workers)

    def _run_on_suite(self, workers: int | None) -> None:
        from brine.evals.suites.cli import evaluate_on_suite

        device, compute_dtype = self.resolve()
        evaluate_on_suite(
            self.run_folder, str(self.on), parts=self.part, model=self.model, out=self.out, cache=self.cache,
            workers=workers, timing=self.timing, device=device, compute_dtype=compute_dtype,
        )  # fmt: skip

    def _run_on_data(self, data: Path, workers: int | None) -> None:
        from brine.evals.evaluate_on import evaluate_on, format_evaluation

        device, compute_dtype = self.resolve()
        names = ("documents_per_cell", "transcripts_per_cell", "seq_len", "batch_size", "seed")
        config = eval_config_of(self.run_folder, **{name: getattr(self, name) for name in names})
        with tempfile.TemporaryDirectory(prefix="brine-evals-") as scratch:
            found = evaluate_on(
                self.run_folder, data, self.out or Path(scratch) / "out", config, device=device,
                compute_dtype=compute_dtype, workers=workers, format=self.format,
            )  # fmt: skip
        print(format_evaluation(found))
        print(json.dumps(found | {"out": str(self.out) if self.out else None}, allow_nan=False))


@dataclass(frozen=True, kw_only=True)
class CompareRequest(ComputeOptions):
    """Compare evaluated runs on the same documents: ours minus theirs.

    Two runs: bits per byte with intervals over documents, and no verdict, since two equal trainings differ too. Several
    a side (`--ours A1 A2 A3 --theirs B1 B2 B3`), each another seed of training: better, worse or undecided, with
    intervals over seeds and documents."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN RUN]")] = ()
    """Two evaluated runs, or folders written by `brine eval RUN --data DATA --out FOLDER`."""
    ours: tuple[Path, ...] = ()
    """Runs of one setting, each another seed of training."""
    theirs: tuple[Path, ...] = ()
    """Runs of the other setting, in the same order of seeds."""
    models: tuple[str, str] | None = None
    """Model of each side to compare, e.g. large_salt small; each run's main model if not given."""
    unpaired: bool = False
    """Seeds of the two sides have nothing in common: do not pair them."""
    on: str | None = None
    """Measure the runs on this suite (a name or a path) instead of reading their evaluations."""
    part: Literal["dev", "test"] = "test"
    """Part of the suite."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self):
        if self.runs and (self.ours or self.theirs):
            raise ValueError("give either two runs, or --ours RUN ... --theirs RUN ...")
        if len(self.sides[0]) < 1 or len(self.sides[1]) < 1 or len(self.runs) not in (0, 2):
            raise ValueError("give two runs to compare, or several a side: --ours RUN ... --theirs RUN ...")
        if not self.unpaired and len(self.sides[0]) != len(self.sides[1]):
            raise ValueError(
                f"{len(self.ours)} runs against {len(self.theirs)} cannot be paired by seed: give equally many in the "
                "same order, or --unpaired"
            )

    @property
    def sides(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """(ours, theirs), however they were given."""
        return (self.runs[:1], self.runs[1:]) if self.runs else (self.ours, self.theirs)

    def run(self) -> None:
        """Print a table and one JSON object. Raises ValueError for a mistake in the request."""
        from brine.evals.comparison import runs as comparison
        from brine.evals.comparison.on_suite import measure_sides

        sides, models = self.sides, self.models or (None, None)
        if self.on is None and max(map(len, sides)) == 1:
            ours, theirs = (comparison.load_losses(side[0], name) for side, name in zip(sides, models, strict=True))
            found = comparison.compare_evaluations(ours, theirs, EvalConfig(seed=self.seed))
            print(comparison.format_comparison(found))
            runs = [str(side[0]) for side in sides]
            print(json.dumps({"runs": runs, "models": [ours.model, theirs.model]} | found))
            return
        primary = None
        if self.on is not None:
            device, compute_dtype = self.resolve()
            measured, primary = measure_sides(
                sides, models, self.on, part=self.part, device=device, compute_dtype=compute_dtype
            )
        else:
            measured = [comparison.load_seeds(side, name) for side, name in zip(sides, models, strict=True)]
        found = comparison.compare_seeds(*measured, primary=primary, paired=not self.unpaired)
        print(comparison.format_seeds(found))
        ours, theirs = ([str(run) for run in side] for side in sides)
        print(json.dumps({"ours": ours, "theirs": theirs, "on": self.on, "measures": found}, allow_nan=False))


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Rewrite summary.json and report.html from the files of a run, without evaluating."""

    run_folder: Run
    """A run (runs/demo)."""

    def run(self) -> None:
        """Print one JSON object. Raises ValueError for a folder that is not a run."""
        from brine.evals.report.page import write_report

        folder = self.run_folder
        if not any((folder / name).exists() for name in ("recipe.json", "evaluate", "needle")):
            raise ValueError(f"{folder} is not a run folder (no recipe.json, no evaluate/): give one such as runs/demo")
        evaluated = (folder / "evaluate" / "results.json").is_file()
        if evaluated:
            # these two are not in the run's files
            before = read_object(folder / "summary.json")
            write_summary(folder, wall_s=before.get("wall_s"), peak_rss_gib=before.get("peak_rss_gib"))
        else:
            print(f"{folder} is not evaluated yet: the report shows the rest", file=sys.stderr)
        page = write_report(folder, config=eval_config_of(folder))
        print(json.dumps({"report": str(page), "evaluated": evaluated}))


_finish = partial(
    command,
    interrupted="interrupted; finished parts are kept, the same command resumes",
    out_of_memory="give a smaller --batch-size or --device cpu",
)
evaluate = _finish(partial(parse, "eval", EvaluateRequest))
compare = _finish(partial(parse, "compare", CompareRequest))
report = _finish(partial(parse, "report", ReportRequest))
