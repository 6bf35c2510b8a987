"""What "auto" takes for the fused loss on a card, without one, and that no device need be waited for."""

import itertools
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from brine.kernels.linear_loss import chunked, liger, linear_cross_entropy, reference, selfcheck
from brine.kernels.linear_loss import select_backend as choose
from brine.kernels.linear_loss.autograd_function import KINDS, LossRequest
from brine.kernels.linear_loss.sampling import sample_soft_labels
from brine.kernels.linear_loss.soft_labels import raise_where
from brine.kernels.selection import choice_log as announce
from brine.kernels.selection import measured_order as table
from brine.kernels.selection import self_check as verdicts
from brine.kernels.selection.choice_log import backend_choices, describe_backend_choices
from tests.kernels.fake_gpu import FakeGpu

pytestmark = pytest.mark.slow

CARD, HOST = torch.device("cuda", 0), torch.device("cpu")
ASK = LossRequest(CARD, torch.bfloat16, "plain")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No verdict and no choice from before, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "_modules", {"reference": reference, "chunked": chunked, "liger": liger})
    monkeypatch.setattr(choose, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(verdicts, "_check_results", {})
    for name in ("_announced", "_noted"):
        monkeypatch.setattr(announce, name, set())
    monkeypatch.setattr(announce, "_chosen", {})


class Card(FakeGpu):
    """With what its self-checks found."""

    def check(self, backend, request, function):
        self.checked.append((backend, request))
        if isinstance(self.wrong.get(backend), Exception):
            raise self.wrong[backend]
        return self.wrong.get(backend)

    def install(self, *, triton: bool, with_liger: bool) -> None:
        def unsupported_reason(request):
            if not triton:
                return "triton is not installed"
            return "no float64" if request.dtype == torch.float64 or self.capability < (8, 0) else None

        self.patch.setitem(choose._modules, "triton", SimpleNamespace(unsupported_reason=unsupported_reason))
        self.patch.setattr(liger, "_installed", lambda: with_liger)


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch, selfcheck)


@pytest.mark.parametrize("there", ["triton", "liger", "triton+liger", "neither"])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0)], ids=lambda x: f"sm{x[0]}{x[1]}")
def test_auto_for_every_loss_dtype_and_card(card, capability, there):
    card.capability = capability
    card.install(triton="triton" in there, with_liger="liger" in there)
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    for kind, dtype, weighted, token_loss in itertools.product(KINDS, dtypes, (False, True), (False, True)):
        expected = "chunked"
        if dtype != torch.float64:
            if "liger" in there and (kind == "plain" or (kind == "z" and not token_loss)):
                expected = "liger"
            if "triton" in there and capability >= (8, 0):
                expected = "triton"
        assert choose.backend_for(LossRequest(CARD, dtype, kind, weighted, token_loss), "auto") == expected
    assert len(card.checked) == len(set(card.checked))
    assert "chunked" not in {name for name, _ in card.checked}


@pytest.mark.parametrize("wrong", ["d_weight is off", RuntimeError("misaligned address\nmore")])
def test_a_failed_self_check_warns_and_the_next_is_taken(card, caplog, wrong):
    card.install(triton=True, with_liger=False)
    card.wrong = {"triton": wrong}
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert choose.backend_for(ASK, "auto") == "chunked"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for part in ('linear loss backend "triton"', "plain, bfloat16", "Card (sm_90)", str(wrong).splitlines()[0]):
        assert part in warning
    assert backend_choices() == {"linear loss on cuda:0: plain, bfloat16": "chunked"}
    assert "not triton: failed its self-check" in describe_backend_choices()[0]
    assert len(card.checked) == 1


def test_a_measured_row_goes_before_the_default_order(card):
    card.install(triton=True, with_liger=True)
    source = {"gpu": "Card", "commit": "0123456"}
    times = {"liger": 2.0, "triton": 3.0}
    table.write_rows(
        choose.TABLE,
        [table.row_of(capability=(9, 0), dtype="bfloat16", kind="plain", dim=None, ms=times, source=source)],
    )
    assert choose.backend_for(ASK, "auto") == "liger"
    assert choose.backend_for(LossRequest(CARD, torch.float16, "plain"), "auto") == "triton"
    assert choose.candidates((9, 0), torch.bfloat16, "plain")[0] == ["liger", "triton", "chunked"]


