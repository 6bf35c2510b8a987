"""Decoding on the CPU: few rows against a long cache, held to the same truth as the other backends."""

import pytest
import torch

from brine.kernels.attention import Spans, attention
from brine.kernels.attention.cpu import decode as cpu_decode
from brine.kernels.attention.cpu import tiled as cpu
from brine.kernels.attention.spans import AttentionRequest
from tests.kernels.packings import check_against_truth, inputs, random_packing

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])


@pytest.fixture
def taken(monkeypatch):
    """Decode at any size, in parts of an odd size; lists the shapes of q that came this way."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for name, size in {"LEAST": 0, "MIN_GROUP": 1, "PART": 1000}.items():
        monkeypatch.setattr(cpu_decode, name, size)
    shapes = []

    def counting(q, *args, _run=cpu_decode.forward, **kwargs):
        shapes.append(tuple(q.shape))
        return _run(q, *args, **kwargs)

    monkeypatch.setattr(cpu_decode, "forward", counting)
    return shapes


def spans_of(lo: list[list[int]], hi: list[list[int]], num_keys: int) -> Spans:
    return Spans(torch.tensor(lo, dtype=torch.int32), torch.tensor(hi, dtype=torch.int32), num_keys)


def causal(num_keys: int, num_queries: int, batch: int = 2, window: int | None = None) -> Spans:
    return Spans.packed(torch.zeros(batch, num_keys, dtype=torch.int32), window=window, num_queries=num_queries)


CASES = {
    "T1": lambda: causal(391, 1),
    "T3": lambda: causal(391, 3),
    "T7": lambda: causal(1103, 7),
    "one-key": lambda: causal(1, 1),
    "window-T1": lambda: causal(391, 1, window=100),
    "window-T7": lambda: causal(391, 7, window=100),
    "window-shorter-than-rows": lambda: causal(391, 7, window=4),
    "unequal-prompts": lambda: spans_of([[0], [3], [40], [200]], [[391], [5], [41], [391]], 391),
    "unequal-prompts-T3": lambda: spans_of([[0, 5, 9], [7, 7, 7]], [[300, 301, 302], [90, 91, 92]], 391),
    "empty-sequence": lambda: spans_of([[0], [50], [0]], [[391], [50], [77]], 391),
    "empty-rows": lambda: spans_of([[0, 60, 60], [10, 10, 10]], [[60, 60, 200], [10, 10, 300]], 391),
    "nothing-seen": lambda: spans_of([[9, 9]], [[9, 9]], 50),
    "restricted": lambda: causal(400, 7, window=300).restrict(range(7), range(13, 390)),
    "restricted-to-some": lambda: causal(400, 7).restrict(range(0, 7, 3), range(1, 400, 3)),
    "documents": lambda: Spans.packed(random_packing(3, 3, 400)[0], num_queries=5),
}


@DTYPES
@pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink"])
@pytest.mark.parametrize("case", CASES)
def test_decode_against_truth(case, sink, dtype, taken):
    spans = CASES[case]()
    q, k, v, _ = (x.detach() for x in inputs(spans, heads=6, key_heads=2, dim=20, dtype=dtype))
    sinks = [torch.randn(6).to(dtype)] if sink else []
    check_against_truth(spans, [q, k, v, *sinks, None])
    # rows of short windows and documents see too little of what would be read
    apart = spans.num_queries * int((spans.hi[:, -1] - spans.lo[:, 0]).sum()) > 2 * spans.area()
    assert taken == ([] if apart else [(spans.batch_size, spans.num_queries, 6, 20)])


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim"), [(1, 1, 64), (8, 1, 32), (3, 3, 96), (8, 2, 128), (2, 2, 256), (5, 1, 7)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_decode_heads_and_dims(heads, key_heads, dim, dtype, taken):
    for num_queries in (1, 3):
        spans = causal(333, num_queries)
        q, k, v, _ = (x.detach() for x in inputs(spans, heads, key_heads, dim, dtype))
        check_against_truth(spans, [q, k, v, None])
    assert len(taken) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_decode_reads_views_of_a_cache(dtype, taken):
    """A cache is a slice of a longer buffer, and may keep heads first, or keys and values side by side.

    In bf16 heads first is the tiled path's, which rounds otherwise."""
    atol = 4 * torch.finfo(dtype).eps
    spans = causal(300, 3)
    q, k, v, _ = (x.detach() for x in inputs(spans, 6, 2, 20, dtype))
    expected = attention(q, k, v, spans, backend="cpu", return_lse=True)
    longer = k.new_full((2, 500, 2, 20), torch.nan), k.new_full((2, 500, 2, 20), torch.nan)
    heads_first = k.new_full((2, 2, 500, 20), torch.nan), k.new_full((2, 2, 500, 20), torch.nan)
    together = k.new_full((2, 500, 2, 2, 20), torch.nan)
    views = [
        [x[:, 90:390] for x in longer],
        [x[:, 90:390] for x in together.unbind(2)],
        [x.transpose(1, 2)[:, 90:390] for x in heads_first],
    ]
    for k_view, v_view in views:
        k_view.copy_(k)
        v_view.copy_(v)
        got = attention(q.transpose(1, 2).contiguous().transpose(1, 2), k_view, v_view, spans, return_lse=True)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=atol, rtol=atol)
    assert len(taken) == (3 if dtype == torch.bfloat16 else 4)


