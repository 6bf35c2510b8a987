"""Spans against their definition, row by row in plain Python, and against their own invariants."""

import copy
import pickle

import pytest
import torch

from brine.kernels.attention import Spans
from brine.kernels.attention.documents import GROUP
from brine.kernels.attention.spans import RECENT, cached_by_mask, documents_of, kind_of, span_stats
from tests.kernels.packings import blocks_at, random_packing


def run_around(ids: list[int], i: int, singletons: bool) -> tuple[int, int]:
    """[start, end) of the maximal run of equal ids around i."""
    start, end = i, i + 1
    while not singletons and start > 0 and ids[start - 1] == ids[i]:
        start -= 1
    while not singletons and end < len(ids) and ids[end] == ids[i]:
        end += 1
    return start, end


def by_definition(document: list[int], block: list[int], window: int | None) -> list[tuple[int, int]]:
    window = window or 10**9
    spans = []
    for i in range(len(document)):
        start, end = run_around(document, i, document[i] < 0)
        block_end = run_around(block, i, False)[1] if block[i] else i + 1
        spans.append((max(start, i - window + 1), min(block_end, i + window, end)))
    return spans


@pytest.mark.parametrize("window", [None, 1, 2, 17, 1000, 2**31 - 1])
@pytest.mark.parametrize("seed", range(4))
def test_packed_is_its_definition(seed, window):
    document, block = random_packing(seed, 2, 150)
    spans = Spans.packed(document, block=block, window=window)
    for b in range(2):
        expected = by_definition(document[b].tolist(), block[b].tolist(), window)
        assert list(zip(spans.lo[b].tolist(), spans.hi[b].tolist(), strict=True)) == expected
    assert spans.lo.dtype == spans.hi.dtype == torch.int32
    assert spans.area() == spans.dense().sum().item()


@pytest.mark.parametrize("window", [None, 1, 3, 64])
@pytest.mark.parametrize("seed", range(20))
def test_ends_never_decrease_and_rows_see_themselves(seed, window):
    document, block = random_packing(seed, 3, 400)
    spans = Spans.packed(document, block=block if seed % 2 else None, window=window)
    assert (spans.lo.diff(dim=1) >= 0).all() and (spans.hi.diff(dim=1) >= 0).all()
    row = torch.arange(400)
    assert (spans.lo <= row).all() and (spans.hi > row).all()


def test_a_block_is_cut_by_its_document_and_by_the_window():
    document = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]])
    block = blocks_at(8, [(2, 7)])
    spans = Spans.packed(document, block=block)
    assert spans.hi.tolist() == [[1, 2, 4, 4, 7, 7, 7, 8]]
    spans = Spans.packed(document, block=block, window=2)
    assert spans.lo.tolist() == [[0, 0, 1, 2, 4, 4, 5, 6]]
    assert spans.hi.tolist() == [[1, 2, 4, 4, 6, 7, 7, 8]]


def test_padding_rows_are_documents_of_their_own():
    spans = Spans.packed(torch.tensor([[5, 5, -1, -1, -1, -2]]), block=torch.ones(1, 6, dtype=torch.int32))
    assert spans.lo.tolist() == [[0, 0, 2, 3, 4, 5]]
    assert spans.hi.tolist() == [[2, 2, 3, 4, 5, 6]]


def test_equal_ids_apart_are_different_documents():
    """Ids are compared with their neighbours only: [1, 2, 1] is three documents, not two."""
    spans = Spans.packed(torch.tensor([[1, 1, 2, 1, 1]]))
    assert spans.lo.tolist() == [[0, 0, 2, 3, 3]]


@pytest.mark.parametrize("num_queries", [0, 1, 30, 100])
def test_num_rows_keeps_the_last_rows(num_queries):
    document, block = random_packing(7, 2, 100)
    whole = Spans.packed(document, block=block, window=20)
    spans = Spans.packed(document, block=block, window=20, num_queries=num_queries)
    assert spans.num_queries == num_queries and spans.num_keys == 100
    assert torch.equal(spans.dense(), whole.dense()[:, 100 - num_queries :])


@pytest.mark.parametrize("seed", range(6))
def test_onto_chooses_rows_and_keys(seed):
    document, block = random_packing(seed, 2, 120)
    spans = Spans.packed(document, block=block, window=[None, 9][seed % 2])
    rows, keys = (torch.randperm(120)[:n].sort().values for n in (50, 70))
    assert torch.equal(spans.restrict(rows, keys).dense(), spans.dense()[:, rows][:, :, keys])
    # one choice per sequence
    rows, keys = (torch.stack([torch.randperm(120)[:n].sort().values for _ in range(2)]) for n in (50, 70))
    chosen = spans.restrict(rows, keys).dense()
    for b in range(2):
        assert torch.equal(chosen[b], spans.dense()[b, rows[b]][:, keys[b]])
    assert torch.equal(spans.restrict(range(10, 20), range(0, 120, 3)).dense(), spans.dense()[:, 10:20, ::3])


