"""The Gluon kernels' own source, run on the host by `gluon_host`: right numbers, in whatever order things happen."""

from unittest import mock

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs Triton with Gluon for Hopper")

from brine.kernels.attention import Spans, reference
from brine.kernels.attention.gluon import backward as gluon_backward
from brine.kernels.attention.gluon import backward_queries as gluon_backward_queries
from brine.kernels.attention.gluon import forward as gluon_forward
from brine.kernels.attention.gluon import fused as gluon_fused
from brine.kernels.attention.gluon import launch as gluon_launch
from brine.kernels.attention.gluon.launch import BackwardTileConfig, ForwardTileConfig
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import backward as triton_backward
from tests.kernels.attention.gluon_host import Barrier as HostBarrier
from tests.kernels.attention.gluon_host import Deadlock, Emulated, Machine

pytestmark = pytest.mark.slow


class Delta:
    """The small Triton kernel that comes first, in PyTorch."""

    def __getitem__(self, grid):
        def launch(out, grad, lse, delta, lse2, *numbers, H, **sizes):
            batch, rows, padded = out.shape[0], out.shape[1], numbers[-1]
            delta, lse2 = (x.view(batch, H, padded) for x in (delta, lse2))
            delta.zero_()
            delta[:, :, :rows] = (out.float() * grad.float()).sum(3).transpose(1, 2)
            lse2.fill_(torch.inf)
            lse2[:, :, :rows] = torch.where(lse == -torch.inf, torch.inf, lse * 1.4426950408889634)

        return launch


ORDERS = [0, *(pytest.param(seed, marks=pytest.mark.acceptance) for seed in range(1, 5))]
"""Seeds of the order in which things happen."""


@pytest.fixture(params=ORDERS)
def host(request):
    """Launches go to the host."""
    keys, queries = "span_attention_gluon_bwd_keys_kernel", "span_attention_gluon_bwd_queries_kernel"
    forward, fused = "span_attention_gluon_fwd_kernel", "span_attention_gluon_bwd_fused_kernel"
    with (
        mock.patch.object(gluon_launch, "unsupported_reason", lambda *args, **kwargs: None),
        mock.patch.object(triton_backward, "span_attention_bwd_delta_kernel", Delta()),
        mock.patch.object(gluon_backward, keys, Emulated(gluon_backward, keys, request.param)),
        mock.patch.object(gluon_backward_queries, queries, Emulated(gluon_backward_queries, queries, request.param)),
        mock.patch.object(gluon_forward, forward, Emulated(gluon_forward, forward, request.param)),
        mock.patch.object(gluon_fused, fused, Emulated(gluon_fused, fused, request.param)),
    ):
        yield


