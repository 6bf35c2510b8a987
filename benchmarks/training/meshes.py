"""The whole pipeline on four ranks in every mesh, killed, and resumed on two: does it end as on one rank?

    python -m benchmarks.training.meshes                    every mesh, float64
    python -m benchmarks.training.meshes --dtype bfloat16   how far apart rounding takes them

One rank trains the recipe `demo`, short, from corpus to report. Then, for every way to share sequences and parameters
among four ranks, `torchrun` starts the same command, its process group is killed with SIGKILL once a checkpoint of the
large model is there, and `torchrun` on two ranks resumes and ends it. Reported are the largest difference of any logged
loss and of any weight of the finished model from the one rank's, the step it resumed from, and the wall clock.

It is a check rather than a race: ranks on one machine share its cores, so the times tell what starting costs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness

NAME = "meshes"
TESTS = ("tests/training/parallel/test_parallel.py",)
MESHES = {
    f"context {context_parallel}, shard {dp_shard}": (context_parallel, dp_shard)
    for context_parallel in (1, 2, 4)
    for dp_shard in (1, 2, 4)
}
BOUND = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 1e-2}
"""Largest difference of a loss that is still called equal, in nats."""
STAGE = "large_salt"
TIMEOUT_S = 1500.0


def words(runs: Path, dtype: str, *more: str) -> list[str]:
    """The command line of the short demo."""
    found = ["demo", "--runs", str(runs), "--arms", "salt", "--runtime.dtype", dtype, "--runtime.compile", "False"]
    counts = {"train": ("16", "60 8 0 0", "30 8 0 0", "20 4 0 0", "4 0 0 0"),
              "validation": ("2", "4 0 0 0", "4 0 0 0", "4 0 0 0", "1 0 0 0"),
              "test": ("2", "4 0 0 0", "4 0 0 0", "4 0 0 0", "1 0 0 0")}  # fmt: skip
    for split, each in counts.items():
        for kind, count in zip(("text", "screenshot", "narration", "recording", "page"), each, strict=True):
            found += [f"--corpus.synth.{split}.{kind}", *count.split()]
    for model, steps in (("small", "4"), ("large", "12")):
        found += [
            f"--{model}.num-steps",
            steps,
            f"--{model}.global-batch-size",
            "4",
            f"--{model}.micro-batch-size",
            "2",
            f"--{model}.warmup-steps",
            "2",
            f"--{model}.checkpoint-every",
            "4",
            f"--{model}.log-every",
            "1",
            f"--{model}.validate-every",
            "6",
        ]
    found += ["--evals.documents-per-cell", "3", "--evals.transcripts-per-cell", "1", "--evals.max-new-tokens", "4",
              "--evals.bootstrap-resamples", "100", "--evals.validation-per-cell", "2"]  # fmt: skip
    return [*found, *more]


def command(ranks: int, arguments: list[str]) -> list[str]:
    """How the pipeline is started on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, str(harness.ROOT / "train.py"), *arguments]


def start(ranks: int, arguments: list[str], log: Path) -> subprocess.Popen:
    """The pipeline in its own process group, its output in a file."""
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            command(ranks, arguments), cwd=harness.ROOT, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def finish(process: subprocess.Popen, log: Path) -> None:
    """Wait for the end. Raises RuntimeError with the output's last lines where it is not a good one."""
    try:
        status = process.wait(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = "a time-out"
    if status != 0:
        raise RuntimeError(f"the pipeline ended with {status}:\n{log.read_text(encoding='utf-8')[-2000:]}")


def kill_in(process: subprocess.Popen, folder: Path, log: Path) -> None:
    """Kill every process of the pipeline once the folder's first planned checkpoint after step 0 is there."""
    begun = time.monotonic()
    while not list((folder / "checkpoints").glob("step_0000000[1-9]")):
        if process.poll() is not None or time.monotonic() - begun > TIMEOUT_S:
            finish(process, log)
            raise RuntimeError(
                f"the pipeline ended before it could be killed:\n{log.read_text(encoding='utf-8')[-2000:]}"
            )
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses(folder: Path) -> list[float]:
    """Every logged loss of the stage, then every held-out one."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [line["validation"]["loss"] for line in lines if "validation" in line]
    return [line["loss"] for line in lines if "loss" in line] + held_out


def measure(mesh: tuple[int, int], work: Path, dtype: str) -> dict[str, Any]:
    """One mesh on four ranks, killed, and resumed on two."""
    context_parallel, dp_shard = mesh
    runs, log = work / f"{context_parallel}-{dp_shard}", work / f"{context_parallel}-{dp_shard}.log"
    shutil.rmtree(runs, ignore_errors=True)
    for stage in ("corpus", "encoded"):
        shutil.copytree(work / "one" / "demo" / stage, runs / "demo" / stage)

    def asked(ranks: int) -> list[str]:
        return words(runs, dtype, "--runtime.context-parallel", str(min(context_parallel, ranks)), "--runtime.dp-shard",
                     str(min(dp_shard, ranks)))  # fmt: skip

    folder, begun = runs / "demo" / STAGE, time.perf_counter()
    kill_in(start(4, asked(4), log), folder, log)
    killed = time.perf_counter()
    finish(start(2, asked(2), log), log)
    ended = time.perf_counter()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    one = work / "one" / "demo" / STAGE
    expected, found = losses(one), losses(folder)
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, folder)]
    return {
        "context_parallel": context_parallel,
        "dp_shard": dp_shard,
        "losses": len(found),
        "loss_difference": max(abs(a - b) for a, b in zip(expected, found, strict=True)),
        "weight_difference": max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]),
        "gone_on_from": resumed["step"],
        "on_ranks": resumed["world_size"],
        "report": (runs / "demo" / "report.html").exists(),
        "four_ranks_s": round(killed - begun, 1),
        "two_ranks_s": round(ended - killed, 1),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    """Bars of the differences, by mesh, with the bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    names = [case["case"] for case in record["cases"]]
    axes.barh(names, [max(case["loss_difference"], 1e-17) for case in record["cases"]], color="#3b6ea5")
    axes.axvline(record["bound"], color="#b5452c", linestyle="--", label=f"bound {record['bound']:g}")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("largest difference of a loss from one rank's, nats")
    axes.set_title(f"Four ranks, killed, resumed on two ({record['dtype']})", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    made = harness.parser(NAME, __doc__.splitlines()[0])
    made.add_argument("--dtype", choices=tuple(BOUND), default="float64", help="precision of every run")
    made.add_argument("--work", type=Path, default=Path("runs/meshes"), help="folder of the runs, kept for a look")
    options = made.parse_args(argv)
    names = harness.select(list(MESHES), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    device = harness.prepare(options)
    work = options.work / options.dtype
    work.mkdir(parents=True, exist_ok=True)
    try:
        record = harness.begin(NAME, options, device, TESTS)
        finish(start(1, words(work / "one", options.dtype), work / "one.log"), work / "one.log")
        cases = []
        for name in names[:1] if options.quick else names:
            cases.append({"case": name, **measure(MESHES[name], work, options.dtype)})
            print(harness.table([{key: f"{value:.3g}" if isinstance(value, float) else str(value)
                                  for key, value in cases[-1].items()}]), flush=True)  # fmt: skip
    except (gate.TestsFailedError, RuntimeError) as error:
        return harness.print_refusal(NAME, error)
    bound = BOUND[options.dtype]
    record |= {"dtype": options.dtype, "bound": bound, "cases": cases, "targets": []}
    for case in cases:
        record["targets"] += harness.target(case["case"], "loss difference", case["loss_difference"], "at most", bound)
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
