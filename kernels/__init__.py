"""The costly inner loops: attention over spans, on one device and over ranks, and the output head fused with its loss.

Each operation is a folder with a plain reference (the specification), one file per backend, a facade that picks
one of them by argument, and a README with the mathematics. `choices()` says what "auto" picked so far. This room
imports nothing but torch.

`kernels.attention` is the function; what lies in its folder is reached as `from kernels.attention.plan import ...`.
"""

from kernels.announce import choices, describe_choices
from kernels.attention.api import BACKENDS as ATTENTION_BACKENDS
from kernels.attention.api import attention
from kernels.attention.merge import merge_partials
from kernels.attention.spans import Spans
from kernels.linear_loss.api import BACKENDS as LOSS_BACKENDS
from kernels.linear_loss.api import linear_cross_entropy

__all__ = [
    "ATTENTION_BACKENDS",
    "LOSS_BACKENDS",
    "Spans",
    "attention",
    "choices",
    "describe_choices",
    "linear_cross_entropy",
    "merge_partials",
]
