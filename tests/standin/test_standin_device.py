"""The stand-in itself: as strict as a card about where tensors lie, as exact as the CPU, and it knows who waits."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from brine.kernels.attention import Spans, attention
from brine.kernels.context_parallel.layout import ContextLayout
from brine.kernels.context_parallel.sharding import zigzag
from brine.kernels.linear_loss import linear_cross_entropy
from brine.kernels.selection.choice_log import backend_choices, reset_backend_choices
from brine.model.device import resolve_device
from tests.kernels.ring_simulation import simulate
from tests.standin.stand_in import NAME, StandIn, count_waits


def there(*shape, **options):
    return torch.randn(*shape, device=NAME, **options)


def here(*shape):
    return torch.randn(*shape)


MIXED = {
    "add": lambda: there(3) + here(3),
    "add_to_host": lambda: here(3).add_(there(3)),
    "number_in_place_of_the_host": lambda: torch.zeros(()).add_(there(())),
    "matmul": lambda: there(2, 3) @ here(3, 2),
    "linear": lambda: F.linear(there(2, 3), here(4, 3)),
    "cat": lambda: torch.cat([there(2), here(2)]),
    "cat_of_numbers": lambda: torch.stack([there(1).sum(), torch.zeros(())]),
    "where": lambda: torch.where(there(3) > 0, there(3), here(3)),
    "where_condition": lambda: torch.where(here(3) > 0, there(3), 0.0),
    "embedding": lambda: F.embedding(torch.tensor([1, 2]), there(4, 3)),
    "index_copy": lambda: there(3).index_copy_(0, torch.tensor([0]), there(1)),
    "index_select": lambda: there(3).index_select(0, torch.tensor([0])),
    "gather": lambda: there(3).gather(0, torch.tensor([0])),
    "masked_fill": lambda: there(3).masked_fill(here(3) > 0, 0.0),
    "index_put_values": lambda: there(3).index_put_((torch.tensor([0, 1], device=NAME),), here(2)),
    "index_of_the_host_by_the_device": lambda: here(3)[torch.tensor([0, 1], device=NAME)],
    "sdpa": lambda: F.scaled_dot_product_attention(there(1, 2, 5, 8), here(1, 2, 5, 8), here(1, 2, 5, 8)),
    "layer_norm": lambda: F.layer_norm(there(2, 3), (3,), here(3), here(3)),
    "optimiser": lambda: torch._foreach_add_([there(3)], [here(3)]),
    "attention": lambda: attend(there(1, 5, 2, 8), Spans.packed(torch.zeros(1, 5, dtype=torch.int32))),
    "numpy": lambda: np.asarray(there(3)),
}


@pytest.mark.parametrize("name", MIXED)
def test_host_and_device_do_not_mix(name):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"same device|but q is on|numpy"):
        MIXED[name]()


def test_commands_take_a_device_that_computes():
    assert resolve_device(NAME) == torch.device(NAME)


@pytest.mark.parametrize("compute", [torch.randn, torch.rand, lambda *a, **k: torch.randperm(5, **k)])
def test_random_numbers_want_a_generator_of_the_device(compute):
    with pytest.raises(RuntimeError, match="device type for generator"):
        compute(3, device=NAME, generator=torch.Generator())
    first, second = (compute(3, device=NAME, generator=torch.Generator(NAME).manual_seed(7)) for _ in range(2))
    assert first.device.type == NAME and torch.equal(first, second)
    torch.manual_seed(3)
    first, host = compute(3, device=NAME), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(compute(3, device=NAME), first) and torch.equal(torch.rand(1), host)


ALLOWED = {
    "number": (lambda x: x + torch.tensor(2.0), 0),
    "where_number": (lambda x: torch.where(x > 0, x, torch.tensor(2.0)), 0),
    "filled": (lambda x: x.clone().fill_(torch.tensor(2.0)), 0),
    "indices": (lambda x: x[torch.tensor([2, 0])], 1),
    "put": (lambda x: x.clone().index_put_((torch.tensor([2, 0]),), torch.tensor(9.0)), 1),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_takes_from_the_host_is_taken(name):
    compute, uploads = ALLOWED[name]
    host = here(4)
    with count_waits() as waits:
        found = compute(host.to(NAME, non_blocking=True))
    assert found.device.type == NAME and torch.equal(found.cpu(), compute(host))
    assert (waits.reads, waits.uploads) == (0, uploads)


def attend(q, spans, **options):
    return attention(q, q, q, spans, **options)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(7, 8), nn.Linear(8, 16), nn.Linear(16, 7, bias=False)
        self.norm = nn.LayerNorm(8)
        self.second.weight.requires_grad_(True)

    def forward(self, ids):
        x = self.norm(self.table(ids))
        return self.second(checkpoint(lambda y: torch.relu(self.first(y)), x, use_reentrant=False))


OPTIMISERS = {
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "muon": lambda p: torch.optim.Muon([one for one in p if one.ndim == 2], lr=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_training_gives_the_bits_of_the_cpu_and_waits_for_nothing(optimiser):
    nets = [Net(), None]
    nets[1] = copy.deepcopy(nets[0]).to(NAME)
    ids = torch.randint(7, (3, 5))
    weights = []
    for net, device in zip(nets, ("cpu", NAME), strict=True):
        chosen = OPTIMISERS[optimiser](list(net.parameters()))
        batch = ids.to(device, non_blocking=True)
        with count_waits() as waits:
            for _ in range(3):
                chosen.zero_grad()
                loss = F.cross_entropy(net(batch).flatten(0, 1), batch.flatten())
                loss.backward()
                chosen.step()
        assert waits.total == 0 or "step" in optimiser, str(waits)
        assert all(one.device.type == device and one.grad.device.type == device for one in net.parameters())
        weights.append([one.detach().cpu() for one in net.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_a_module_that_moves_keeps_its_parameters_and_ties():
    net = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    net[1].weight = net[0].weight
    kept = net[0].weight
    net.to(NAME)
    assert net[0].weight is net[1].weight is kept and isinstance(kept, nn.Parameter) and isinstance(kept, StandIn)
    net.double()
    kept.data = kept.data * 0 + 3
    assert kept.dtype == torch.float64 and kept.sum().item() == 27
    twin = copy.deepcopy(net)
    assert twin[0].weight is twin[1].weight is not kept and twin[0].weight.device.type == NAME
    assert net.to("cpu")[0].weight.sum() == 27 and not isinstance(net[0].weight, StandIn)
    empty = nn.Linear(2, 2).to("meta").to_empty(device=NAME)
    assert empty.weight.device.type == NAME and empty.weight.requires_grad


def test_autocast_lowers_products_and_leaves_sums():
    layer = nn.Linear(8, 8).to(NAME)
    with torch.autocast(NAME, dtype=torch.bfloat16):
        y = layer(there(2, 8))
        assert y.dtype == torch.bfloat16 and (y @ y.t()).dtype == torch.bfloat16
        assert y.softmax(-1).dtype == y.sum().dtype == y.exp().dtype == torch.float32
        assert torch.cat([y, there(2, 8)]).dtype == torch.float32
        assert (there(2, 2).double() @ there(2, 2).double()).dtype == torch.float64
        with torch.autocast(NAME, enabled=False):
            assert layer(there(2, 8)).dtype == torch.float32
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_attention_and_loss_equal_the_cpu_in_float64():
    document = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, -1]], dtype=torch.int32)
    q, hidden, head = here(1, 10, 4, 8).double(), here(10, 6).double(), here(11, 6).double()
    labels = torch.tensor([3, -100, 5, 10, 0, 1, 2, -100, 4, 4])
    found = []
    for device in ("cpu", NAME):
        inputs = [x.detach().to(device).requires_grad_() for x in (q, hidden, head)]
        out = attend(inputs[0], Spans.packed(document, window=4).to(device))
        loss, token_loss = linear_cross_entropy(*inputs[1:], labels.to(device), return_token_loss=True)
        (out.square().sum() + loss).backward()
        found.append([x.detach().cpu() for x in (out, loss, token_loss, *(x.grad for x in inputs))])
    for mine, truth in zip(*found, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)


def test_the_rings_reference_stays_there():
    """Its ranks' results were put together on the device by places that lay on the host: on a card it only raised."""
    layout = ContextLayout(torch.from_numpy(zigzag(3, 2)), 8, 20, 0, 2)
    spans = Spans.packed(torch.tensor([[0] * 13 + [1] * 7], dtype=torch.int32))
    given = [here(1, 20, heads, 8).double() for heads in (2, 1, 1, 2)]
    truth = simulate(*given, spans, layout, scale=0.5, backend="reference")
    found = simulate(*[x.to(NAME) for x in given], spans.to(NAME), layout, scale=0.5, backend="reference")
    for name in ("out", "lse", "dq", "dk", "dv"):
        mine = getattr(found, name)
        assert mine.device.type == NAME
        torch.testing.assert_close(mine.cpu(), getattr(truth, name), rtol=1e-12, atol=1e-12)