def test_onto_may_leave_rows_empty():
    spans = Spans.packed(torch.tensor([[1, 1, 2, 2]])).restrict(range(4), range(2, 4))
    assert (spans.lo == spans.hi).tolist() == [[True, True, False, False]]
    assert Spans.packed(torch.tensor([[1, 1]])).restrict(range(2), range(0)).area() == 0


def test_copies_have_serials_of_their_own():
    """A copied or sent Spans under the serial of another would be computed with that one's plan."""
    spans = Spans.packed(torch.tensor([[1, 1, 2]]))
    again = copy.deepcopy(spans)
    assert again.serial.item() != spans.serial.item()
    assert torch.equal(again.lo, spans.lo)


@pytest.mark.parametrize(
    ("lo", "hi", "message"),
    [
        ([[0, 0, 2]], [[1, 3, 1]], r"query 2 of batch 0 sees \[2, 1\)"),
        ([[0, 0, 0]], [[1, 2, 9]], r"query 2 of batch 0 sees \[0, 9\).*3 keys"),
        ([[0, -1, 0]], [[1, 2, 3]], r"query 1 of batch 0 sees \[-1, 2\)"),
        ([[0, 1, 0]], [[1, 2, 3]], r"query 1 sees \[1, 2\) but query 2 sees \[0, 3\)"),
        ([[0, 0, 0]], [[3, 2, 3]], r"query 0 sees \[0, 3\) but query 1 sees \[0, 2\)"),
    ],
)
def test_wrong_spans_name_row_and_values(lo, hi, message):
    with pytest.raises(ValueError, match=message):
        Spans(torch.tensor(lo, dtype=torch.int32), torch.tensor(hi, dtype=torch.int32), 3)


