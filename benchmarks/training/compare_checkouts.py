"""A training step of this checkout against another one's, on the CPU, in alternating pairs.

    git worktree add /tmp/before COMMIT
    uv run python -m benchmarks.training.compare_checkouts /tmp/before

Both checkouts train the demo's large model, with the demo's small model as its teacher unless `--no-teacher`, on the
same sequences: documents of about 60 tokens, a third of them behind an image. `--narrow` takes two models of width 32
instead, whose step is little but what does not depend on width: masks, tables, patches, accounting.

Each lives in its own child process, compiled as in a run, and the two take turns, `--steps` steps each, in the
other order every round. The figure is the ratio of their times, before / now (above 1: this checkout is faster), its
median over rounds and the interval of the middle half. A step begins with a batch as that checkout's loader delivers it
and ends with the updated weights; loading is not in it. Rounds on a busy machine are noise: the load is printed.

The record goes to `benchmarks/results/step_against.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUM_SEQUENCES, TOKENS, IMAGE_TOKENS, BUDGET = 16, 512, 24, 384
WARM_STEPS = 3


def child(teacher: bool, threads: int, dtype: str, narrow: bool) -> None:
    """One checkout's side: a line of standard input is a number of steps, answered by their seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # the folder of this file has modules named like the project's packages
    sys.path[0] = os.getcwd()
    step = _stepper(teacher, threads, dtype, narrow)
    for _ in range(WARM_STEPS):
        step()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, file=answers, flush=True)


