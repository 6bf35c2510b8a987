"""The Triton kernels against an fp64 truth: masks, dims, dtypes, decoding. `test_attention_triton.py` runs this file.

On a GPU where there is one, compiled and with bf16; else on the CPU in Triton's interpreter, which must be asked for
(`TRITON_INTERPRET=1`) before Triton is first imported, and that is why this file has a process of its own. The
interpreter runs numpy for every tile, so sizes are small, and tiles smaller still: what matters is that tiles begin and
end everywhere.

    TRITON_INTERPRET=1 python -m pytest -n 0 tests/kernels/attention_triton_cases.py
"""

import numpy as np
import pytest
import torch
from packings import blocks_at, check_against_truth, inputs, naive, random_packing, results, run_backend

from kernels import Spans, attention, merge_partials
from kernels.attention import triton_decode, triton_launch

DEVICE = "cpu" if triton_launch.interpreted() else "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16} | ({"bf16": torch.bfloat16} if DEVICE == "cuda" else {})


@pytest.fixture
def tiles(monkeypatch):
    """Sets BM and BN of all passes."""

    def choose(rows: int, keys: int) -> None:
        monkeypatch.setattr(triton_launch, "tile_of", lambda *_, **__: triton_launch.Tile(rows, keys, 4, 1))

    choose(32, 16)
    return choose


def packed(document: torch.Tensor, **options) -> Spans:
    """Spans on the device under test."""
    return Spans.packed(document, **options).to(DEVICE)


def one_document(num: int, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, num, dtype=torch.int32)


def images_at_tile_edges(tile: int = 16) -> torch.Tensor:
    return blocks_at(
        6 * tile, [(tile - 1, tile + 1), (2 * tile, 3 * tile), (3 * tile + 1, 4 * tile), (5 * tile, 6 * tile)]
    )


def film(num: int = 90) -> torch.Tensor:
    """Tubelets of 9 tokens and seconds of sound of 5, in turn."""
    edges, at = [], 3
    while at + 14 < num:
        edges += [(at, at + 9), (at + 9, at + 14)]
        at += 14
    return blocks_at(num, edges)


