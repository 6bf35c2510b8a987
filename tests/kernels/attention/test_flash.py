"""The flash packages by recorded calls: what they are given is checked, what comes back is held to the truth.

No kernel of theirs runs on a CPU. `flash_recordings` stands in for each package, checks every argument, and answers
from plain products, so that layouts, documents, windows, key heads, log-sum-exps, sinks and gradients are those of the
whole path.
"""

from types import SimpleNamespace

import pytest
import torch

from brine.kernels.attention import Spans
from brine.kernels.attention import select_backend as choose
from brine.kernels.attention.flash import backend as flash
from brine.kernels.attention.flash import masked as flash_masked
from brine.kernels.attention.flash import varlen as flash_varlen
from brine.kernels.attention.spans import AttentionRequest, documents_of
from brine.kernels.attention.tiles import query_tiles_of_keys
from tests.kernels.attention.flash_recordings import install
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
PADDED = torch.tensor([[1] * 50 + [-1] * 250, [-1] * 3 + [2] * 100 + [3] + [4] + [5] * 130 + [-1] * 65]).int()
VARLEN = {
    "causal": lambda: Spans.packed(torch.zeros(2, 130).int()),
    "documents": lambda: Spans.packed(DOCUMENT),
    "padded": lambda: Spans.packed(PADDED),
    "window": lambda: Spans.packed(DOCUMENT, window=37),
    "padded-window": lambda: Spans.packed(PADDED, window=64),
    "window-of-one": lambda: Spans.packed(DOCUMENT, window=1),
    "padding-only": lambda: Spans.packed(torch.full((2, 140), -1)),
    "text-without-media": lambda: Spans.packed(DOCUMENT, block=torch.zeros_like(DOCUMENT), window=20),
}
MASKED = {
    "media": lambda: Spans.packed(DOCUMENT, block=BLOCK),
    "media-window": lambda: Spans.packed(PADDED, block=BLOCK, window=64),
    "image-is-all": lambda: Spans.packed(torch.zeros(1, 200).int(), block=blocks_at(200, [(0, 200)])),
    "last-rows": lambda: Spans.packed(DOCUMENT, num_queries=70),
    "scattered": lambda: Spans.packed(DOCUMENT, block=BLOCK).restrict(range(0, 300, 3), range(1, 300, 2)),
    "nothing-seen": lambda: Spans.packed(torch.zeros(1, 40).int()).restrict(range(20), range(20, 40)),
    "long": lambda: Spans.packed((torch.arange(700) >= 70).int()[None], block=blocks_at(700, [(300, 600)])),
}
PACKAGES = {"flash-attn": (8, 0), "flash-attn-3": (9, 0), "flash-attn-4": (10, 0), "torch": (8, 9)}


