"""What "auto" takes on a card, without one: faked capabilities and backends, and self-checks that must see faults."""

import itertools
import json
import logging
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from brine.kernels.attention import Spans, attention, reference, selfcheck
from brine.kernels.attention import select_backend as choose
from brine.kernels.attention.cpu import launch as cpu_launch
from brine.kernels.attention.spans import KINDS, AttentionRequest, Mask
from brine.kernels.context_parallel import partial
from brine.kernels.selection import choice_log as announce
from brine.kernels.selection import measured_order as table
from brine.kernels.selection import self_check as verdicts
from brine.kernels.selection.choice_log import backend_choices, describe_backend_choices
from tests.kernels.attention.fake_backend import Card, fake
from tests.kernels.packings import random_packing

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No verdict and no choice from before, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "_modules", {"reference": reference, "cpu": cpu_launch})
    monkeypatch.setattr(choose, "_absent", {})
    monkeypatch.setattr(choose, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(verdicts, "_check_results", {})
    for name in ("_announced", "_noted"):
        monkeypatch.setattr(announce, name, set())
    monkeypatch.setattr(announce, "_chosen", {})


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch, selfcheck)


@pytest.mark.parametrize(
    "there",
    ["flash4+gluon+triton+flex", "flash+triton+flex", "gluon+triton+flex", "triton+flex", "flex", "nothing"],
)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0)], ids=lambda x: f"sm{x[0]}{x[1]}")
def test_auto_for_every_mask_dtype_and_card(card, capability, there):
    names = there.replace("flash4", "flash").split("+")
    card.capability = capability
    card.install(*names, mask_mod="flash4" in there)
    for kind, dtype in itertools.product(KINDS, DTYPES):
        expected = "reference"
        if dtype != torch.float64:
            if "flex" in names and kind != "moving":
                expected = "flex"
            if "triton" in names and capability >= (8, 0):
                expected = "triton"
            if "gluon" in names and dtype.itemsize == 2 and capability[0] == 9 and kind != "moving":
                expected = "gluon"
            plain = kind in ("causal", "window") or (kind == "block" and "flash4" in there)
            if "flash" in names and dtype.itemsize == 2 and plain and capability >= (8, 0):
                expected = "flash"
        assert card.take(kind, dtype) == expected, (kind, dtype)
    # each that was taken was checked first, for its own masks and dtype, and once
    assert len(card.checked) == len(set(card.checked))
    assert {name for name, *_ in card.checked} == {x for x in backend_choices().values() if x != "reference"}


@pytest.mark.parametrize("wrong", ["dq is off by 1e3 roundings", RuntimeError("misaligned address\nmore")])
def test_a_failed_self_check_warns_and_the_next_is_taken(card, caplog, wrong):
    card.install("flash", "triton", "flex")
    card.wrong = {"flash": wrong}
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert card.take() == "triton"
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.name == "brine.kernels.attention"
    for part in ("flash", "causal masks, bfloat16, head dim 64", "Card (sm_90)", str(wrong).splitlines()[0]):
        assert part in warning.getMessage()
    assert [name for name, *_ in card.checked] == ["flash", "triton"]
    assert backend_choices() == {"attention on cuda:0: causal, bfloat16, head dim 64": "triton"}
    (line,) = describe_backend_choices()
    assert "triton, because it is the first supported backend of the default order" in line
    assert "not flash: failed its self-check" in line
    assert [x for x in caplog.messages if x.startswith("backend auto")] == [
        f"backend auto: triton for {line}".replace(f"{line}", line.replace(": triton, because", ", because"))
    ]


def test_a_check_that_does_not_end_is_named(card, caplog, monkeypatch):
    """One hung on a real card, and nobody said where."""
    done = threading.Event()
    monkeypatch.setattr(verdicts, "HANG_WARNING_S", 0.01)
    monkeypatch.setattr(verdicts, "_warn_hang", lambda *words, said=verdicts._warn_hang: (said(*words), done.set()))
    monkeypatch.setattr(choose.selfcheck, "check", lambda *_, **__: None if done.wait(60) else "nobody complained")
    card.install("triton")
    assert card.take() == "triton"
    # one that ends in time is left alone
    monkeypatch.setattr(verdicts, "HANG_WARNING_S", 60.0)
    assert card.take("window") == "triton"
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 'self-check of attention backend "triton" (causal masks, ' in said and "name another backend" in said


