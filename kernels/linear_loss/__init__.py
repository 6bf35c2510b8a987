"""The output head and its loss in one, without ever holding (tokens, vocabulary) logits. See README.md."""

from brine.kernels.linear_loss.api import BACKENDS as LOSS_BACKENDS
from brine.kernels.linear_loss.api import linear_cross_entropy

__all__ = ["LOSS_BACKENDS", "linear_cross_entropy"]
