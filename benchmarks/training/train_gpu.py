"""Training steps of the 1B model of `long_1m` on one GPU, 65,536 to a million tokens in a sequence, against the
planner.

    python -m benchmarks.training.train_gpu                                all lengths, a quarter of an hour on one H200
    python -m benchmarks.training.train_gpu --cases 65536 262144
    python -m benchmarks.training.train_gpu --quick                          a toy on whatever is there, a CPU too

Each length runs in its own process, with the mesh-free settings that the planner finds fastest for this GPU and
host (no checkpoint is written, so none is staged), by the Triton attention kernels, whose tests and a comparison on the
GPU itself come first. Three steps of the whole training package (`benchmarks.training.steps`):

    warm       documents of 8,192 tokens; compiles, takes the host's pages, is not timed
    packed     the same sequences again: local work, memory of the full length
    one        one document over the sequence, whose attention grows with the square of the length

Recorded: peak of allocated and reserved memory against `brine.planner.memory`, seconds against
`brine.planner.step_time`, and MFU: operations over the unmasked area, backward as twice the forward, nothing done again
counted, of the data sheet's peak. The case `longest` is the longest sequence that the planner says fits, without the
step of one document: its memory is measured, its time extrapolated from the planner's and labelled so.

What it does not show: loading data, several GPUs, media.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.record import backend_choices
from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.kernels import attention
from brine.model.config import ModelConfig
from brine.planner import search as planner
from brine.planner.memory import STAGING, RunSettings, host_bytes, memory, offloaded_bytes
from brine.planner.step_time import step_time
from brine.recipes.registry import RECIPES
from brine.training.config import TrainConfig
from brine.training.logging.device_specs import GPUS, DeviceSpec
from brine.training.parallel.distributed import World

NAME = "train_gpu"
TESTS = (
    "tests/kernels/attention/test_[!g]*.py", "tests/training/parallel/test_activations.py",
    "tests/planner/test_planner.py",
)  # fmt: skip
GIB = 2**30
LENGTHS = (65_536, 262_144, 1_048_576)
DOCUMENT = 8192
STEPS = ("warm", "packed", "one")
TOY = ModelConfig(
    vocab_size=512, dim=64, num_layers=6, num_heads=2, num_kv_heads=1, head_dim=32, mlp_dim=128, window=64
)
PINNABLE = 0.75
"""Share of a machine's memory that is planned with: compilers, a process to a core, want some, and pinned pages never
give way. A step planned with 118 of 126 GiB was killed."""
MFU_LENGTH, MFU_TARGET = 1_048_576, 0.33


@dataclass(frozen=True)
class TrainGpuSetting:
    """What one process measures."""

    name: str
    case: RunSettings
    document_tokens: int
    """Of the packed sequences."""
    one: bool
    """Is there a step of one document?"""


def this_device(options: argparse.Namespace, device: str) -> DeviceSpec:
    """The GPU's data sheet, with the memory that GPU and host really have. Raises ValueError for one unknown."""
    if device == "cpu":
        return replace(GPUS["h200"], kind="cpu")
    found = torch.cuda.get_device_properties(0)
    known = [sheet for name, sheet in GPUS.items() if name.split("-")[0].upper() in found.name.upper()]
    if not known:
        raise ValueError(
            f"training/logging/device_specs.py has no data sheet for {found.name!r}: add it beside {', '.join(GPUS)}"
        )
    host = options.host_gib * GIB or PINNABLE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = options.gpu_gib * GIB or float(found.total_memory)
    return replace(known[0], memory_bytes=memory, host_memory_bytes=host)


def settings(
    options: argparse.Namespace, device: str, sheet: DeviceSpec, *, backend: str = "triton"
) -> dict[str, TrainGpuSetting]:
    """Every case by name, with the settings that the planner finds. backend: of attention; flash packages take more."""
    if options.quick:
        case = RunSettings(
            TOY, 512, device=device, dtype="float32" if device == "cpu" else "bfloat16",
            activation_checkpointing="offload", ac_group_size=5, mlp_tile_tokens=128,
        )  # fmt: skip
        return {"toy": TrainGpuSetting("toy", case, 128, True)}
    recipe = RECIPES["long_1m"]()
    train = recipe.resolved(recipe.corpus.vocab_size).large
    train = replace(train, global_batch_size=1, micro_batch_size=1)
    base = RunSettings(train.model, LENGTHS[0], device=device, compiled=True, attention_backend=backend)
    # nothing is saved, so what the planner keeps for that on the host is there to be used
    spare = host_bytes(base)[STAGING] / (1 - sheet.host_reserve)
    roomy = replace(sheet, host_memory_bytes=sheet.host_memory_bytes + spare)
    found = {}
    for length in LENGTHS:
        if case := best_case(base, length, train, roomy):
            found[str(length)] = TrainGpuSetting(str(length), case, DOCUMENT, True)
    longest = (
        planner.longest_sequence(base, train, roomy, {"context_parallel": 1, "dp_shard": 1}) // DOCUMENT * DOCUMENT
    )
    if case := best_case(base, longest, train, roomy):
        found["longest"] = TrainGpuSetting("longest", case, DOCUMENT, False)
    return found