def test_auto_off_a_card_says_once_what_it_took(caplog):
    hidden, weight, labels = torch.randn(9, 4), torch.randn(7, 4), torch.arange(9) % 7
    with caplog.at_level(logging.INFO, "brine.kernels.linear_loss"):
        for _ in range(2):
            linear_cross_entropy(hidden, weight, labels)
    assert caplog.messages == [
        "backend auto: chunked for linear loss on cpu: plain, float32, because hidden is on cpu: chunked, plain PyTorch"
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_the_self_check_passes_what_is_right(dtype, kind):
    for weighted in (False, True):
        assert (
            selfcheck.check("chunked", LossRequest(HOST, dtype, kind, weighted, weighted), linear_cross_entropy) is None
        )


def of_losses(change):
    def step(logits, label, **options):
        return change(*chunked.chunk_loss(logits, label, **options))

    return step


def of_gradients(change):
    def step(logits, label, **options):
        found = chunked.chunk_loss(logits, label, **options)
        if options["grad"]:
            change(logits, label)
        return found

    return step


FAULTS = {
    "a block of words forgotten": of_gradients(lambda x, label: x[:, 4096:].zero_()),
    "the label's word written twice": of_gradients(lambda x, label: x.scatter_add_(1, label, x.gather(1, label))),
    "a row unwritten": of_gradients(lambda x, label: x[3].zero_()),
    "not a number": of_losses(lambda total, hard: (total, hard.index_fill(0, torch.tensor([2]), torch.nan))),
    "a token's loss twice": of_losses(lambda total, hard: (torch.cat((total[:-1], 2 * total[-1:])), hard)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_self_check_sees_what_is_wrong(fault, kind, monkeypatch):
    monkeypatch.setitem(
        choose._modules,
        "chunked",
        SimpleNamespace(unsupported_reason=chunked.unsupported_reason, chunk_loss=FAULTS[fault]),
    )
    assert (
        selfcheck.check("chunked", LossRequest(HOST, torch.bfloat16, kind, True, True), linear_cross_entropy)
        is not None
    )


def test_the_self_check_runs_under_any_mode():
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            assert (
                selfcheck.check("chunked", LossRequest(HOST, torch.float32, "plain", False, True), linear_cross_entropy)
                is None
            )


def problem(kind, dtype=torch.float32, device="cpu"):
    request = LossRequest(torch.device(device), dtype, kind, True, True)
    tensors, options = selfcheck.problem(request, 50)
    tensors["targets"] = (tensors["labels"] >= 0).nonzero().flatten()
    return tensors, options


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_that_are_given_are_the_same(kind, backend):
    tensors, options = problem(kind, torch.float64)
    found = []
    for given in (True, False):
        leaves = [tensors[name].clone().requires_grad_() for name in ("hidden", "weight")]
        rest = {name: x for name, x in tensors.items() if name not in ("hidden", "weight", "labels", "targets")}
        rest["targets"] = tensors["targets"] if given else None
        loss, token_loss = linear_cross_entropy(
            *leaves, tensors["labels"], backend=backend, validate=not given, chunk_tokens=20, **rest, **options
        )
        found.append([loss.detach(), token_loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True))


def test_targets_that_cannot_be_are_refused():
    hidden, weight, labels = torch.randn(9, 4), torch.randn(7, 4), torch.arange(9) % 7
    for targets in (torch.arange(9).int(), torch.arange(10), torch.arange(9)[None]):
        with pytest.raises(ValueError, match=r"targets must be \(n,\) int64 positions among the 9 tokens"):
            linear_cross_entropy(hidden, weight, labels, targets=targets)


WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_assert_async", "unique")


class Waiting(TorchDispatchMode):
    """Collects the operations for which a device would be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = (
            name.startswith("index")
            and any(
                x is not None and x.dtype in (torch.bool, torch.uint8)
                for x in (args[1] if len(args) > 1 else ())
                if isinstance(x, torch.Tensor) or x is None
            )
            if name in ("index", "index_put", "index_put_")
            else False
        )
        if name in WAITS or masked:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["plain", "z", "dense"])
def test_nothing_waits_for_a_device(kind):
    """Labels were looked at, and their targets counted, on the device: two waits a micro-batch."""
    tensors, options = problem(kind)
    leaves = [tensors.pop(name).requires_grad_() for name in ("hidden", "weight")]
    labels = tensors.pop("labels")
    with Waiting() as waiting:
        loss, _ = linear_cross_entropy(*leaves, labels, validate=False, chunk_tokens=20, **tensors, **options)
        loss.backward()
    assert waiting.found == []
    with Waiting() as waiting:
        linear_cross_entropy(*leaves, labels)
    assert waiting.found == ["_local_scalar_dense", "nonzero"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_runs_on_a_card_that_is_not_there(kind):
    """Tensors without data refuse whatever would read a value; gradients are made in the forward too."""
    tensors, options = problem(kind, torch.bfloat16)
    with FakeTensorMode() as mode:
        on_card = {name: torch.empty_like(mode.from_tensor(x), device="cuda") for name, x in tensors.items()}
        leaves = [on_card.pop(name).requires_grad_() for name in ("hidden", "weight")]
        loss, token_loss = linear_cross_entropy(
            *leaves, on_card.pop("labels"), validate=False, backend="chunked", chunk_tokens=20, **on_card, **options
        )
        assert loss.device.type == token_loss.device.type == "cuda" and loss.requires_grad


def test_a_card_refuses_by_an_assertion_of_its_own(monkeypatch):
    """A message with the place and value of a wrong label would have to wait for it."""
    said = []
    monkeypatch.setattr(torch, "_assert_async", lambda right, message: said.append((right.device.type, message)))
    with FakeTensorMode():
        raise_where(
            torch.ones(4, dtype=torch.bool, device="cuda"), "must be small", labels=torch.ones(4, device="cuda")
        )
    assert said == [("cuda", "labels must be small")]


def test_sampling_needs_no_running_sum_of_floats():
    """CUDA has no deterministic one: under torch.use_deterministic_algorithms(True) labels could not be drawn."""

    class NoFloatSums(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket.__name__ in ("cumsum", "cumsum_"):
                assert not args[0].is_floating_point()
            return function(*args, **(kwargs or {}))

    hidden, weight = torch.randn(40, 6), torch.randn(90, 6)
    with NoFloatSums():
        ids, chance = sample_soft_labels(hidden, weight, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chance.sum(1), torch.ones(40))
    # of two words, one of them impossible, the other is drawn always
    ids, _ = sample_soft_labels(torch.ones(5, 1), torch.tensor([[0.0], [-1e4]]), 7)
    assert (ids == torch.tensor([0, -1, -1, -1, -1, -1, -1])).all()


class FakeLiger(torch.nn.Module):
    """Liger's loss as its documentation has it, in plain PyTorch."""

    made: list = []  # noqa: RUF012

    def __init__(self, *, lse_square_scale, reduction, accum_dtype):
        super().__init__()
        FakeLiger.made.append(reduction)
        assert accum_dtype == torch.float32
        self.z, self.reduction = lse_square_scale, reduction

    def forward(self, weight, hidden, target):
        assert hidden.requires_grad or not weight.requires_grad, "makes no gradient"
        logits = (hidden @ weight.T).float()
        loss = F.cross_entropy(logits, target, reduction="none") + self.z * logits.logsumexp(-1).square()
        return loss if self.reduction == "none" else loss.sum()


@pytest.fixture
def with_liger(monkeypatch):
    module = ModuleType("liger_kernel.transformers.fused_linear_cross_entropy")
    module.LigerFusedLinearCrossEntropyLoss = FakeLiger
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(liger, "_installed", lambda: True)
    monkeypatch.setattr(FakeLiger, "made", [])
    # it refuses the host, where alone this can run
    monkeypatch.setitem(choose._modules, "liger", SimpleNamespace(unsupported_reason=lambda request: None))


@pytest.mark.parametrize("token_loss", [False, True], ids=["sum", "tokens"])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "hidden-frozen"])
def test_liger_gives_what_the_reference_does(with_liger, weighted, token_loss, frozen):
    kind = "plain" if token_loss else "z"
    tensors, options = selfcheck.problem(LossRequest(HOST, torch.float32, kind, weighted, token_loss), 50)
    found = []
    for backend in ("liger", "reference"):
        leaves = [tensors["hidden"].clone().requires_grad_(not frozen), tensors["weight"].clone().requires_grad_()]
        rest = {name: x for name, x in tensors.items() if name not in ("hidden", "weight")}
        got = linear_cross_entropy(*leaves, backend=backend, **rest, **options)
        loss, each = got if token_loss else (got, torch.zeros(()))
        found.append([loss.detach(), each, *torch.autograd.grad(loss, leaves[frozen:])])
    for mine, true in zip(*found, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-5)
    assert FakeLiger.made == ["none" if weighted or token_loss else "sum"]


def test_liger_without_targets_is_nothing(with_liger):
    hidden, weight = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    loss = linear_cross_entropy(hidden, weight, torch.full((5,), -100), backend="liger")
    loss.backward()
    assert loss == 0 and (hidden.grad == 0).all() and (weight.grad == 0).all() and FakeLiger.made == []


def test_liger_says_what_it_lacks(monkeypatch):
    for there, request, message in [
        (False, ASK, "needs the package liger-kernel"),
        (True, LossRequest(HOST, torch.float32, "plain"), "needs CUDA tensors"),
        (True, LossRequest(CARD, torch.float64, "plain"), "not torch.float64"),
        (True, LossRequest(CARD, torch.float32, "dense"), "mixes labels with a teacher's"),
        (True, LossRequest(CARD, torch.float32, "sparse"), "mixes labels with a teacher's"),
        (True, LossRequest(CARD, torch.float32, "z", token_loss=True), "cannot tell a token's loss from its z-loss"),
    ]:
        monkeypatch.setattr(liger, "_installed", lambda there=there: there)
        assert message in liger.unsupported_reason(request)
    assert liger.unsupported_reason(LossRequest(CARD, torch.float32, "z", weighted=True)) is None
