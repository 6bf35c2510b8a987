"""Attention over spans: every backend against an independent fp64 truth, and the field's known silent bugs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from brine.kernels.attention import Spans, attention, merge_partials
from brine.kernels.attention.cpu import tile_plan as plan
from brine.kernels.attention.cpu import tiled as cpu
from brine.kernels.attention.spans import RECENT, AttentionRequest
from tests.kernels.packings import blocks_at, check_against_truth, inputs, naive, random_packing, results, run_backend


@pytest.fixture
def small_tiles(monkeypatch):
    """Tile sizes so small that short sequences are cut in every way that long ones are."""
    for name, size in {
        "MERGE_QUERIES": 4,
        "WHOLE_QUERIES": 10,
        "TILE_QUERIES": 8,
        "NEAR_KEYS": 24,
        "FAR_QUERIES": 16,
        "SPLIT_KEYS": 12,
        "CALL_ROWS": 200,
        "SHARE_MASKS": 64,
    }.items():
        monkeypatch.setattr(plan, name, size)


def causal(num: int, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, num, dtype=torch.int32)


def tiles_of_images(tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One document with images that begin, end, and lie across tile boundaries."""
    n = 6 * tile
    return causal(n), blocks_at(
        n, [(tile - 1, tile + 1), (2 * tile, 3 * tile), (3 * tile + 1, 4 * tile), (5 * tile, n)]
    )


def alternating_media() -> tuple[torch.Tensor, torch.Tensor]:
    """A video with sound: tubelets of 9 and seconds of audio of 5, one after the other."""
    edges, at = [], 3
    while at + 14 < 260:
        edges += [(at, at + 9), (at + 9, at + 14)]
        at += 14
    return causal(260), blocks_at(260, edges)


