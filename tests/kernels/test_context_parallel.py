"""The ring: any number of ranks gives what one device gives; dealings are even and move little."""

import socket

import pytest
import torch

from brine.kernels.attention import Spans, attention
from brine.kernels.context_parallel.layout import ContextLayout, ShardedSpans, needed_chunks_of
from brine.kernels.context_parallel.sharding import assign_chunks, contiguous, measure, zigzag
from tests.forked import run_ranks
from tests.kernels.packings import random_packing
from tests.kernels.ring_simulation import simulate

pytestmark = pytest.mark.slow

HEADS, KEY_HEADS, DIM = 4, 2, 16


def tensors(num_tokens: int, dtype: torch.dtype, batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the gradient of out."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    return [torch.randn(batch, num_tokens, heads, DIM, generator=generator, dtype=dtype) for heads in sizes]


def one_device(q, k, v, grad, spans, **options) -> list[torch.Tensor]:
    """out, lse, dq, dk, dv."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*leaves, spans, return_lse=True, **options)
    return [out.detach(), lse, *torch.autograd.grad(out, leaves, grad)]


def layout_of(chunk_ranks, num_tokens: int, chunk: int, world: int) -> ContextLayout:
    return ContextLayout(torch.as_tensor(chunk_ranks, dtype=torch.int64), chunk, num_tokens, 0, world)


def spans_of(num_tokens: int, seed: int, window: int | None, batch: int = 2) -> Spans:
    document, block = random_packing(seed, batch, num_tokens)
    return Spans.packed(document, block=block, window=window)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_any_number_of_ranks_equals_one_device(world, backend):
    """fp64, windows and none, chunks that divide nothing, owners at random."""
    draw = torch.Generator().manual_seed(world)
    for seed, (num_tokens, chunk, window) in enumerate([(150, 16, None), (131, 7, 40), (97, 64, 20), (64, 1, None)]):
        spans = spans_of(num_tokens, seed, window)
        chunk_ranks = torch.randint(world, (-(-num_tokens // chunk),), generator=draw)
        given = tensors(num_tokens, torch.float64, seed=seed)
        layout = layout_of(chunk_ranks, num_tokens, chunk, world)
        found = simulate(*given, spans, layout, scale=DIM**-0.5, backend=backend)
        for name, expected in zip(("out", "lse", "dq", "dk", "dv"), one_device(*given, spans), strict=True):
            torch.testing.assert_close(getattr(found, name), expected, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_close_to_the_truth_as_one_device(dtype):
    """Errors against fp64 are at most one and a half times those of the kernel on one device."""
    spans = spans_of(400, 3, None)
    given = tensors(400, dtype)
    truth = one_device(*[x.double() for x in given], spans, backend="reference")
    single = one_device(*given, spans)
    found = simulate(*given, spans, layout_of(zigzag(25, 4), 400, 16, 4), scale=DIM**-0.5)
    for name, exact, ours in zip(("out", "lse", "dq", "dk", "dv"), truth, single, strict=True):
        visible = exact.isfinite()
        error, bound = ((x.double() - exact)[visible].norm() for x in (getattr(found, name), ours))
        assert error <= 1.5 * bound + 1e-7 * exact[visible].norm(), f"{name}: {error} over {bound}"


def test_a_document_over_all_ranks_and_an_image_over_a_border():
    document = torch.zeros(1, 96, dtype=torch.int32)
    block = torch.zeros_like(document)
    block[0, 20:60] = 1
    spans = Spans.packed(document, block=block)
    given = tensors(96, torch.float64, batch=1)
    found = simulate(*given, spans, layout_of(contiguous(6, 3), 96, 16, 3), scale=DIM**-0.5)
    for name, expected in zip(("out", "lse", "dq", "dk", "dv"), one_device(*given, spans), strict=True):
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-11, atol=1e-11, msg=name)


def test_only_what_is_seen_travels_and_once():
    """Documents that end with a rank's stretch: nothing is sent. One causal document: each chunk to each later
    rank."""
    given = tensors(128, torch.float32, batch=1)
    document = torch.arange(4, dtype=torch.int32).repeat_interleave(32)[None]
    layout = layout_of(contiguous(8, 4), 128, 16, 4)
    apart = simulate(*given, Spans.packed(document), layout, scale=1.0)
    assert sum(apart.sent_forward) == sum(apart.sent_backward) == 0
    whole = simulate(*given, Spans.packed(torch.zeros_like(document)), layout, scale=1.0)
    token = 2 * KEY_HEADS * DIM * 4
    assert whole.sent_forward == [token * 32 * later for later in (3, 2, 1, 0)]
    # keys and values once more, and their gradients back
    assert whole.sent_backward == [token * 32 * (later + rank) for rank, later in enumerate((3, 2, 1, 0))]


def test_a_rank_without_tokens():
    spans, given = spans_of(60, 1, None), tensors(60, torch.float64)
    found = simulate(*given, spans, layout_of([0, 2, 2, 0], 60, 16, 3), scale=DIM**-0.5)
    for name, expected in zip(("out", "lse", "dq", "dk", "dv"), one_device(*given, spans), strict=True):
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-11, atol=1e-11, msg=name)


def test_needs_are_the_chunks_that_rows_see():
    for seed in range(5):
        spans = spans_of(90, seed, 25)
        chunk_ranks = torch.randint(3, (10,), generator=torch.Generator().manual_seed(seed))
        layout = layout_of(chunk_ranks, 90, 9, 3)
        visible = spans.dense().any(0).unflatten(1, (10, 9)).any(2)
        expected = torch.stack([visible[layout.index(rank)].any(0) for rank in range(3)])
        assert torch.equal(needed_chunks_of(spans, layout), expected)


def test_layouts_and_spans_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="chunk_ranks must be"):
        layout_of([0, 1], 100, 16, 2)
    with pytest.raises(ValueError, match=r"chunk_ranks must lie in 0\.\."):
        layout_of([0, 2], 32, 16, 2)
    layout = layout_of([0, 1], 32, 16, 2)
    with pytest.raises(ValueError, match="do not fit"):
        ShardedSpans.shard(spans_of(30, 0, None), layout)
    with pytest.raises(ValueError, match="tokens of the whole"):
        layout.shard(torch.zeros(1, 30))


def masks_of(document: torch.Tensor, window: int) -> list[tuple[Spans, float]]:
    return [(Spans.packed(document, window=window), 5.0), (Spans.packed(document), 1.0)]


def log_normal(num_tokens: int, median: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = (median * torch.randn(num_tokens // 64, generator=generator).exp()).long().clamp(min=64)
    return torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths)[None, :num_tokens]


@pytest.mark.parametrize(("kind", "world"), [("documents", 8), ("documents", 16), ("one", 8)])
def test_dealings_are_even_and_move_little(kind, world):
    """Equal tokens, cost within 1.05, at most three times what contiguous stretches send over the mix of layers."""
    document = log_normal(2**16, 1024, 1) if kind == "documents" else torch.zeros(1, 2**16, dtype=torch.int32)
    masks, options = masks_of(document, 128), {"world_size": world, "chunk": 256, "linear": 2000.0}
    dealt = assign_chunks(masks, **options)
    assert torch.bincount(dealt.chunk_ranks).tolist() == [256 // world] * world
    assert dealt.imbalance <= 1.05
    cut = measure(torch.from_numpy(contiguous(256, world)), masks, **options)
    assert cut.imbalance > 1.05

    def mix(assignment) -> float:
        return sum(layers * sent for (_, layers), sent in zip(masks, assignment.chunks_sent, strict=True))

    assert mix(dealt) <= 3 * mix(cut)
    if kind == "documents":
        assert dealt.chunks_sent[1] * 10 <= 256 * (world - 1)
    assert torch.equal(assign_chunks(masks, **options).chunk_ranks, dealt.chunk_ranks)


def test_measure_counts_what_travels():
    spans = spans_of(96, 2, None)
    chunk_ranks = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))
    layout = layout_of(chunk_ranks, 96, 8, 3)
    own = torch.stack([chunk_ranks == rank for rank in range(3)])
    expected = int((needed_chunks_of(spans, layout) & ~own).sum())
    given = tensors(96, torch.float32)
    sent = sum(simulate(*given, spans, layout, scale=1.0).sent_forward)
    assert measure(chunk_ranks, [(spans, 1.0)], world_size=3, chunk=8, linear=1.0).chunks_sent == [expected]
    assert sent == expected * 8 * 2 * 2 * KEY_HEADS * DIM * 4


GLOO_CASES = [(150, 16, None), (131, 7, 40), (97, 64, 20)]
GLOO_RANKS = (1, 2, 3, 4)


def _rank(rank: int, port: int, folder: str) -> None:
    """Through the API, on gloo groups of 1 to 4 ranks: several masks, one of them with a sink."""
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=max(GLOO_RANKS))
    for world in GLOO_RANKS:
        group = torch.distributed.new_group(list(range(world)))
        if rank < world:
            torch.save(_cases(rank, world, group.group_name), f"{folder}/{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


def _cases(rank: int, world: int, group: str) -> list[list[torch.Tensor]]:
    found = []
    for case, (num_tokens, chunk, window) in enumerate(GLOO_CASES):
        spans = spans_of(num_tokens, case, window)
        chunk_ranks = torch.randint(world, (-(-num_tokens // chunk),), generator=torch.Generator().manual_seed(case))
        layout = ContextLayout(chunk_ranks, chunk, num_tokens, rank, world, group)
        sharded = ShardedSpans.shard(spans, layout)
        q, k, v, grad = (layout.shard(x) for x in tensors(num_tokens, torch.float64, seed=case))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        sink = torch.linspace(-1, 1, HEADS, dtype=torch.float64).requires_grad_() if case == 1 else None
        out, lse = attention(*leaves, sharded, sink=sink, return_lse=True)
        wanted = leaves if sink is None else [*leaves, sink]
        found.append([layout.index(), out.detach(), lse, *torch.autograd.grad(out, wanted, grad)])
    return found


@pytest.fixture(scope="module")
def on_gloo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(_rank, port, str(folder), count=max(GLOO_RANKS))
    return folder


@pytest.mark.parametrize("world", GLOO_RANKS)
def test_gloo_equals_one_device(world, on_gloo):
    ranks = [torch.load(on_gloo / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
    for case, (num_tokens, _, window) in enumerate(GLOO_CASES):
        spans, given = spans_of(num_tokens, case, window), tensors(num_tokens, torch.float64, seed=case)
        leaves = [x.clone().requires_grad_() for x in given[:3]]
        sink = torch.linspace(-1, 1, HEADS, dtype=torch.float64).requires_grad_() if case == 1 else None
        out, lse = attention(*leaves, spans, sink=sink, return_lse=True)
        expected = [out.detach(), lse, *torch.autograd.grad(out, [*leaves, *([sink] if case == 1 else [])], given[3])]
        order = torch.argsort(torch.cat([rank[case][0] for rank in ranks]))
        for place, whole in enumerate(expected[:5]):
            dim = 2 if place == 1 else 1
            found = torch.cat([rank[case][1 + place] for rank in ranks], dim).index_select(dim, order)
            torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-11)
        if case == 1:
            torch.testing.assert_close(sum(rank[case][6] for rank in ranks), expected[5], rtol=1e-11, atol=1e-11)
