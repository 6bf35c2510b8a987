"""The specialised backward equals the specification on a Hopper card, in every configuration that is worth timing."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs Triton with Gluon for Hopper")

from benchmarks.card_gluon import cases
from benchmarks.card_gluon_backward import PAIRS, check

CONFIGURATIONS = [(dim, pair) for dim, pairs in PAIRS.items() for pair in pairs]


@pytest.mark.parametrize(
    ("dim", "pair"), CONFIGURATIONS, ids=[f"D{dim}-{i % 4}" for i, (dim, _) in enumerate(CONFIGURATIONS)]
)
def test_specialised_backward_equals_the_specification(dim, pair):
    """All masks, odd lengths, sinks, rows that see nothing, grouped heads; the same bits three times."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs sm_90")
    wrong = {name: found for name, case in cases(dim, pair, "cuda", False, by=check) if not (found := case())["right"]}
    assert not wrong