CASES = {
    "causal": lambda: Spans.packed(causal(130, 2)),
    "causal-long": lambda: Spans.packed(causal(1100)),
    "one-row": lambda: Spans.packed(causal(1)),
    "window": lambda: Spans.packed(causal(300), window=37),
    "window-of-one": lambda: Spans.packed(causal(70), window=1),
    "one-token-documents": lambda: Spans.packed(torch.arange(150, dtype=torch.int32)[None]),
    "padding-only": lambda: Spans.packed(causal(70, 2) - 1),
    "documents": lambda: Spans.packed(random_packing(1, 3, 333)[0]),
    "image-at-every-tile-edge": lambda: Spans.packed(tiles_of_images(64)[0], block=tiles_of_images(64)[1]),
    "image-longer-than-window": lambda: Spans.packed(causal(200), block=blocks_at(200, [(50, 170)]), window=24),
    "image-is-all": lambda: Spans.packed(causal(200), block=blocks_at(200, [(0, 200)])),
    "audio-and-video": lambda: Spans.packed(alternating_media()[0], block=alternating_media()[1]),
    "audio-and-video-window": lambda: Spans.packed(alternating_media()[0], block=alternating_media()[1], window=31),
    "everything": lambda: Spans.packed(random_packing(2, 2, 300)[0], block=random_packing(2, 2, 300)[1], window=64),
    "last-rows": lambda: Spans.packed(causal(300, 2), num_queries=70),
    "last-row": lambda: Spans.packed(causal(300, 2), num_queries=1),
    "restricted": lambda: Spans.packed(random_packing(3, 2, 300)[0]).restrict(range(100, 300), range(40, 220)),
    "nothing-seen": lambda: Spans.packed(causal(40)).restrict(range(20), range(20, 40)),
    "no-rows": lambda: Spans.packed(causal(40), num_queries=0),
    "no-keys": lambda: Spans.packed(causal(40)).restrict(range(20), range(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_cpu_against_truth(case, dtype):
    spans = CASES[case]()
    check_against_truth(spans, inputs(spans, heads=4, key_heads=2, dim=32, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "causal-long"])
def test_cpu_against_truth_in_small_tiles(case, dtype, small_tiles):
    spans = CASES[case]()
    check_against_truth(spans, inputs(spans, heads=4, key_heads=2, dim=8, dtype=dtype))


@pytest.mark.parametrize("case", [name for name in CASES if name != "causal-long"])
def test_reference_against_truth(case):
    spans = CASES[case]()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        check_against_truth(spans, inputs(spans, heads=2, key_heads=1, dim=8, dtype=dtype), backend="reference")


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim"), [(1, 1, 64), (4, 1, 32), (3, 3, 96), (6, 2, 20), (2, 1, 128), (2, 2, 256), (1, 1, 7)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cpu_heads_and_dims(heads, key_heads, dim, dtype):
    """In fp32 at D >= 96 the flash backward missed the bound for dq, by up to 1.7 times in 14 of 48 runs: it takes
    p (dp - g . out) from out and lse already rounded to fp32. `cpu_exact` sums delta over the keys instead."""
    document, block = random_packing(heads, 2, 111)
    spans = Spans.packed(document, block=block)
    check_against_truth(spans, inputs(spans, heads, key_heads, dim, dtype))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("heads", "key_heads", "dim", "seed"),
    [(2, 1, 128, 55), (2, 1, 128, 231), (2, 2, 256, 178), (2, 2, 256, 198), (2, 2, 256, 201)],
)
def test_weights_that_rounding_keeps_from_1_in_all(heads, key_heads, dim, seed, backend):
    """A row's weights add up to 1 only within the rounding of lse and scores. These draws, of 500, were over the bound
    for that, by up to 4.3 times; on another processor it was other draws, one of a test's that had always passed."""
    torch.manual_seed(seed)
    document, block = random_packing(seed, 2, 111)
    spans = Spans.packed(document, block=block)
    check_against_truth(spans, inputs(spans, heads, key_heads, dim, torch.float32), backend)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", ["causal", "everything", "restricted", "nothing-seen", "no-keys"])
def test_sink_against_truth(case, backend, small_tiles):
    spans = CASES[case]()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        q, k, v, grad = inputs(spans, heads=4, key_heads=2, dim=8, dtype=dtype)
        sink = torch.randn(4).to(dtype).requires_grad_()
        check_against_truth(spans, [q, k, v, sink, grad], backend)


@pytest.mark.parametrize(("backend", "dim"), [("reference", 16), ("cpu", 128)])
@pytest.mark.parametrize("shift", [0.0, 30.0, 100.0])
def test_sink_of_about_the_rounding_is_not_taken_for_it(backend, dim, shift):
    """Weights divided by their sum without the sink's lost its share: dq had 8 times the error that is allowed."""
    spans = Spans.packed(torch.zeros(1, 64, dtype=torch.int32))
    q, k, v, grad = inputs(spans, heads=4, key_heads=2, dim=dim, dtype=torch.float32)
    with torch.no_grad():
        # every score is `shift` higher
        q[..., 0], k[..., 0] = dim**0.5, shift
    sink = (shift + torch.tensor([-16.0, -13.0, -11.0, -9.0])).requires_grad_()
    check_against_truth(spans, [q, k, v, sink, grad], backend)


@pytest.mark.parametrize("seed", range(24))
def test_cpu_fuzz(seed, monkeypatch):
    """Random packings, windows, restrictions and tile sizes, in fp64, where an error cannot hide in rounding."""
    draw = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    tile = pick(8, 16, 64)
    for name, size in {
        "MERGE_QUERIES": pick(1, 8, 32),
        "WHOLE_QUERIES": pick(1, 20, 80),
        "TILE_QUERIES": tile,
        "NEAR_KEYS": pick(10, 50, 1024),
    }.items():
        monkeypatch.setattr(plan, name, size)
    monkeypatch.setattr(plan, "FAR_QUERIES", pick(1, 4) * tile)
    monkeypatch.setattr(plan, "SPLIT_KEYS", pick(1, 30, 1024))
    monkeypatch.setattr(plan, "SHARE_MASKS", pick(1, 2**21))
    num_keys = pick(5, 64, 129, 420)
    document, block = random_packing(seed, pick(1, 2, 3), num_keys)
    spans = Spans.packed(
        document, block=pick(None, block), window=pick(None, 1, 7, 50), num_queries=pick(None, num_keys // 2 + 1)
    )
    if pick(True, False):
        rows = (torch.rand(spans.num_queries, generator=draw) < 0.7).nonzero().flatten()
        keys = (torch.rand(num_keys, generator=draw) < 0.7).nonzero().flatten()
        spans = spans.restrict(rows, keys)
    check_against_truth(spans, inputs(spans, heads=4, key_heads=pick(1, 2, 4), dim=8))


def test_strided_inputs_and_scale():
    """q, k and v are often slices of one projection, and gradients may come expanded."""
    spans = Spans.packed(random_packing(4, 2, 90)[0])
    qkv = torch.randn(2, 90, 3, 2, 16, dtype=torch.float64, requires_grad=True)
    for scale in (None, 0.3):
        grads = []
        for backend in ("cpu", "reference"):
            out = attention(*qkv.unbind(2), spans, scale=scale, backend=backend)
            grads.append(torch.autograd.grad(out.sum(), qkv)[0])
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("window", [None, 6], ids=["global", "local"])
def test_nothing_leaks(backend, window):
    """Leaks across documents, out of images into earlier text, and past a window cut by an image have all shipped
    elsewhere without an error. Here a key is made huge, and exactly the rows that see it may change, bit for bit."""
    document = torch.tensor([[1] * 20 + [2] * 17 + [-1] * 3])
    block = blocks_at(40, [(4, 14), (25, 31), (31, 35)])
    spans = Spans.packed(document, block=block, window=window)
    q, k, v, _ = (x.detach() for x in inputs(spans, dtype=torch.float32))
    before = attention(q, k, v, spans, backend=backend)
    for j in range(40):
        k2, v2 = k.clone(), v.clone()
        k2[:, j] += 3.0
        v2[:, j] += 100.0
        changed = (attention(q, k2, v2, spans, backend=backend) != before).any(-1).any(-1)
        assert torch.equal(changed, spans.dense()[..., j]), f"key {j}"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradient_stays_inside_the_spans(backend):
    """The same for the backward: the gradient of one row reaches exactly the keys that the row sees."""
    spans = CASES["everything"]()
    q, k, v, _ = inputs(spans, dtype=torch.float32)
    out = attention(q, k, v, spans, backend=backend)
    for i in (0, 63, 64, 65, 128, 200, 299):
        dk, dv = torch.autograd.grad(out[:, i].square().sum(), [k, v], retain_graph=True)
        for grad in (dk, dv):
            outside = grad.masked_fill(spans.dense()[:, i, :, None, None], 0.0)
            assert (outside == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_that_see_nothing(backend, dtype, small_tiles):
    """Rows masked everywhere give NaN with a plain softmax, and log-sum-exp 0 from torch's CPU flash op."""
    spans = Spans.packed(random_packing(5, 2, 200)[0]).restrict(range(200), range(60, 110))
    empty = spans.lo == spans.hi
    assert empty.any() and not empty.all()
    got = results(run_backend(backend), inputs(spans, dtype=dtype), spans)
    assert all(x.isfinite().all() for name, x in got.items() if name != "lse")
    assert (got["out"][empty] == 0).all() and (got["dq"][empty] == 0).all()
    assert torch.equal(got["lse"].transpose(1, 2) == -torch.inf, empty[..., None].expand(-1, -1, 2))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_partials_over_key_splits_merge_to_the_whole(backend):
    document, block = random_packing(6, 2, 240)
    spans = Spans.packed(document, block=block, window=100)
    q, k, v, _ = (x.detach() for x in inputs(spans, heads=4, key_heads=2))
    whole = attention(q, k, v, spans, backend=backend, return_lse=True)
    out, lse = torch.zeros_like(q), torch.full((2, 4, 240), -torch.inf, dtype=torch.float64)
    for keys in (range(50), range(50, 51), range(51, 200), range(200, 240)):
        at = slice(keys.start, keys.stop)
        part = attention(q, k[:, at], v[:, at], spans.restrict(range(240), keys), backend=backend, return_lse=True)
        out, lse = merge_partials(out, lse, *part)
    torch.testing.assert_close(out, whole[0])
    torch.testing.assert_close(lse, whole[1])


def test_backward_over_key_splits_adds_up():
    """Given the merged out and lse, the gradients of each set of keys are exact: what the ring relies on."""
    spans = CASES["everything"]()
    tensors = inputs(spans, heads=4, key_heads=2)
    q, k, v, grad = (x.detach() for x in tensors)
    whole = results(naive, tensors, spans)
    dq, parts = torch.zeros_like(q), []
    for keys in (range(130), range(130, 300)):
        at, part = slice(keys.start, keys.stop), spans.restrict(range(300), keys)
        walk = cpu.tile_plan_of(part.mask, part.num_keys)
        request = AttentionRequest(part.mask, 32**-0.5 * 2**0.5)
        grads = cpu.backward(grad, q, k[:, at], v[:, at], whole["out"], whole["lse"], walk, request)
        dq += grads[0]
        parts.append(grads[1:])
    torch.testing.assert_close(dq, whole["dq"])
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), whole["dk"])
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), whole["dv"])


