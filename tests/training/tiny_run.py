"""A tiny model on made-up rows, for tests of the loop; run as a script it trains once and can be killed.

The stand-in has what the loop asks of a model (forward, head_weight, config, blocks) and nothing else, so a
step takes about a millisecond. Row g is a pure function of g. A token with id POISON makes the loss NaN.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from brine.data.batch import Batch
from brine.model.config import ModelConfig
from brine.salt.cost import batch_flops
from tests.batches import batch_of

VOCAB, WIDTH, ROW = 32, 16, 12
POISON = VOCAB - 1
KINDS = ("code", "page")


class TinyModel(nn.Module):
    """Token and previous token, two residual MLPs, a head."""

    def __init__(self, seed: int = 0, width: int = WIDTH):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = ModelConfig(vocab_size=VOCAB, dim=width, num_layers=2, window=None)
        self.tokens = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                # all of them: torch's own initial biases come from the global random state
                parameter.normal_(0.0, 0.3, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        return self.head.weight

    attention_backend = "auto"

    def forward(self, inputs):
        token_ids = inputs.token_ids
        x = self.tokens(token_ids)
        x = x + 0.5 * torch.roll(x, 1, dims=1)
        for layer in self.blocks:
            x = x + torch.tanh(layer(x))
        poison = (token_ids == POISON)[..., None].to(x.dtype)
        return self.norm(x) + torch.where(poison > 0, float("nan"), 0.0).to(x.dtype)


def tiny_rows(first: int, count: int, poisoned: tuple[int, ...] = ()) -> Batch:
    """Rows first .. first + count - 1, packed with unequal numbers of targets."""
    tokens, labels, kinds, contexts = [], [], [], []
    for g in range(first, first + count):
        random = np.random.default_rng(1000 + g)
        row = [int(random.integers(0, POISON))]
        for _ in range(ROW):
            row.append((3 * row[-1] + 1 + int(random.integers(0, 2))) % POISON)
        target = random.random(ROW) < 0.3 + 0.6 * (g % 3) / 2
        if g in poisoned:
            row[5] = POISON
        tokens.append(row[:-1])
        labels.append([token if wanted and token != POISON else -100
                       for token, wanted in zip(row[1:], target, strict=True)])  # fmt: skip
        kinds.append([g % 2] * ROW)
        contexts.append([i % 4 for i in range(ROW)])
    return batch_of(
        torch.tensor(tokens), torch.tensor(labels), kind=torch.tensor(kinds, dtype=torch.int16),
        modality_context=torch.tensor(contexts, dtype=torch.uint8),
    )  # fmt: skip


def tiny_step_flops(model: TinyModel) -> int:
    """FLOPs of the forward pass of a step of `tiny_config`."""
    return batch_flops(model, tiny_rows(0, 4).inputs)


def tiny_source(config, *, rank=0, world_size=1, num_sequences=4096, poisoned=(), seen=None):
    """A row source; rows that were opened are noted in `seen`."""
    from brine.training.micro_batch import PackedSequenceSource

    def open_rows(start: int):
        micro = config.micro_batch_size_on(world_size)
        for first in range(start, num_sequences - micro * world_size + 1, micro * world_size):
            mine = first + rank * micro
            if seen is not None:
                seen.extend(range(mine, mine + micro))
            yield tiny_rows(mine, micro, poisoned)

    return PackedSequenceSource(open=open_rows, num_sequences=num_sequences)


def tiny_config(**changes):
    """A run of 12 steps."""
    from brine.training.config import TrainConfig

    values = {
        "num_steps": 12, "global_batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 2,
        "checkpoint_every": 4, "log_every": 3, "z_loss": 1e-4, "seed": 5, "rollback_margin_steps": 0,
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})


def tiny_train(folder, *, config=None, model=None, runtime=None, poisoned=(), seen=None, num_sequences=4096, **options):
    """Train once; options go to `Trainer`."""
    from brine.training.runtime import Runtime
    from brine.training.trainer import Trainer

    config = config or tiny_config()
    world = options.get("world")
    place = {} if world is None else {"rank": world.rank, "world_size": world.size}
    sequences = options.pop("sequences", None) or tiny_source(
        config, num_sequences=num_sequences, poisoned=poisoned, seen=seen, **place
    )
    stop = options.pop("stop", None)
    return Trainer(
        config,
        model=model or TinyModel(),
        sequences=sequences,
        folder=Path(folder),
        runtime=runtime or Runtime(),
        kinds=KINDS,
        quiet=True,
        **options,
    ).run(stop)


def until_written(folder) -> None:
    """Return when no checkpoint of a run folder is still being written in the background.

    Raises TimeoutError after a minute: the remains of a write that failed are only cleared by who waits for it.
    """
    end = time.monotonic() + 60
    while list((Path(folder) / "checkpoints").glob(".writing_*")):
        if time.monotonic() > end:
            raise TimeoutError(f"a checkpoint under {folder} was not written within a minute")
        time.sleep(0.01)


SHARD = "shard-00001-model-00001-of-00001.safetensors"
"""What rank 0 writes of a checkpoint."""


def final_tensors(folder, *, which: int = -1) -> dict[str, Tensor]:
    """Weights and optimiser state of the newest checkpoint, or of another by its place, whole, in whatever parts ranks
    wrote them."""
    import torch.distributed.checkpoint as dcp

    newest = sorted((Path(folder) / "checkpoints").glob("step_*[0-9]"))[which]
    reader = dcp.HuggingFaceStorageReader(str(newest))
    entries = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def final_bytes(folder) -> dict[str, bytes]:
    """The same as bytes; the order within the files is not ours."""
    return {name: tensor.numpy().tobytes() for name, tensor in final_tensors(folder).items()}


def timeless(folder) -> list[dict]:
    """The metrics without what a clock decides."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def events(folder, kind=None) -> list[dict]:
    """The events, all or of one kind."""
    lines = [json.loads(line) for line in (Path(folder) / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["event"])]


