"""The self-check of attention backends: it sees faults that are made on purpose, and passes what is right."""

import pytest
import torch

from brine.kernels.attention import reference, selfcheck
from brine.kernels.attention.cpu import launch as cpu_launch
from brine.kernels.attention.spans import KINDS
from tests.kernels.attention.fake_backend import fake

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def leaking(change):
    """The reference under spans that `change` has altered."""

    def changed(request, k):
        lo, hi = change(request.mask.lo, request.mask.hi, k.shape[1])
        return request._replace(mask=request.mask._replace(lo=lo, hi=hi))

    def forward(q, k, v, request):
        return reference.forward(q, k, v, changed(request, k))

    def backward(grad_out, q, k, v, out, lse, request):
        return reference.backward(grad_out, q, k, v, out, lse, changed(request, k))

    return {"forward": forward, "backward": backward}


def last_rows_see_one_more(lo, hi, num_keys):
    at = torch.arange(hi.shape[1]) % 64 == 63
    return lo, torch.where(at, hi + 1, hi).clamp(max=num_keys)


def altered(name, function):
    """The reference, with `function` applied to one of its results."""

    def forward(*args):
        out, lse = reference.forward(*args)
        return (function(out), lse) if name == "out" else (out, function(lse) if name == "lse" else lse)

    def backward(*args):
        grads = dict(zip(("dq", "dk", "dv"), reference.backward(*args), strict=True))
        return tuple(function(grad) if name == other else grad for other, grad in grads.items())

    return {"forward": forward, "backward": backward}


FAULTS = {
    "a key too many": leaking(lambda lo, hi, num_keys: (lo, (hi + 1).clamp(max=num_keys))),
    "a key too few": leaking(lambda lo, hi, num_keys: (torch.minimum(lo + 1, hi), hi)),
    "a key too many at the ends of tiles": leaking(last_rows_see_one_more),
    "heads side by side": altered("out", lambda x: x.roll(1, 2)),
    "log-sum-exps to base 2": altered("lse", lambda x: x * 1.4426950408889634),
    "NaN in one gradient": altered("dk", lambda x: x.index_fill(1, torch.tensor([5]), torch.nan)),
    "no sum over the group": altered("dv", lambda x: x / 2),
    "scale forgotten": altered("dq", lambda x: x * 16**0.5),
    "unwritten rows": altered("dq", lambda x: x.index_fill(1, torch.arange(190, 192), 0.0)),
}
NEEDS_MANY_QUERIES = ("a key too many at the ends of tiles", "unwritten rows")


@pytest.fixture
def smaller(monkeypatch):
    for name, size in {"SHORT": 201, "LONG": 530}.items():
        monkeypatch.setattr(selfcheck, name, size)


@pytest.mark.parametrize(
    ("fault", "kind"),
    # a moving mask is of a few queries
    [(fault, kind) for fault in FAULTS for kind in KINDS if kind != "moving" or fault not in NEEDS_MANY_QUERIES],
)
def test_the_self_check_sees_what_is_wrong(fault, kind, smaller):
    wrong = selfcheck.check(fake(**FAULTS[fault]), **options_of(kind))
    assert wrong is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16", "fp32"])
def test_the_self_check_passes_what_is_right(dtype, kind, smaller):
    """The CPU's tiled backend rounds where a card's kernels do, the reference nearly nowhere."""
    for module, options in ((cpu_launch, {}), (cpu_launch, {"sink": True}), (reference, {"partial": True})):
        assert selfcheck.check(module, **options_of(kind, dtype=dtype, **options)) is None


def options_of(kind, **options):
    base = {"dtype": torch.bfloat16, "dim": 16, "group": 2, "sink": False, "partial": False}
    return base | {"device": torch.device("cpu"), "kind": kind} | options


def test_the_problems_of_a_kind_are_of_it():
    for kind in KINDS:
        found = selfcheck.problems(kind)
        assert len(found) >= 2 and {spans.kind for spans in found.values()} == {kind}
        assert {bool((spans.hi - spans.lo).amax() > 512) for spans in found.values()} == {False, True}