def test_auto_refuses_to_be_dense_at_lengths_that_would_fill_a_card():
    q = torch.empty(1, 2051, 1, 8, device=NAME)
    spans = Spans.packed(torch.zeros(1, 2051, dtype=torch.int32)).to(NAME)
    with pytest.raises(ValueError, match=r'no attention backend serves 2051 queries.*backend="reference"'):
        attend(q, spans)


@pytest.mark.parametrize("compiling", [False, True], ids=["eager", "compiled"])
def test_what_auto_took_is_said(compiling, monkeypatch):
    """The choice is made where the operation runs, so that a compiled caller cannot hide it."""
    reset_backend_choices()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    attend(there(1, 5, 2, 8), Spans.packed(torch.zeros(1, 5, dtype=torch.int32)).to(NAME))
    ((what, backend),) = backend_choices().items()
    assert what.startswith(f"attention on {NAME}") and backend == "reference"


@torch.library.custom_op("standin_tests::mean_of", mutates_args=())
def mean_of(x: torch.Tensor, host: torch.Tensor, mixes: bool) -> torch.Tensor:
    return (x.mean(0) + host) if mixes else x.mean(0) + host.to(x.device)


def test_the_body_of_an_operation_of_ones_own_is_held_to_it_too():
    x, host = there(3, 2), torch.ones(2)
    assert torch.equal(mean_of(x, host, False).cpu(), x.cpu().mean(0) + 1)
    with pytest.raises(RuntimeError, match="same device"):
        mean_of(x, host, True)


