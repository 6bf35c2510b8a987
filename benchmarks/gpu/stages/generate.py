"""Stage `generate`: tokens per second of generation, by `benchmarks.context.generate`, which puts each figure on disk
itself (`generate.jsonl`); its lines are then recorded here too, with where they were made."""

from __future__ import annotations

import importlib.util
import json
import sys

from benchmarks.gpu.stage import StageContext, SuiteItem, run_command


def items(toy: bool) -> list[SuiteItem]:
    """The benchmark as a whole."""
    return [SuiteItem("benchmark", 120 if toy else 280)]


def run(item: SuiteItem, context: StageContext) -> None:
    """Start it; every line of JSON is a result."""
    if importlib.util.find_spec("benchmarks.context.generate") is None:
        context.record(skipped="there is no benchmarks/context/generate.py")
        return
    log = context.out / "generate.txt"
    seconds = min(item.timeout_s, context.left_s()) - 5
    command = [
        sys.executable,
        "-m",
        "benchmarks.context.generate",
        "--device",
        context.device,
        "--out",
        str(context.out),
    ]
    command += ["--minutes", f"{max(0.5, 0.8 * seconds / 60):.2f}", *["--toy"] * context.toy]
    code = run_command(command, log=log, seconds=seconds)
    cut = 0
    for number, text in enumerate(log.read_text(errors="replace").splitlines()):
        if text.startswith("{"):
            try:
                context.record(f"line-{number}", said=json.loads(text))
            except ValueError:
                cut += 1
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    context.record(exit_code=code, last=last[:300], lines_cut=cut)
    if code != 0:
        ended = "took longer than its time" if code is None else f"ended with {code}"
        raise RuntimeError(f"benchmarks.context.generate {ended}: {last[:300]}")
