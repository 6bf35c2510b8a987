"""Stage `generate`: tokens a second of generation, by `benchmarks.generate`, which puts each figure on disk itself
(`generate.jsonl`); its lines are then told here too, with where they were made."""

from __future__ import annotations

import importlib.util
import json
import sys

from benchmarks.card_stage import Context, Item, run_command


def items(toy: bool) -> list[Item]:
    """The benchmark as a whole."""
    return [Item("benchmark", 120 if toy else 280)]


def run(item: Item, context: Context) -> None:
    """Start it; every line of JSON is a result."""
    if importlib.util.find_spec("benchmarks.generate") is None:
        context.record(skipped="there is no benchmarks/generate.py")
        return
    log = context.out / "generate.txt"
    seconds = min(item.timeout_s, context.left_s()) - 5
    command = [sys.executable, "-m", "benchmarks.generate", "--device", context.device, "--out", str(context.out)]
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
        raise RuntimeError(f"benchmarks.generate {ended}: {last[:300]}")
