"""Ranks that share rows, parameters, both or neither: every mesh gives the same losses and weights, in float64."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brine.common.processes import StopSignal, TrainingInterrupted
from brine.data.batch import TENSOR_FIELDS, Batch
from brine.kernels.attention import Spans
from brine.kernels.context_parallel.sharding import contiguous
from brine.kernels.linear_loss import linear_cross_entropy
from brine.model.config import ModelConfig
from brine.model.inputs import TENSORS, Inputs
from brine.model.transformer import Transformer
from brine.salt.distill import Distillation
from brine.training.config import TrainConfig
from brine.training.micro_batch import PackedSequenceSource
from brine.training.parallel.context_parallel import chunk_tokens, shard_sequences
from brine.training.parallel.distributed import World, init_distributed
from brine.training.parallel.parallelize import init_parallel_groups
from brine.training.runtime import Runtime
from brine.training.trainer import Trainer
from tests.batches import batch_of
from tests.forked import run_ranks
from tests.kernels.packings import random_packing
from tests.training.tiny_run import events, final_tensors

pytestmark = pytest.mark.slow

ROW, VOCAB = 64, 40
SHAPE = ModelConfig(
    vocab_size=VOCAB, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48, window=20,
    global_every=2, image_dim=12, audio_dim=8, video_dim=10,
)  # fmt: skip
DEEP = replace(SHAPE, num_layers=3, global_every=3)
"""With two local layers side by side, which can keep one input between them."""
ALL_CASES = os.environ.get("ALL_CASES") == "1"
"""Long runs, and every mesh of four ranks, in five times the time:

    ALL_CASES=1 python -m pytest -n 0 tests/training/parallel/test_parallel.py
