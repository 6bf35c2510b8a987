"""Decoding by the Triton kernels against an fp64 truth. See `attention_triton_cases.py`; `test_triton.py` runs both."""

import pytest
import torch

from brine.kernels.attention import Spans, attention
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import decode as triton_decode
from brine.kernels.attention.triton import launch as triton_launch
from tests.kernels.attention.triton_device import ALL_CASES, DEVICE, DTYPES, on_a_gpu
from tests.kernels.packings import inputs, naive


def prompts(rows: int, batch: int = 4, num_keys: int = 300) -> Spans:
    """Unequal prompts: sequences of one batch see unlike numbers of keys, one of them few, another none."""
    stop = torch.tensor([300, 257, 70, 1] * batch)[:batch, None] + torch.arange(rows) - rows + 1
    lo = torch.tensor([0, 131, 0, 0] * batch)[:batch, None].expand(-1, rows)
    hi = stop.clamp(min=0).int()
    hi[3::4] = 0
    return Spans(torch.minimum(lo, hi).int(), hi, num_keys).to(DEVICE)


DECODED = [(1, 5, "fp32"), (5, 12, "fp16"), (1, 40, "fp16")]


@pytest.mark.parametrize(
    ("rows", "programs", "dtype"),
    [
        on_a_gpu(rows, programs, dtype, unless=(rows, programs, dtype) in DECODED)
        for rows in (1, 5)
        for programs in (5, 12, 40)
        for dtype in DTYPES
    ],
)
def test_triton_decode_against_truth(rows, programs, dtype, monkeypatch):
    """From one program for each sequence to more than there are tiles of keys."""
    forward = triton_decode.forward
    called = []

    def split(*args, **kwargs):
        called.append(1)
        return forward(*args, **kwargs, num_programs=programs)

    monkeypatch.setattr(triton_decode, "forward", split)
    spans = prompts(rows)
    # several key heads are what the case of one row has
    key_heads = 2 if ALL_CASES or rows == 1 else 1
    q, k, v, _ = inputs(spans, heads=3 * key_heads, key_heads=key_heads, dim=20, dtype=DTYPES[dtype])
    for sink in (None, torch.randn(3 * key_heads).to(DEVICE)):
        with torch.no_grad():
            out, lse = attention(q, k, v, spans, sink=sink, backend="triton", return_lse=True)
            wide = [x.double() for x in (q, k, v)]
            true_out, true_lse = naive(*wide, spans, None if sink is None else sink.double())
            own_out, own_lse = naive(q, k, v, spans, None if sink is None else sink.to(q.dtype))
        eps = torch.finfo(DTYPES[dtype]).eps
        assert torch.equal(lse == -torch.inf, true_lse == -torch.inf)
        for got, own, true in ((out, own_out, true_out), (lse, own_lse, true_lse)):
            got, own, true = (x.double().nan_to_num(neginf=0.0) for x in (got, own, true))
            assert (got - true).abs().max() <= 2 * (own - true).abs().max() + 4 * eps * true.abs().max()
    assert len(called) == 2


@pytest.mark.parametrize("batch", [1, 4, 19])
def test_decode_programs_share_the_keys_evenly(batch):
    """What `dealing` counts on the card, for every number of programs: enough of them, and no share above the least
    that so many programs allow."""
    spans = prompts(3, batch)
    tiles = [
        -(-(int(hi[-1]) - int(lo[0])) // triton_decode.BLOCK_KEYS) for lo, hi in zip(spans.lo, spans.hi, strict=True)
    ]
    for programs in range(batch + 1, batch + 40):
        share = max(-(-sum(tiles) // (programs - batch)), 1)
        assert sum(-(-n // share) for n in tiles) <= programs
    assert triton_decode.programs_of(batch, spans.num_keys, 2, 132) > batch


def test_decode_launches_depend_on_shapes_alone(monkeypatch):
    """A captured graph replays what was launched, whatever lo and hi say by then."""
    launched = []

    class Launch:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                launched.append((grid, [x for x in args if not isinstance(x, torch.Tensor)], kwargs))
                self.kernel[grid](*args, **kwargs)

            return launch

    for name in ("span_attention_decode_kernel", "span_attention_merge_kernel"):
        monkeypatch.setattr(triton_decode, name, Launch(getattr(triton_decode, name)))
    runs = []
    for end in (17, 290):
        hi = torch.full((2, 1), end, dtype=torch.int32)
        spans = Spans(torch.zeros_like(hi), hi, 512).to(DEVICE)
        q, k, v, _ = inputs(spans, heads=2, key_heads=1, dim=16, dtype=torch.float16)
        with torch.no_grad():
            attention(q, k, v, spans, backend="triton")
        runs.append(list(launched))
        launched.clear()
    assert len(runs[0]) == 2 and runs[0] == runs[1]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a card")
def test_decode_in_a_graph_follows_the_spans():
    """Captured over a cache of fixed capacity, replayed after lo, hi and the cache were written to."""
    lo, hi = (torch.full((2, 1), end, dtype=torch.int32, device=DEVICE) for end in (0, 17))
    spans = Spans(lo, hi, 512)
    q, k, v, _ = (x.detach() for x in inputs(spans, heads=2, key_heads=1, dim=64, dtype=torch.float16))
    request = AttentionRequest(spans.mask, 0.125)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        triton_launch.forward(q, k, v, request)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = triton_launch.forward(q, k, v, request)
    for end in (18, 300, 512):
        hi.fill_(end)
        q.normal_()
        graph.replay()
        expected = naive(q.double(), k.double(), v.double(), Spans(lo, hi, 512))
        torch.testing.assert_close(out.double(), expected[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(lse.double(), expected[1], atol=1e-3, rtol=1e-3)
