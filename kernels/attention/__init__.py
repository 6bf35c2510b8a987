"""Attention over spans: each query sees one half-open interval of keys. See README.md in this folder."""

from brine.kernels.attention.api import BACKENDS as ATTENTION_BACKENDS
from brine.kernels.attention.api import attention
from brine.kernels.attention.merge import merge_partials
from brine.kernels.attention.spans import Spans

__all__ = ["ATTENTION_BACKENDS", "Spans", "attention", "merge_partials"]