WAITS = {
    "item": (lambda x: x.sum().item(), 1, 0),
    "float": (lambda x: float(x[0]), 1, 0),
    "if": (lambda x: bool(x.sum() > 0), 1, 0),
    "tolist": (lambda x: x.tolist(), 1, 0),
    "cpu": (lambda x: x.cpu(), 1, 0),
    "copy_to_host": (lambda x: torch.empty(6).copy_(x), 1, 0),
    "not_pinned": (lambda x: torch.empty(6).copy_(x, non_blocking=True), 1, 0),
    "pinned": (lambda x: torch.empty(6, pin_memory=True).copy_(x, non_blocking=True), 0, 0),
    "pinned_like": (lambda x: torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True), 0, 0),
    "to_host_without_waiting": (lambda x: x.to("cpu", non_blocking=True), 0, 0),
    "nonzero": (lambda x: x.nonzero(), 1, 0),
    "mask": (lambda x: x[x > 0], 1, 0),
    "write_by_mask": (lambda x: x.clone().index_put_((x > 0,), x[:1].sum()), 0, 0),
    "write_many_by_mask": (lambda x: x.clone().index_put_((x > -9,), x.clone()), 1, 0),
    "equal": (lambda x: torch.equal(x, x), 1, 0),
    "unique": (lambda x: x.unique(), 1, 0),
    "repeat": (lambda x: x.repeat_interleave(torch.arange(6, device=NAME)), 1, 0),
    "repeat_known": (lambda x: x.repeat_interleave(torch.arange(6, device=NAME), output_size=15), 0, 0),
    "list": (lambda x: torch.tensor([1.0, 2.0], device=NAME), 0, 1),
    "upload": (lambda x: torch.ones(2).to(NAME), 0, 1),
    "upload_without_waiting": (lambda x: torch.ones(2).to(NAME, non_blocking=True), 0, 0),
    "arithmetic": (lambda x: (x * 2).softmax(0).view(2, 3).t().contiguous().argmax(), 0, 0),
    "synchronize": (lambda x: torch.standin.synchronize(), 1, 0),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted(name):
    compute, reads, uploads = WAITS[name]
    x = there(6)
    with count_waits() as waits:
        compute(x)
    assert (waits.reads, waits.uploads) == (reads, uploads), str(waits)
    assert all(line.startswith("tests/standin/test_standin_device.py:") for line in waits.lines)
    x.sum().item()
    assert waits.total == reads + uploads


def test_a_wait_in_the_backward_pass_is_counted():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    x = there(3, requires_grad=True)
    loss = Reads.apply(x).sum()
    with count_waits() as waits:
        loss.backward()
    (line,) = waits.lines
    assert waits.total == 1 and line.endswith("_local_scalar_dense") and "test_standin_device" in line


def test_what_it_cannot_follow_it_refuses():
    with pytest.raises(NotImplementedError, match="another shape in place"):
        there(3).unsqueeze_(0)
    with pytest.raises(NotImplementedError, match="not pickled"):
        copy.copy(there(3))