def test_nothing_but_small_sizes_is_dense(card):
    """ "auto" once was the dense reference on every card: 99 GiB a layer at 32k tokens and 4 heads."""
    card.install("triton", "flex")
    card.wrong = {"triton": "wrong", "flex": "wrong"}
    assert card.take(rows=2048, keys=2048) == "reference"
    assert card.take("any", rows=1, keys=2**22) == "reference"
    for rows, keys in ((2049, 2048), (32768, 32768), (8192, 131072)):
        with pytest.raises(ValueError, match="no attention backend serves") as caught:
            card.take(rows=rows, keys=keys)
        message = str(caught.value)
        for part in (
            f"{rows} queries over {keys} keys",
            "not flash: flash is not installed",
            "not triton: failed its self-check: wrong",
            'backend="reference"',
        ):
            assert part in message
    with pytest.raises(ValueError, match=r"no kernel computes in float64: use float32"):
        card.take(dtype=torch.float64, rows=4096, keys=4096)
    q = SimpleNamespace(device=torch.device("xpu"), dtype=torch.float32, shape=(1, 4096, 1, 8))
    with pytest.raises(ValueError, match="there is no kernel for xpu"):
        choose.backend_for(q, q, AttentionRequest(Mask(None, None, 4), 1.0), "auto")


def test_what_the_ring_wants_is_checked_for_itself(card):
    card.install("triton")
    assert card.take() == card.take(partial=True) == "triton"
    assert len(card.checked) == 2


def test_a_pass_is_remembered_on_disk(card, monkeypatch):
    card.install("triton", "flex")
    card.take()
    (kept,) = verdicts.cache_folder().iterdir()
    assert json.loads(kept.read_text())["gpu"] == "Card (sm_90)"
    verdicts.reset_check_results()
    card.take()
    assert len(card.checked) == 1
    # another card, another version, other sources: it is checked again
    for change in (
        lambda: monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Another"),
        lambda: monkeypatch.setattr(verdicts, "versions", lambda: {"triton": "9"}),
        lambda: monkeypatch.setattr(verdicts, "digest_of", lambda folder: "changed"),
    ):
        before = len(card.checked)
        change()
        verdicts.reset_check_results()
        card.take()
        assert len(card.checked) == before + 1


def test_a_failure_is_not_remembered_on_disk(card):
    card.install("triton", "flex")
    card.wrong = {"triton": "wrong"}
    assert card.take() == "flex"
    verdicts.reset_check_results()
    card.wrong = {}
    assert card.take() == "triton"


def test_a_cache_that_cannot_be_written_costs_a_check_only(card, monkeypatch, tmp_path):
    card.install("triton")
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    for checks in (1, 2):
        verdicts.reset_check_results()
        assert card.take() == "triton"
        assert len(card.checked) == checks


def test_no_check_runs_while_a_graph_is_captured(card, monkeypatch):
    card.install("triton")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call the function once before capturing it"):
        card.take()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    card.take()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert card.take() == "triton"


def test_a_measured_row_goes_before_the_default_order(card):
    card.install("flash", "triton", "flex")
    source = {"gpu": "Card", "commit": "0123456", "command": "python -m benchmarks.kernels.attention"}
    row = table.row_of(
        capability=(9, 0), dtype="bfloat16", kind="causal", dim=64, ms={"flash": 3.0, "flex": 2.0}, source=source
    )
    table.write_rows(choose.TABLE, [row])
    assert card.take() == "flex"
    assert "measured on Card, commit 0123456" in describe_backend_choices()[0]
    # it holds for what it names, and the others still come after it
    assert card.take(dim=128) == card.take("window") == card.take(dtype=torch.float16) == "flash"
    assert choose.candidates((9, 0), torch.bfloat16, "causal", 64)[0] == ["flex", "flash", "gluon", "triton"]
    table.write_rows(choose.TABLE, [row | {"ms": {"triton": 1.0}}, row | {"kind": "window", "ms": {"flex": 1.0}}])
    assert len(table.read_rows(choose.TABLE)) == 2
    # what was not timed anew keeps its time
    assert choose.candidates((9, 0), torch.bfloat16, "causal", 64)[0] == ["gluon", "triton", "flex", "flash"]
    assert card.take() == "triton" and card.take("window") == "flex"
    with pytest.raises(ValueError, match="must name at least"):
        table.row_of(capability=(9, 0), dtype="bfloat16", kind="any", dim=1, ms={"flex": 1.0}, source={"gpu": "x"})
    with pytest.raises(ValueError, match="time of at least one"):
        table.row_of(capability=(9, 0), dtype="bfloat16", kind="any", dim=1, ms={"flex": 0.0}, source=source)