def best_case(base: RunSettings, length: int, train: TrainConfig, sheet: DeviceSpec) -> RunSettings | None:
    """The fastest settings for sequences of a length on one GPU; None where none fits."""
    try:
        return planner.search(replace(base, seq_len=length), train, sheet, {"context_parallel": 1, "dp_shard": 1})[
            0
        ].case
    except planner.PlannerError as error:
        print(f"{length} tokens: {error}", file=sys.stderr)
        return None


def measure(
    setting: TrainGpuSetting,
    sheet: DeviceSpec,
    *,
    steps: tuple[str, ...] = STEPS,
    backend: str = "triton",
    on_step: Callable[[str, dict[str, Any]], None] = lambda name, figures: None,
) -> dict[str, Any]:
    """The steps of one setting in this process, meant for a fresh one. backend: of attention, on a GPU; on_step: called
    of each step as it ends."""
    from benchmarks.training.steps import TrainStepRunner, random_batch

    case, on_gpu = setting.case, setting.case.device == "cuda"
    torch.manual_seed(0)
    trainer = TrainStepRunner(case, world=World())
    if on_gpu:
        trainer.model.attention_backend = backend
    plan = memory(case)
    result = {
        "case": setting.name,
        "tokens": case.seq_len,
        "model": case.model.to_dict(),
        "dtype": case.dtype,
        "activation_checkpointing": case.activation_checkpointing,
        "ac_group_size": case.ac_group_size,
        "mlp_tile_tokens": case.mlp_tile_tokens,
        "compiled": case.compiled,
        "plan_gib": plan.peak_bytes / GIB,
        "fullest": plan.peak_phase,
        "plan_host_gib": sum(offloaded_bytes(case).values()) / GIB,
        "plan_one_s": step_time(case, sheet).total_s,
        "backend": backend,
        "steps": {},
    }
    packed, whole = random_batch(case, document_tokens=setting.document_tokens), random_batch(case)
    batches = {"warm": packed, "packed": packed, "one": whole}
    on_step("plan", {name: figure for name, figure in result.items() if name not in ("steps", "model")})
    for name in steps:
        if name == "one" and not setting.one:
            continue
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        done = trainer.step(batches[name]).read()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        flops, loss = done.flops["student"], done.step_sums.loss
        result["steps"][name] = {
            "s": seconds, "loss": loss, "tokens_per_s": case.seq_len / seconds, "model_flops": flops,
            "mfu": flops / seconds / sheet.matmul_flops if on_gpu else None,
            "allocated_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else None,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB if on_gpu else None,
        }  # fmt: skip
        on_step(name, result["steps"][name])
        print(f"{setting.name} {name}: {seconds:.2f} s, loss {loss:.3f}", file=sys.stderr, flush=True)
    return result | {"backends": backend_choices()}


