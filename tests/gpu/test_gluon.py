"""The specialised forward equals the specification on a Hopper GPU, in every configuration that is worth timing."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs Triton with Gluon for Hopper")

from benchmarks.gpu.stages.gluon import SHAPES, cases

CONFIGURATIONS = [(dim, shape) for dim, shapes in SHAPES.items() for shape in shapes]


@pytest.mark.parametrize(
    ("dim", "shape"), CONFIGURATIONS,
    ids=[
        f"D{dim}-{shape.keys}x{shape.stages}-overlap{shape.overlap:d}-turns{shape.turns:d}"
        for dim, shape in CONFIGURATIONS
    ],
)  # fmt: skip
def test_specialised_forward_equals_the_specification(dim, shape):
    """All masks, odd lengths, sinks, rows that see nothing, grouped heads; the same bits three times."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs sm_90")
    wrong = {name: found for name, case in cases(dim, shape, "cuda", False) if not (found := case())["right"]}
    assert not wrong