@pytest.fixture
def any_order():
    """Without the order that deterministic algorithms ask for; `conftest` turns it off after the test in any case."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("mask", VARLEN)
def test_documents_and_windows_by_each_package(mask, package, monkeypatch):
    spans, record = VARLEN[mask](), install(monkeypatch, PACKAGES[package], (package,))
    assert spans.kind in flash.VARLEN
    check_against_truth(spans, inputs(spans, heads=4, key_heads=2, dim=24, dtype=torch.bfloat16), flash)
    assert record.calls == [f"{package} forward", f"{package} backward"]
    assert record.deterministic == [package != "torch"]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dim"), [((9, 0), 64), ((9, 0), 96), ((9, 0), 192), ((9, 0), 256)], ids=str)
@pytest.mark.parametrize("mask", MASKED)
def test_every_other_mask_by_flash_attn_4_on_hopper(mask, capability, dim, monkeypatch, any_order):
    spans, record = MASKED[mask](), install(monkeypatch, capability, ("flash-attn-4",))
    assert spans.kind not in flash.VARLEN
    check_against_truth(spans, inputs(spans, heads=2, key_heads=1, dim=dim, dtype=torch.bfloat16), flash)
    assert record.calls == ["flash-attn-4 masked forward", "flash-attn-4 masked backward"]
    for visible in record.visible:
        assert torch.equal(visible, spans.dense())
    assert record.deterministic == [False]


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKED)
def test_every_other_mask_in_a_fixed_order_on_blackwell(mask, monkeypatch):
    spans, record = MASKED[mask](), install(monkeypatch, (10, 0), ("flash-attn-4",))
    check_against_truth(spans, inputs(spans, heads=4, key_heads=2, dim=64, dtype=torch.float16), flash)
    assert all(torch.equal(visible, spans.dense()) for visible in record.visible) and record.deterministic == [True]


@pytest.mark.parametrize("tiles", [(32, 16), (16, 64)], ids=str)
@pytest.mark.parametrize("mask", MASKED)
def test_the_order_of_additions_counts_those_before(mask, tiles):
    spans = MASKED[mask]()
    lists = query_tiles_of_keys(*spans.host(), spans.num_keys, *tiles, torch.device("cpu"))
    orders = flash_masked.write_orders(lists, -(-spans.num_queries // tiles[0]))
    for b in range(spans.batch_size):
        before = [0] * -(-spans.num_queries // tiles[0])
        for n in range(lists.partial.shape[1]):
            added = []
            for count, found, order in (
                (lists.partial_count, lists.partial, orders[0]),
                (lists.full_count, lists.full, orders[1]),
            ):
                for at, tile in enumerate(found[b, n, : count[b, n]].tolist()):
                    assert order[b, n, at] == before[tile]
                    added.append(tile)
            for tile in added:
                before[tile] += 1


@pytest.mark.parametrize("mask", ["documents", "padded", "media", "nothing-seen"])
def test_a_sink_is_folded_in(mask, monkeypatch, any_order):
    install(monkeypatch, (9, 0), ("flash-attn-3", "flash-attn-4"))
    spans = (VARLEN | MASKED)[mask]()
    *leaves, grad = inputs(spans, heads=4, key_heads=2, dtype=torch.float16)
    sink = torch.randn(4, dtype=torch.float16, requires_grad=True)
    check_against_truth(spans, [*leaves, sink, grad], flash)


def test_parts_of_the_keys_add_up(monkeypatch, any_order):
    """As in a ring. The packages round their results, so the sum is as good as their dtype."""
    install(monkeypatch, (9, 0), ("flash-attn-4",))
    spans = VARLEN["documents"]()
    check_parts(flash, spans, inputs(spans, heads=4, key_heads=2, dtype=torch.float16), cut=130, eps=2**-9)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_no_rows_and_no_keys(shape):
    none = torch.zeros(2, shape[0], dtype=torch.int32)
    spans = Spans(none, none, shape[1])
    got = results(run_module(flash), inputs(spans, dtype=torch.bfloat16), spans)
    assert not got["out"].any() and (got["lse"] == -torch.inf).all() and not got["dk"].any()


def test_padding_does_not_make_a_document_of_each_token():
    """Some kernels start blocks for every document and every tile of the longest: 250 times too many here."""
    spans = VARLEN["padded"]()
    assert len(documents_of(spans.mask).cu_seqlens) < 20


@pytest.mark.parametrize(
    ("capability", "installed", "dim", "package"),
    [
        ((8, 0), ("flash-attn-4", "flash-attn", "torch"), 64, "flash-attn"),
        ((8, 9), ("flash-attn-4", "torch"), 64, "torch"),
        ((9, 0), ("flash-attn-3", "flash-attn-4", "flash-attn", "torch"), 64, "flash-attn-3"),
        ((9, 0), ("flash-attn-4", "flash-attn", "torch"), 192, "flash-attn-4"),
        ((9, 0), ("torch",), 64, "torch"),
        ((10, 0), ("flash-attn-3", "flash-attn-4", "torch"), 64, "flash-attn-4"),
        ((10, 0), ("flash-attn-4", "torch"), 192, "torch"),
        ((12, 0), ("flash-attn-4", "flash-attn", "torch"), 64, "flash-attn"),
        ((9, 0), (), 64, None),
    ],
    ids=str,
)
def test_the_best_package_that_is_here(capability, installed, dim, package, monkeypatch):
    install(monkeypatch, capability, installed)
    q = torch.empty(1, 1, 1, dim)
    assert flash_varlen.package_for(q) == flash.package_for(q, "window") == package


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "dim", "kind", "why"),
    [
        ((9, 0), ("torch",), torch.bfloat16, 64, "causal", None),
        ((9, 0), ("torch",), torch.float16, 64, "window", None),
        (
            (9, 0),
            ("torch",),
            torch.bfloat16,
            64,
            "block",
            r"need flash-attn-4, which is not installed \(extra \[flash\]",
        ),
        ((9, 0), ("flash-attn-4",), torch.bfloat16, 256, "any", None),
        ((9, 0), ("flash-attn-4",), torch.bfloat16, 64, "moving", "anew at every step"),
        ((10, 3), ("flash-attn-4",), torch.bfloat16, 128, "block", None),
        ((10, 0), ("flash-attn-4",), torch.bfloat16, 256, "block", "up to 128 on sm_100, not 256"),
        ((8, 0), ("flash-attn-4",), torch.bfloat16, 64, "block", "not for sm_80"),
        ((12, 0), ("flash-attn-4",), torch.bfloat16, 64, "any", "not for sm_120"),
        ((9, 0), (), torch.bfloat16, 64, "causal", "no flash package serves sm_90"),
        ((7, 5), ("torch",), torch.float16, 64, "causal", "An Old Card is older"),
        ((9, 0), ("torch",), torch.float32, 64, "causal", "not torch.float32"),
        ((9, 0), ("torch",), torch.bfloat16, 260, "causal", "not 260"),
        ((9, 0), ("torch",), torch.bfloat16, 20, "causal", "in multiples of 8, not 20"),
    ],
)
def test_what_it_cannot_serve_is_told(capability, installed, dtype, dim, kind, why, monkeypatch, any_order):
    install(monkeypatch, capability, installed)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "An Old Card")
    with torch._subclasses.FakeTensorMode():
        q = torch.empty(1, 300, 4, dim, dtype=dtype, device="cuda")
    found = flash.unsupported_reason(q, q, kind=kind, sink=None)
    if why is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=why):
            raise ValueError(found)
    if capability == (9, 0) and why is None and kind == "any":
        torch.use_deterministic_algorithms(True)
        assert "no deterministic backward with a mask on sm_90" in flash.unsupported_reason(q, q, kind=kind, sink=None)


def test_a_cpu_has_none_of_them():
    q = torch.empty(1, 3, 1, 64, dtype=torch.bfloat16)
    assert "need a CUDA device, but q is on cpu" in flash.unsupported_reason(q, q, kind="causal", sink=None)


def test_a_package_that_does_not_load_is_told(monkeypatch, caplog):
    install(monkeypatch, (9, 0), ("torch",))

    def broken(name):
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(flash_varlen.importlib, "import_module", broken)
    caplog.set_level("INFO", "brine.kernels.attention")
    assert flash_varlen.load("flash-attn") is None
    assert "flash-attn is installed but does not load, so it is skipped: undefined symbol" in caplog.text


def crowd(count: int) -> Spans:
    """That many documents of two tokens."""
    return Spans.packed((torch.arange(2 * count) // 2)[None])


def test_too_many_documents_are_refused(monkeypatch):
    install(monkeypatch, (8, 0), ("torch",))
    spans = crowd(65537)
    q = torch.empty(1, spans.num_queries, 1, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"up to 65,535 documents at once, but this batch holds 65,537"):
        flash.forward(q, q, q, AttentionRequest(spans.mask, 1.0))


@pytest.mark.parametrize(
    ("package", "count", "wrong"),
    [("torch", 65535, None), ("torch", 65536, "torch takes"), ("flash-attn", 65536, "flash-attn takes"),
     ("flash-attn-3", 65536, None)],
)  # fmt: skip
def test_auto_takes_the_next_where_the_host_knows_that_there_are_too_many(package, count, wrong, monkeypatch):
    """Said before anything is launched, from the host's copy of the mask; without one nothing is waited for."""
    install(monkeypatch, PACKAGES[package], (package,))
    taken = SimpleNamespace(unsupported_reason=lambda q, k, *, kind, sink: None)
    monkeypatch.setattr(choose, "_modules", {"flash": flash, "triton": taken})
    monkeypatch.setattr(choose, "candidates", lambda *_: (["flash", "triton"], "here"))
    monkeypatch.setattr(choose, "_check", lambda *_: None)
    here = crowd(count)
    with torch._subclasses.FakeTensorMode():
        q = torch.empty(1, here.num_queries, 1, 8, dtype=torch.bfloat16, device="cuda")
    # as on a card: the ends are elsewhere, with a copy here
    known, unknown = here.to("meta"), Spans.packed(torch.zeros(1, here.num_queries, dtype=torch.int32, device="meta"))
    module, reason = choose._auto(q, q, AttentionRequest(known.mask, 1.0))
    assert module == ("flash" if wrong is None else "triton") and (wrong is None or f"not flash: {wrong}" in reason)
    assert choose._auto(q, q, AttentionRequest(unknown.mask, 1.0))[0] == "flash"
