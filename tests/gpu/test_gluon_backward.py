"""The specialised backward equals the specification on a Hopper GPU, in every configuration that is worth timing."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs Triton with Gluon for Hopper")

from benchmarks.gpu.stages.gluon import cases
from benchmarks.gpu.stages.gluon_backward import FUSED, PAIRS, check

CONFIGURATIONS = {f"D{dim}-{i}": (dim, pair) for dim, pairs in PAIRS.items() for i, pair in enumerate(pairs)}
CONFIGURATIONS |= {f"D{dim}-fused-{i}": (dim, (x,)) for dim, shapes in FUSED.items() for i, x in enumerate(shapes)}


@pytest.mark.parametrize(("dim", "pair"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_specialised_backward_equals_the_specification(dim, pair):
    """All masks, odd lengths, sinks, rows that see nothing, grouped heads; the same bits, but for the fused."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs sm_90")
    wrong = {name: found for name, case in cases(dim, pair, "cuda", False, by=check) if not (found := case())["right"]}
    assert not wrong
