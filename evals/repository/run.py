"""Completion of names that another file of the package defines, with and without the package: `brine repository`.

    RUN/repository/results.json    one entry for each length
    RUN/repository/cases.jsonl     every case: answer, responses, likelihoods

The greedy completion is correct when it is the whole name. Small models rarely complete one, so each name's
log-likelihood is reported too, in nats, and its paired gain with the package over none and over another package of the
same length. Intervals resample cases. Files that the run was trained on are left out where the run names them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brine.common.command_line import command, parse
from brine.common.files import read_jsonl
from brine.common.formatting import progress_bar
from brine.common.tables import as_text, table
from brine.data.encode import assemble_chunks
from brine.data.files.source_files import SourceFile, read_source
from brine.evals.config import ratio_interval
from brine.evals.needle.prefix_decoder import PrefixDecoder
from brine.evals.repository.cases import CONTEXT_CONDITIONS, WITH_PACKAGE, CompletionCase, CompletionPrompts, find_cases
from brine.evals.run_files import format_interval, write_jsonl, write_results
from brine.inference.load import LoadedModel, load
from brine.inference.options import ComputeOptions, Integers, Run
from brine.model.device import autocast, compute_info, device_of

CompletionFn = Callable[[list[int], list[int]], tuple[str, float]]
"""(prompt, answer) -> (text generated after the prompt, log-likelihood of the answer there in nats)."""


@dataclass(frozen=True)
class RepositoryConfig:
    """What is measured. Raises ValueError for settings that cannot work."""

    lengths: Integers = (2048,)
    """Tokens of the prompt, the package's files included."""
    trials: int = 100
    """Number of cases; fewer where the source has fewer."""
    seed: int = 0
    """Seed of the cases and the other packages."""

    def __post_init__(self):
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        if not self.lengths or min(self.lengths) < 64:
            raise ValueError(f"lengths = {self.lengths}: give numbers of tokens from 64 on, such as 2048,8192")
        if self.trials < 1:
            raise ValueError(f"trials = {self.trials}: give 1 or more")


def completion_fn_of(loaded: LoadedModel, *, compute_dtype: torch.dtype | None = None) -> CompletionFn:
    """A model as a `CompletionFn`. compute_dtype: of matmuls; None for the weights'."""
    device = device_of(loaded.model)

    def complete(prompt: list[int], answer: list[int]) -> tuple[str, float]:
        with autocast(device, compute_dtype):
            context = assemble_chunks([prompt[:-1]], loaded.encode_config)
            last = assemble_chunks([prompt[-1:]], loaded.encode_config, position_offset=float(len(prompt) - 1))
            decoder = PrefixDecoder(loaded.model, context, vocab_size=loaded.tokenizer.vocab_size)
            response = decoder.generate_greedy([last], max_tokens=len(answer) + 4)[0]
            return loaded.tokenizer.decode(response), decoder.log_likelihood([last], [answer])[0]

    return complete


def is_exact_match(response: str, answer: str) -> bool:
    """Does the response begin with the whole name?"""
    name = re.match(r" ?([A-Za-z_]\w*)", response)
    return name is not None and name.group(1) == answer


def complete_cases(
    prompts: CompletionPrompts, cases: list[CompletionCase], complete: CompletionFn, num_tokens: int
) -> list[dict[str, Any]]:
    """One JSON object for each case at one length: response, exact match and nats under each condition."""
    lines = []
    for case in progress_bar(cases, desc=f"{num_tokens:,} tokens", unit="case", leave=False):
        line: dict[str, Any] = {"length": num_tokens, "path": case.path, "answer": case.answer}
        line["defined_in"] = case.defined_in
        line["has_full_package"] = prompts.fits_full_package(case, num_tokens=num_tokens)
        for condition in CONTEXT_CONDITIONS:
            response, nats = complete(*prompts.window(case, condition, num_tokens=num_tokens))
            is_exact = is_exact_match(response, case.answer)
            line[condition] = {"response": response, "is_exact": is_exact, "nats": round(nats, 4)}
        lines.append(line)
    return lines