def test_wrong_arguments_are_named():
    document = torch.zeros(2, 8, dtype=torch.int32)
    spans = Spans.packed(document)
    for call, message in [
        (lambda: Spans.packed(document.float()), "document must be"),
        (lambda: Spans.packed(document[0]), "document must be"),
        (lambda: Spans.packed(document, block=document[:, :4]), "block has shape"),
        (lambda: Spans.packed(document, window=0), "window must be"),
        (lambda: Spans.packed(document, num_queries=9), "num_queries must lie"),
        (
            lambda: spans.restrict(torch.tensor([3, 3]), range(8)),
            "queries must be strictly ascending.*index 1 is 3 after 3",
        ),
        (lambda: spans.restrict(range(8), torch.tensor([0, 8])), r"keys must .*\[0, 8\)"),
        (lambda: spans.restrict(torch.zeros(3, 2, dtype=torch.int64), range(8)), "batch of 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


IDS = torch.tensor([[1, 1, 1, 1, 2, 2, -1, -1]])


@pytest.mark.parametrize(
    ("spans", "kind"),
    [
        (lambda: Spans.packed(IDS), "causal"),
        (lambda: Spans.packed(IDS, window=8), "causal"),
        (lambda: Spans.packed(IDS, window=7), "window"),
        (lambda: Spans.packed(IDS, block=torch.zeros_like(IDS)), "causal"),
        (lambda: Spans.packed(IDS, block=torch.zeros_like(IDS), window=3), "window"),
        (lambda: Spans.packed(IDS, block=blocks_at(8, [(0, 2)])), "block"),
        (lambda: Spans.packed(IDS, block=blocks_at(8, [(0, 2)]), window=3), "block"),
        (lambda: Spans.packed(IDS, num_queries=8), "causal"),
        (lambda: Spans.packed(IDS, num_queries=7), "any"),
        (lambda: Spans.packed(IDS).restrict(range(8), range(8)), "any"),
        (lambda: Spans(*Spans.packed(IDS).host(), 8), "any"),
        # on a device whose values nobody asks for, blocks may be there
        (lambda: Spans.packed(IDS.to("meta"), block=IDS.to("meta")), "block"),
    ],
)
def test_the_kind_is_known_when_spans_are_made(spans, kind):
    spans = spans()
    assert spans.kind == kind
    for same in (spans, copy.deepcopy(spans), spans.to("meta")):
        assert same.kind == kind and kind_of(int(same.serial)) == kind


def test_nothing_is_kept_of_spans_that_move():
    hi = torch.tensor([[3, 4]], dtype=torch.int32)
    spans = Spans(torch.zeros_like(hi), hi, 9, kind="moving", valid=True)
    assert spans.area() == 7
    hi += 1
    assert spans.area() == 9 and "host" not in spans.to("meta").derived


def test_a_kind_is_not_taken_on_trust():
    with pytest.raises(ValueError, match="cannot be claimed"):
        Spans(*Spans.packed(IDS).host(), 8, kind="causal")


def test_nothing_waits_for_a_device():
    """The meta device has no values: whatever asks it for one raises."""
    ids = torch.zeros(2, 50, dtype=torch.int32, device="meta")
    for options in ({}, {"window": 7}, {"block": ids}, {"block": ids, "window": 7, "num_queries": 20}):
        spans = Spans.packed(ids, **options)
        spans.restrict(range(5, 20), torch.arange(0, 50, 3))
        spans.to("meta", non_blocking=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        Spans(spans.lo, spans.hi, 50)


@pytest.mark.parametrize("seed", range(3))
def test_facts_of_spans_from_the_host_need_no_device(seed):
    document, block = random_packing(seed, 2, 150)
    for options in ({}, {"window": 9}, {"block": block}, {"block": block, "window": 20, "num_queries": 60}):
        host = Spans.packed(document, **options)
        visible = host.dense().sum(-1)
        for spans in (host, host.to("meta", non_blocking=True), host.pin_memory().to("meta").to("meta")):
            facts = span_stats(spans.mask)
            assert (facts.max_visible_keys, facts.area, spans.area()) == (visible.max(), visible.sum(), visible.sum())
        assert torch.equal(spans.to("cpu").lo, host.lo) and spans.to("cpu").area() == host.area()
    assert Spans.packed(document[:, :0]).area() == 0


def documents_by_definition(document: torch.Tensor) -> tuple[list[int], list[int]]:
    """(first token of each document, or of each GROUP of neighbours of one token; tokens that are documents)."""
    flat = [run_around(row, i, row[i] < 0)[0] == i for row in document.tolist() for i in range(len(row))] + [True]
    cu_seqlens, singletons, held = [], [], GROUP
    for i in range(len(flat) - 1):
        single = flat[i] and flat[i + 1]
        if flat[i] and (not single or held == GROUP or i - 1 not in singletons):
            cu_seqlens.append(i)
            held = 0
        if single:
            singletons.append(i)
            held += 1
    return cu_seqlens, singletons


@pytest.mark.parametrize("window", [None, 1, 2, 40])
@pytest.mark.parametrize("seed", range(4))
def test_documents_are_found_where_they_begin(seed, window):
    document, _ = random_packing(seed, 3, 400)
    document[1, 50:-3] = -1
    spans = Spans.packed(document, window=window)
    if window == 1:
        document = torch.arange(1200).view(3, 400)
    cu_seqlens, singletons = documents_by_definition(document)
    for where in (spans, spans.to("meta")):
        found = documents_of(where.mask)
        assert found.max_seqlen == max(b - a for a, b in zip(cu_seqlens, [*cu_seqlens[1:], 1200], strict=True))
        assert found.cu_seqlens.shape == (len(cu_seqlens) + 1,) and found.singletons.shape == (len(singletons),)
        assert found.cu_seqlens.device == where.lo.device and found.cu_seqlens.dtype == torch.int32
    found = documents_of(spans.mask)
    assert found.cu_seqlens.tolist() == [*cu_seqlens, 1200]
    assert found.singletons.tolist() == singletons


def test_no_rows_have_no_documents():
    spans = Spans.packed(torch.zeros(2, 0, dtype=torch.int32))
    found = documents_of(spans.mask)
    assert found.cu_seqlens.tolist() == [0] and found.max_seqlen == 0 and not len(found.singletons)


def test_facts_of_forgotten_spans_are_found_again():
    """The backward of compiled code holds lo, hi and the serial, but not the Spans."""
    spans = Spans.packed(IDS, window=3)
    mask, area = spans.mask, spans.area()
    del spans
    for other in [Spans.packed(IDS) for _ in range(RECENT + 1)]:
        cached_by_mask(int(other.serial), "test", lambda: None)
    assert kind_of(mask.serial) == mask.kind == "window"
    assert span_stats(mask).area == area and span_stats(mask).max_visible_keys == 3
    assert documents_of(mask).cu_seqlens.tolist() == [0, 4, 6, 8]


def test_sent_spans_keep_their_kind_and_are_not_checked_again():
    spans = Spans.packed(IDS, window=3)
    again = pickle.loads(pickle.dumps(spans))
    assert again.kind == "window" and torch.equal(again.hi, spans.hi) and again.num_keys == 8