def test_times_keep_their_source_as_rows_are_written_again(card):
    key = {"capability": (9, 0), "dtype": "bfloat16", "kind": "causal", "dim": 64}
    sources = [{"gpu": "Card", "commit": str(number)} for number in range(3)]
    times = {"flex": 3.0, "gluon": 2.0}, {"flex": 2.5, "flash": 1.0}, {"flash": 1.5}
    for source, ms in zip(sources, times, strict=True):
        table.write_rows(choose.TABLE, [table.row_of(**key, ms=ms, source=source)])
    (row,) = table.read_rows(choose.TABLE)
    assert row["ms"] == {"gluon": 2.0, "flex": 2.5, "flash": 1.5}
    assert row["from"] == sources[2] | {"flex": sources[1], "gluon": sources[0]}


def test_the_committed_table_names_backends_that_exist():
    for row in table.read_rows(choose.Path(choose.__file__).parent / "table.json"):
        assert set(row) == {*table.KEY, "ms", "from"}
        assert {name.partition("/")[0] for name in row["ms"]} <= set(choose.BACKENDS) and row["kind"] in KINDS


def test_torchs_own_kernels_come_behind_ours_on_hopper(card):
    """They are always there, and were slower than ours wherever both were timed, which was on an H200."""
    for capability, package, order in (
        ((9, 0), "torch", ["gluon", "triton", "flash", "flex"]),
        ((9, 0), "flash-attn-4", ["flash", "gluon", "triton", "flex"]),
        ((8, 0), "torch", ["flash", "gluon", "triton", "flex"]),
    ):
        found, source = choose.candidates(capability, torch.bfloat16, "causal", 64, lambda p=package: p)
        assert found == order and source == "of the default order"


def test_the_time_of_a_package_is_no_word_on_another(card):
    source = {"gpu": "Card", "commit": "0123456", "command": "python -m benchmarks.card --stage attention"}
    times = {"flash/flash-attn-4": 2.0, "triton": 3.0, "flash/torch": 4.0}
    row = table.row_of(capability=(9, 0), dtype="bfloat16", kind="causal", dim=64, ms=times, source=source)
    table.write_rows(choose.TABLE, [row])
    for package, order in {
        "flash-attn-4": ["flash", "gluon", "triton", "flex"],
        "torch": ["gluon", "triton", "flash", "flex"],
        "flash-attn-3": ["gluon", "triton", "flash", "flex"],
        None: ["gluon", "triton", "flash", "flex"],
    }.items():
        assert choose.candidates((9, 0), torch.bfloat16, "causal", 64, lambda p=package: p)[0] == order, package
    card.install("flash", "triton")
    card.patch.setattr(choose._modules["flash"], "package_for", lambda q, kind: "torch", raising=False)
    assert card.take() == "triton"
    announce.reset_backend_choices()
    card.patch.setattr(choose._modules["flash"], "package_for", lambda q, kind: "flash-attn-4")
    assert card.take() == "flash"
    assert "(by flash-attn-4)" in describe_backend_choices()[0]