def _stepper(teacher: bool, threads: int, dtype: str, narrow: bool):
    """() -> None, one optimizer step, in the words of either checkout."""
    import torch

    from brine.model.transformer import Transformer
    from brine.recipes.registry import RECIPES
    from brine.salt.distill import Distillation
    from brine.training.gradients import FlatGradients
    from brine.training.optimizer import Optimizer
    from brine.training.parallel.distributed import World
    from brine.training.runtime import Runtime, apply_runtime, compile_blocks
    from brine.training.step import accumulate, clip

    micro_batches = None
    # an installed project would give this checkout's module to the other one
    if Path("training/micro_batch.py").is_file():
        from brine.training.micro_batch import micro_batches
    runtime = Runtime(dtype=dtype, compile=True, num_threads=threads)
    apply_runtime(runtime)
    recipe = RECIPES["demo"]().resolved(384)
    config, shapes = recipe.large, (recipe.large.model, recipe.small.model)
    if narrow:
        width = {"dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "mlp_dim": 32}
        shapes = tuple(dataclasses.replace(shape, **width) for shape in shapes)
    model = Transformer(shapes[0], generator=torch.Generator().manual_seed(0))
    small = Transformer(shapes[1], generator=torch.Generator().manual_seed(1)) if teacher else None
    for one in (model, small):
        if one is not None:
            compile_blocks(one)
    distillation = Distillation(small, kd_steps=10**9, distill_weight=0.5) if teacher else None
    optimizer = Optimizer(model, config)
    gradients = FlatGradients(optimizer.parameters)
    batch = _batch(config.model.patch_dims)

    def step() -> None:
        batches = [batch]
        if micro_batches is not None:
            batches = micro_batches(batches, device="cpu", model=model, teacher=small)
        result = accumulate(
            model, batches, step=0, config=config, runtime=runtime, world=World(), gradients=gradients, num_batches=1,
            kinds=("page",), distillation=distillation, stop=False,
        )  # fmt: skip
        if hasattr(result, "read"):
            result.read()
        clip(gradients, grad_norm=result.grad_norm, limit=config.grad_clip)
        # a rate of nearly nothing: weights that run away would change what the arithmetic costs
        optimizer.step(1e-9)

    return step


def _batch(patch_dims: dict[str, int]):
    """Packed sequences of the demo's shape from fixed random numbers."""
    import numpy as np
    import torch

    from brine.data import batch as batches

    random = np.random.default_rng(0)
    document, block = np.full((NUM_SEQUENCES, TOKENS), -1, np.int32), np.zeros((NUM_SEQUENCES, TOKENS), np.int32)
    media_positions = []
    for index in range(NUM_SEQUENCES):
        start = number = 0
        while (size := int(random.integers(30, 90))) + start <= TOKENS:
            document[index, start : start + size] = number
            if number % 3 == 0:
                block[index, start + 1 : start + 1 + IMAGE_TOKENS] = number + 1
                media_positions.append(index * TOKENS + start + 1 + np.arange(IMAGE_TOKENS))
            start, number = start + size, number + 1
    ids = random.integers(12, 384, (NUM_SEQUENCES, TOKENS))
    position = np.arange(TOKENS, dtype=np.float32) + np.zeros((NUM_SEQUENCES, 1), np.float32)
    labels = np.where((document >= 0) & (block == 0), np.roll(ids, -1, 1), -100)
    media_index = np.full(NUM_SEQUENCES * BUDGET, NUM_SEQUENCES * TOKENS)
    used = np.concatenate(media_positions)[: NUM_SEQUENCES * BUDGET]
    media_index[: len(used)] = used
    pixels = random.integers(0, 256, (len(media_index), patch_dims["image"]), np.uint8)
    # a loader that delivers floats has made them before the step begins
    stored = not hasattr(batches, "floats")
    patches = torch.from_numpy(pixels if stored else batches.floats(pixels))
    fields = {
        "token_ids": ids, "position": np.stack([position] * 3, -1), "document": document, "segment": document,
        "block": block, "labels": labels, "kind": np.zeros((NUM_SEQUENCES, TOKENS), np.int16),
        "modality_context": (block > 0).astype(np.uint8),
    }  # fmt: skip
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fields.items()}
    media = {"image": (patches, torch.from_numpy(media_index))}
    try:
        from brine.model.inputs import TENSORS, Inputs
    except ImportError:
        # a checkout of before that record
        return batches.Batch(**tensors, media=media)
    return batches.Batch(Inputs(*(tensors.pop(name) for name in TENSORS), media), **tensors)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.compare_checkouts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("before", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=15, help="alternating pairs (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each (default %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: what this processor multiplies")
    parser.add_argument("--narrow", action="store_true", help="models of width 32")
    parser.add_argument("--no-teacher", action="store_true", help="without a teacher")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(not options.no_teacher, options.threads, options.dtype, options.narrow)
        return 0
    if options.before is None or not (options.before / "train.py").is_file():
        print(f"error: {options.before} is no checkout of this project: give a folder with train.py", file=sys.stderr)
        return 2
    from brine.common.processes import processor
    from brine.model.device import native_dtype
    from brine.training.logging.environment import commit

    options.dtype = options.dtype or str(native_dtype("cpu")).removeprefix("torch.")
    here = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--threads", str(options.threads)]
    command += ["--dtype", options.dtype, *["--no-teacher"] * options.no_teacher, *["--narrow"] * options.narrow]
    sides = {
        name: subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )
        for name, folder in (("before", options.before.resolve()), ("now", here))
    }  # fmt: skip
    try:
        for name, side in sides.items():
            if side.stdout.readline().strip() != "ready":
                print(f"error: the child in {name} did not start; its words are above", file=sys.stderr)
                return 1
        record = compare(sides, options)
    finally:
        for side in sides.values():
            side.kill()
    record |= {"commit": commit(), "before": _commit_of(options.before), "processor": processor()}
    results = here / "benchmarks" / "results" / "step_against.jsonl"
    with open(results, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record))
    return 0


def compare(sides: dict[str, subprocess.Popen], options: argparse.Namespace) -> dict:
    """All rounds; the record without where it was made."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in (*sides,) if number % 2 else (*reversed(sides),):
            side = sides[name]
            side.stdin.write(f"{options.steps}\n")
            side.stdin.flush()
            seconds[name].append(float(side.stdout.readline()) / options.steps)
        ratio = seconds["before"][-1] / seconds["now"][-1]
        words = "  ".join(f"{name} {values[-1] * 1e3:7.1f} ms" for name, values in seconds.items())
        print(f"round {number + 1:2d}: {words}  ratio {ratio:.3f}  load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    ratios = [before / now for before, now in zip(seconds["before"], seconds["now"], strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "benchmark": "step_against",
        "teacher": not options.no_teacher,
        "threads": options.threads,
        "dtype": options.dtype,
        "narrow": options.narrow,
        "rounds": options.rounds,
        "steps": options.steps,
        "step_s": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "p25": quarters[0], "p75": quarters[2]},
    }


def _commit_of(folder: Path) -> str:
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