def test_merging_nothing_with_nothing_is_nothing():
    out, lse = torch.zeros(1, 2, 3, 4), torch.full((1, 3, 2), -torch.inf)
    merged, merged_lse = merge_partials(out, lse, out, lse)
    assert (merged == 0).all() and (merged_lse == -torch.inf).all()
    some, some_lse = torch.randn(1, 2, 3, 4), torch.randn(1, 3, 2)
    for pair in ((some, some_lse, out, lse), (out, lse, some, some_lse)):
        merged, merged_lse = merge_partials(*pair)
        assert torch.equal(merged, some) and torch.equal(merged_lse, some_lse)


def test_merging_survives_large_log_sum_exps():
    out = torch.ones(1, 1, 1, 1)
    merged, lse = merge_partials(out, torch.full((1, 1, 1), 1e4), 3 * out, torch.full((1, 1, 1), 1e4))
    assert merged.item() == 2.0
    assert lse.item() == pytest.approx(1e4 + 0.6931, abs=1e-3)


@pytest.mark.slow
def test_same_inputs_same_bits():
    document, block = random_packing(8, 4, 600)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)
    for window in (None, 50):
        runs = []
        for _ in range(3):
            spans = Spans.packed(document, block=block, window=window)
            torch.manual_seed(1)
            runs.append(results(run_backend("cpu"), inputs(spans, 4, 2, dtype=torch.bfloat16), spans))
        for run in runs[1:]:
            assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_a_sequence_does_not_depend_on_its_batch():
    document, block = random_packing(9, 3, 300)
    spans = Spans.packed(document, block=block)
    q, k, v, _ = (x.detach() for x in inputs(spans))
    out = attention(q, k, v, spans)
    for b in range(3):
        alone = Spans.packed(document[b : b + 1], block=block[b : b + 1])
        torch.testing.assert_close(attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], alone), out[b : b + 1])


