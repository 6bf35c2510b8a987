"""FlexAttention over spans: its lists of tiles against the mask, and its results against the truth, all on a CPU.

FlexAttention has no backward on a CPU by its own rule; lifting that check gives its uncompiled one, which is exact.
"""

import pytest
import torch

from brine.kernels.attention import Spans, attention, flex
from brine.kernels.attention.tiles import key_tiles_of_queries, query_tiles_of_keys
from tests.kernels.packings import (
    blocks_at,
    check_against_truth,
    check_parts,
    inputs,
    random_packing,
    results,
    run_module,
)

pytestmark = pytest.mark.slow

DOCUMENT, BLOCK = random_packing(3, 2, 300)
MASKS = {
    "causal": lambda: Spans.packed(torch.zeros(2, 257, dtype=torch.int32)),
    "documents": lambda: Spans.packed(DOCUMENT),
    "window": lambda: Spans.packed(DOCUMENT, window=37),
    "media": lambda: Spans.packed(DOCUMENT, block=BLOCK, window=64),
    "image-is-all": lambda: Spans.packed(torch.zeros(1, 200).int(), block=blocks_at(200, [(0, 200)])),
    "last-rows": lambda: Spans.packed(DOCUMENT, num_queries=70),
    "restricted": lambda: Spans.packed(DOCUMENT).restrict(range(100, 300), range(40, 220)),
    "scattered": lambda: Spans.packed(DOCUMENT, block=BLOCK).restrict(range(0, 300, 3), range(1, 300, 2)),
    "nothing-seen": lambda: Spans.packed(torch.zeros(1, 40).int()).restrict(range(20), range(20, 40)),
    "tile": lambda: Spans.packed(torch.zeros(1, 128).int()),
}


@pytest.fixture
def backward_on_cpu(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)


