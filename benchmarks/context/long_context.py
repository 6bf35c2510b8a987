"""A million tokens on one machine: long prompts read and continued, long sequences trained on, long answers written.

    python -m benchmarks.context.long_context                     everything, some hours on two cores
    python -m benchmarks.context.long_context --cases prefill-1000000
    python -m benchmarks.context.long_context --cases train generate
    python -m benchmarks.context.long_context --device cuda --dtype auto      on a GPU, where none of it has run yet

**Cases**, each in its own process, whose peak memory on the host is compared with 10 GiB:

    prefill-N      a multimodal prompt of N tokens (text, images, audio and video in turn, `long_prompt.py`) read in
                   chunks by a model of 6 layers of width 256, 5 local and 1 global, and 64 tokens written after it
    train-N        training steps on one sequence of N tokens, one document, by the demo's large model (4 layers of
                   width 256): forward, fused head and loss, backward, AdamW, in bfloat16; blocks are recomputed in the
                   backward pass (attention apart) where their activations would not fit
    generate-NxB   N new tokens after each of B prompts of unequal length, by the demo's large model: tokens/s and
                   memory by position

Weights are random unless a trained model is given, which changes no cost. Prefill state is checkpointed every few
minutes in the work folder, and a case that has ended is kept there until all are recorded: after a kill the same
command continues and ends in bit-identical logits. Wall and CPU seconds are summed over sessions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.context.long_cases import PARTS, LongContextCase, measure
from benchmarks.context.long_prompt import make_material, write_prompt
from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from brine.model.device import COMPUTE_DTYPES, resolve_compute_dtype

NAME = "long_context"
TESTS = ("tests/inference/test_prefill.py", "tests/benchmarks/test_long_context.py")
LIMIT_GIB = 10.0
"""What each case may take, in all."""
CASES = (
    *(LongContextCase("prefill", tokens) for tokens in (16_384, 65_536, 262_144, 1_000_000)),
    *(LongContextCase("train", tokens) for tokens in (16_384, 65_536)),
    # 100 KB of activations per token would be over the limit
    LongContextCase("train", 131_072, checkpoint=True),
    LongContextCase("generate", 65_536),
    LongContextCase("generate", 16_384, batch=4),
)
QUICK = (
    LongContextCase("prefill", 2048, tiny=True),
    LongContextCase("train", 512, tiny=True),
    LongContextCase("generate", 128, batch=4, tiny=True),
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(NAME, "Reading, training on and writing very long sequences, on one CPU by default.")
    # what the limit is for, and what earlier results have
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, or auto: a GPU if available")
    made.add_argument("--dtype", choices=COMPUTE_DTYPES, default="bfloat16", help="of matmuls and KV cache")
    made.add_argument("--work", type=Path, default=Path("runs/long_context"), help="prompts, states and results")
    made.add_argument("--model", default="", metavar="FOLDER", help="a trained model instead of random weights")
    made.add_argument("--prefill-tokens", type=int, default=8192, help="longest chunk of a prompt")
    made.add_argument("--save-minutes", type=float, default=10.0, help="how often long reading saves its state")
    made.add_argument("--steps", type=int, default=2, help="training steps of a case")
    made.add_argument("--child", default="", help=argparse.SUPPRESS)
    return made


def run_child(case: LongContextCase, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a case in its own process -> its result, or {"skipped": reason}."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.context.long_context",
        "--child",
        case.name,
        "--work",
        str(options.work),
    ]
    command += [
        "--model",
        options.model,
        "--prefill-tokens",
        str(options.prefill_tokens),
        "--steps",
        str(options.steps),
    ]
    command += ["--save-minutes", str(options.save_minutes), "--threads", str(options.threads)]
    command += ["--device", case.device, "--dtype", case.dtype]
    command += ["--quick"] * options.quick
    done = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"case": case.name, "skipped": f"its process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def prepare_prompts(cases: list[LongContextCase], options: argparse.Namespace) -> None:
    """Have the prompts of all cases in the work folder."""
    lengths = sorted({length for case in cases for length in case.prompt_tokens})
    missing = [length for length in lengths if not (options.work / f"prompt-{length}" / "prompt.json").is_file()]
    if not missing:
        return
    argv = {}
    if options.model:
        from brine.inference.load import load

        trained = load(options.model)
        argv = {"tokenizer": trained.tokenizer, "config": trained.encode_config}
    corpus = make_material(options.work / "material", quick=options.quick, **argv)
    for length in missing:
        write_prompt(corpus, length, options.work / f"prompt-{length}")


def show(result: dict[str, Any]) -> str:
    """A case in lines."""
    if "skipped" in result:
        return f"\n{result['case']}: left out, {result['skipped']}"
    gpu = f", {result['gpu_peak_gib']:.2f} on the GPU" if "gpu_peak_gib" in result else ""
    head = f"\n{result['case']}: peak {result['peak_gib']:.2f} GiB (imports {result['imports_gib']:.2f}){gpu}"
    if result["kind"] == "prefill":
        return (
            f"{head}, read in {result['read_s']:.0f} s ({result['read_cpu_s']:.0f} s of processor, "
            f"{result['sessions']} sessions), {result['read_tokens_per_s']:.0f} tokens/s; cache "
            f"{result['cache_gib']:.2f} GiB; then {result['write_tokens_per_s']:.1f} tokens/s\n  {result['mixture']}"
        )
    if result["kind"] == "train":
        rows = []
        for name in PARTS:
            part = result["steps"][-1]["parts"][name]
            seconds = {f"step {i}, s": f"{step['parts'][name]['s']:.1f}" for i, step in enumerate(result["steps"], 1)}
            rows.append({"part": name, **seconds, "peak GiB": f"{part['peak_gib']:.2f}"})
        again = ", blocks recomputed" if result["checkpoint"] else ""
        return f"{head}{again}, {result['tokens_per_s']:.0f} tokens/s\n{harness.table(rows)}"
    first, last = result["points"][0], result["points"][-1]
    return (
        f"{head}, batch {result['batch']}: {result['first_tokens_per_s']:.0f} tokens/s at the beginning, "
        f"{result['last_tokens_per_s']:.0f} at the end, {result['write_s']:.0f} s in all; local layers hold "
        f"{first['local_cache_mib']:.2f} MiB at the beginning, {last['local_cache_mib']:.2f} at the end"
    )


def plot(record: dict[str, Any], path: Path) -> None:
    """Speed and time by position while reading, seconds by part of a training step, tokens/s while writing, peaks."""
    from matplotlib.figure import Figure

    results = [result for result in record["cases"] if "skipped" not in result]
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    read_axis, time_axis, peak_axis, train_axis, write_axis, cache_axis = figure.subplots(2, 3).flatten()
    for result in results:
        if result["kind"] == "prefill":
            _draw_reading(read_axis, time_axis, result)
        elif result["kind"] == "generate":
            _draw_writing(write_axis, cache_axis, result)
    _draw_training(train_axis, [result for result in results if result["kind"] == "train"])
    _draw_peaks(peak_axis, results)
    for axis, title, xlabel, ylabel in (
        (read_axis, "reading a prompt", "position, tokens", "tokens/s"),
        (time_axis, "reading a prompt, from its beginning", "tokens read", "minutes"),
        (peak_axis, "peak memory of the process", "GiB", ""),
        (train_axis, "one training step", "tokens in the sequence", "seconds"),
        (write_axis, "writing an answer", "1,024 tokens written (each sequence)", "ms a step"),
        (cache_axis, "memory while writing", "1,024 tokens written (each sequence)", "MiB"),
    ):
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    hardware = record["hardware"]
    figure.suptitle(f"long contexts on {hardware['processor']}, {hardware['threads']} threads, {hardware['commit']}")
    figure.savefig(path, dpi=110)


def _draw_reading(speed: Any, total: Any, result: dict[str, Any]) -> None:
    curve = result["curve"]
    # the rest that is left for the last chunk is too short to tell a speed
    whole = [point for point in curve if 2 * point["count"] > curve[0]["count"]]
    label = f"{result['tokens']:,} tokens"
    (line,) = speed.loglog(
        [point["read"] for point in whole], [point["count"] / point["s"] for point in whole], ".-", lw=1, label=label
    )
    positions = [point["read"] for point in curve]
    clock = [seconds / 60 for seconds in accumulate(point["s"] for point in curve)]
    processor = [seconds / 60 / result["threads"] for seconds in accumulate(point["cpu_s"] for point in curve)]
    total.loglog(positions, clock, lw=1, color=line.get_color(), label=f"{label}, clock")
    total.loglog(positions, processor, "--", lw=1, color=line.get_color(), label="processor / threads")
    total.plot(positions[-1], clock[-1], "o", color=line.get_color())
    total.annotate(f"{60 * clock[-1]:.0f} s ", (positions[-1], clock[-1]), fontsize=8, ha="right", va="bottom")
    for axis in (speed, total):
        axis.set_xticks([8192, 65_536, 262_144, 1_000_000], ["8k", "65k", "262k", "1M"])
        axis.set_xticks([], minor=True)
    speed.set_yticks([1000, 2000, 5000, 10_000, 20_000], ["1,000", "2,000", "5,000", "10,000", "20,000"])
    speed.set_yticks([], minor=True)
    speed.set_ylim(1000, 20_000)


def _draw_writing(speed: Any, memory: Any, result: dict[str, Any]) -> None:
    points, label = result["points"], "1 sequence" if result["batch"] == 1 else f"{result['batch']} sequences"
    positions = [point["written"] / 1024 for point in points]
    clock = [1e3 * point["s"] / point["count"] for point in points]
    (line,) = speed.plot(positions, clock, lw=1, label=f"{label}, clock")
    color = line.get_color()
    processor = [1e3 * point["cpu_s"] / point["count"] / result["threads"] for point in points]
    speed.plot(positions, processor, "--", lw=1, color=color, label=f"{label}, processor / threads")
    speed.set_ylim(bottom=0)
    memory.plot(positions, [1024 * point["resident_gib"] for point in points], color=color, label=f"{label}, process")
    local = [point["local_cache_mib"] for point in points]
    memory.plot(positions, local, ":", color=color, label=f"{label}, local layers' keys, values")
    memory.set(yscale="log", ylim=(0.05, 3e4))


def _draw_training(axis: Any, results: list[dict[str, Any]]) -> None:
    for position, result in enumerate(results):
        parts = min((step["parts"] for step in result["steps"]), key=lambda parts: sum(p["s"] for p in parts.values()))
        seconds = [parts[name]["s"] for name in PARTS]
        ends = list(accumulate(seconds, initial=0.0))
        for number, (name, height) in enumerate(zip(PARTS, seconds, strict=True)):
            axis.bar(position, height, 0.6, bottom=ends[number], color=f"C{number}", label=None if position else name)
        again = "\nblocks again" if result["checkpoint"] else ""
        axis.text(position, ends[-1], f"{result['peak_gib']:.1f} GiB{again}", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(range(len(results)), [f"{result['tokens']:,}" for result in results])
    axis.margins(y=0.15)


def _draw_peaks(axis: Any, results: list[dict[str, Any]]) -> None:
    axis.barh(range(len(results)), [result["peak_gib"] for result in results], color="C0")
    axis.barh(range(len(results)), [result["imports_gib"] for result in results], color="C7", label="libraries")
    axis.axvline(LIMIT_GIB, color="C3", ls="--", label="limit")
    axis.set_yticks(range(len(results)), [result["case"] for result in results], fontsize=8)
    axis.invert_yaxis()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    options = build_parser().parse_args(arguments)
    device = harness.prepare(options)
    dtype = "float32" if resolve_compute_dtype(options.dtype, device) is None else "bfloat16"
    cases = [replace(case, device=device, dtype=dtype) for case in (QUICK if options.quick else CASES)]
    cases = {case.name: case for case in cases}
    if options.child:
        print(json.dumps(measure(cases[options.child], options.work, options)))
        return 0
    names = harness.select(list(cases), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    chosen = [cases[name] for name in names]
    with tempfile.TemporaryDirectory() as toy:
        options.work = Path(toy) if options.quick else options.work
        try:
            record = harness.begin(NAME, options, device, TESTS)
        except gate.TestsFailedError as error:
            return harness.print_refusal(NAME, error)
        prepare_prompts(chosen, options)
        record["cases"] = harness.run_cases(
            names, lambda name, on_stage: run_child(cases[name], options), show, minutes=options.minutes
        )
    for result in record["cases"]:
        record["targets"] += harness.target(result["case"], "peak GiB", result.get("peak_gib"), "at most", LIMIT_GIB)
    status = harness.finish(record, options, plot)
    if not options.quick:
        # they are recorded: the next run measures again
        for result in record["cases"]:
            if "skipped" not in result:
                shutil.rmtree(options.work / cases[result["case"]].kept, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(harness.command(main))