def test_named_backends_are_not_checked_and_say_what_they_lack(monkeypatch):
    spans = Spans.packed(torch.zeros(1, 5, dtype=torch.int32))
    x = torch.randn(1, 5, 1, 8)
    monkeypatch.setitem(choose._modules, "flash", fake(lambda q, kind, sink: f"cannot do {kind}"))
    with pytest.raises(ValueError, match="cannot do causal"):
        attention(x, x, x, spans, backend="flash")
    for error, message in (
        (ImportError("No module named 'what'"), "needs a package"),
        (OSError("x"), "cannot be impor"),
    ):
        monkeypatch.setattr(choose, "_absent", {})
        monkeypatch.setattr(choose.importlib, "import_module", lambda name, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(ValueError, match=f'backend "flex" {message}'):
            attention(x, x, x, spans, backend="flex")


def test_every_backend_goes_through_the_op(monkeypatch):
    """Forward and backward of one module, with all keys, and choices that name it."""
    calls = []

    def forward(*args):
        calls.append(("forward", args[-1]))
        return reference.forward(*args)

    def backward(*args):
        calls.append(("backward", args[-1]))
        return reference.backward(*args)

    monkeypatch.setitem(choose._modules, "flex", fake(forward=forward, backward=backward))
    document, block = random_packing(1, 2, 60)
    spans = Spans.packed(document, block=block)
    q, k, v = (torch.randn(2, 60, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    sink = torch.randn(2, dtype=torch.float64, requires_grad=True)
    grads = []
    for backend in ("flex", "cpu"):
        out, lse = attention(q, k, v, spans, sink=sink, backend=backend, return_lse=True)
        grads.append([out.detach(), lse, *torch.autograd.grad(out.square().sum(), (q, k, v, sink))])
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)
    assert [name for name, _ in calls] == ["forward", "backward"]
    assert calls[0][1].sink is not None and not calls[1][1].partial
    name = "attention on cpu: block, float64, head dim 8"
    assert backend_choices() == {name: "flex (asked for), cpu (asked for)"}


def test_the_ring_takes_results_that_were_not_rounded(monkeypatch):
    """They were rounded to bf16 first and widened after, so that W ranks rounded W times."""
    calls = []

    def backward(*args):
        calls.append(args[-1])
        return reference.backward(*args)

    monkeypatch.setitem(choose._modules, "flex", fake(backward=backward))
    spans = Spans.packed(random_packing(2, 1, 50)[0])
    q, k, v, grad = (torch.randn(1, 50, 2, 8).bfloat16() for _ in range(4))
    for backend in ("flex", "cpu", "auto"):
        out, lse = partial.forward(q, k, v, spans, 0.3, backend)
        grads = partial.backward(grad, q, k, v, out, lse, spans, 0.3, backend)
        assert {x.dtype for x in (out, lse, *grads)} == {torch.float32}
        exact = partial.forward(*(x.double() for x in (q, k, v)), spans, 0.3, "reference")[0]
        # bf16 numbers widened to fp32 would all be on its grid; torch's own flash op on the CPU gives such
        results = grads if backend != "flex" else (out, *grads)
        assert all(not torch.equal(x, x.bfloat16().float()) for x in results)
        torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2)
    assert [(request.scale, request.partial) for request in calls] == [(0.3, True)]


def test_auto_on_a_cpu_says_once_what_it_took(caplog):
    spans = Spans.packed(torch.zeros(1, 5, dtype=torch.int32), window=3)
    x = torch.randn(1, 5, 1, 8)
    with caplog.at_level(logging.INFO, logger="brine.kernels.attention"):
        attention(x, x, x, spans, backend="cpu")
        assert not caplog.records
        for _ in range(2):
            attention(x, x, x, spans)
    assert caplog.messages == [
        "backend auto: cpu for attention on cpu: window, float32, head dim 8, because q is on the CPU: tiled flash "
        "attention over the spans"
    ]
    assert backend_choices() == {"attention on cpu: window, float32, head dim 8": "cpu (asked for), cpu"}
    announce.reset_backend_choices()
    assert backend_choices() == {} and describe_backend_choices() == []


def test_tensors_without_data_choose_nothing():
    """Shapes are propagated by the op's fake kernel, on devices that are not there too."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    spans = Spans.packed(torch.zeros(1, 5000, dtype=torch.int32))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for device in ("cuda", "meta"):
        with mode if device == "cuda" else torch.no_grad():
            x = torch.empty(1, 5000, 2, 8, dtype=torch.bfloat16, device=device)
            out, lse = torch.ops.brine.span_attention(
                x, x, x, torch.empty_like(spans.lo, device=device), torch.empty_like(spans.hi, device=device),
                spans.serial, None, 1.0, "auto",
            )  # fmt: skip
        assert out.shape == x.shape and out.device.type == device and lse.shape == (1, 2, 5000)
    assert backend_choices() == {}


def test_verdicts_do_not_need_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.path.join(os.sep, "home", "nobody"))
    assert verdicts.cache_folder().parts[-3:] == (".cache", "brine", "selfcheck")