def test_work_is_proportional_to_the_area():
    """What the plan computes stays within a small factor of what the spans let through, and far below T x S."""
    packed = Spans.packed(random_packing(1, 2, 4096, sizes=(40, 60, 150, 300))[0])
    windowed = Spans.packed(causal(16384), window=256)
    media = Spans.packed(causal(4096), block=blocks_at(4096, [(300, 1300), (2000, 2256), (2500, 3500)]))
    for spans, factor in ((packed, 2.0), (windowed, 1.3), (media, 1.3)):
        walk = plan.build_tile_plan(spans.lo, spans.hi, spans.num_keys)
        assert spans.area() <= walk.num_pairs <= factor * spans.area()


def test_masks_of_a_long_window_are_shared():
    """Every tile along a window sees the same pattern; a mask for each would take as much memory as the keys."""
    spans = Spans.packed(causal(32768), window=512)
    walk = plan.build_tile_plan(spans.lo, spans.hi, spans.num_keys)
    elements = sum(call.lo.numel() * call.keys.size for calls in walk.calls for call in calls if call.kind == "masked")
    assert elements < 2**21


def test_plans_are_made_once_and_never_mixed_up(monkeypatch):
    """A plan looked up by address served the mask of a freed tensor to the next one. Serials are never used twice."""
    made = []
    monkeypatch.setattr(cpu, "build_tile_plan", lambda *args: made.append(1) or plan.build_tile_plan(*args))
    q = torch.randn(1, 60, 2, 8, requires_grad=True)
    for size in (7, 11, 60):
        spans = Spans.packed((torch.arange(60) // size)[None])
        for _ in range(3):
            out = attention(q, q, q, spans, backend="cpu")
            expected = attention(q, q, q, spans, backend="reference")
            del spans
            (grad,) = torch.autograd.grad(out.sum(), q)
            (grad_expected,) = torch.autograd.grad(expected.sum(), q)
            torch.testing.assert_close(out, expected)
            torch.testing.assert_close(grad, grad_expected)
            spans = Spans.packed((torch.arange(60) // size)[None])
    assert len(made) == 9
    # more masks alive than the short memory holds: each keeps its own plan
    many = [Spans.packed((torch.arange(60) // n)[None]) for n in range(1, 2 + 2 * RECENT)]
    made.clear()
    for spans in many + many:
        attention(q, q, q, spans, backend="cpu")
    assert len(made) == len(many)


def test_autocast_casts_to_its_dtype():
    spans = CASES["documents"]()
    q, k, v, _ = inputs(spans, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v.bfloat16(), spans)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), spans))
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_selective_checkpointing_skips_the_recompute(monkeypatch):
    """With out and lse kept, the backward recomputes what surrounds attention but not attention."""
    calls = []
    monkeypatch.setattr(cpu, "forward", lambda *a, _run=cpu.forward, **kw: calls.append(1) or _run(*a, **kw))
    spans = CASES["documents"]()
    q, k, v, _ = inputs(spans, dtype=torch.float32)

    def block(q, k, v):
        return attention(q * 2, k, v, spans).sin()

    block(q, k, v).sum().backward()
    expected = q.grad.clone()
    q.grad = None
    calls.clear()
    save = [torch.ops.brine.span_attention.default]
    out = checkpoint(block, q, k, v, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(save))
    out.sum().backward()
    assert len(calls) == 1
    assert torch.equal(q.grad, expected)


def test_wrong_arguments_are_named():
    spans = Spans.packed(causal(6, 2))
    x = torch.randn(2, 6, 4, 8)
    for call, message in [
        (lambda: attention(x, x, x, spans, backend="hopper"), "unknown backend 'hopper'; choose one of auto, "),
        (lambda: attention(x, x.double(), x, spans), "k is torch.float64"),
        (lambda: attention(x, x[:, :5], x[:, :5], spans), "spans are for .* k 5 keys"),
        (lambda: attention(x, x[:, :, :3], x[:, :, :3], spans), "4 query heads must be a multiple of the 3 KV heads"),
        (lambda: attention(x, x[..., :4], x[..., :4], spans), "batch and head dim must be equal"),
        (lambda: attention(x, x, x[..., :4], spans), "k and v must have one shape"),
        (lambda: attention(x[0], x, x, spans), "q must be a float tensor of 4 dims"),
        (lambda: attention(x, x, x, spans, sink=torch.zeros(2)), r"sink must be \(H,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