def test_decode_reads_only_what_is_seen(taken):
    """Keys outside of every row's span, such as the unwritten end of a cache, may hold anything, NaN too."""
    spans = spans_of([[20, 22, 22], [0, 0, 5]], [[250, 251, 260], [100, 100, 101]], 391)
    q, k, v, _ = (x.detach() for x in inputs(spans, 6, 2, 20))
    expected = attention(q, k, v, spans, backend="reference")
    for x in (k, v):
        x[0, :20], x[0, 260:], x[1, 101:] = torch.nan, torch.nan, torch.nan
    torch.testing.assert_close(attention(q, k, v, spans), expected)
    assert len(taken) == 1


def test_gradients_of_a_decoded_row(taken):
    """They come from the tiled path, given this one's out and lse."""
    spans = causal(391, 3, window=300)
    check_against_truth(spans, inputs(spans, heads=6, key_heads=2, dim=20))
    assert len(taken) == 1


def test_decode_equals_the_tiled_path(taken):
    spans = causal(700, 7, window=500)
    q, k, v, _ = (x.detach() for x in inputs(spans, 6, 2, 20))
    tiled = cpu.forward(q, k, v, cpu.tile_plan_of(spans.mask, 700), AttentionRequest(spans.mask, 0.3))
    got = attention(q, k, v, spans, scale=0.3, return_lse=True)
    for a, b in zip(got, tiled, strict=True):
        torch.testing.assert_close(a, b)
    assert len(taken) == 1


def test_decode_is_chosen_where_it_is_faster(monkeypatch):
    """Long caches and few rows, and nothing else: training rows, short prompts and rows of far apart documents are the
    tiled path's."""

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

    def chosen(spans: Spans, key_heads: int = 8, dtype: torch.dtype = torch.bfloat16) -> bool:
        q = torch.empty(spans.batch_size, spans.num_queries, 8, 64, dtype=dtype)
        k = torch.empty(spans.batch_size, spans.num_keys, key_heads, 64, dtype=dtype)
        return cpu_decode.suits(q, k, k, spans.mask)

    assert chosen(causal(600, 1)) and not chosen(causal(500, 1))
    assert chosen(causal(2100, 8)) and not chosen(causal(2000, 8)) and not chosen(causal(2100, 9))
    assert chosen(causal(9000, 1), 2, torch.float32) and not chosen(causal(8000, 1), 2, torch.float32)
    assert not chosen(causal(9000, 1), 8, torch.float32) and not chosen(causal(9000, 1), dtype=torch.float16)
    assert not chosen(causal(4000, 1, window=500))
    assert not chosen(spans_of([[0, 4000, 8000, 12000]], [[4000, 8000, 12000, 16000]], 16000))
    assert not chosen(causal(2100, 0)) and not chosen(causal(2100, 1).restrict(range(1), range(0)))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not chosen(causal(600, 1))
