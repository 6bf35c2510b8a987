"""Ranks that share rows, and replicas of them: every mesh gives the same losses and weights, in float64."""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from packings import random_packing

from data.batch import Batch
from kernels import Spans
from kernels.ring_attention.deal import contiguous
from model import ModelConfig, Transformer
from salt.distill import Distillation
from training.config import TrainConfig
from training.distributed import World, start_world
from training.loop import train
from training.parallel import chunk_tokens, share_rows, split_world
from training.rows import RowSource
from training.runtime import Runtime

ROW, VOCAB = 64, 40
SHAPE = ModelConfig(
    vocab_size=VOCAB, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48, window=20,
    global_every=2, image_dim=12, audio_dim=8, video_dim=10,
)  # fmt: skip
STEPS = 50
CONFIG = TrainConfig(
    model=SHAPE, num_steps=STEPS, rows_per_step=4, micro_rows=1, learning_rate=3e-3, warmup_steps=2,
    checkpoint_every=STEPS, log_every=1, seed=3,
)  # fmt: skip
MESHES = {1: [1], 2: [1, 2], 4: [1, 2, 4]}
"""World size -> ranks that share rows."""


def rows(first: int, count: int) -> Batch:
    """Rows of packed documents with media blocks, pictures in some rows and sound in others; a function of `first`."""
    generator = torch.Generator().manual_seed(first)
    document, block = random_packing(first, count, ROW, sizes=(3, 20, 60, 130))
    token_ids = torch.randint(VOCAB, (count, ROW), generator=generator)
    labels = torch.where(block.roll(-1, 1) == 0, token_ids.roll(-1, 1), -100)
    labels[:, -1] = -100
    labels[document != document.roll(-1, 1)] = -100
    labels[(block > 0) | (document < 0)] = -100
    media = {}
    for place, (name, dim) in enumerate((("image", 12), ("audio", 8), ("video", 10))):
        own = (block.flatten() > 0) & (block.flatten() % 3 == place)
        slot = torch.cat([own.nonzero().flatten(), torch.full((4,), count * ROW)])
        media[name] = (torch.randn(len(slot), dim, generator=generator), slot)
    position = torch.arange(ROW, dtype=torch.float32)[None, :, None].expand(count, ROW, 3).contiguous()
    zeros = torch.zeros(count, ROW)
    return Batch(token_ids, position, document, block, labels, zeros.to(torch.int16), zeros.to(torch.uint8), media)


def source(world: World) -> RowSource:
    def open_rows(start: int):
        for first in range(start + world.replica, 400, world.replicas):
            yield rows(first, 1)

    return RowSource(open=open_rows, num_rows=400)


def run(folder: Path, world: World, *, taught: bool) -> None:
    """Train once."""
    model = Transformer(SHAPE, generator=torch.Generator().manual_seed(1))
    teacher = None
    if taught:
        small = replace(SHAPE, num_layers=1, window=7)
        teacher = Distillation(Transformer(small, generator=torch.Generator().manual_seed(2)), 20, 0.5)
    train(
        CONFIG, model=model, rows=source(world), folder=folder, runtime=Runtime(dtype="float64"), kinds=("page",),
        distillation=teacher, world=world, quiet=True,
    )  # fmt: skip


def _rank(rank: int, size: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    whole = start_world()
    for context in MESHES[size]:
        run(Path(folder) / f"{size}-{context}", split_world(whole, context), taught=context == max(MESHES[size]))


def losses(folder: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if "loss" in line], dtype=torch.float64)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> dict[bool, Path]:
    folders, before = {}, torch.get_num_threads()
    # more threads than cores are free wait for one another at every small product
    torch.set_num_threads(1)
    for taught in (False, True):
        folders[taught] = tmp_path_factory.mktemp("one")
        run(folders[taught], World(), taught=taught)
    torch.set_num_threads(before)
    return folders


@pytest.mark.parametrize("size", [2, 4])
def test_every_mesh_gives_the_same_losses(size, one_rank, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_rank, (size, port, str(tmp_path)), nprocs=size, start_method="spawn")
    for context in MESHES[size]:
        expected, folder = one_rank[context == max(MESHES[size])], tmp_path / f"{size}-{context}"
        assert len(losses(folder)) == STEPS
        torch.testing.assert_close(losses(folder), losses(expected), rtol=0, atol=1e-8)
        weights = [load_file(next((path / "checkpoints").glob(f"*{STEPS}")) / "model.safetensors")
                   for path in (folder, expected)]  # fmt: skip
        for name, tensor in weights[1].items():
            torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-8, msg=name)
        billed = [json.loads((path / "ledger.json").read_text()) for path in (folder, expected)]
        assert billed[0]["student"]["flops"] == billed[1]["student"]["flops"]


def test_shares_are_the_batch(tmp_path):
    """Every token, label and patch lies on one rank, in its place."""
    batch, model = rows(5, 3), Transformer(SHAPE)
    world, shares = World(rank=0, size=3, context=3), []
    for rank in range(3):
        shares.append(share_rows(batch, replace(world, rank=rank), model))
    order = torch.argsort(torch.cat([share.layout.index() for share in shares]))
    for name in ("token_ids", "labels", "document", "position"):
        joined = torch.cat([getattr(share.batch, name) for share in shares], 1).index_select(1, order)
        assert torch.equal(joined, getattr(batch, name))
    for name, (patches, slot) in batch.media.items():
        real = slot < 3 * ROW
        found = {}
        for share in shares:
            index = share.layout.index()
            own, places = share.batch.media[name]
            for patch, place in zip(own, places.tolist(), strict=True):
                found[place // len(index) * ROW + int(index[place % len(index)])] = patch
        assert sorted(found) == sorted(slot[real].tolist())
        assert all(
            torch.equal(found[place], patch) for place, patch in zip(slot[real].tolist(), patches[real], strict=True)
        )
    spans = shares[0].spans()
    assert [each.layout is shares[0].layout for each in spans] == [True, True]
    assert torch.equal(spans[1].lo, Spans.packed(batch.document).lo[:, shares[0].layout.index()])


def test_chunks_divide_rows_where_they_can():
    assert chunk_tokens(131072, 4) == 2048 and chunk_tokens(512, 4) == 16 and chunk_tokens(96, 2) == 16
    for tokens, ranks in ((1000, 3), (17, 4), (5, 4)):
        chunk = chunk_tokens(tokens, ranks)
        assert chunk >= 1 and len(contiguous(-(-tokens // chunk), ranks)) * chunk >= tokens


def test_ranks_that_cannot_be_split_are_told():
    with pytest.raises(ValueError, match=r"runtime.context = 2 does not divide the 3 ranks"):
        split_world(World(size=3), 2)