CASES = {
    "causal": lambda: packed(one_document(75, 2)),
    "one-row": lambda: packed(one_document(1)),
    "window": lambda: packed(one_document(90), window=19),
    "window-of-one": lambda: packed(one_document(40), window=1),
    "one-token-documents": lambda: packed(torch.arange(50, dtype=torch.int32)[None]),
    "padding-only": lambda: packed(one_document(40, 2) - 1),
    "documents": lambda: packed(random_packing(1, 2, 100)[0]),
    "image-at-every-tile-edge": lambda: packed(one_document(96), block=images_at_tile_edges()),
    "image-longer-than-window": lambda: packed(one_document(90), block=blocks_at(90, [(20, 80)]), window=11),
    "image-is-all": lambda: packed(one_document(64), block=blocks_at(64, [(0, 64)])),
    "audio-and-video": lambda: packed(one_document(90), block=film()),
    "audio-and-video-window": lambda: packed(one_document(90), block=film(), window=13),
    "everything": lambda: packed(*random_packing(2, 2, 110)[:1], block=random_packing(2, 2, 110)[1], window=30),
    "last-rows": lambda: packed(one_document(100, 2), num_rows=37),
    "restricted": lambda: packed(random_packing(3, 2, 130)[0]).onto(range(50, 130), range(20, 90)),
    "nothing-seen": lambda: packed(one_document(40)).onto(range(20), range(20, 40)),
    "no-rows": lambda: packed(one_document(40), num_rows=0),
    "no-keys": lambda: packed(one_document(40)).onto(range(20), range(0)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_triton_against_truth(case, dtype, tiles):
    spans = CASES[case]()
    check_against_truth(spans, inputs(spans, heads=2, key_heads=1, dim=16, dtype=DTYPES[dtype]), "triton")


@pytest.mark.parametrize(("rows", "keys"), [(16, 16), (16, 64), (64, 16), (128, 128)], ids=str)
def test_triton_in_tiles_of(rows, keys, tiles):
    """From tiles that lie inside one image to one tile that is larger than everything."""
    tiles(rows, keys)
    document, block = random_packing(rows + keys, 1, 150)
    spans = packed(document, block=block)
    check_against_truth(spans, inputs(spans, heads=2, key_heads=2, dim=16, dtype=torch.float32), "triton")


@pytest.mark.parametrize("dim", [7, 32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("heads", [(3, 3), (4, 1)], ids=["H3-K3", "H4-K1"])
def test_triton_heads_and_dims(heads, dim):
    """With the tiles of the table."""
    document, block = random_packing(dim, 1, 70)
    spans = packed(document, block=block)
    for dtype in DTYPES.values():
        check_against_truth(spans, inputs(spans, *heads, dim, dtype), "triton")


@pytest.mark.parametrize("seed", range(10))
def test_triton_fuzz(seed, tiles):
    draw = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    tiles(pick(16, 32), pick(16, 32))
    num_keys = pick(33, 64, 129)
    document, block = random_packing(seed, pick(1, 2), num_keys)
    spans = packed(
        document, block=pick(None, block), window=pick(None, 1, 7, 50), num_rows=pick(None, num_keys // 2 + 1)
    )
    if pick(True, False):
        rows = (torch.rand(spans.num_rows, generator=draw) < 0.7).nonzero().flatten().to(DEVICE)
        keys = (torch.rand(num_keys, generator=draw) < 0.7).nonzero().flatten().to(DEVICE)
        spans = spans.onto(rows, keys)
    check_against_truth(spans, inputs(spans, heads=2, key_heads=pick(1, 2), dim=16, dtype=torch.float32), "triton")


@pytest.mark.parametrize("case", ["documents", "restricted", "nothing-seen", "no-keys"])
def test_triton_sink_against_truth(case, tiles):
    spans = CASES[case]()
    q, k, v, grad = inputs(spans, heads=4, key_heads=2, dim=16, dtype=torch.float32)
    sink = torch.randn(4).to(DEVICE).requires_grad_()
    check_against_truth(spans, [q, k, v, sink, grad], "triton")


def test_triton_strided_inputs_and_scale(tiles):
    """Slices of one projection, heads before tokens, and an expanded gradient."""
    spans = packed(random_packing(4, 2, 60)[0])
    one = torch.randn(2, 60, 3, 2, 16, device=DEVICE, requires_grad=True)
    heads_first = torch.randn(3, 2, 2, 60, 16, device=DEVICE, requires_grad=True)
    for leaf, qkv in ((one, one.unbind(2)), (heads_first, heads_first.transpose(2, 3).unbind(0))):
        runs = []
        for backend in ("triton", "reference"):
            out = attention(*qkv, spans, scale=0.3, backend=backend)
            runs.append(torch.autograd.grad(out.sum(), leaf)[0])
        torch.testing.assert_close(*runs)


@pytest.mark.parametrize(
    ("num", "stride"),
    [(20, (2**31 + 16, 32, 16)), (20, (64, 128, 2**31 + 64)), (280, (16, 2**23, 32)), (20, (16, 2**27 + 32, 64))],
    ids=["batch", "heads", "tokens", "tokens-far-apart"],
)
def test_triton_addresses_past_2_31_elements(num, stride, tmp_path, tiles):
    """An offset kept in int32 wraps at 2^31 elements, and reads elsewhere or crashes. Here a stride goes past it; on
    the CPU over a file of mostly holes."""
    spans = packed(one_document(num, 2), window=20)
    near = [x.detach() for x in inputs(spans, heads=2, key_heads=2, dim=16, dtype=torch.float16)[:3]]
    expected = attention(*near, spans, backend="triton", return_lse=True)
    size = sum(step * (count - 1) for step, count in zip(stride, (2, num, 2), strict=True)) + 16
    far = []
    for name, x in zip("qkv", near, strict=True):
        if DEVICE == "cpu":
            memory = torch.from_numpy(np.memmap(tmp_path / name, dtype=np.float16, mode="w+", shape=(size,)))
        else:
            memory = torch.empty(size, dtype=torch.float16, device=DEVICE)
        y = memory.as_strided(x.shape, (*stride, 1))
        y.copy_(x)
        far.append(y)
    got = attention(*far, spans, backend="triton", return_lse=True)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("window", [None, 6], ids=["global", "local"])
def test_triton_nothing_leaks(window, tiles):
    """A key is made huge, and exactly the rows that see it may change, bit for bit; and the other way round in the
    backward: the gradient of one row reaches exactly the keys that it sees."""
    tiles(16, 16)
    document = torch.tensor([[1] * 20 + [2] * 17 + [-1] * 3])
    spans = packed(document, block=blocks_at(40, [(4, 14), (25, 31), (31, 35)]), window=window)
    q, k, v, grad = inputs(spans, heads=1, key_heads=1, dtype=torch.float32)
    with torch.no_grad():
        before = attention(q, k, v, spans, backend="triton")
        for j in range(0, 40, 3):
            k2, v2 = k.clone(), v.clone()
            k2[:, j] += 3.0
            v2[:, j] += 100.0
            changed = (attention(q, k2, v2, spans, backend="triton") != before).any(-1).any(-1)
            assert torch.equal(changed, spans.dense()[..., j]), f"key {j}"
    for i in (0, 9, 13, 21, 33, 39):
        only = torch.zeros_like(grad)
        only[:, i] = grad[:, i]
        out = attention(q, k, v, spans, backend="triton")
        _, dv = torch.autograd.grad(out, (k, v), only)
        assert torch.equal((dv != 0).any(-1).any(-1), spans.dense()[:, i]), f"row {i}"


def test_triton_rows_that_see_nothing(tiles):
    spans = packed(random_packing(5, 2, 100)[0]).onto(range(100), range(30, 60))
    empty = spans.lo == spans.hi
    assert empty.any() and not empty.all()
    got = results(run_backend("triton"), inputs(spans, dtype=torch.float16), spans)
    assert all(x.isfinite().all() for name, x in got.items() if name != "lse")
    assert (got["out"][empty] == 0).all() and (got["dq"][empty] == 0).all()
    assert torch.equal(got["lse"].transpose(1, 2) == -torch.inf, empty[..., None].expand(-1, -1, 2))


def test_triton_backward_over_key_splits_adds_up(tiles):
    """Given the merged out and lse, the gradients of each set of keys are exact: what the ring relies on."""
    spans = CASES["everything"]()
    tensors = inputs(spans, heads=2, key_heads=1, dtype=torch.float32)
    q, k, v, grad = (x.detach() for x in tensors)
    whole = results(run_backend("reference"), tensors, spans)
    out, lse = torch.zeros_like(q), torch.full((2, 2, 110), -torch.inf, device=DEVICE)
    halves = [(slice(r.start, r.stop), spans.onto(range(110), r)) for r in (range(47), range(47, 110))]
    for at, part in halves:
        one = attention(q, k[:, at], v[:, at], part, backend="triton", return_lse=True)
        out, lse = merge_partials(out, lse, *one)
    torch.testing.assert_close(out, whole["out"])
    grads = [
        triton_launch.backward(
            grad, q, k[:, at], v[:, at], part.lo, part.hi, int(part.serial), out, lse, scale=16**-0.5
        )
        for at, part in halves
    ]
    torch.testing.assert_close(grads[0][0] + grads[1][0], whole["dq"])
    torch.testing.assert_close(torch.cat([grads[0][1], grads[1][1]], 1), whole["dk"])
    torch.testing.assert_close(torch.cat([grads[0][2], grads[1][2]], 1), whole["dv"])


def test_columns_are_the_transposed_mask():
    for seed in range(20):
        document, block = random_packing(seed, 2, 120)
        spans = packed(document, block=block, window=[None, 9][seed % 2])
        if seed % 3:
            spans = spans.onto(range(seed, 120, 2), range(0, 120, 1 + seed % 4))
        row_lo, row_hi = triton_launch.columns(spans.lo, spans.hi, spans.num_keys)
        row = torch.arange(spans.num_rows, device=DEVICE)[:, None]
        assert torch.equal((row >= row_lo[:, None]) & (row < row_hi[:, None]), spans.dense())


def test_triton_same_inputs_same_bits(tiles):
    spans = CASES["everything"]()
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        runs.append(results(run_backend("triton"), inputs(spans, 4, 2, dtype=torch.float16), spans))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_splits", [1, 3, 7])
@pytest.mark.parametrize("rows", [1, 5])
def test_triton_decode_against_truth(rows, num_splits, dtype, monkeypatch):
    """Unequal prompts: sequences of one batch see unlike numbers of keys, one of them few, another none."""
    forward = triton_decode.forward
    called = []

    def split(*args, **kwargs):
        called.append(1)
        return forward(*args, **kwargs, num_splits=num_splits)

    monkeypatch.setattr(triton_decode, "forward", split)
    stop = torch.tensor([300, 257, 70, 1])[:, None] + torch.arange(rows) - rows + 1
    lo = torch.tensor([0, 131, 0, 0])[:, None].expand(-1, rows)
    hi = stop.clamp(min=0).int()
    hi[3] = 0
    spans = Spans(torch.minimum(lo, hi).int(), hi, 300).to(DEVICE)
    q, k, v, _ = inputs(spans, heads=6, key_heads=2, dim=20, dtype=DTYPES[dtype])
    for sink in (None, torch.randn(6).to(DEVICE)):
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


def test_triton_refuses_what_it_cannot_do():
    spans = packed(one_document(5))
    refused = [
        (8, torch.float64, "takes float32, float16 or bfloat16, not torch.float64"),
        (260, torch.float32, "head dims up to 256; got 260"),
    ]
    if DEVICE == "cpu":
        refused.append((8, torch.bfloat16, "computes bfloat16 products wrongly"))
    for dim, dtype, message in refused:
        x = torch.randn(1, 5, 1, dim, dtype=dtype, device=DEVICE)
        with pytest.raises(ValueError, match=message):
            attention(x, x, x, spans, backend="triton")
