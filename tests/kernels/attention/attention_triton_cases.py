"""The Triton kernels against an fp64 truth: masks, dims, dtypes. `test_triton.py` runs this file.

On a GPU where there is one, compiled and with bf16; else on the CPU in Triton's interpreter, which must be asked for
(`TRITON_INTERPRET=1`) before Triton is first imported, and that is why this file has a process of its own. The
interpreter runs numpy for every tile, so sizes are small, and tiles smaller still: what matters is that tiles begin and
end everywhere. It also leaves out combinations whose parts it has by themselves (`on_a_gpu`): a mask is the same code
in every dtype. All of them, without a GPU too, in three times the time:

    ALL_CASES=1 TRITON_INTERPRET=1 python -m pytest -n 0 tests/kernels/attention/attention_triton_cases.py
"""

import fcntl
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from brine.kernels.attention import attention, merge_partials
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import launch as triton_launch
from brine.kernels.attention.triton import tiles as triton_tiles
from brine.kernels.attention.triton.tiles import PASSES, TileConfig, override_tiles
from tests.kernels.attention.triton_device import ALL_CASES, DEVICE, DTYPES, on_a_gpu, packed
from tests.kernels.packings import blocks_at, check_against_truth, inputs, random_packing, results, run_backend


@pytest.fixture
def tiles(monkeypatch):
    """Sets BM and BN of all passes."""

    def choose(rows: int, keys: int) -> None:
        monkeypatch.setattr(triton_tiles, "tile_config_of", lambda *_, **__: TileConfig(rows, keys, 4, 1))

    choose(32, 16)
    return choose


@pytest.fixture
def large_tiles(tiles):
    """For what does not hang on where tiles end: a third of the tiles takes the interpreter a third of the time."""
    tiles(*((32, 16) if ALL_CASES else (64, 32)))


def in_form(tile: TileConfig, dim: int):
    """All passes of head dim BD = dim in this tile, and through descriptors where it says so."""
    return override_tiles({(name, dim, narrow): tile for name in PASSES for narrow in (False, True)})


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
    "causal": lambda: packed(one_document(53, 2)),
    "one-row": lambda: packed(one_document(1)),
    "window": lambda: packed(one_document(90), window=19),
    "window-of-one": lambda: packed(one_document(40), window=1),
    "one-token-documents": lambda: packed(torch.arange(50, dtype=torch.int32)[None]),
    "padding-only": lambda: packed(one_document(40, 2) - 1),
    "documents": lambda: packed(random_packing(1, 2, 75)[0]),
    "image-at-every-tile-edge": lambda: packed(one_document(96), block=images_at_tile_edges()),
    "image-longer-than-window": lambda: packed(one_document(90), block=blocks_at(90, [(20, 80)]), window=11),
    "image-is-all": lambda: packed(one_document(64), block=blocks_at(64, [(0, 64)])),
    "audio-and-video": lambda: packed(one_document(90), block=film()),
    "audio-and-video-window": lambda: packed(one_document(90), block=film(), window=13),
    "everything": lambda: packed(*random_packing(2, 2, 85)[:1], block=random_packing(2, 2, 85)[1], window=30),
    "last-rows": lambda: packed(one_document(70, 2), num_queries=37),
    "restricted": lambda: packed(random_packing(3, 2, 100)[0]).restrict(range(40, 100), range(20, 80)),
    "nothing-seen": lambda: packed(one_document(40)).restrict(range(20), range(20, 40)),
    "no-rows": lambda: packed(one_document(40), num_queries=0),
    "no-keys": lambda: packed(one_document(40)).restrict(range(20), range(0)),
}


IN_EVERY_DTYPE = ["restricted", "nothing-seen", "no-keys"]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [on_a_gpu(case, dtype, unless=dtype == "fp32" or case in IN_EVERY_DTYPE) for case in CASES for dtype in DTYPES],
)
def test_triton_against_truth(case, dtype, tiles):
    spans = CASES[case]()
    check_against_truth(spans, inputs(spans, heads=2, key_heads=1, dim=16, dtype=DTYPES[dtype]), "triton")


@pytest.mark.parametrize(
    ("rows", "keys", "num"),
    # tiles of 16 by 16, and taller ones than wide, are other tests' too
    [on_a_gpu(16, 16, 90), (16, 64, 150), on_a_gpu(64, 16, 150), (128, 128, 150)],
)
def test_triton_in_tiles_of(rows, keys, num, tiles):
    """From tiles that lie inside one image to one tile that is larger than nearly everything."""
    tiles(rows, keys)
    document, block = random_packing(rows + keys, 1, num)
    spans = packed(document, block=block)
    check_against_truth(spans, inputs(spans, heads=2, key_heads=2, dim=16, dtype=torch.float32), "triton")


