"""The planner's estimate of peak memory against what a training step takes, each case in a process of its own.

    python -m benchmarks.planner                         all cases, a few minutes
    python -m benchmarks.planner --only full-float32

A case makes a model, its gradients and its optimiser, then goes through a forward pass, a loss, a backward pass and an
update, twice, so that the optimiser's moments are there in the second. Measured is the growth of resident memory over
the imported process (`benchmarks.memory`), 2 GiB and more in each case; compared is `training.plan_memory`'s peak. The
aim is 10 %. Blocks are not compiled, rows are random text of one document, and there are no patches.

What this does not show: anything of GPUs, whose allocator and kernels differ, of compiled blocks, or of several ranks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import peak_growth
from training.plan_memory import Case, memory

MODEL = {"vocab_size": 4096, "dim": 512, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64,
         "mlp_dim": 1408, "window": 256}  # fmt: skip
CASES = {
    "none-float32": {"micro_rows": 1, "checkpointing": "none", "dtype": "float32"},
    "none-bfloat16": {"micro_rows": 2, "checkpointing": "none", "dtype": "bfloat16"},
    "full-float32": {"micro_rows": 4, "checkpointing": "full", "dtype": "float32"},
    "full-tiles-float32": {"micro_rows": 5, "checkpointing": "full", "dtype": "float32", "mlp_tile": 1024},
    "selective-bfloat16": {"micro_rows": 5, "checkpointing": "selective", "dtype": "bfloat16"},
}
ROW_TOKENS = 8192
GIB = 2**30


def step_call(tiny: bool, **settings: Any) -> Callable[[], list]:
    """Two training steps of a case, from nothing: a target of `benchmarks.memory`."""
    from kernels import linear_cross_entropy
    from model import ModelConfig, Transformer
    from training.activations import checkpoint_blocks, tile_mlps
    from training.config import TrainConfig
    from training.gradients import GradientBuffer
    from training.optimizer import Optimizer

    torch.set_num_threads(1)
    tokens, rows = (64, 1) if tiny else (ROW_TOKENS, settings["micro_rows"])
    mixed = settings["dtype"] == "bfloat16"

    def run() -> list:
        model = Transformer(ModelConfig(**MODEL), generator=torch.Generator().manual_seed(0))
        tile_mlps(model, settings.get("mlp_tile", 0), compiled=False)
        checkpoint_blocks(model, settings["checkpointing"])
        optimizer = Optimizer(model, TrainConfig(model=model.config))
        gradients = GradientBuffer(optimizer.parameters)
        ids = torch.randint(0, MODEL["vocab_size"], (rows, tokens))
        position = torch.arange(tokens).float()[None, :, None].expand(rows, tokens, 3)
        document = torch.zeros(rows, tokens, dtype=torch.int32)
        for _ in range(2):
            gradients.zero()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                hidden = model(ids, position, document, document)
                loss = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, ids.flatten())
            loss.backward()
            optimizer.step(1e-3)
        return [hidden]

    return run


def compare(name: str) -> dict[str, Any]:
    """One case: estimated and measured bytes, and their ratio."""
    from model import ModelConfig

    settings = CASES[name]
    estimate = memory(Case(ModelConfig(**MODEL), ROW_TOKENS, device="cpu", **settings))
    measured = peak_growth("benchmarks.planner:step_call", settings, timeout_s=1800)
    found = {"case": name, **settings, "estimate_gib": round(estimate.peak_bytes / GIB, 3), "fullest": estimate.worst}
    if "left_out" in measured:
        return found | measured
    growth = measured["growth_bytes"]
    return found | {"measured_gib": round(growth / GIB, 3), "ratio": round(estimate.peak_bytes / growth, 3)}


def main() -> None:
    """Run the cases and print a line for each, then all of them as JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), help="cases to run")
    results = []
    for name in options.parse_args().only:
        results.append(compare(name))
        print("  ".join(f"{key} {value}" for key, value in results[-1].items()), file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
