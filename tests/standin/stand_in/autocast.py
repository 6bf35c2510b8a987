"""What `torch.autocast` does on the device: CUDA's lists of operations, for lack of any of its own."""

from __future__ import annotations

import torch

from tests.standin.stand_in.names import NAME
from tests.standin.stand_in.tensor import StandIn

LOWER = (
    "matmul", "mm", "mv", "linear", "addmm", "addmv", "addr", "addbmm", "baddbmm", "bmm", "chain_matmul", "einsum",
    "linalg_vecdot", "linalg_multi_dot", "scaled_dot_product_attention", "prelu", "conv1d", "conv2d", "conv3d",
)  # fmt: skip
WIDER = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "group_norm", "cumprod",
    "cosine_similarity", "mse_loss", "nll_loss", "kl_div", "logsumexp", "cdist", "prod", "prod.dim_int", "softmax.int",
    "log_softmax.int", "cumsum", "sum", "sum.dim_IntList", "norm.Scalar", "norm.ScalarOpt_dim",
)  # fmt: skip
WIDEST = ("addcdiv", "addcmul", "atan2", "cross", "dot", "index_put", "tensordot", "scatter_add", "cat", "stack")
"""Operations that autocast of CUDA runs in the lower precision, in float32, and in the widest of their inputs'."""


def _make_autocast(name: str, kind: str):
    base, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, base), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def tensors_of(values):
        for value in values:
            yield from value if isinstance(value, (list, tuple)) else (value,)

    def castable(value) -> bool:
        return isinstance(value, StandIn) and value.is_floating_point() and value.dtype != torch.float64

    def cast(value, dtype: torch.dtype):
        if isinstance(value, (list, tuple)):
            return type(value)(cast(one, dtype) for one in value)
        return value.to(dtype) if castable(value) else value

    def run(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if kind == "lower":
                dtype = torch.get_autocast_dtype(NAME)
            elif kind == "wider":
                dtype = torch.float32
            else:
                found = {one.dtype for one in tensors_of((*args, *kwargs.values())) if castable(one)}
                dtype = torch.float32 if torch.float32 in found else None
            if dtype is not None:
                args = tuple(cast(one, dtype) for one in args)
                kwargs = {key: cast(value, dtype) for key, value in kwargs.items()}
            return func(*args, **kwargs)

    return run


def register_autocast(library: torch.library.Library) -> None:
    """Give the operations of the three lists their casts."""
    for names, kind in ((LOWER, "lower"), (WIDER, "wider"), (WIDEST, "widest")):
        for name in names:
            library.impl(name, _make_autocast(name, kind), "AutocastPrivateUse1")
