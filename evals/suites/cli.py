"""The command lines `brine suite make | show | verify`, and `brine eval RUN --on SUITE`.

The last line printed is one JSON object; tables before it are human-readable, and progress goes to standard error.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from brine.common.command_line import command, one_line_errors
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.evals.suites.suite import SUITES_ROOT, Suite
from brine.inference.options import positive

SuiteName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SUITE")]


@dataclass(frozen=True, kw_only=True)
class SuiteMakeRequest:
    """Make a suite from held-out documents, once; it is never replaced or edited.

    The cases of each kind, level and part are those of the lowest hash of their content. A part (dev, test, gate) is
    decided by the hash alone."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of the suite, whose next version is made, or NAME@VERSION."""
    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders, manifests or tars of any format that `brine data check` reads, built corpora, or runs."""
    root: Path = SUITES_ROOT
    """Folder that holds suites."""
    format: str | None = None
    """Format of the sources; detected if not given."""
    like: str | None = None
    """An earlier suite: cells get all cases at or below its highest hash, so that none of its cases is displaced by new
    documents, and cells grow with the documents."""
    workers: int | None = None
    """Decoding processes; one per core, at most 8, if not given."""
    config: Annotated[SuiteConfig, tyro.conf.arg(name="")] = field(default_factory=SuiteConfig)
    """What the suite holds."""

    def run(self) -> None:
        """Print the suite. Raises ValueError for a mistake in the request."""
        from brine.evals.suites.tables import format_suite

        like = None if self.like is None else Suite.open(self.like, root=self.root)
        workers = None if self.workers is None else positive("workers", self.workers)
        suite = make_suite(
            self.name, self.sources, self.config, root=self.root, format=self.format, like=like, workers=workers
        )
        print(format_suite(suite, part="dev", num_cases=0))
        print(json.dumps({"suite": str(suite.folder), **suite.identity, "num_cases": suite.info["num_cases"]}))


@dataclass(frozen=True, kw_only=True)
class SuiteShowRequest:
    """Show what a suite holds, and some of its cases."""

    suite: SuiteName
    """Folder of a suite, or its name in ROOT."""
    root: Path = SUITES_ROOT
    """Folder that holds suites."""
    part: Literal["dev", "test"] = "dev"
    """Part whose cases are shown."""
    cases: int = 5
    """How many cases are shown."""

    def run(self) -> None:
        """Print tables and one JSON object. Raises ValueError where there is no such suite."""
        from brine.evals.suites.tables import format_suite

        suite = Suite.open(self.suite, root=self.root)
        print(format_suite(suite, part=self.part, num_cases=max(0, self.cases)))
        known = ("primary", "guards", "measures", "num_cases", "media_bytes", "made_from")
        said = {"suite": str(suite.folder), **suite.identity} | {name: suite.info[name] for name in known}
        print(json.dumps(said))


@dataclass(frozen=True, kw_only=True)
class SuiteVerifyRequest:
    """Read every byte of a suite, and name each file that is not as it was made."""

    suite: SuiteName
    """Folder of a suite, or its name in ROOT."""
    root: Path = SUITES_ROOT
    """Folder that holds suites."""

    def run(self) -> None:
        """Print one JSON object. Raises ValueError naming the files that are damaged."""
        suite = Suite.open(self.suite, root=self.root)
        if problems := suite.verify():
            more = f"; and {len(problems) - 10:,} more" if len(problems) > 10 else ""
            raise ValueError("; ".join(problems[:10]) + more)
        print(f"{suite.folder}: all files are as they were made")
        print(json.dumps({"suite": str(suite.folder), **suite.identity, "num_cases": suite.info["num_cases"]}))


def evaluate_on_suite(
    run: Path, name: str, *, parts: Sequence[str], model: str | None, out: Path | None, cache: Path | None,
    workers: int | None, timing: bool, device: Any, compute_dtype: Any,
) -> None:  # fmt: skip
    """Measure a run on a suite; print tables and one JSON object. Raises ValueError for a mistake in the request."""
    from brine.common.content_store import ContentStore
    from brine.evals.config import EvalConfig
    from brine.evals.suites.measure import checked_parts, default_cache, measure_suite
    from brine.evals.suites.tables import format_result, summarize

    if "gate" in checked_parts(parts):
        raise ValueError(
            "the gate part is asked by `brine registry` alone, so that nothing is chosen by it: give --part dev test"
        )
    suite = Suite.open(name)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} already holds something, which is not replaced: give a new folder as --out")
    result = measure_suite(
        run, suite, model=model, part=parts, device=device, compute_dtype=compute_dtype,
        cache=ContentStore(cache or default_cache(run)), out=out, workers=workers, timing=timing,
    )  # fmt: skip
    config = EvalConfig()
    summaries = {part: summarize(measured, config) for part, measured in result.measurements.items()}
    print(format_result(suite, result, summaries))
    said = {"run": str(run), "out": str(out) if out else None, **result.info, "measures": summaries}
    print(json.dumps(said, allow_nan=False))


_REQUESTS = {"make": SuiteMakeRequest, "show": SuiteShowRequest, "verify": SuiteVerifyRequest}


def _parse(argv: Sequence[str]) -> Any:
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    with one_line_errors():
        return tyro.extras.subcommand_cli_from_dict(_REQUESTS, prog="brine suite", args=list(argv), config=config)


main = command(_parse, interrupted="interrupted; nothing was written")
