"""Does it use the repository? Lines that need a definition from another file, with the package in the context and
without.

    python -m evals.repository runs/workbench --lengths 2048,8192

The cases are names in the standard library's packages (`repository_cases.py`). A name is decoded greedily and is
right when it is the whole name and no more. Small models rarely say one, so each name's log-likelihood is reported
too, in nats a name, and what the context is worth: likelihood with the package minus that without, and minus that
with another package of the same length. Intervals resample cases; the differences are paired.

Files that the run trained on are left out where the run says which those are (its workbench corpus); the others of
their package may stand in the context, as they do when one works on a known repository. `held_out` in the results
tells whether that was possible.

    RUN/repository/results.json    one row for each length
    RUN/repository/cases.jsonl     every case: what was asked, what was said, its likelihoods

Cost: three passes over a window for each case. What this does not do: rank files, or complete more than one name.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from data.closed_pipe import until_closed
from data.encode import assemble_runs
from data.workbench.source import SourceFile, read_source
from evals.bootstrap import ratio_interval
from evals.needle import listed_numbers
from evals.needle_answer import Reader
from evals.repository_cases import CONDITIONS, Case, Windows, find_cases
from evals.summary import read_jsonl, write_whole
from model.device import (
    add_device_arguments,
    autocast,
    computed_on,
    device_of,
    resolve_compute_dtype,
    resolve_device,
)
from model.load import LoadedModel, load


class Completer(Protocol):
    """What is asked: a name after a prompt."""

    def __call__(self, prompt: list[int], answer: list[int]) -> tuple[str, float]:
        """(text said after the prompt, log-likelihood of `answer` there in nats)."""


@dataclass(frozen=True)
class RepositoryConfig:
    """What is measured. Raises ValueError, telling the remedy, for settings that cannot work."""

    lengths: tuple[int, ...] = (2048,)
    """Tokens of the prompt, the package's files included."""
    trials: int = 100
    """Cases that are asked; fewer where the source has fewer."""
    seed: int = 0
    """Chooses the cases and the other packages."""

    def __post_init__(self):
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        if not self.lengths or min(self.lengths) < 64:
            raise ValueError(f"lengths = {self.lengths}: give numbers of tokens from 64 on, such as 2048,8192")
        if self.trials < 1:
            raise ValueError(f"trials = {self.trials}: give 1 or more")


def completer_of(loaded: LoadedModel, *, compute_dtype: torch.dtype | None = None) -> Completer:
    """A model as a `Completer`. compute_dtype: of the matrix products; None for the weights' own."""
    device = device_of(loaded.model)

    def complete(prompt: list[int], answer: list[int]) -> tuple[str, float]:
        with autocast(device, compute_dtype):
            place = float(len(prompt) - 1)
            context = assemble_runs([prompt[:-1]], loaded.encode_config)
            last = assemble_runs([prompt[-1:]], loaded.encode_config, place=place)
            reader = Reader(loaded.model, context, vocab_size=loaded.tokenizer.vocab_size)
            said = reader.answers([last], max_tokens=len(answer) + 4)[0]
            return loaded.tokenizer.decode(said), reader.log_likelihood([last], [answer])[0]

    return complete


def is_right(said: str, answer: str) -> bool:
    """Is the first thing said the whole name?"""
    name = re.match(r" ?([A-Za-z_]\w*)", said)
    return name is not None and name.group(1) == answer


