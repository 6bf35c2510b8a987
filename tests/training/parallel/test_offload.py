"""What is sent to the host comes back the same, in order, in time, in memory that is used again; copies on a CPU that
happen as late as they may stand in for a stream."""

import weakref

import numpy as np
import pytest
import torch

from brine.training.parallel import offload
from brine.training.parallel.offload import MAX_PENDING_COPIES, MIN_BUFFER_BYTES, PREFETCH_TENSORS, ActivationOffload
from tests.training.late_copy_engine import LateLink


@pytest.fixture
def link():
    return LateLink()


def layers(count: int, size: int = 1000) -> list[torch.Tensor]:
    return [torch.arange(float(size)).roll(number) + number for number in range(count)]


def all_of(tensor: torch.Tensor) -> bool:
    return True


def test_what_comes_back_is_what_went(link, monkeypatch):
    monkeypatch.setattr(offload, "BUFFER_BYTES", 64)
    monkeypatch.setattr(offload, "MIN_BUFFER_BYTES", 16)
    store = ActivationOffload(link)
    # transposed, a slice, other dtypes
    tensors = [torch.arange(35.0).view(5, 7).t(), torch.randn(3, 12, 2)[:, 3:6], torch.randn(3, 11).bfloat16()]
    tensors.append(torch.randn(1, dtype=torch.float64))
    aways = [store.send(tensor) for tensor in (*tensors, *layers(2))]
    assert [len(piece) for piece in aways[0].pieces] == [64, 64, 16]
    for tensor, offloaded in reversed(list(zip(tensors, aways, strict=False))):
        found = store.fetch(offloaded)
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype and found.stride() == tensor.stride()


def test_a_tensor_is_let_go_when_its_copy_was_waited_for(link):
    """Its memory goes when `MAX_PENDING_COPIES` later ones were sent, and not before."""
    store, alive, aways = ActivationOffload(link), [], []
    for number in range(5):
        array = np.full(500, float(number), dtype=np.float32)
        alive.append(weakref.ref(array))
        aways.append(store.send(torch.from_numpy(array)))
        del array
        gone = number + 1 - MAX_PENDING_COPIES
        assert [ref() is None for ref in alive] == [place < gone for place in range(number + 1)]
    assert link.log == [
        step for number in range(5) for step in ["wait_compute", "out", "mark"] + ["wait"] * (number >= 2)
    ]


def test_the_tensors_that_come_next_are_on_their_way(link):
    """Each is waited for once, and by then it had been queued while another was in use."""
    store, tensors = ActivationOffload(link), layers(6)
    aways = [store.send(tensor) for tensor in tensors]
    link.log.clear()
    for number in range(5, -1, -1):
        assert torch.equal(store.fetch(aways[number]), tensors[number])
        on_device = [offloaded for offloaded in aways if offloaded.on_device is not None]
        assert on_device == aways[max(0, number - PREFETCH_TENSORS) : number]
    # the last two had not left; none is fetched for itself alone
    assert link.log.count("back") == 4 and link.log.count("wait") == 6
    assert link.log[:4] == ["wait", "wait_compute", "back", "mark"]


def test_memory_is_used_again_and_what_is_not_needed_goes(link):
    """Two long passes, then two short ones: the first makes long pieces, the third short ones, which lets go of the
    long ones at the fourth."""
    store, made = ActivationOffload(link), []
    for size in (MIN_BUFFER_BYTES // 2, MIN_BUFFER_BYTES // 2, MIN_BUFFER_BYTES // 8, MIN_BUFFER_BYTES // 8):
        weights = torch.randn(4, size, requires_grad=True)
        with store.hooks(all_of):
            loss = sum((row.square() * row).sum() for row in weights)
        loss.backward()
        torch.testing.assert_close(weights.grad, 3 * weights.detach() ** 2)
        made.append(dict(link.pieces))
    saved = 12
    assert made[0] == made[1] == {2 * MIN_BUFFER_BYTES: saved}
    assert made[2] == made[3] == {2 * MIN_BUFFER_BYTES: saved, MIN_BUFFER_BYTES: saved}
    assert not store.free[2 * MIN_BUFFER_BYTES] and len(store.free[MIN_BUFFER_BYTES]) == saved


def test_a_graph_can_be_gone_through_twice(link):
    store, x = ActivationOffload(link), torch.randn(7, 300, requires_grad=True)
    with store.hooks(all_of):
        y = x
        for _ in range(5):
            y = y.sin() * y
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])


def test_a_pass_that_failed_leaves_nothing_behind(link):
    store, ref = ActivationOffload(link), None
    with pytest.raises(RuntimeError, match="out of"), store.hooks(all_of):
        array = np.ones(400, dtype=np.float32)
        ref = weakref.ref(array)
        x = torch.from_numpy(array).requires_grad_()
        y = x.sin().cos().exp()
        del array
        raise RuntimeError("out of luck")
    del x, y
    store.begin()
    assert ref() is None and not store.pending_copies
