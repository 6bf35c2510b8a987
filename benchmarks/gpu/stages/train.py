"""Stage `train`: steps of the 1B model beside the planner's estimate, and a short run of the whole pipeline.

    steps-65536, steps-262144      `benchmarks.training.train_gpu`: settings as planned for this GPU, memory,
                                   seconds, MFU; what "auto" takes for attention, and `-triton` by our kernels alone
    line                           train.py from corpus to report in a minute or two, started as a user starts it

The line takes the corpus that was brought along (`--corpus`), else text from Python's own library. Its figures are
those that it writes itself (metrics.jsonl, summary.json); its output is in `line.txt`. The planner's estimate is
written before a step begins: memory that does not suffice has a number beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.corpus import text_corpus, unpack
from benchmarks.gpu.stage import StageContext, SuiteItem, run_command
from benchmarks.training import train_gpu

LENGTHS = (65_536, 262_144)
ENDS = {0: "by itself", 130: "asked to stop", -signal.SIGTERM: "asked to stop, between training and training"}
"""What exit codes of train.py mean that are no failure: between two trainings a stage starts again."""
SHORT = (
    "--small.num-steps", "40", "--large.num-steps", "60", "--small.validate-every", "20",
    "--large.validate-every", "30", "--small.log-every", "5", "--large.log-every", "5",
    "--evals.documents-per-cell", "16", "--evals.transcripts-per-cell", "4",
)  # fmt: skip
TINY = (
    "--arms",
    "baseline",
    "--large.num-steps",
    "2",
    "--large.warmup-steps",
    "1",
    "--large.validate-every",
    "1",
    "--large.global-batch-size",
    "1",
    "--large.micro-batch-size",
    "1",
    "--large.model.num-layers",
    "1",
    "--large.model.dim",
    "32",
    "--large.log-every",
    "1",
    "--evals.documents-per-cell",
    "1",
    "--evals.transcripts-per-cell",
    "1",
    "--evals.max-new-tokens",
    "4",
    "--evals.validation-per-cell",
    "1",
    "--evals.bootstrap-resamples",
    "100",
    "--runtime.compile",
    "False",
)


def items(toy: bool) -> list[SuiteItem]:
    """Steps first: each in its own process, whose memory is measured."""
    if toy:
        return [SuiteItem("steps-toy", 120, fresh=True), SuiteItem("line", 240)]
    steps = [SuiteItem(f"steps-{length}", 200, fresh=True, least_s=60) for length in LENGTHS]
    return [steps[0], SuiteItem("line", 240, least_s=60), steps[1], replace(steps[0], name=f"{steps[0].name}-triton")]


def run(item: SuiteItem, context: StageContext) -> None:
    """Do one item."""
    if item.name == "line":
        line("line", TINY if context.toy else SHORT, context, seconds=min(item.timeout_s, context.left_s()) - 5)
    else:
        measure(item.name.removeprefix("steps-"), context)


def measure(name: str, context: StageContext, steps: tuple[str, ...] = train_gpu.STEPS) -> None:
    """Steps of one length. name: a case of `train_gpu`, with "-" and a backend of attention if it is not "auto"."""
    name, _, backend = name.partition("-")
    backend = backend or "auto"
    options = argparse.Namespace(quick=context.toy, host_gib=context.host_gib, gpu_gib=context.gpu_gib)
    sheet = train_gpu.this_device(options, context.device)
    settings = train_gpu.settings(options, context.device, sheet, backend=backend)
    if name not in settings:
        context.record(skipped=f"the planner finds no way for {name} tokens here; it finds {', '.join(settings)}")
        return
    if context.device == "cuda":
        context.record(
            "sheet", gpu=sheet.name, matmul_flops=sheet.matmul_flops, host_gib=sheet.host_memory_bytes / 2**30
        )
    train_gpu.measure(
        settings[name],
        sheet,
        steps=steps,
        backend=backend,
        on_step=lambda step, figures: context.record(step, **_flat(figures)),
    )
    if context.device == "cuda":
        context.record("memory", **{k: v for k, v in torch.cuda.memory_stats().items() if k in (
            "num_alloc_retries", "num_ooms", "inactive_split_bytes.all.peak")})  # fmt: skip


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    # the case's own name is the item's
    return {name: value for name, value in figures.items() if name != "case"}


def corpus_of(context: StageContext) -> tuple[Path, str]:
    """(folder of an encoded corpus, what it is)."""
    if context.corpus is not None:
        return unpack(context.corpus, context.work), "brought along"
    return text_corpus(context.work, toy=context.toy), "text alone: none was brought along (--corpus)"


def line(name: str, fields: tuple[str, ...], context: StageContext, *, seconds: float, again: bool = False) -> None:
    """train.py demo on the encoded corpus, reported as far as it comes. again: resume an earlier one.

    Raises RuntimeError, after reporting, where it ended neither by itself nor because it was asked to.
    """
    corpus, kind = corpus_of(context)
    runs = context.work / f"runs-{name}"
    if not again:
        shutil.rmtree(runs, ignore_errors=True)
    resumed = (runs / "demo").exists()
    command = [sys.executable, "train.py", "demo", "--corpus.manifest", str(corpus), "--runs", str(runs), *fields]
    start = time.monotonic()
    code = run_command(command, log=context.out / f"{name}.txt", seconds=seconds, gentle=True)
    record_run(context, runs / "demo")
    last = _last_line(context.out / f"{name}.txt")
    context.record(
        exit_code=code, s=round(time.monotonic() - start, 1), corpus=kind, resumed=resumed, last=last,
        ended="killed" if code is None else ENDS.get(code, "with an error"),
    )  # fmt: skip
    if code is None:
        raise RuntimeError("train.py was asked to stop and had not saved twenty seconds later")
    if code not in ENDS:
        raise RuntimeError(f"train.py ended with {code}: {last}")


def record_run(context: StageContext, run_folder: Path) -> None:
    """What the stages of a run wrote: their first and last logged steps, the best MFU, the last validation, the
    backends that their kernels chose, and the summary if it came to that."""
    for path in sorted(run_folder.glob("*/metrics.jsonl")):
        lines = _lines(path)
        steps = [line for line in lines if "time" in line]
        validations = [line for line in lines if "validation" in line]
        chosen = [event["backends"] for event in _lines(path.with_name("events.jsonl")) if event.get("backends")]
        if steps:
            context.record(
                path.parent.name,
                steps=len(steps),
                first=steps[0],
                last=steps[-1],
                validation=validations[-1] if validations else None,
                best_mfu=max((step["time"].get("mfu") or 0.0) for step in steps),
                # of that process, not of this one
                chose=chosen[-1] if chosen else None,
            )
    summary = run_folder / "summary.json"
    if summary.exists():
        context.record("summary", **{f"run_{k}": v for k, v in json.loads(summary.read_text()).items()})


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON; a process that was killed may have left half of one."""
    text = path.read_text() if path.exists() else ""
    # the last one is whole where it ends
    return [json.loads(row) for row in text.splitlines(keepends=True) if row.endswith("}\n")]


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