"""
STEPS, SILENT, DEEP_STEPS, MOVES = (50, 20, 12, (9, 17)) if ALL_CASES else (10, 7, 5, (4, 8))
"""Of a run; when the teacher falls silent; of the deep model's; when `moved` goes on elsewhere. Each has rows of all
kinds."""
CONFIG = TrainConfig(
    model=SHAPE, num_steps=STEPS, global_batch_size=4, micro_batch_size=2, learning_rate=3e-3, warmup_steps=2,
    checkpoint_every=STEPS, log_every=1, seed=3,
)  # fmt: skip
MESHES = {
    2: [(1, 1), (2, 1), (1, 2), (2, 2)],
    # (1, 4) is what `moved` goes through; two ranks show one group of all with nothing beside it, (4, 1) and (4, 4)
    4: [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4), *([(4, 1), (1, 4), (4, 4)] if ALL_CASES else [])],
}
"""World size -> ranks that share rows, ranks that share parameters."""
OPTIONS = {
    (1, 2): {"activation_checkpointing": "selective"},
    (2, 2): {"activation_checkpointing": "full", "mlp_tile_tokens": 16},
}
"""What some meshes do besides, and must not alter anything."""


def rows(first: int, count: int) -> Batch:
    """Rows of packed documents with media blocks, a function of `first`: of every four the first is text only and the
    second has images only, so that ranks with a row each call embedders with no patches at all."""
    generator = torch.Generator().manual_seed(first)
    document, block = random_packing(first, count, ROW, sizes=(3, 20, 60, 130))
    token_ids = torch.randint(VOCAB, (count, ROW), generator=generator)
    labels = torch.where(block.roll(-1, 1) == 0, token_ids.roll(-1, 1), -100)
    labels[:, -1] = -100
    labels[document != document.roll(-1, 1)] = -100
    labels[(block > 0) | (document < 0)] = -100
    media = {}
    for place, (name, dim) in enumerate((("image", 12), ("audio", 8), ("video", 10))):
        if first % 4 == 0 or (first % 4 == 1 and name != "image"):
            continue
        own = (block.flatten() > 0) & ((block.flatten() % 3 == place) | (first % 4 == 1))
        media_index = torch.cat([own.nonzero().flatten(), torch.full((4,), count * ROW)])
        media[name] = (torch.randn(len(media_index), dim, generator=generator), media_index)
    position = torch.arange(ROW, dtype=torch.float32)[None, :, None].expand(count, ROW, 3).contiguous()
    return batch_of(token_ids, labels, segment=document, position=position, block=block, media=media)


def joined(parts: list[Batch]) -> Batch:
    """Batches one under the other."""
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSOR_FIELDS}
    tensors = [torch.cat([getattr(part.inputs, name) for part in parts]) for name in TENSORS]
    size, media = parts[0].labels.numel(), {}
    for name in {name: None for part in parts for name in part.inputs.media}:
        patches, media_positions = [], []
        for number, part in enumerate(parts):
            if name not in part.inputs.media:
                continue
            own, media_index = part.inputs.media[name]
            patches.append(own)
            media_positions.append(torch.where(media_index < size, media_index + number * size, size * len(parts)))
        media[name] = (torch.cat(patches), torch.cat(media_positions))
    return Batch(Inputs(*tensors, media), **fields)


def source(world: World) -> PackedSequenceSource:
    def open_rows(start: int):
        micro = CONFIG.micro_batch_size_on(world.dp_size)
        for first in range(start + world.dp_rank * micro, 400, world.dp_size * micro):
            yield joined([rows(row, 1) for row in range(first, first + micro)])

    return PackedSequenceSource(open=open_rows, num_sequences=400)


def run(folder: Path, world: World, *, taught: bool, steps: int = STEPS, shape: ModelConfig = SHAPE, **options) -> None:
    """Train, the first `steps` steps of the schedule."""
    # with weights on one rank, and without, to be drawn where they belong, on several
    weights = {"generator": torch.Generator().manual_seed(CONFIG.seed)} if world.size == 1 else {"on_meta_device": True}
    model = Transformer(shape, **weights)
    teacher = None
    if taught:
        small = replace(SHAPE, num_layers=1, window=7)
        teacher = Distillation(Transformer(small, generator=torch.Generator().manual_seed(2)), SILENT, 0.5)
    with StopSignal() as stop:
        try:
            Trainer(
                replace(CONFIG, model=shape), model=model, sequences=source(world), folder=folder, world=world,
                runtime=Runtime(dtype="float64", **options), kinds=("page",), distillation=teacher, quiet=True,
                validate=validate,
                on_step=lambda step: stop.request("the test") if step == steps < STEPS else None,
            ).run(stop)  # fmt: skip
        except TrainingInterrupted:
            assert steps < STEPS


def validate(model: Transformer, step: int, should_stop) -> dict:
    """Loss of two rows; where parameters are sharded, only ranks together can tell."""
    batch = rows(10_002, 2)
    hidden = model(batch.inputs)
    assert not should_stop()
    return {"loss": float(linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, batch.labels.flatten()))}


def _rank(rank: int, size: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    whole = init_distributed()
    for context_parallel, dp_shard in MESHES[size]:
        world = init_parallel_groups(whole, context_parallel=context_parallel, dp_shard=dp_shard)
        taught = context_parallel == size
        place = Path(folder) / f"{size}-{context_parallel}-{dp_shard}"
        run(place, world, taught=taught, **OPTIONS.get((context_parallel, dp_shard), {}))
        if size == 2 and dp_shard == 2:
            options = OPTIONS[context_parallel, dp_shard] | {"ac_group_size": 2}
            run(Path(folder) / f"deep-{context_parallel}", world, taught=False, steps=DEEP_STEPS, shape=DEEP, **options)
    # begun on one rank, gone on here, sharded; and begun here, to go on on another number of ranks
    until = MOVES[1] - 1 if size == 4 else STEPS
    run(Path(folder) / "moved", init_parallel_groups(whole, dp_shard=size), taught=False, steps=until)


def spawn(size: int, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(_rank, size, port, str(folder), count=size)


def numbers(folder: Path) -> torch.Tensor:
    """Every loss, and the held-out loss last."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    found += [line["validation"]["loss"] for line in lines if "validation" in line]
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """One rank with teacher and without; every mesh; and `moved`: 1 rank, then 4, then 2."""
    folder, before = tmp_path_factory.mktemp("meshes"), torch.get_num_threads()
    # more threads than cores are free wait for one another at every small product
    torch.set_num_threads(1)
    for taught in (False, True):
        run(folder / f"one-{taught}", World(), taught=taught)
    run(folder / "moved", World(), taught=False, steps=MOVES[0] - 1)
    run(folder / "deep-one", World(), taught=False, steps=DEEP_STEPS, shape=DEEP)
    torch.set_num_threads(before)
    for size in (4, 2):
        spawn(size, folder)
    return folder


