"""Attention inside torch.compile: no graph break, no recompilation when documents change, no stale mask."""

import logging

import pytest
import torch
from torch import nn

from brine.kernels.attention import Spans, attention
from brine.kernels.linear_loss import linear_cross_entropy
from brine.kernels.selection.choice_log import backend_choices, reset_backend_choices
from tests.kernels.packings import naive, random_packing

pytestmark = pytest.mark.slow


class Block(nn.Module):
    """As much of a transformer block as meets the op: a projection before, a residual and one more after."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 3 * 32, bias=False)
        self.out = nn.Linear(32, 32, bias=False)
        self.sink = nn.Parameter(torch.zeros(4))

    def forward(self, x, spans):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).unbind(2)
        return x + self.out(attention(q, k, v, spans, sink=self.sink).flatten(2))


@pytest.fixture
def strict_compiler():
    """One compilation is all there may be."""
    torch._dynamo.reset()
    # the deterministic mode of the other tests changes how the compiler lowers what surrounds attention
    torch.use_deterministic_algorithms(False)
    with torch._dynamo.config.patch(
        recompile_limit=1, fail_on_recompile_limit_hit=True, automatic_dynamic_shapes=False
    ):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast-bf16"])
def test_compiled_equals_eager_as_the_mask_changes(strict_compiler, autocast):
    """The same compiled function, called with other documents and another window, must honour them: a mask baked into
    the graph, or a plan kept from the call before, would give the first call's answer again."""
    block = Block()
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 150, 32)
    visible = []
    for seed, window in ((0, None), (1, None), (2, 9), (0, None)):
        document, media = random_packing(seed, 2, 150)
        spans = Spans.packed(document, block=media, window=window)
        runs = []
        for function in (block, compiled):
            block.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                out = function(x, spans)
            out.square().sum().backward()
            runs.append([out.detach(), *(p.grad.clone() for p in block.parameters())])
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {}
        for eager, got in zip(*runs, strict=True):
            torch.testing.assert_close(got / eager.abs().max(), eager / eager.abs().max(), **tolerance)
        visible.append(runs[1][0])
    assert not torch.equal(visible[0], visible[1]) and not torch.equal(visible[1], visible[2])
    assert torch.equal(visible[0], visible[3])


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_op_passes_torch_library_checks(backend):
    """Schema, fake kernel and autograd registration, as torch itself tests them."""
    spans = Spans.packed(random_packing(3, 2, 40)[0])
    q, k, v = (torch.randn(2, 40, 2, 8, requires_grad=True) for _ in range(3))
    args = (q, k, v, spans.lo, spans.hi, spans.serial, None, 0.3, backend)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.brine.span_attention.default, args, test_utils=tests)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_choices_are_told_of_from_compiled_code(strict_compiler, backend, caplog):
    """Once "auto" chose while the compiler traced, and nobody was told what a compiled model ran on. Now the op chooses
    when it runs, and gradients of the reference are exact inside of it: autograd records nothing there."""
    reset_backend_choices()
    q = torch.randn(1, 30, 2, 8, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda q, spans: attention(q, q, q, spans, backend=backend).sin(), fullgraph=True)
    with caplog.at_level(logging.INFO, logger="brine.kernels.attention"):
        for size in (7, 11):
            spans = Spans.packed((torch.arange(30) // size)[None])
            grads = []
            for function in (compiled, lambda q, spans: naive(q, q, q, spans)[0].sin()):
                grads.append(torch.autograd.grad(function(q, spans).sum(), q)[0])
            torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    took = "cpu" if backend == "auto" else "reference (asked for)"
    assert backend_choices() == {"attention on cpu: causal, float64, head dim 8": took}
    own = [record for record in caplog.records if record.name.startswith("brine.kernels")]
    assert len(own) == (backend == "auto")


def test_spans_built_inside_compiled_code_are_not_baked_in():
    """A serial traced as a constant would serve the first call's plan for ever."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)

    def packed_attention(x, document):
        return attention(x, x, x, Spans.packed(document))

    compiled = torch.compile(packed_attention, backend="eager")
    x = torch.randn(1, 30, 2, 8)
    for size in (3, 7, 30):
        document = (torch.arange(30) // size)[None]
        torch.testing.assert_close(compiled(x, document), packed_attention(x, document))
    torch._dynamo.reset()


def test_the_loss_chooses_in_compiled_code_too():
    """The code breaks where it asks, and what it is told is not part of a trace."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    reset_backend_choices()
    hidden, weight, labels = torch.randn(9, 4), torch.randn(7, 4), torch.arange(9) % 7
    compiled = torch.compile(lambda *tensors: linear_cross_entropy(*tensors) * 2, backend="eager")
    torch.testing.assert_close(compiled(hidden, weight, labels), 2 * linear_cross_entropy(hidden, weight, labels))
    assert backend_choices() == {"linear loss on cpu: plain, float32": "chunked"}
    reset_backend_choices()
    compiled(hidden, weight, labels)
    assert backend_choices() == {"linear loss on cpu: plain, float32": "chunked"}
    torch._dynamo.reset()