@pytest.fixture
def in_any_order(monkeypatch):
    """New tensors stay poisoned, as in PyTorch's deterministic mode, but the launcher is told of no such mode."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)


def masks() -> dict[str, Spans]:
    """Odd sizes; walks with no tile, one, and many, with and without full ones."""
    long = torch.zeros(1, 450, dtype=torch.int32)
    row = torch.arange(270, dtype=torch.int32)
    lo = (row * 2 // 3).clamp(min=100)
    hi = torch.where(row % 5 == 0, lo, lo + 40).cummax(0).values.to(torch.int32)
    return {
        "one": Spans.packed(torch.zeros(1, 1, dtype=torch.int32)),
        "causal": Spans.packed(long),
        "window": Spans.packed(long, window=90),
        "packed": Spans.packed((torch.arange(397, dtype=torch.int32) // 130).repeat(2, 1)),
        # 128 rows, and keys beyond the last of them, which nobody sees
        "unseen": Spans(row.new_zeros(1, 128), torch.arange(1, 129, dtype=torch.int32)[None], 333),
        "holes": Spans(torch.minimum(lo, hi)[None].cummax(1).values, hi[None], 300),
    }


def inputs(spans: Spans, dtype: torch.dtype = torch.float16, heads: int = 2, key_heads: int = 1, dim: int = 40):
    draw = torch.Generator().manual_seed(1)
    q, k, v, grad = (
        torch.randn(spans.batch_size, tokens, number, dim, generator=draw).to(dtype)
        for tokens, number in (
            (spans.num_queries, heads),
            *((spans.num_keys, key_heads),) * 2,
            (spans.num_queries, heads),
        )
    )
    return q, k, v, grad


def far(found, truth) -> float:
    # one key alone has gradients of 0, but for rounding
    return float((found.float() - truth).norm() / truth.norm().clamp_min(0.1 * truth.numel() ** 0.5))


@pytest.mark.parametrize(
    "shape", [(64, 2, True), (64, 3, True), (64, 4, True, True), (64, 2, True, True), (64, 3, False)], ids=str
)
@pytest.mark.parametrize("name", masks())
def test_backward_equals_the_specification(host, name, shape):
    """dq, dk and dv."""
    spans = masks()[name]
    q, k, v, grad = inputs(spans)
    given, request = (q.float(), k.float(), v.float()), AttentionRequest(spans.mask, 0.2)
    out, lse = reference.forward(*given, request)
    truth = reference.backward(grad.float(), *given, out, lse, request)
    shape = BackwardTileConfig(*shape)
    found = gluon_launch.backward(
        grad, q, k, v, out, lse, request._replace(partial=True), keys_shape=shape, rows_shape=shape,
    )  # fmt: skip
    errors = [far(x, y) for x, y in zip(found, truth, strict=True)]
    assert max(errors) < 2e-3, errors


@pytest.mark.parametrize("shape", [(64, 2, True), (64, 3, True), (64, 3, True, True), (64, 2, False)], ids=str)
@pytest.mark.parametrize("name", masks())
def test_fused_backward_equals_the_specification(host, in_any_order, name, shape):
    """dq, added up in memory, dk and dv; two query heads a key head, dq in both halves of the head dim."""
    spans = masks()[name]
    q, k, v, grad = inputs(spans)
    given, request = (q.float(), k.float(), v.float()), AttentionRequest(spans.mask, 0.2)
    out, lse = reference.forward(*given, request)
    truth = reference.backward(grad.float(), *given, out, lse, request)
    found = gluon_launch.backward(
        grad, q, k, v, out, lse, request._replace(partial=True), fused=True, fused_shape=BackwardTileConfig(*shape),
    )  # fmt: skip
    errors = [far(x, y) for x, y in zip(found, truth, strict=True)]
    assert max(errors) < 2e-3, errors


@pytest.mark.parametrize("scale", [-0.2, 0.0, 0.2], ids=str)
@pytest.mark.parametrize(("dim", "dtype"), [(96, torch.bfloat16), (128, torch.float16), (16, torch.float16)], ids=str)
def test_fused_backward_rounds_and_scales(host, in_any_order, dim, dtype, scale):
    """Head dims that are padded, to 64 so that one half is empty, and not; 16 bits; every sign of the scale; a batch
    of 2 and 2 key heads, so that each adds to its own rows of dq."""
    spans = Spans.packed((torch.arange(150, dtype=torch.int32) // 70).repeat(2, 1))
    q, k, v, grad = inputs(spans, dtype, heads=4, key_heads=2, dim=dim)
    given, request = (q.float(), k.float(), v.float()), AttentionRequest(spans.mask, scale)
    out, lse = reference.forward(*given, request)
    truth = reference.backward(grad.float(), *given, out, lse, request)
    found = gluon_launch.backward(grad, q, k, v, out, lse, request, fused=True)
    assert all(x.dtype == dtype for x in found)
    errors = [far(x, y) for x, y in zip(found, truth, strict=True)]
    assert max(errors) < (8e-3 if dtype is torch.bfloat16 else 2e-3), errors


def test_fused_backward_is_refused_where_pytorch_is_deterministic(host):
    """With a remedy."""
    spans = masks()["one"]
    q, k, v, grad = inputs(spans)
    lse = torch.zeros(1, 2, 1)
    # tests run so
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="use fused=False"):
        gluon_launch.backward(grad, q, k, v, q, lse, AttentionRequest(spans.mask, 0.2), fused=True)


@pytest.mark.parametrize("shape", [(64, 2, True, False), (64, 3, True, True), (64, 2, False, False)], ids=str)
@pytest.mark.parametrize("name", masks())
def test_forward_equals_the_specification(host, name, shape):
    """out and lse, rows that see nothing among them."""
    spans = masks()[name]
    q, k, v, _ = inputs(spans)
    request = AttentionRequest(spans.mask, 0.2, partial=True)
    truth, truth_lse = reference.forward(q.float(), k.float(), v.float(), request)
    out, lse = gluon_launch.forward(q, k, v, request, shape=ForwardTileConfig(*shape))
    assert far(out, truth) < 2e-3
    torch.testing.assert_close(lse, truth_lse, atol=1e-3, rtol=1e-3)


def test_the_host_tells_when_all_wait():
    """Else the tests above would show nothing."""
    machine, barrier = Machine(0), HostBarrier()
    with pytest.raises(Deadlock):
        machine.run([lambda: machine.until(lambda: barrier.phase == 1)] * 2)
