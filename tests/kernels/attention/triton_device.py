"""Where the cases of the Triton kernels run: a GPU, or the CPU in Triton's interpreter, which leaves some out."""

import os

import pytest
import torch

from brine.kernels.attention import Spans
from brine.kernels.attention.triton import launch as triton_launch

DEVICE = "cpu" if triton_launch.interpreted() else "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16} | ({"bf16": torch.bfloat16} if DEVICE == "cuda" else {})
ALL_CASES = DEVICE == "cuda" or os.environ.get("ALL_CASES") == "1"


def on_a_gpu(*values, unless: bool = False):
    """Parameters of a case that the interpreter leaves out, unless it is one that it should have."""
    left_out = pytest.mark.skipif(not (ALL_CASES or unless), reason="left to a GPU, or ALL_CASES=1")
    return pytest.param(*values, marks=left_out)


def packed(document: torch.Tensor, **options) -> Spans:
    """Spans on the device under test."""
    return Spans.packed(document, **options).to(DEVICE)