DIMS = (7, 32, 64, 96, 128, 192, 256)
HEADS = {"H3-K3-narrow": ((3, 3), True), "H4-K1-wide": ((4, 1), False)}


@pytest.mark.parametrize(
    ("dim", "heads", "dtype"),
    [
        # the interpreter takes fp32 and fp16 in turn, and both only where the tables have a dim of their own
        on_a_gpu(dim, heads, dtype, unless=(i + j + k) % 2 == 0 and (dim in (32, 64, 128) or dtype == "fp16"))
        for i, dim in enumerate(DIMS)
        for j, heads in enumerate(HEADS)
        for k, dtype in enumerate(DTYPES)
    ],
)
def test_triton_heads_and_dims(dim, heads, dtype, monkeypatch):
    """With the tables' tiles for narrow and for wide masks, read through descriptors where the tables say so."""
    heads, narrow = HEADS[heads]
    monkeypatch.setattr(triton_launch, "is_narrow", lambda *_: narrow)
    document, block = random_packing(dim, 1, 70)
    spans = packed(document, block=block)
    check_against_truth(spans, inputs(spans, *heads, dim, DTYPES[dtype]), "triton")


DESCRIBED = ["documents", "image-at-every-tile-edge", "audio-and-video-window", "last-rows", "restricted", "no-keys"]


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9, reason="descriptors are for sm_90")
@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("case", DESCRIBED)
def test_triton_through_descriptors_against_truth(case, dim, monkeypatch):
    """The same kernels reading by TMA: tiles over the ends of sequences and of heads are filled with zeros."""
    used = []
    describe = triton_launch.triton_tma.describe
    monkeypatch.setattr(triton_launch.triton_tma, "describe", lambda *args: used.append(1) or describe(*args))
    spans = CASES[case]()
    with in_form(TileConfig(64, 32, 4, 2, tma=True), triton_launch.padded(dim)):
        check_against_truth(spans, inputs(spans, heads=2, key_heads=1, dim=dim, dtype=torch.float16), "triton")
    assert case == "no-keys" or len(used) >= 11


def test_strides_that_descriptors_cannot_take():
    suits = triton_launch.triton_tma.suits
    x = torch.zeros(2, 40, 3, 24, dtype=torch.float16, device=DEVICE)
    assert suits(x, x.transpose(1, 2).contiguous().transpose(1, 2), x[:, 5:, 1:])
    # a head of 20 numbers is 40 bytes, the next of which begins in the middle of 16
    assert not suits(x[..., :20].contiguous()) and suits(x[..., :20]) and not suits(x[..., 4:])
    # one token for all, as of an expanded gradient
    assert not suits(x[:, :1].expand(-1, 40, -1, -1)) and suits(x[:1, :1])


