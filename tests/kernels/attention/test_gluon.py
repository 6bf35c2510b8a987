"""The specialised kernels compile for sm_90 without a card, under whichever Triton is installed, as they were meant."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs Triton with Gluon for Hopper")

CASES = {
    "D128": ["forward", 128, [128, 2, True, False], {}],
    "D128-keys": ["keys", 128, [64, 3, True], {}],
    "D128-rows": ["rows", 128, [64, 3, True], {}],
    "D64-fused": ["fused", 64, [64, 3, True], {}],
}
"""One of each kernel: those that backend "gluon" takes, first of all, and the fused backward's."""
MORE_CASES = {
    "D112-sink-wide": ["forward", 112, [128, 2, True, False], {"sink": True, "wide": True}],
    "D64-keys-one-head": ["keys", 64, [64, 3, True], {"group": 1}],
    "D128-fused": ["fused", 128, [64, 3, False], {}],
    "D64-alone": ["forward", 64, [128, 2, False, False], {}],
    "D112-rows-alone-wide": ["rows", 112, [64, 4, False], {"wide": True}],
    "D128-turns": ["forward", 128, [128, 2, True, True], {}],
    "D64": ["forward", 64, [128, 2, True, False], {}],
    "D64-fp16-short-deep": ["forward", 64, [64, 4, True, False], {"dtype": "float16"}],
    "D128-alone": ["forward", 128, [128, 2, False, False], {}],
    "D128-keys-early": ["keys", 128, [64, 4, True, True], {}],
    "D128-keys-alone-fp16-wide": ["keys", 128, [64, 4, False], {"dtype": "float16", "wide": True}],
    "D64-rows": ["rows", 64, [64, 3, True], {}],
    "D128-fused-early": ["fused", 128, [64, 3, True, True], {}],
    "D112-fused-fp16-wide": ["fused", 112, [64, 2, False], {"dtype": "float16", "wide": True}],
    "D64-fused-alone": ["fused", 64, [64, 4, False], {}],
}
"""Compiled for `-m acceptance`, in four times the time of the others."""
ALL_CASES = CASES | MORE_CASES


def named(kept) -> list:
    """The names of the cases that are kept, those of `MORE_CASES` for acceptance."""
    return [
        pytest.param(name, marks=[pytest.mark.acceptance] * (name in MORE_CASES))
        for name, case in ALL_CASES.items()
        if kept(case)
    ]


class Compiled(dict):
    """What came of each case, by name; the cases of one tier are compiled in one process, when the first is asked."""

    def __init__(self, cache: Path):
        self.cache = cache

    def __missing__(self, name: str) -> dict:
        cases = CASES if name in CASES else MORE_CASES
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(self.cache), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "tests/kernels/attention/gluon_compile.py", json.dumps(list(cases.values()))],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        self.update(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))
        return self[name]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", named(lambda case: True))
def test_specialised_kernels_compile_without_spills_and_fit(made, name):
    """No spills (dk/dv and fused at head dim 128: some words), Hopper's own products and
    copies, registers dealt anew, shared memory that an SM has, and registers at the start that three warp groups of 128
    threads can have."""
    found = made[name]
    which, dim, *_ = ALL_CASES[name]
    most = {"keys": 128 if dim == 128 else 0, "fused": 160 if dim > 64 else 0}
    assert found["stack"] <= most.get(which, 0), found
    assert found["registers"] == 168 and found["shared"] <= 227 * 1024, found
    assert found["HGMMA"] and found["UTMALDG"] and found["USETMAXREG"], found


@pytest.mark.slow
@pytest.mark.parametrize("name", named(lambda case: case[0] == "forward" and case[2][2]))
def test_softmax_lies_between_the_waits_for_the_two_products(made, name):
    """The story: the assembler moved the wait for the values' product above the exponentials, as nothing tied the two,
    and softmax and product no longer overlapped. A barrier's loop between them keeps the order: wait for the scores
    (all but one product), exponentials, wait for all."""
    loops = made[name]["loops"]
    assert loops.count("1e0") == 4, "two consumers, each with a loop over full tiles and one over partial ones"
    assert not any("10" in loop for loop in loops), loops


@pytest.mark.slow
@pytest.mark.parametrize("name", named(lambda case: case[0] != "forward"))
def test_backward_computes_under_its_products(made, name):
    """In each loop a product still runs under the exponentials, and another one after them. Of dk/dv
    at head dim 128 a few scalars are spilled there, unless it is `early`; else nothing is."""
    which, dim, (_, _, overlap, *early), _ = ALL_CASES[name]
    loops, expected = made[name]["loops"], {"keys": "1e10" if early else "2e10", "rows": "2e1e?0"}
    pattern = expected.get(which, expected["keys"]) if overlap else "1e1*0+"
    spills = [more for loop, more in zip(loops, made[name]["spills"], strict=True) if re.fullmatch(pattern, loop)]
    most = 16 if which == "keys" and dim == 128 and not early else 24 if which == "fused" and dim > 64 else 0
    assert len(spills) >= 4 and max(spills) <= most, made[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", named(lambda case: case[0] == "fused"))
def test_fused_backward_adds_in_pairs_and_without_an_answer(made, name):
    """A thread adds two neighbours of a row at a time; both consumers together all of a tile, in each of the two or
    three copies of a step. What was there before is not asked for."""
    _, dim, (width, _, overlap, *_), _ = ALL_CASES[name]
    assert made[name]["RED"] == (3 if overlap else 2) * width * dim // (2 * 128), made[name]
    assert not made[name]["ATOM"] and not made[name]["ATOMG"], made[name]


def test_what_it_does_not_serve_is_told():
    """One sentence, and no error, for other dtypes and wide heads."""
    from brine.kernels.attention.gluon import launch as gluon_launch

    def told(dim: int, dtype: torch.dtype) -> str:
        q = torch.zeros(1, 3, 2, dim, dtype=dtype)
        return gluon_launch.unsupported_reason(q, q)

    assert "float32" in told(64, torch.float32)
    assert "256" in told(256, torch.bfloat16)


def test_the_backend_is_refused_on_a_host(monkeypatch):
    """Also where Triton's interpreter takes CPU tensors: it knows no Gluon."""
    from brine.kernels.attention import Spans, attention
    from brine.kernels.attention import select_backend as choose
    from brine.kernels.attention.spans import AttentionRequest
    from brine.kernels.attention.triton import launch as triton_launch

    spans = Spans.packed(torch.zeros(1, 5, dtype=torch.int32))
    q = torch.randn(1, 5, 2, 64, dtype=torch.float16)
    monkeypatch.setattr(triton_launch, "interpreted", lambda: True)
    with pytest.raises(ValueError, match='backend "gluon" needs a CUDA device, but q is on cpu'):
        attention(q, q, q, spans, backend="gluon")
    thin = torch.empty(1, 5, 2, 20, dtype=torch.bfloat16, device="meta")
    assert "CUDA" in choose.backend_refusal("gluon", thin, thin, AttentionRequest(spans.mask, 1.0))
