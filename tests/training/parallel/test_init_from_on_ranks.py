"""Given weights and optimizer on two ranks, whole or sharded, are what one rank begins with."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brine.model.transformer import Transformer
from brine.training.checkpoint.checkpoint import list_checkpoints
from brine.training.checkpoint.init_from import find_initial_weights
from brine.training.parallel.distributed import World, init_distributed
from brine.training.parallel.parallelize import init_parallel_groups
from brine.training.runtime import Runtime
from brine.training.trainer import Trainer
from tests.forked import run_ranks
from tests.training.parallel.test_parallel import CONFIG, source
from tests.training.tiny_run import final_tensors

pytestmark = pytest.mark.slow

STEPS = replace(CONFIG, num_steps=3, checkpoint_every=3, keep_checkpoint_steps=(0,))
CASES = {"fresh": False, "kept": True}


def go_on(folder: Path, world: World, *, init: Path | None = None, kept: bool = False) -> None:
    """Three steps, from given weights where there are some."""
    weights = {"generator": torch.Generator().manual_seed(8)} if world.size == 1 else {"on_meta_device": True}
    initial = None
    if init is not None:
        initial = world.broadcast(find_initial_weights(init, init_optimizer=kept) if world.is_main else None)
    Trainer(
        STEPS, model=Transformer(CONFIG.model, **weights), sequences=source(world), folder=folder, world=world,
        runtime=Runtime(dtype="float64"), kinds=("page",), quiet=True, initial=initial,
    ).run()  # fmt: skip


def old_checkpoint(folder: Path) -> Path:
    return list_checkpoints(folder / "old" / "checkpoints")[-1].folder


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    whole, place = init_distributed(), Path(folder)
    for shard in (1, 2):
        world = init_parallel_groups(whole, dp_shard=shard)
        for name, kept in CASES.items():
            go_on(place / f"{name}-{shard}", world, init=old_checkpoint(place), kept=kept)
    # what two ranks kept, in parts, for one rank to begin with
    go_on(place / "parts", init_parallel_groups(whole, dp_shard=2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder, before = tmp_path_factory.mktemp("init"), torch.get_num_threads()
    torch.set_num_threads(1)
    go_on(folder / "old", World())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(_rank, port, str(folder), count=2)
    for name, kept in CASES.items():
        go_on(folder / name, World(), init=old_checkpoint(folder), kept=kept)
    go_on(folder / "joined", World(), init=list_checkpoints(folder / "parts" / "checkpoints")[-1].folder, kept=True)
    torch.set_num_threads(before)
    return folder


def first(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the checkpoint of step 0."""
    return final_tensors(folder, which=0)


@pytest.mark.parametrize("shard", [1, 2], ids=["replicated", "sharded"])
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_begin_with_the_same_bits_and_end_with_the_same_weights(name, shard, trained):
    one, two = trained / name, trained / f"{name}-{shard}"
    expected, found = first(one), first(two)
    assert expected.keys() == found.keys() and any(key.startswith("optimizer/") for key in found) == CASES[name]
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    expected, found = final_tensors(one), final_tensors(two)
    for key in (key for key in expected if key.startswith("model/")):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-8, msg=key)


def test_what_two_ranks_kept_in_parts_is_whole_on_one(trained):
    expected, found = final_tensors(trained / "parts"), first(trained / "joined")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