@pytest.mark.parametrize("dtype", [on_a_gpu(dtype, unless=dtype == "fp16") for dtype in DTYPES])
def test_triton_wide_results_are_those_before_rounding(dtype, large_tiles):
    """What a ring adds up: rounded once, they are the usual results to the bit, decoding included."""
    spans = CASES["everything"]()
    tensors = inputs(spans, heads=2, key_heads=1, dim=16, dtype=DTYPES[dtype])
    q, k, v, grad = (x.detach() for x in tensors)
    request, part = (AttentionRequest(spans.mask, 0.25, partial=partial) for partial in (False, True))
    out, lse = triton_launch.forward(q, k, v, request)
    # in fp32 the usual delta is summed over all keys
    same = part if DTYPES[dtype] == torch.float32 else request
    usual = [out, lse, *triton_launch.backward(grad, q, k, v, out, lse, same)]
    wide = [*triton_launch.forward(q, k, v, part), *triton_launch.backward(grad, q, k, v, out, lse, part)]
    long = packed(one_document(300), num_queries=2)
    q, k, v, _ = (x.detach() for x in inputs(long, heads=2, key_heads=1, dim=16, dtype=DTYPES[dtype]))
    for runs, partial in ((usual, False), (wide, True)):
        runs.append(triton_launch.forward(q, k, v, AttentionRequest(long.mask, 0.25, partial=partial))[0])
    for one, other in zip(usual, wide, strict=True):
        assert other.dtype == torch.float32 and torch.equal(other.to(one.dtype), one)
    assert any((x != y.float()).any() for x, y in zip(wide, usual, strict=True)) == (DTYPES[dtype] != torch.float32)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_triton_scale_that_is_not_positive(scale, large_tiles):
    """The kernels take the largest score for the largest scaled one, which a negative scale turns round."""
    spans = CASES["documents"]()
    q, k, v, grad = inputs(spans, heads=2, key_heads=1, dim=16, dtype=torch.float32)
    runs = []
    for backend in ("triton", "reference"):
        out, lse = attention(q, k, v, spans, scale=scale, backend=backend, return_lse=True)
        runs.append([out, lse, *torch.autograd.grad(out, (q, k, v), grad)])
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("seed", [on_a_gpu(seed, unless=seed < 3) for seed in range(10)])
def test_triton_fuzz(seed, tiles):
    draw = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    tiles(pick(16, 32), pick(16, 32))
    num_keys = pick(33, 64, 97)
    document, block = random_packing(seed, pick(1, 2), num_keys)
    spans = packed(
        document, block=pick(None, block), window=pick(None, 1, 7, 50), num_queries=pick(None, num_keys // 2 + 1)
    )
    if pick(True, False):
        rows = (torch.rand(spans.num_queries, generator=draw) < 0.7).nonzero().flatten().to(DEVICE)
        keys = (torch.rand(num_keys, generator=draw) < 0.7).nonzero().flatten().to(DEVICE)
        spans = spans.restrict(rows, keys)
    check_against_truth(spans, inputs(spans, heads=2, key_heads=pick(1, 2), dim=16, dtype=torch.float32), "triton")


@pytest.mark.parametrize("case", ["documents", on_a_gpu("restricted"), "nothing-seen", on_a_gpu("no-keys")])
def test_triton_sink_against_truth(case, large_tiles):
    spans = CASES[case]()
    q, k, v, grad = inputs(spans, heads=4, key_heads=2, dim=16, dtype=torch.float32)
    sink = torch.randn(4).to(DEVICE).requires_grad_()
    check_against_truth(spans, [q, k, v, sink, grad], "triton")


def test_triton_strided_inputs_and_scale(large_tiles):
    """Slices of one projection, heads before tokens, and an expanded gradient."""
    spans = packed(random_packing(4, 2, 45)[0])
    one = torch.randn(2, 45, 3, 2, 16, device=DEVICE, requires_grad=True)
    heads_first = torch.randn(3, 2, 2, 45, 16, device=DEVICE, requires_grad=True)
    for leaf, qkv in ((one, one.unbind(2)), (heads_first, heads_first.transpose(2, 3).unbind(0))):
        runs = []
        for backend in ("triton", "reference"):
            out = attention(*qkv, spans, scale=0.3, backend=backend)
            runs.append(torch.autograd.grad(out.sum(), leaf)[0])
        torch.testing.assert_close(*runs)


@pytest.fixture
def much_memory():
    """Up to 16 GB of a card: of all processes of pytest-xdist one at a time takes them, and gives them back."""
    with open(Path(tempfile.gettempdir()) / "brine-tests-memory.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("num", "stride"),
    [(20, (2**31 + 16, 32, 16)), (20, (64, 128, 2**31 + 64)), (280, (16, 2**23, 32)), (20, (16, 2**27 + 32, 64))],
    ids=["batch", "heads", "tokens", "tokens-far-apart"],
)
def test_triton_addresses_past_2_31_elements(num, stride, tmp_path, tiles, much_memory):
    """An offset kept in int32 wraps at 2^31 elements, and reads elsewhere or crashes. Here a stride goes past it; on
    the CPU over a file of mostly holes."""
    tiles(64, 32)
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
        # first and last of a block and of a document, one of the block beside a block, padding
        for j in (0, 4, 13, 19, 20, 26, 31, 36, 39) if ALL_CASES else (4, 13, 19, 20, 31, 39):
            k2, v2 = k.clone(), v.clone()
            k2[:, j] += 3.0
            v2[:, j] += 100.0
            changed = (attention(q, k2, v2, spans, backend="triton") != before).any(-1).any(-1)
            assert torch.equal(changed, spans.dense()[..., j]), f"key {j}"
    out = attention(q, k, v, spans, backend="triton")
    for i in (0, 9, 13, 21, 33, 39) if ALL_CASES else (9, 21, 33, 39):
        only = torch.zeros_like(grad)
        only[:, i] = grad[:, i]
        _, dv = torch.autograd.grad(out, (k, v), only, retain_graph=True)
        assert torch.equal((dv != 0).any(-1).any(-1), spans.dense()[:, i]), f"row {i}"


def test_triton_rows_that_see_nothing(tiles):
    spans = packed(random_packing(5, 2, 100)[0]).restrict(range(100), range(30, 60))
    empty = spans.lo == spans.hi
    assert empty.any() and not empty.all()
    got = results(run_backend("triton"), inputs(spans, dtype=torch.float16), spans)
    assert all(x.isfinite().all() for name, x in got.items() if name != "lse")
    assert (got["out"][empty] == 0).all() and (got["dq"][empty] == 0).all()
    assert torch.equal(got["lse"].transpose(1, 2) == -torch.inf, empty[..., None].expand(-1, -1, 2))


def test_triton_backward_over_key_splits_adds_up(large_tiles):
    """Given the merged out and lse, the gradients of each set of keys are exact: what the ring relies on."""
    spans = CASES["everything"]()
    tensors = inputs(spans, heads=2, key_heads=1, dtype=torch.float32)
    q, k, v, grad = (x.detach() for x in tensors)
    whole = results(run_backend("reference"), tensors, spans)
    out, lse = torch.zeros_like(q), torch.full((2, 2, 85), -torch.inf, device=DEVICE)
    halves = [(slice(r.start, r.stop), spans.restrict(range(85), r)) for r in (range(47), range(47, 85))]
    for at, part in halves:
        one = attention(q, k[:, at], v[:, at], part, backend="triton", return_lse=True)
        out, lse = merge_partials(out, lse, *one)
    torch.testing.assert_close(out, whole["out"])
    grads = [
        triton_launch.backward(
            grad, q, k[:, at], v[:, at], out, lse, AttentionRequest(part.mask, 16**-0.5, partial=True)
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
            spans = spans.restrict(range(seed, 120, 2), range(0, 120, 1 + seed % 4))
        row_lo, row_hi = triton_launch.columns_of(spans.mask, spans.num_keys)
        row = torch.arange(spans.num_queries, device=DEVICE)[:, None]
        assert torch.equal((row >= row_lo[:, None]) & (row < row_hi[:, None]), spans.dense())


def test_triton_same_inputs_same_bits(large_tiles):
    # programs race on a card alone
    heads = (4, 2) if ALL_CASES else (2, 1)
    spans = CASES["everything"]()
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        runs.append(results(run_backend("triton"), inputs(spans, *heads, dtype=torch.float16), spans))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_triton_refuses_what_it_cannot_do():
    spans = packed(one_document(5))
    refused = [
        (8, torch.float64, "takes float32, float16 or bfloat16, not torch.float64"),
        (260, torch.float32, "head dims up to 256; got 260"),
    ]
    if DEVICE == "cpu":
        refused.append((8, torch.bfloat16, "computes bfloat16 matmuls wrongly"))
    for dim, dtype, message in refused:
        x = torch.randn(1, 5, 1, dim, dtype=dtype, device=DEVICE)
        assert message in triton_launch.unsupported_reason(x, x, kind="causal", sink=None)
        with pytest.raises(ValueError, match=message):
            attention(x, x, x, spans, backend="triton")
    x = torch.randn(1, 5, 1, 16, device=DEVICE)
    assert triton_launch.unsupported_reason(x, x, kind="any", sink=None) is None
    # a grid's second axis is one head each
    assert "at most 65535 heads in a batch; got 256 x 256" in triton_launch.unsupported_reason(
        x.expand(256, 5, 256, 16), x
    )


def test_tiles_of_a_sweep():
    given = TileConfig(64, 32, 4, 3)
    before = triton_tiles.tile_config_of("fwd", 128, narrow=False, itemsize=2, capability=(9, 0))
    with override_tiles({("fwd", 128, False): given}):
        assert triton_tiles.tile_config_of("fwd", 128, narrow=False, itemsize=2, capability=(9, 0)) == given
        assert triton_tiles.tile_config_of("fwd", 128, narrow=True, itemsize=2, capability=(9, 0)) != given
    assert triton_tiles.tile_config_of("fwd", 128, narrow=False, itemsize=2, capability=(9, 0)) == before
    for wrong, message in (
        ({("fwd", 128, False): TileConfig(256, 32, 8, 2)}, "at most 128 queries"),
        ({("dq", 128, False): given}, "unknown pass 'dq'"),
        ({("fwd", 128, False): TileConfig(48, 32, 4, 2)}, "powers of two"),
    ):
        with pytest.raises(ValueError, match=message), override_tiles(wrong):
            pass
