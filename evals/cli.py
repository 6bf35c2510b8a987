"""Command lines of `brine eval`, `compare`, `report`, `needle` and `repository`.

tyro makes each from a function's signature and docstring. The last line that eval, compare and report print is one
JSON object; tables before it are for people, and progress goes to standard error. Exit codes: 0 done, 2 a mistake in
the request (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from brine.common.closed_pipe import exit_on_closed_pipe
from brine.evals.config import EvalConfig
from brine.evals.console import format_comparison, format_evaluation
from brine.evals.run_files import eval_config_of, read_object
from brine.model.device import resolve_compute_dtype, resolve_device

Run = Annotated[Path, tyro.conf.arg(metavar="RUN")]
TwoRuns = Annotated[tuple[Path, Path], tyro.conf.arg(metavar="RUN RUN")]


@dataclass(frozen=True)
class ComputeOptions:
    """Options of a command that runs a model."""

    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products, keys and values; auto: bfloat16 where the hardware multiplies it."""
    threads: int | None = None
    """CPU threads; as many as this process may use if not given."""

    def resolve(self) -> tuple[torch.device, torch.dtype | None]:
        """(device, compute_dtype); sets the number of CPU threads. Raises ValueError for an unknown device."""
        if self.threads:
            torch.set_num_threads(_positive("threads", self.threads))
        device = resolve_device(self.device)
        return device, resolve_compute_dtype(self.dtype, device)


def _eval(
    run: Run,
    /,
    *,
    data: Path,
    format: str | None = None,
    out: Path | None = None,
    documents_per_cell: int = 512,
    transcripts_per_cell: int = 0,
    seq_len: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    compute: ComputeOptions = ComputeOptions(),
) -> None:
    """Evaluate the final models of a run on other documents: loss, bits per byte and media gain, per kind, with
    intervals over documents.

    Documents are encoded with the run's tokenizer and encoder. The run is not modified.

    Args:
        run: A run (runs/demo), a stage of it, or a model folder.
        data: A folder, manifest, tar or table of any format that `brine data check` reads, or a corpus built by
            `brine data build`; all its splits are used.
        format: Format of DATA; detected if not given.
        out: New folder for the results; without it they are only printed.
        documents_per_cell: Documents of each kind and level whose loss is measured.
        transcripts_per_cell: Documents of each kind and level that are transcribed.
        seq_len: Tokens of a packed sequence; the run's if not given.
        batch_size: Packed sequences of one forward pass; fewer take less memory; the run's if not given.
        seed: Seed of document choice, mismatched media and resamples; the run's if not given.
        workers: Decoding processes; one per core, at most 8, if not given.
    """
    from brine.evals.evaluate_on import evaluate_on

    device, compute_dtype = compute.resolve()
    with tempfile.TemporaryDirectory(prefix="brine-evals-") as scratch:
        found = evaluate_on(
            run,
            data,
            out or Path(scratch) / "out",
            device=device,
            compute_dtype=compute_dtype,
            workers=None if workers is None else _positive("workers", workers),
            format=format,
            documents_per_cell=documents_per_cell,
            transcripts_per_cell=transcripts_per_cell,
            seq_len=seq_len,
            batch_size=batch_size,
            seed=seed,
        )
    print(format_evaluation(found))
    print(json.dumps(found | {"out": str(out) if out else None}, allow_nan=False))


def _compare(runs: TwoRuns, /, *, models: tuple[str, str] | None = None, seed: int = 0) -> None:
    """Compare two evaluated runs on the same documents: the first's loss minus the second's, in bits per byte, with
    intervals over documents.

    Args:
        runs: Two evaluated runs, or folders written by `brine eval RUN --data DATA --out FOLDER`.
        models: A model of each, such as large_salt small; the main one if not given.
        seed: Seed of the bootstrap.
    """
    from brine.evals.evaluations import compare_evaluations, load_losses

    ours, theirs = (load_losses(run, name) for run, name in zip(runs, models or (None, None), strict=True))
    found = compare_evaluations(ours, theirs, EvalConfig(seed=seed))
    print(format_comparison(found))
    print(json.dumps({"runs": [str(run) for run in runs], "models": [ours.model, theirs.model]} | found))


def _report(run: Run, /) -> None:
    """Rewrite summary.json and report.html from the files of a run, without evaluating.

    Args:
        run: A run (runs/demo).
    """
    from brine.evals.report.page import write_report
    from brine.evals.summary import write_summary

    if not any((run / name).exists() for name in ("recipe.json", "evaluate", "needle")):
        raise ValueError(f"{run} is not a run folder (no recipe.json, no evaluate/): give one such as runs/demo")
    evaluated = (run / "evaluate" / "results.json").is_file()
    if evaluated:
        # known to the pipeline alone
        before = read_object(run / "summary.json")
        write_summary(run, wall_s=before.get("wall_s"), peak_rss_gib=before.get("peak_rss_gib"))
    else:
        print(f"{run} is not evaluated yet: the report shows what there is", file=sys.stderr)
    page = write_report(run, config=eval_config_of(run))
    print(json.dumps({"report": str(page), "evaluated": evaluated}))