@pytest.mark.parametrize("tiles", [(128, 128), (16, 48), (7, 1)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_lists_hold_every_seen_pair_and_full_tiles_are_full(mask, tiles):
    """Walked from both sides, each tile of the square is listed once at most, as what it is."""
    spans = MASKS[mask]()
    visible = spans.dense()
    host = (spans.lo, spans.hi, spans.num_keys)
    for make, square, (own, other) in (
        (key_tiles_of_queries, visible, tiles),
        (query_tiles_of_keys, visible.transpose(1, 2), tiles[::-1]),
    ):
        lists = make(*host, *tiles, torch.device("cpu"))
        num_tiles = -(-square.shape[2] // other)
        found = torch.zeros_like(square)
        for b in range(square.shape[0]):
            assert lists.partial.shape[1] == -(-square.shape[1] // own)
            for n in range(lists.partial.shape[1]):
                partial = lists.partial[b, n, : lists.partial_count[b, n]].tolist()
                full = lists.full[b, n, : lists.full_count[b, n]].tolist()
                assert partial == sorted(partial) and full == sorted(full)
                assert len({*partial, *full}) == len(partial) + len(full)
                for tile in partial + full:
                    at = (b, slice(n * own, (n + 1) * own), slice(tile * other, (tile + 1) * other))
                    found[at] = True
                    if tile in full:
                        assert square[at].all() and square[at].shape[1] == other
        assert not (square & ~found).any()
        for tiles_of in (lists.partial, lists.full):
            assert tiles_of.min() >= 0 and tiles_of.max() < num_tiles


def test_lists_are_as_wide_as_the_longest_range():
    """Memory: a window's lists do not grow with the row."""
    assert key_tiles_of_queries(*Spans.packed(DOCUMENT[:, :9]).host(), 9, 16, 16, torch.device("cpu")).full.shape == (
        2,
        1,
        1,
    )
    for size in (2048, 16384):
        spans = Spans.packed(torch.zeros(1, size, dtype=torch.int32), window=300)
        lists = key_tiles_of_queries(spans.lo, spans.hi, size, 128, 128, torch.device("cpu"))
        assert lists.partial.shape == (1, size // 128, 3) and lists.full.shape == (1, size // 128, 1)


@pytest.mark.parametrize("mask", MASKS)
def test_double_precision_is_exact(mask, backward_on_cpu):
    spans = MASKS[mask]()
    check_against_truth(spans, inputs(spans, heads=4, key_heads=2, dim=16), flex)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", ["media", "restricted"])
def test_other_precisions_keep_the_bound(mask, dtype, backward_on_cpu):
    spans = MASKS[mask]()
    check_against_truth(spans, inputs(spans, heads=3, key_heads=1, dim=24, dtype=dtype), flex)


@pytest.mark.parametrize("mask", ["documents", "scattered", "nothing-seen"])
def test_a_sink_takes_part_in_everything(mask, backward_on_cpu):
    spans = MASKS[mask]()
    *leaves, grad = inputs(spans, heads=4, key_heads=2)
    sink = torch.randn(4, dtype=torch.float64, requires_grad=True)
    check_against_truth(spans, [*leaves, sink, grad], flex)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_parts_of_the_keys_add_up(dtype, backward_on_cpu):
    spans = MASKS["media"]()
    check_parts(flex, spans, inputs(spans, heads=4, key_heads=2, dtype=dtype), cut=130)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_no_rows_and_no_keys(shape, backward_on_cpu):
    rows, keys = shape
    none = torch.zeros(2, rows, dtype=torch.int32)
    spans = Spans(none, none, keys)
    got = results(run_module(flex), inputs(spans), spans)
    assert got["out"].shape == (2, rows, 2, 16) and not got["out"].any() and (got["lse"] == -torch.inf).all()
    assert not got["dk"].any() and not got["dq"].any()


@pytest.mark.parametrize("mask", ["window", "media"])
def test_the_op_reaches_it(mask, backward_on_cpu):
    """Below an op's own gradient formula the dispatcher leaves autograd out: the backward turns it on for itself."""
    spans = MASKS[mask]()
    check_against_truth(spans, inputs(spans, heads=4, key_heads=2), "flex")


def test_the_compiled_function_is_whole_and_not_compiled_for_every_mask(backward_on_cpu):
    """What the card's compiler gets: one graph without a break, whose lists may change in width."""
    compiled = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    options = {"BACKEND": "TRITON", "FLOAT32_PRECISION": "'ieee'"}
    function = torch.compile(flex._function(0.25, options), fullgraph=True, backend=compiled)
    for size in (60, 300, 700):
        spans = Spans.packed((torch.arange(900, dtype=torch.int32) // size)[None], window=size // 2 + 1)
        q, k, v, grad = inputs(spans, heads=4, key_heads=2)
        lists = flex._lists(spans.mask, 900)
        for partial, full in ((lists[1], lists[3]), (lists[5], lists[7])):
            # the card's kernels step through the full tiles' list with the strides of the partial ones'
            assert partial.stride() == full.stride() and partial.is_contiguous() and full.is_contiguous()
        for tiles in lists[1::2]:
            torch._dynamo.maybe_mark_dynamic(tiles, 3)
        got = results(
            lambda *qkv, spans=spans, lists=lists: function(*qkv, spans.lo, spans.hi, *lists), [q, k, v, grad]
        )
        plain = results(run_module(flex), [q, k, v, grad], spans)
        for name, true in plain.items():
            assert torch.allclose(got[name], true, atol=1e-12), name
    assert compiled.frame_count <= 2


def test_a_cpu_has_no_backward():
    spans = MASKS["documents"]()
    q, k, v, grad = inputs(spans)
    assert "does not support backward on CPU" in flex.unsupported_reason(q, k, kind="causal", sink=None)
    assert flex.unsupported_reason(q.detach(), k.detach(), kind="causal", sink=None) is None
    with pytest.raises(ValueError, match=r'backend "flex".*backward on CPU.*use backend="auto"'):
        results(run_module(flex), [q, k, v, grad], spans)
    with pytest.raises(ValueError, match="does not support backward on CPU"):
        attention(q, k, v, spans, backend="flex").sum().backward()
    q, k, v = q.detach(), k.detach(), v.detach()
    assert torch.allclose(attention(q, k, v, spans, backend="flex"), attention(q, k, v, spans), atol=1e-12)


def test_what_it_cannot_serve_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "An Old Card")
    capability = (9, 0)
    with torch._subclasses.FakeTensorMode():
        for device, dtype, dim, why in (
            ("cuda", torch.float64, 64, "not torch.float64"),
            ("cuda", torch.float32, 64, None),
            ("cuda", torch.bfloat16, 8, "head dims from 16 to 256, not 8"),
            ("cuda", torch.bfloat16, 320, "not 320"),
            ("cuda", torch.bfloat16, 80, None),
            ("meta", torch.bfloat16, 80, "no kernel for meta"),
        ):
            q = torch.empty(1, 4000, 4, dim, dtype=dtype, device=device)
            found = flex.unsupported_reason(q, q, kind="any", sink=None)
            assert found is None if why is None else why in found
        capability = (7, 5)
        q = torch.empty(1, 4000, 4, 64, dtype=torch.bfloat16, device="cuda")
        assert "anew at every step" in flex.unsupported_reason(q, q, kind="moving", sink=None)
        assert "An Old Card is older" in flex.unsupported_reason(q, q, kind="any", sink=None)
    q = torch.empty(1, 4000, 1, 8)
    assert "T x S memory" in flex.unsupported_reason(q, q, kind="causal", sink=None)
