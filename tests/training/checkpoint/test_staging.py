"""A checkpoint holds what the tensors were when it was begun, whatever is done to them while it is being written."""

import gc
import socket

import pytest
import torch

from brine.training.checkpoint import async_checkpoint as saver_module
from brine.training.checkpoint.async_checkpoint import AsyncCheckpointer
from brine.training.checkpoint.checkpoint import check, load_checkpoint
from brine.training.checkpoint.staging import HostStaging
from brine.training.optimizer import Optimizer
from tests.training.late_copy_engine import LateLink
from tests.training.tiny_run import TinyModel, tiny_config


def some(seed: int = 0) -> dict[str, torch.Tensor]:
    """Sizes that fill no room evenly; a number, as AdamW's count is, and nothing at all, as a rank may hold."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"odd": (3, 5), "count": (), "nothing": (0, 7), "many": (1000, 33)}
    found = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return {**found, "half": torch.randn(9, generator=generator).bfloat16(), "leaf": torch.ones(2, requires_grad=True)}


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(float("nan"))


def same(found: dict[str, torch.Tensor], seed: int = 0) -> bool:
    true = some(seed)
    return found.keys() == true.keys() and all(
        torch.equal(found[name], true[name]) and found[name].dtype == true[name].dtype for name in true
    )


@pytest.mark.slow
@pytest.mark.parametrize("linked", [False, True])
def test_copies_are_of_that_moment(linked):
    staging, tensors = HostStaging(LateLink() if linked else None), some()
    staged = staging.copy(tensors)
    spoil(tensors)
    gc.collect()
    assert same(staged())
    for copy in staged().values():
        # the writer would copy what is a part of a larger storage
        assert not copy.requires_grad and copy.untyped_storage().size() == copy.nbytes


def test_the_card_waits_and_the_host_does_not():
    link = LateLink()
    staged = HostStaging(link).copy(some())
    # everything computed before, copies of all that is not empty, and nothing is computed before they are done
    assert link.log[0] == "wait_compute" and link.log[-2:] == ["mark", "wait"] and len(link.log) == 3 + 5
    staged()
    assert link.log[-1] == "synchronize"


def test_memory_is_taken_once(monkeypatch):
    """And a tensor larger than a piece has room of its own."""
    monkeypatch.setattr("brine.training.checkpoint.staging.BUFFER_BYTES", 2**12)
    link = LateLink()
    staging = HostStaging(link)
    for seed in range(3):
        assert same(staging.copy(some(seed))(), seed)
    assert link.pieces == {2**12: 1, 1000 * 33 * 4: 1}


def test_a_tensor_of_another_shape_has_other_room():
    staging = HostStaging(LateLink())
    for size in ((4, 3), (3, 4), (7,)):
        given = torch.randn(size)
        assert torch.equal(staging.copy({"x": given})()["x"], given)


def test_what_is_split_over_ranks_stays_split(monkeypatch):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        true = torch.randn(5, 3)
        given = distribute_tensor(true.clone(), init_device_mesh("cpu", (1,)), [Shard(0)])
        staged = HostStaging(LateLink()).copy({"x": given})
        given.to_local().fill_(float("nan"))
        found = staged()["x"]
        assert isinstance(found, DTensor) and found.placements == given.placements and found.shape == given.shape
        assert torch.equal(found.to_local(), true)
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_written_is_what_was_held_when_it_was_begun(tmp_path, monkeypatch):
    """Twice through the same memory, the weights diverged while files are being written."""
    link = LateLink()
    monkeypatch.setattr(saver_module, "HostStaging", lambda _: HostStaging(link))
    model = TinyModel()
    optimizer = Optimizer(model, tiny_config())
    saver = AsyncCheckpointer(tmp_path, keep=9)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1e-2)
        tensors = {**dict(model.named_parameters()), **optimizer.state_tensors()}
        held = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        path = saver.begin(step=step, model=model, optimizer=optimizer, state={})
        spoil(tensors)
        saver.wait()
        load_checkpoint(check(path), model=model, optimizer=optimizer)
        found = {**dict(model.named_parameters()), **optimizer.state_tensors()}
        assert found.keys() == held.keys() and all(torch.equal(found[name], held[name]) for name in held)
    saver.close()
    assert sum(link.pieces.values()) == 1