def _needle(
    run: Run,
    /,
    *,
    lengths: str = "2048",
    modality: str = "text,image,audio,video",
    trials: int = 500,
    needles: int = 10,
    seed: int = 0,
    source: Path | None = None,
    out: Path | None = None,
    compute: ComputeOptions = ComputeOptions(),
) -> None:
    """Needle-in-a-haystack evaluation: exact match by depth and length.

    Results are kept in RUN/needle; cells measured before with the same settings and weights are not measured again.

    Args:
        run: A run (runs/needle), a stage of it, or a model folder.
        lengths: Tokens of haystack and question together, separated by commas: 2048,4096.
        modality: Modalities and tasks, separated by commas: text, image, audio, video, chain, multikey.
        trials: Questions for each modality and length.
        needles: Needles in each haystack, each with its own question; 1 is the single-needle test.
        seed: Seed of the haystacks.
        source: Folder of code for the haystacks; the standard library if not given.
        out: Folder for the results; RUN/needle if not given.
    """
    from brine.evals.needle.run import NeedleConfig, evaluate_needles
    from brine.evals.needle.table import console_table
    from brine.evals.report.page import write_report
    from brine.inference.load import load

    config = NeedleConfig(_split(modality), _integers("lengths", lengths), trials, needles, seed, source)
    device, compute_dtype = compute.resolve()
    loaded = load(run, device=device)
    recipe = read_object(run / "recipe.json")
    # former recipes call it rows
    packing = recipe.get("packing") or recipe.get("rows") or {}
    folder = out or run / "needle"
    results = evaluate_needles(
        loaded, folder, config, trained_context_tokens=packing.get("seq_len") or packing.get("row_tokens"),
        compute_dtype=compute_dtype, say=tqdm.write,
    )  # fmt: skip
    print(f"\n{console_table(results['cells'])}\n\nchance {results['chance']:.2f}; {folder / 'results.json'}")
    if (run / "report.html").is_file() and out is None:
        print(f"report: {write_report(run)}")


def _repository(
    run: Run,
    /,
    *,
    lengths: str = "2048",
    trials: int = 100,
    seed: int = 0,
    source: Path | None = None,
    out: Path | None = None,
    compute: ComputeOptions = ComputeOptions(),
) -> None:
    """Complete names that another file of the same package defines, with the package in the context, without it, and
    with another package.

    Args:
        run: A run (runs/synth), a stage of it, or a model folder.
        lengths: Tokens of the prompt, separated by commas: 2048,8192.
        trials: Number of cases.
        seed: Seed of the cases.
        source: Another repository; the standard library if not given.
        out: Folder for the results; RUN/repository if not given.
    """
    from brine.evals.repository.run import RepositoryConfig, console_table, evaluate_repository
    from brine.inference.load import load

    config = RepositoryConfig(_integers("lengths", lengths), trials, seed)
    device, compute_dtype = compute.resolve()
    folder = out or run / "repository"
    loaded = load(run, device=device)
    results = evaluate_repository(loaded, run, folder, config, source=source, compute_dtype=compute_dtype)
    cases = "files that the run was not trained on" if results["held_out"] else "any file, the run names none"
    print(f"{console_table(results['by_length'])}\n\ncompleted: {cases}; {folder / 'results.json'}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, _split(text)))
    except ValueError:
        raise ValueError(f"--{name} {text!r}: give whole numbers such as 2048,4096") from None


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"--{name} must be at least 1")
    return value


def _command(name: str, function: Callable[..., None]) -> Callable[[list[str] | None], int]:
    """A function as `main(argv) -> exit code`."""

    @exit_on_closed_pipe
    def main(argv: list[str] | None = None) -> int:
        try:
            tyro.cli(function, prog=f"brine {name}", args=argv, config=(tyro.conf.OmitArgPrefixes,))
            return 0
        except KeyboardInterrupt:
            print("\ninterrupted; finished parts are kept, the same command resumes", file=sys.stderr)
            return 130
        except torch.OutOfMemoryError:
            print(
                "error: the device has too little memory: give a smaller --batch-size or --device cpu", file=sys.stderr
            )
        except BrokenPipeError:
            raise
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {str(error).replace('give format=', 'give --format')}", file=sys.stderr)
        return 2

    main.__doc__ = f"`brine {name}`; returns the exit code."
    return main


evaluate = _command("eval", _eval)
compare = _command("compare", _compare)
report = _command("report", _report)
needle = _command("needle", _needle)
repository = _command("repository", _repository)
