"""Spans and tiles of any packing keep their definition: generated packings, the same ones on every run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brine.kernels.attention import Spans, attention
from brine.kernels.attention.tiles import TileLists, key_tiles_of_queries, query_tiles_of_keys

FEW = settings(derandomize=True, max_examples=60, deadline=None, database=None)
WINDOWS = st.none() | st.integers(1, 40)


@st.composite
def run_lengths(draw, names: st.SearchStrategy[int], size: int) -> list[int]:
    """`size` ids in runs of 1 to 12; neighbouring runs may have the same id, and are one run then."""
    ids = []
    while len(ids) < size:
        ids += [draw(names)] * draw(st.integers(1, 12))
    return ids[:size]


@st.composite
def packings(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """(document, block), each (1 or 2, S): documents with padding among them, blocks anywhere, across documents too."""
    size, batch_size = draw(st.integers(1, 60)), draw(st.integers(1, 2))
    documents = [draw(run_lengths(st.integers(-1, 3), size)) for _ in range(batch_size)]
    blocks = [draw(run_lengths(st.sampled_from((0, 0, 1, 2)), size)) for _ in range(batch_size)]
    return torch.tensor(documents), torch.tensor(blocks)


def sees(document: list[int], block: list[int], window: int | None, i: int, j: int) -> bool:
    """The definition, pair by pair: the same document, nothing between but that document, causal or in one block."""
    first, last = min(i, j), max(i, j)
    if i == j:
        return True
    together = document[i] >= 0 and len(set(document[first : last + 1])) == 1
    in_block = block[i] != 0 and len(set(block[first : last + 1])) == 1
    near = window is None or last - first < window
    return together and near and (j < i or in_block)


@FEW
@given(packings(), WINDOWS)
def test_dense_mask_is_the_definition(packing, window):
    document, block = packing
    dense = Spans.packed(document, block=block, window=window).dense().tolist()
    for b, (ids, blocks) in enumerate(zip(document.tolist(), block.tolist(), strict=True)):
        size = range(len(ids))
        assert dense[b] == [[sees(ids, blocks, window, i, j) for j in size] for i in size]


@FEW
@given(packings(), WINDOWS)
def test_ends_are_ordered_and_agree_with_the_mask(packing, window):
    document, block = packing
    spans = Spans.packed(document, block=block, window=window)
    row = torch.arange(spans.num_keys)
    assert (spans.lo >= 0).all() and (spans.lo <= row).all()
    assert (spans.hi > row).all() and (spans.hi <= spans.num_keys).all()
    assert (spans.lo.diff(dim=1) >= 0).all() and (spans.hi.diff(dim=1) >= 0).all()
    assert spans.area() == int(spans.dense().sum()) == int((spans.hi - spans.lo).sum())
    # given as lo and hi, they are accepted and are the same mask
    assert torch.equal(Spans(spans.lo, spans.hi, spans.num_keys).dense(), spans.dense())


@FEW
@given(packings(), WINDOWS, st.data())
def test_restricted_spans_are_the_chosen_part_of_the_mask(packing, window, data):
    document, block = packing
    spans = Spans.packed(document, block=block, window=window)
    chosen = [data.draw(st.lists(st.booleans(), min_size=spans.num_keys, max_size=spans.num_keys)) for _ in range(2)]
    rows, keys = (torch.tensor(flags).nonzero()[:, 0] for flags in chosen)
    assert torch.equal(spans.restrict(rows, keys).dense(), spans.dense()[:, rows][:, :, keys])


def listed(lists: TileLists, b: int, tile: int) -> tuple[list[int], list[int]]:
    """(partial, full) tiles of one tile."""
    partial = lists.partial[b, tile, : lists.partial_count[b, tile]].tolist()
    return partial, lists.full[b, tile, : lists.full_count[b, tile]].tolist()


@pytest.mark.slow
@FEW
@given(packings(), WINDOWS, st.sampled_from((1, 3, 8, 16)), st.sampled_from((1, 4, 8, 32)))
def test_tiles_cover_the_mask_exactly(packing, window, row_tile, key_tile):
    """A tile with a visible pair is listed once, full where all its pairs are visible, and no other is listed."""
    document, block = packing
    spans = Spans.packed(document, block=block, window=window)
    dense, arguments = spans.dense(), (spans.lo, spans.hi, spans.num_keys, row_tile, key_tile, torch.device("cpu"))
    for lists, mask, own, other in (
        (key_tiles_of_queries(*arguments), dense, row_tile, key_tile),
        (query_tiles_of_keys(*arguments), dense.transpose(1, 2), key_tile, row_tile),
    ):
        size = spans.num_keys
        for b in range(len(mask)):
            for number, first in enumerate(range(0, size, own)):
                partial, full = listed(lists, b, number)
                parts = mask[b, first : first + own].split(other, dim=1)
                visible = [index for index, part in enumerate(parts) if part.any()]
                # a last tile that is cut off needs a comparison even where all of it is visible
                whole = [index for index, part in enumerate(parts) if part.all() and part.shape[1] == other]
                assert sorted(partial + full) == visible and full == whole


@settings(FEW, max_examples=15)
@given(packings(), WINDOWS, st.integers(0, 2**16))
def test_attention_over_spans_is_a_softmax_over_the_mask(packing, window, seed):
    document, block = packing
    spans = Spans.packed(document, block=block, window=window)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn((3, *document.shape, 2, 8), generator=generator, dtype=torch.float64)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    weights = scores.masked_fill(~spans.dense()[:, None], -torch.inf).softmax(dim=-1)
    found = attention(q, k, v, spans, backend="cpu")
    assert torch.allclose(found, torch.einsum("bhij,bjhd->bihd", weights, v), rtol=1e-12, atol=1e-12)