def run_pipeline(folder: str, hang_at: str) -> None:
    """Train in a run folder, locked. `hang_at` is where to print HERE and wait to be killed: "step 5", "rename 8" (a
    checkpoint's files written, not yet renamed), or "never"."""
    import os

    from brine.pipeline.stages.stage_store import StageStore
    from brine.training.checkpoint import async_checkpoint as saver
    from brine.training.runtime import Runtime, apply_runtime

    what, _, at = hang_at.partition(" ")
    real_rename = os.rename

    def hang() -> None:
        print("HERE", flush=True)
        time.sleep(60)

    def rename(source, target):
        if what == "rename" and str(target).endswith(f"step_{int(at):08d}"):
            hang()
        real_rename(source, target)

    def at_step(step: int, stage: Path) -> None:
        if hang_at == f"step {step}":
            # what is being written in the background is not what this death is about
            until_written(stage)
            hang()

    saver.os.rename = rename
    runtime = Runtime()
    apply_runtime(runtime)

    def small(stage: Path) -> dict:
        result = tiny_train(stage, runtime=runtime, on_step=lambda step: at_step(step, stage))
        return {"step": result.step}

    with StageStore(Path(folder)) as line:
        stage = line.stage("small", small, config=tiny_config())
        line.stage("after", lambda path: {"fingerprint": stage.digest}, inputs=["small"])
    print("FINISHED", flush=True)


def main() -> None:
    """Read lines `folder<TAB>hang_at`; run each in a forked child that leads a group of its own, and print its id.

    Forked, because importing torch anew for every death would take most of the test's time.
    """
    import os
    import traceback

    # torch's optimisers import this at their first step
    import torch._dynamo
    import torch.distributed.checkpoint  # noqa: F401

    import brine.training.trainer  # noqa: F401

    for request in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            try:
                print(os.getpid(), flush=True)
                run_pipeline(*request.rstrip("\n").split("\t"))
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
