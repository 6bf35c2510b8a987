"""Needle-in-a-haystack evaluation in every modality, by depth and length: the command `brine needle`.

    RUN/needle/results.json, trials.jsonl     one cell for each modality and length; every trial

Haystacks are generated from a seed (`synth/needles/haystacks.py`). The greedy answer is correct when it is exactly the
value (for `chain` also the way to it); guessing is correct in 1 of 100 trials. Intervals resample haystacks. Cells
measured with the same settings and weights are kept, so lengths can be added and an interrupted evaluation resumes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from brine.common.command_line import command, parse
from brine.common.files import file_digest, read_jsonl
from brine.common.formatting import progress_bar
from brine.data.files.source_files import read_source
from brine.evals.needle.prefix_decoder import PrefixDecoder
from brine.evals.needle.table import console_table, read_needle_results, summarize_trials
from brine.evals.report.page import write_report
from brine.evals.run_files import read_object, require_current_run, write_jsonl, write_results
from brine.inference.load import LoadedModel, load
from brine.inference.options import ComputeOptions, Integers, Names, Run
from brine.model.device import autocast, compute_info, device_of
from brine.synth.needles.haystacks import TASKS, Haystack, HaystackBuilder, check_dependencies
from brine.synth.needles.needle import CHANCE

AnswerFn = Callable[[Haystack], list[str]]
"""Haystack -> the response to each of its questions, up to the line end."""
MAX_ANSWER_TOKENS = 8
"""Longest response that is decoded; the longest answer has five characters."""


@dataclass(frozen=True)
class NeedleConfig:
    """What is measured. Raises ValueError for settings that cannot work."""

    modalities: Annotated[Names, tyro.conf.arg(name="modality")] = ("text", "image", "audio", "video")
    """Modalities and tasks: text, image, audio, video, chain, multikey."""
    lengths: Integers = (2048,)
    """Tokens of haystack and question together."""
    trials: int = 500
    """Questions for each modality and length."""
    needles: int = 10
    """Needles in each haystack, each with its question; 1 is the single-needle test, at ten times the cost."""
    seed: int = 0
    """Seed of haystacks and intervals."""
    source: Path | None = None
    """Folder of code that haystacks are made of; the standard library if not given."""

    def __post_init__(self):
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        unknown = [name for name in self.modalities if name not in TASKS]
        if unknown or not self.modalities:
            raise ValueError(f"unknown modality {', '.join(unknown) or '(none)'!r}: choose from {', '.join(TASKS)}")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths = {self.lengths}: give numbers of tokens, such as 2048,4096")
        if self.needles < 1 or self.trials < 1:
            raise ValueError(f"trials = {self.trials}, needles = {self.needles}: give 1 or more of each")

    @property
    def num_haystacks(self) -> int:
        """Haystacks of each modality and length."""
        return -(-self.trials // self.needles)

    def settings(self) -> dict[str, Any]:
        """What the result of a cell depends on, besides its modality, its length and the weights."""
        source = str(self.source) if self.source else "the standard library"
        trials = self.num_haystacks * self.needles
        return {"trials": trials, "needles": self.needles, "seed": self.seed, "source": source}


def greedy_answer_fn(loaded: LoadedModel, *, compute_dtype: torch.dtype | None = None) -> AnswerFn:
    """Greedy responses of a model. compute_dtype: of matmuls; None for the weights'."""
    device, tokenizer = device_of(loaded.model), loaded.tokenizer
    # a response is over at a line end
    stop = [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token).startswith(b"\n")]

    def answer(haystack: Haystack) -> list[str]:
        questions = [question.prompt for question in haystack.questions]
        with autocast(device, compute_dtype):
            decoder = PrefixDecoder(loaded.model, haystack.sequence, vocab_size=tokenizer.vocab_size)
            responses = decoder.generate_greedy(questions, max_tokens=MAX_ANSWER_TOKENS, stop=stop)
        return [tokenizer.decode(ids).split("\n")[0] for ids in responses]

    return answer