def same(one: Path, other: Path) -> None:
    """Losses and weights are equal within what rounding in another order explains."""
    assert len(numbers(one)) == STEPS + 1
    torch.testing.assert_close(numbers(other), numbers(one), rtol=0, atol=1e-8)
    expected, found = final_tensors(one), final_tensors(other)
    assert set(expected) == set(found)
    for name in (name for name in expected if name.startswith("model/")):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("size", "context_parallel", "dp_shard"), [(size, *mesh) for size in MESHES for mesh in MESHES[size]], ids=str
)
def test_every_mesh_gives_the_same_losses(size, context_parallel, dp_shard, trained):
    one, folder = trained / f"one-{context_parallel == size}", trained / f"{size}-{context_parallel}-{dp_shard}"
    same(one, folder)
    billed = [json.loads((path / "compute_cost.json").read_text()) for path in (folder, one)]
    assert billed[0]["student"]["flops"] == billed[1]["student"]["flops"]


@pytest.mark.parametrize("context_parallel", [1, 2])
def test_layers_that_share_an_input_do_so_on_every_mesh(context_parallel, trained):
    """Gathered parameters and shared rows are asked for once more."""
    one, other = numbers(trained / "deep-one"), numbers(trained / f"deep-{context_parallel}")
    assert len(one) > DEEP_STEPS
    torch.testing.assert_close(other, one, rtol=0, atol=1e-8)


def test_a_run_moves_from_one_rank_to_four_to_two(trained):
    """Replicated on one, sharded over four, sharded over two: the same rows in the same order, the same losses."""
    same(trained / "one-False", trained / "moved")
    moves = [(event["step"], event["world_size"]) for event in events(trained / "moved", "resumed")]
    # a stop is noticed in the step after it
    assert moves == [(MOVES[0], 4), (MOVES[1], 2)]


def test_shares_are_the_batch(tmp_path):
    """Every token, label and patch lies on one rank, in its place."""
    batch, model = rows(6, 3), Transformer(SHAPE)
    batch.inputs.make_masks(model.config)
    world, shares = World(rank=0, size=3, context_parallel=3), []
    for rank in range(3):
        shares.append(shard_sequences(batch, replace(world, rank=rank), model))
    # counted anew, not taken along from the whole
    assert batch.num_targets == sum(local_shard.num_targets for local_shard in shares) > shares[0].num_targets
    assert batch.mixture == {name: sum(local_shard.mixture[name] for local_shard in shares) for name in batch.mixture}
    batches = [batch, *shares]
    layouts = [local_shard.inputs.spans(SHAPE)[0].layout for local_shard in shares]
    order = torch.argsort(torch.cat([layout.index() for layout in layouts]))
    for name in (*TENSORS, "labels", "document"):
        whole, *parts = (getattr(each.inputs if name in TENSORS else each, name) for each in batches)
        assert torch.equal(torch.cat(parts, 1).index_select(1, order), whole)
    for name, (patches, media_index) in batch.inputs.media.items():
        real = media_index < 3 * ROW
        found = {}
        for local_shard, layout in zip(shares, layouts, strict=True):
            index = layout.index()
            own, places = local_shard.inputs.media[name]
            for patch, place in zip(own, places.tolist(), strict=True):
                found[place // len(index) * ROW + int(index[place % len(index)])] = patch
        assert sorted(found) == sorted(media_index[real].tolist())
        assert all(
            torch.equal(found[place], patch)
            for place, patch in zip(media_index[real].tolist(), patches[real], strict=True)
        )
    spans = shares[0].inputs.spans(SHAPE)
    assert [each.layout is layouts[0] for each in spans] == [True, True]
    assert torch.equal(spans[1].lo, Spans.packed(batch.document).lo[:, layouts[0].index()])


def test_chunks_divide_rows_where_they_can():
    assert chunk_tokens(131072, 4) == 2048 and chunk_tokens(512, 4) == 16 and chunk_tokens(96, 2) == 16
    for tokens, ranks in ((1000, 3), (17, 4), (5, 4)):
        chunk = chunk_tokens(tokens, ranks)
        assert chunk >= 1 and len(contiguous(-(-tokens // chunk), ranks)) * chunk >= tokens


@pytest.mark.parametrize("what", ["context_parallel", "dp_shard"])
def test_ranks_that_cannot_be_split_are_told(what):
    with pytest.raises(ValueError, match=rf"runtime.{what} = 2 does not divide the 3 ranks"):
        init_parallel_groups(World(size=3), **{what: 2})