def summarize_cases(lines: list[dict[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Exact match and log-likelihood by condition, and the package's gains, as JSON with intervals over cases."""

    def mean(values: list[float]) -> dict[str, float | None]:
        interval = ratio_interval(np.array(values, float), np.ones(len(lines)), seed=seed)
        return {"value": interval.value, "low": interval.low, "high": interval.high}

    nats = {name: [line[name]["nats"] for line in lines] for name in CONTEXT_CONDITIONS}
    found: dict[str, Any] = {
        "length": lines[0]["length"],
        "cases": len(lines),
        "num_full_packages": sum(line["has_full_package"] for line in lines),
    }
    for name in CONTEXT_CONDITIONS:
        found[name] = {"exact": mean([line[name]["is_exact"] for line in lines]), "nats": mean(nats[name])}
    for name in CONTEXT_CONDITIONS[1:]:
        gains = [ours - theirs for ours, theirs in zip(nats[WITH_PACKAGE], nats[name], strict=True)]
        found[f"gain_over_{name}"] = mean(gains)
    return found


def console_table(results: list[dict[str, Any]]) -> str:
    """One line for each length, as aligned text."""
    rows = []
    for found in results:
        exact = " ".join(f"{found[name]['exact']['value']:.3f}" for name in CONTEXT_CONDITIONS)
        nats = " ".join(f"{found[name]['nats']['value']:.2f}" for name in CONTEXT_CONDITIONS)
        gains = (format_interval(found[f"gain_over_{name}"], "value", "+z.2f") for name in CONTEXT_CONDITIONS[1:])
        rows.append((found["length"], found["cases"], exact, nats, *gains))
    head = ("length", "cases", "exact with/without/other", "nats with/without/other", "gain over none", "over other")
    return as_text(table(head, rows))


def held_out_paths(run: Path, files: list[SourceFile]) -> set[str] | None:
    """Paths of files that the run's synthetic corpus did not train on; None where the run does not say."""
    lines = read_jsonl(run / "corpus" / "manifest.jsonl")
    trained = {line.get("source") for line in lines if line.get("split") == "train" and line.get("source")}
    return {item.path for item in files} - trained if trained else None


def evaluate_repository(
    loaded: LoadedModel, run: Path, out: Path, config: RepositoryConfig, *, source: Path | None = None,
    compute_dtype: torch.dtype | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure, write results.json and cases.jsonl into `out`, return the results.

    Raises ValueError when the source has no case.
    """
    files, _ = read_source(source)
    completed = held_out_paths(run, files)
    cases = find_cases(files, completed=completed, seed=config.seed)
    if not cases:
        raise ValueError("no held-out file needs a definition of another file: give another repository as --source")
    prompts = CompletionPrompts(files, tokenizer=loaded.tokenizer, seed=config.seed)
    complete = completion_fn_of(loaded, compute_dtype=compute_dtype)
    out.mkdir(parents=True, exist_ok=True)
    by_length, lines, chosen = [], [], cases[: config.trials]
    for length in config.lengths:
        found = complete_cases(prompts, chosen, complete, length)
        by_length.append(summarize_cases(found, seed=config.seed))
        lines += found
        results = {"held_out": completed is not None, "cases_found": len(cases), "seed": config.seed}
        results |= {"by_length": by_length, "compute_info": compute_info(loaded.model, compute_dtype)}
        write_jsonl(out / "cases.jsonl", lines)
        write_results(out / "results.json", results)
    return results


@dataclass(frozen=True, kw_only=True)
class RepositoryRequest(ComputeOptions):
    """Complete names that another file of the same package defines, with the package in the context, without it, and
    with another package."""

    run_folder: Run
    """A run (runs/synth), a stage of it, or a model folder."""
    config: RepositoryConfig = field(default_factory=RepositoryConfig)
    """What is measured."""
    source: Path | None = None
    """Another repository; the standard library if not given."""
    out: Path | None = None
    """Folder for the results; RUN/repository if not given."""

    def run(self) -> None:
        """Print a table. Raises ValueError for a mistake in the request."""
        device, compute_dtype = self.resolve()
        run, folder = self.run_folder, self.out or self.run_folder / "repository"
        loaded = load(run, device=device)
        results = evaluate_repository(loaded, run, folder, self.config, source=self.source, compute_dtype=compute_dtype)
        cases = "held-out files" if results["held_out"] else "any file, since the run does not say which are held out"
        print(f"{console_table(results['by_length'])}\n\ncases from: {cases}; {folder / 'results.json'}")


main = command(partial(parse, "repository", RepositoryRequest), interrupted="interrupted")