def run_trials(
    haystacks: HaystackBuilder, answer: AnswerFn, task: str, num_tokens: int, config: NeedleConfig
) -> list[dict[str, Any]]:
    """All trials of one modality and length, as JSON objects. Raises ValueError when the needles do not fit into it."""
    trials, title = [], f"{task}, {num_tokens:,} tokens"
    for number in progress_bar(range(config.num_haystacks), desc=title, unit="haystack", leave=False):
        haystack = haystacks.make(task, num_tokens=num_tokens, number=number, num_needles=config.needles)
        cell = {"modality": task, "length": num_tokens, "haystack": number}
        for question, response in zip(haystack.questions, answer(haystack), strict=True):
            said = {"answer": question.answer, "response": response, "is_exact": response == question.answer}
            trials.append(cell | {"depth": round(question.depth, 5), "key": question.key} | said)
    return trials


def evaluate_needles(
    loaded: LoadedModel, folder: Path, config: NeedleConfig, *, trained_context_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None, say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Measure the cells that `folder` does not have yet, write results.json and trials.jsonl there, return the results.

    trained_context_tokens: sequence length of the training, shown beside the results. Raises ValueError for a missing
    library and for lengths that are too short.
    """
    check_dependencies(config.modalities)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**config.settings(), "model": file_digest(loaded.folder / "model.safetensors")}
    before = read_needle_results(folder / "results.json")
    cells = before["cells"] if before.get("settings") == settings else []
    trials = read_jsonl(folder / "trials.jsonl") if cells else []
    done = {(cell["modality"], cell["length"]) for cell in cells}
    results = {
        "settings": settings, "chance": CHANCE, "trained_context_tokens": trained_context_tokens, "cells": cells
    }  # fmt: skip
    files, _ = read_source(config.source)
    answer = greedy_answer_fn(loaded, compute_dtype=compute_dtype)
    with HaystackBuilder(files, tokenizer=loaded.tokenizer, config=loaded.encode_config, seed=config.seed) as haystacks:
        # a length that is too short for one modality raises before the others are measured
        for task in config.modalities:
            haystacks.make(task, num_tokens=config.lengths[0], number=0, num_needles=config.needles)
        for length, task in [(length, task) for length in config.lengths for task in config.modalities]:
            if (task, length) in done:
                continue
            start = time.perf_counter()
            found = run_trials(haystacks, answer, task, length, config)
            trials += found
            cell = summarize_trials(found, seed=config.seed)
            cell["wall_s"] = round(time.perf_counter() - start, 1)
            # cells of one file may have been measured on different machines
            cell["compute_info"] = compute_info(loaded.model, compute_dtype)
            cells.append(cell)
            write_jsonl(folder / "trials.jsonl", trials)
            write_results(folder / "results.json", results)
            say(f"{task}, {length:,} tokens: exact {cell['exact']:.3f}")
    return results


@dataclass(frozen=True, kw_only=True)
class NeedleRequest(ComputeOptions):
    """Needle-in-a-haystack evaluation: exact match by depth and length.

    Results are kept in RUN/needle; cells measured before with the same settings and weights are not measured again."""

    run_folder: Run
    """A run (runs/needle), a stage of it, or a model folder."""
    config: NeedleConfig = field(default_factory=NeedleConfig)
    """What is measured."""
    out: Path | None = None
    """Folder for the results; RUN/needle if not given."""

    def run(self) -> None:
        """Print a table. Raises ValueError for a mistake in the request."""
        device, compute_dtype = self.resolve()
        run = self.run_folder
        if has_report := (run / "report.html").is_file() and self.out is None:
            require_current_run(run)
        loaded = load(run, device=device)
        recipe = read_object(run / "recipe.json")
        # former recipes call it rows
        packing = recipe.get("packing") or recipe.get("rows") or {}
        folder = self.out or run / "needle"
        results = evaluate_needles(
            loaded, folder, self.config, trained_context_tokens=packing.get("seq_len") or packing.get("row_tokens"),
            compute_dtype=compute_dtype, say=tqdm.write,
        )  # fmt: skip
        print(f"\n{console_table(results['cells'])}\n\nchance {results['chance']:.2f}; {folder / 'results.json'}")
        if has_report:
            print(f"report: {write_report(run)}")


main = command(
    partial(parse, "needle", NeedleRequest),
    interrupted="interrupted; measured cells are kept, the same command resumes",
)