def ask(
    windows: Windows,
    cases: list[Case],
    complete: Completer,
    num_tokens: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """One JSON object for each case at one length: for each condition what was said, whether it is right, and the
    nats."""
    lines = []
    for case in cases:
        line: dict[str, Any] = {"length": num_tokens, "path": case.path, "answer": case.answer,
                                "defined_in": case.defined_in,
                                "whole_package": windows.whole(case, num_tokens=num_tokens)}  # fmt: skip
        for condition in CONDITIONS:
            said, nats = complete(*windows.window(case, condition, num_tokens=num_tokens))
            line[condition] = {"said": said, "right": is_right(said, case.answer), "nats": round(nats, 4)}
        lines.append(line)
        if progress is not None:
            progress(1)
    return lines


def row_of(lines: list[dict[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Exact match and log-likelihood by condition, and what the package is worth, as JSON with intervals over cases."""
    ones = np.ones(len(lines))

    def mean(values: list[float]) -> dict[str, float | None]:
        interval = ratio_interval(np.array(values, float), ones, seed=seed)
        return {"value": interval.value, "low": interval.low, "high": interval.high}

    whole = sum(line["whole_package"] for line in lines)
    row: dict[str, Any] = {"length": lines[0]["length"], "cases": len(lines), "whole_packages": whole}
    for condition in CONDITIONS:
        row[condition] = {
            "exact": mean([line[condition]["right"] for line in lines]),
            "nats": mean([line[condition]["nats"] for line in lines]),
        }
    for against in CONDITIONS[1:]:
        row[f"worth_against_{against}"] = mean([line["with"]["nats"] - line[against]["nats"] for line in lines])
    return row


def console_table(rows: list[dict[str, Any]]) -> str:
    """Aligned lines, one a length."""
    lines = [f"{'length':>8}{'cases':>7}   exact with/without/other     nats with/without/other    "
             "worth against none, another"]  # fmt: skip
    for row in rows:
        exact = " ".join(f"{row[name]['exact']['value']:8.3f}" for name in CONDITIONS)
        nats = " ".join(f"{row[name]['nats']['value']:8.2f}" for name in CONDITIONS)
        worth = ", ".join(
            f"{entry['value']:+.2f} [{entry['low']:+.2f}, {entry['high']:+.2f}]"
            for entry in (row[f"worth_against_{name}"] for name in CONDITIONS[1:])
        )
        lines.append(f"{row['length']:>8,}{row['cases']:>7}  {exact}   {nats}    {worth}")
    return "\n".join(lines)


def held_out_paths(run: Path, files: list[SourceFile]) -> set[str] | None:
    """Paths of files that the run's workbench corpus did not train on; None where the run does not say."""
    lines = read_jsonl(run / "corpus" / "manifest.jsonl")
    trained = {line.get("source") for line in lines if line.get("split") == "train" and line.get("source")}
    return {item.path for item in files} - trained if trained else None


def measure(
    loaded: LoadedModel,
    run: Path,
    out: Path,
    config: RepositoryConfig,
    *,
    source: Path | None = None,
    compute_dtype: torch.dtype | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Ask, write results.json and cases.jsonl into `out`, return the results.

    Raises ValueError when the source has no line that another file completes.
    """  # fmt: skip
    files, _ = read_source(source)
    completed = held_out_paths(run, files)
    cases = find_cases(files, completed=completed, seed=config.seed)
    if not cases:
        raise ValueError(
            "no line of the held-out files needs a definition of another file: point --source at another repository"
        )
    windows = Windows(files, tokenizer=loaded.tokenizer, seed=config.seed)
    complete = completer_of(loaded, compute_dtype=compute_dtype)
    out.mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    chosen = cases[: config.trials]
    for length in config.lengths:
        with tqdm(total=len(chosen), desc=f"{length:,} tokens", unit="case", disable=quiet, leave=False) as bar:
            found = ask(windows, chosen, complete, length, progress=bar.update)
        rows.append(row_of(found, seed=config.seed))
        lines += found
        results = {
            "held_out": completed is not None, "cases_found": len(cases), "seed": config.seed, "rows": rows,
            "computed": computed_on(loaded.model, compute_dtype),
        }  # fmt: skip
        write_whole(out / "cases.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m evals.repository`."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.repository",
        description="Let a trained model complete names that another file of the same package defines, with the "
        "package in the context, without it, and with another package.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run (runs/workbench), a stage, or a model folder")
    parser.add_argument("--lengths", type=listed_numbers, default=(2048,), metavar="N,N,...",
                        help="tokens of the prompt (default 2048)")  # fmt: skip
    parser.add_argument("--trials", type=int, default=100, help="cases that are asked (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the cases (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as this process may use")
    parser.add_argument("--source", type=Path, help="another repository (default: the standard library)")
    parser.add_argument("--out", type=Path, help="folder for the results (default RUN/repository)")
    add_device_arguments(parser)
    return parser


@until_closed
def main(argv: list[str] | None = None) -> int:
    """Measure and print the table. A user's mistake ends with one line on standard error and status 2."""
    options = build_parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = RepositoryConfig(options.lengths, options.trials, options.seed)
        out = options.out or options.run / "repository"
        device = resolve_device(options.device)
        results = measure(
            load(options.run, device=device), options.run, out, config, source=options.source,
            compute_dtype=resolve_compute_dtype(options.dtype, device),
        )  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; lengths that were finished are written", file=sys.stderr)
        return 130
    held = "files that the run did not train on" if results["held_out"] else "any file, the run names none"
    print(f"{console_table(results['rows'])}\n\ncompleted: {held}; {out / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
