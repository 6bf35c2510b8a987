"""Does it find things? Needles in long contexts, in every modality, by depth and length.

    python -m evals.needle runs/needle --lengths 2048,4096,8192 --modality text,image,audio,video

Contexts are made offline from a seed (`data/workbench/needle_contexts.py`): a haystack of an exact length, ten
needles at depths from 0 to 100 %, each asked on its own at the end. The answer is decoded greedily and is right
when it is exactly the value (for `chain` the way to it too). One who knows the form and guesses is right in 1 of
100 trials; that chance is shown beside every result. 500 trials of a modality and length are 50 contexts of ten,
and intervals resample contexts.

    RUN/needle/results.json    one cell for each modality and length, with its ten depths; settings; the model's digest
    RUN/needle/trials.jsonl    every trial: depth, key, answer, what was said
    RUN/report.html            heat maps of depth and length, where the run has a report

A cell that was measured with the same settings and weights is not measured again, so more lengths can be added
later, and a measurement that was cut off goes on. Cost: one pass over 62 times the shortest length for each context
at five lengths; attention of global layers grows with the square. What this does not do: train (recipes/needle.py),
or read a model that is not ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.closed_pipe import until_closed
from data.tokenizer import Tokenizer
from data.workbench.needle import CHANCE
from data.workbench.needle_contexts import TASKS, Context, Contexts, check_libraries
from data.workbench.source import read_source
from evals.needle_answer import Reader
from evals.needle_table import cell_of, console_table
from evals.summary import read_json, read_jsonl, write_whole
from model.device import (
    add_device_arguments,
    autocast,
    computed_on,
    device_of,
    resolve_compute_dtype,
    resolve_device,
)
from model.load import LoadedModel, load

Answer = Callable[[Context], list[str]]
"""Context -> what is said to each of its questions, up to the line end."""
MAX_ANSWER_TOKENS = 8
"""Longest answer that is decoded; the longest right one has five characters."""


@dataclass(frozen=True)
class NeedleConfig:
    """What is measured. Raises ValueError, telling the remedy, for settings that cannot work."""

    modalities: tuple[str, ...] = ("text", "image", "audio", "video")
    """What to ask for: text, image, audio, video, chain, multikey."""
    lengths: tuple[int, ...] = (2048,)
    """Tokens of context and question together."""
    trials: int = 500
    """Questions for each modality and length."""
    needles: int = 10
    """Needles in each context, each asked on its own; 1 is the classical single needle, at ten times the cost."""
    seed: int = 0
    """Decides contexts and intervals."""
    source: Path | None = None
    """Folder of code that haystacks are made of; None: the running interpreter's standard library."""

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
    def num_contexts(self) -> int:
        """Contexts of each modality and length."""
        return -(-self.trials // self.needles)

    def settings(self) -> dict[str, Any]:
        """What a cell's result depends on, besides its modality and length and the weights."""
        return {"trials": self.num_contexts * self.needles, "needles": self.needles, "seed": self.seed,
                "source": str(self.source) if self.source else "the standard library"}  # fmt: skip


def answer_with(loaded: LoadedModel, *, compute_dtype: torch.dtype | None = None) -> Answer:
    """Greedy answers of a model. compute_dtype: of the matrix products; None for the weights' own."""
    device = device_of(loaded.model)

    def answer(context: Context) -> list[str]:
        with autocast(device, compute_dtype):
            reader = Reader(loaded.model, context.sequence, vocab_size=loaded.tokenizer.vocab_size)
            said = reader.answers(
                [question.prompt for question in context.questions],
                max_tokens=MAX_ANSWER_TOKENS,
                stop=newline_ids(loaded.tokenizer),
            )
        return [loaded.tokenizer.decode(ids).split("\n")[0] for ids in said]

    return answer


def newline_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids whose text begins with a line end: an answer is over there."""
    return [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token).startswith(b"\n")]


def ask(
    contexts: Contexts,
    answer: Answer,
    task: str,
    num_tokens: int,
    config: NeedleConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """All trials of one modality and length, as JSON objects. progress(trials newly done) after each context.

    Raises ValueError when the needles do not fit into the length.
    """
    trials = []
    for number in range(config.num_contexts):
        context = contexts.make(task, num_tokens=num_tokens, number=number, num_needles=config.needles)
        for question, said in zip(context.questions, answer(context), strict=True):
            trials.append(
                {
                    "modality": task,
                    "length": num_tokens,
                    "context": number,
                    "depth": round(question.depth, 5),
                    "key": question.key,
                    "answer": question.answer,
                    "said": said,
                    "right": said == question.answer,
                }
            )
        if progress is not None:
            progress(len(context.questions))
    return trials


def measure(
    loaded: LoadedModel,
    folder: Path,
    config: NeedleConfig,
    *,
    trained_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure what `folder` does not hold yet and write results.json and trials.jsonl there; returns the results.

    trained_tokens: row length of the training, shown beside the results. Raises ValueError where a library is missing
    that the modalities need, and for lengths that are too short.
    """
    check_libraries(config.modalities)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = {**config.settings(), "model": weights_digest(loaded.folder)}
    before = read_json(folder / "results.json")
    kept = before["cells"] if isinstance(before, dict) and before.get("settings") == fresh else []
    trials = read_jsonl(folder / "trials.jsonl") if kept else []
    done = {(cell["modality"], cell["length"]) for cell in kept}
    files, _ = read_source(config.source)
    results = {"settings": fresh, "chance": CHANCE, "trained_tokens": trained_tokens, "cells": kept}
    with Contexts(files, tokenizer=loaded.tokenizer, config=loaded.encode_config, seed=config.seed) as contexts:
        # a length that is too short for one modality is told before hours are spent on the others
        for task in config.modalities:
            contexts.make(task, num_tokens=config.lengths[0], number=0, num_needles=config.needles)
        for length in config.lengths:
            for task in config.modalities:
                if (task, length) in done:
                    continue
                start = time.perf_counter()
                with tqdm(
                    total=config.num_contexts * config.needles, desc=f"{task}, {length:,} tokens", unit="trial",
                    disable=quiet, leave=False,
                ) as bar:  # fmt: skip
                    found = ask(
                        contexts, answer_with(loaded, compute_dtype=compute_dtype), task, length, config,
                        progress=bar.update,
                    )  # fmt: skip
                trials += found
                cell = {**cell_of(found, seed=config.seed), "wall_s": _seconds_since(start)}
                # cells of one file may have been measured on different machines
                results["cells"].append(cell | {"computed": computed_on(loaded.model, compute_dtype)})
                lines = "".join(json.dumps(trial, ensure_ascii=False) + "\n" for trial in trials)
                write_whole(folder / "trials.jsonl", lines)
                write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
                say(console_table([results["cells"][-1]], head=False))
    return results


def _seconds_since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def weights_digest(folder: Path) -> str:
    """Hex SHA-256 of a model folder's weights."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m evals.needle`."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.needle",
        description="Ask a trained model for needles in long contexts and report exact match by depth and length.",
        epilog="Results are kept in RUN/needle; what was measured before with the same settings is not measured again.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run (runs/needle), a stage of it, or a model folder")
    parser.add_argument("--lengths", type=listed_numbers, default=(2048,), metavar="N,N,...",
                        help="tokens of context and question together (default 2048)")  # fmt: skip
    parser.add_argument("--modality", type=_listed, default=("text", "image", "audio", "video"), metavar="M,M,...",
                        help=f"from {', '.join(TASKS)} (default text,image,audio,video)")  # fmt: skip
    for name, default, text in (
        ("trials", 500, "questions for each modality and length"),
        ("needles", 10, "needles in each context, each asked on its own; 1 is the single needle"),
        ("seed", 0, "decides the contexts"),
        ("threads", 0, "CPU threads; 0: as many as this process may use"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default %(default)s)")
    parser.add_argument("--source", type=Path, help="folder of code for the haystacks (default: the standard library)")
    parser.add_argument("--out", type=Path, help="folder for the results (default RUN/needle)")
    add_device_arguments(parser)
    return parser


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def listed_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas, as an argument's type; argparse says what is wrong with another text."""
    try:
        return tuple(int(item) for item in _listed(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers such as 2048,4096") from None


@until_closed
def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, renew the report. A user's mistake ends with one line on standard error and status
    2."""
    options = build_parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = NeedleConfig(options.modality, options.lengths, options.trials, options.needles, options.seed,
                              options.source)  # fmt: skip
        device = resolve_device(options.device)
        loaded = load(options.run, device=device)
        out = options.out or options.run / "needle"
        rows = (read_json(options.run / "recipe.json") or {}).get("rows") or {}
        results = measure(
            loaded, out, config, trained_tokens=rows.get("row_tokens"),
            compute_dtype=resolve_compute_dtype(options.dtype, device),
            say=tqdm.write,
        )  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    print(f"\n{console_table(results['cells'])}\n\nchance {results['chance']:.2f}; {out / 'results.json'}")
    if (options.run / "report.html").is_file() and options.out is None:
        # imported here: the report needs nothing of this file, and this file little of it
        from evals.report import write_report

        print(f"report: {write_report(options.run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