def run_child(name: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Measure a case in its own process -> its result, or {"skipped": reason}."""
    command = [sys.executable, "-m", "benchmarks.training.train_gpu", "--child", name, "--device", device]
    timeout_s = harness.case_timeout_s(options)
    command += ["--gpu-gib", str(options.gpu_gib)]
    command += ["--host-gib", str(options.host_gib), "--threads", str(options.threads)] + ["--quick"] * options.quick
    try:
        done = subprocess.run(
            command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return {"case": name, "skipped": f"took longer than {timeout_s:.0f} s"}
    if done.returncode:
        return {"case": name, "skipped": f"its process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def show(result: dict[str, Any]) -> str:
    """A case in lines."""
    if "skipped" in result:
        return f"{result['case']}: left out, {result['skipped']}"
    head = (
        f"{result['case']}: {result['activation_checkpointing']}, {result['ac_group_size']} layers to an input, "
        f"tiles of {result['mlp_tile_tokens']}; planned {result['plan_gib']:.2f} GiB and "
        f"{result['plan_host_gib']:.1f} on the host, "
        f"{result['plan_one_s']:.1f} s for one document"
    )
    rows = [
        {
            "documents": name,
            "seconds": f"{step['s']:.2f}",
            "tokens/s": f"{step['tokens_per_s']:.0f}",
            "MFU": "" if step["mfu"] is None else f"{100 * step['mfu']:.1f} %",
            "allocated GiB": "" if step["allocated_gib"] is None else f"{step['allocated_gib']:.2f}",
            "reserved GiB": "" if step["reserved_gib"] is None else f"{step['reserved_gib']:.2f}",
        }
        for name, step in result["steps"].items()
    ]
    return f"{head}\n{harness.table(rows)}"


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Memory within 10 % of the plan; MFU of the long sequence."""
    found = []
    for result in results:
        if "skipped" in result or result["steps"]["packed"]["allocated_gib"] is None:
            continue
        peak = max(step["allocated_gib"] for step in result["steps"].values())
        found += harness.target(
            result["case"], "relative error of the planned peak", abs(result["plan_gib"] / peak - 1), "at most", 0.1
        )
        if result["tokens"] == MFU_LENGTH and "one" in result["steps"]:
            found += harness.target(result["case"], "MFU", result["steps"]["one"]["mfu"], "at least", MFU_TARGET)
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """Memory planned and allocated, and MFU, by length."""
    from matplotlib.figure import Figure

    results = [result for result in record["cases"] if "skipped" not in result]
    figure = Figure(figsize=(11, 4), layout="constrained")
    memory_axis, speed_axis = figure.subplots(1, 2)
    positions, names = range(len(results)), [f"{result['case']}\n{result['tokens']:,}" for result in results]
    peaks = [max(step["allocated_gib"] or 0 for step in result["steps"].values()) for result in results]
    memory_axis.bar(positions, peaks, 0.6, color="#c9d5e3", label="allocated, GiB")
    planned = [result["plan_gib"] for result in results]
    memory_axis.plot(positions, planned, "_", color="#b5452c", ms=40, mew=2.5, label="planned")
    memory_axis.set_title("peak memory of a step", loc="left")
    for shift, name in ((-0.2, "packed"), (0.2, "one")):
        shares = [100 * (result["steps"].get(name, {}).get("mfu") or 0) for result in results]
        bars = speed_axis.bar([position + shift for position in positions], shares, 0.4, label=f"{name} document(s)")
        speed_axis.bar_label(bars, [f"{share:.1f}" for share in shares], fontsize=8)
    speed_axis.set_title("MFU, % of the data sheet", loc="left")
    for axis in (memory_axis, speed_axis):
        axis.set_xticks(positions, names, fontsize=9)
        axis.legend(frameon=False)
    hardware = record["hardware"]
    figure.suptitle(f"{hardware.get('gpu', {}).get('name', hardware['processor'])}, {hardware['commit']}")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    made = harness.parser(NAME, __doc__.splitlines()[0])
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cpu only with --quick")
    made.add_argument(
        "--host-gib",
        type=float,
        default=0.0,
        help="host memory that may be pinned; 0: three quarters of what the system reports",
    )
    made.add_argument("--gpu-gib", type=float, default=0.0, help="memory of the GPU that may be planned with; 0: all")
    made.add_argument("--case-timeout-s", type=float, default=540.0, help="longest time of one case")
    made.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    options.backend = "triton"
    device = harness.prepare(options)
    if device == "cpu" and not options.quick:
        print("error: there is no GPU; --quick tries the script on a CPU", file=sys.stderr)
        return 2
    sheet = this_device(options, device)
    cases = settings(options, device, sheet)
    if options.child:
        print(json.dumps(measure(cases[options.child], sheet)))
        return 0
    names = harness.select(list(cases), options.cases)
    if options.list:
        for name in names:
            print(name, json.dumps(asdict(cases[name].case) | {"model": "long_1m"}))
        return 0
    try:
        record = harness.begin(NAME, options, device, TESTS)
        if device == "cuda" and options.tests != "none":
            gate.verified(record, options, lambda: attention.verify(device, options.backend))
    except gate.TestsFailedError as error:
        return harness.print_refusal(NAME, error)
    record["cases"] = harness.run_cases(
        names, lambda name, on_stage: run_child(name, options, device), show, minutes=options.minutes,
        keep=lambda result: harness.save_case(record, options, result),
    )  # fmt: skip
    record["targets"] = targets(record["cases"])
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
