"""The chunked backend on a GPU: between the walk's matmuls, one Triton kernel turns logits into losses and gradient.

One program takes one token. It reads the token's logits (and the teacher's) twice: for the log-sum-exps, online over
blocks of the vocabulary, and to overwrite the logits by their gradient. The logits of ids in sparse soft labels are
gathered and set to -inf before, so that the kernel's sums are over the rest; the kernel returns their gradient, which
is added where it wrote 0. Everything inside is fp32, addresses are int64; fp64, and bf16 in Triton's interpreter, are
rejected.

Legend: C tokens in a chunk, V vocabulary, BV ids in a block, k soft labels per token, BK the next power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LossRequest, LossTerms
from brine.kernels.linear_loss.soft_labels import SoftLabels, split_listed

INTERPRETED = triton.knobs.runtime.interpret
"""Whether the kernel below was defined for Triton's interpreter (TRITON_INTERPRET=1), which takes CPU tensors."""
MAX_BLOCK = 4096
"""Words in a block at most: 16 for each of 256 threads. With a teacher's logits beside them half of that."""
MAX_REGISTERS = 96
"""Of a thread. By default ptxas aims at 48 or 64 and spills a few where V is not divisible by 16; the kernel takes at
most 72, with which an SM still holds 3 programs."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# a chunk's slices of these start anywhere, and k is small: alignment gains nothing
@triton.jit(
    do_not_specialize=["num_listed"],
    do_not_specialize_on_alignment=[
        "p_label", "p_scale", "p_ids", "p_probability", "p_tail", "p_listed", "p_total", "p_hard"
    ],
)  # fmt: skip
def linear_loss_kernel(
    p_logits, p_teacher, p_label, p_scale, p_ids, p_probability, p_tail, p_listed, p_total, p_hard,
    vocab_size, num_listed, z_loss, distill_weight, temperature,
    DENSE: tl.constexpr, SPARSE: tl.constexpr, SCALED: tl.constexpr, TEMPERED: tl.constexpr, GRAD: tl.constexpr,
    BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """total (C,) and hard (C,) losses; with GRAD logits (C, V) and listed (C, k) are overwritten. Grid: (C,)."""
    token = tl.program_id(0).to(tl.int64)
    p_logits += token * vocab_size
    label = tl.load(p_label + token)
    # read before anything is overwritten
    at_label = tl.load(p_logits + label).to(tl.float32)
    scale = 1.0
    if SCALED:
        scale = tl.load(p_scale + token)
    if DENSE:
        p_teacher += token * vocab_size

    # finite, so that differences of peaks are; far below any logit
    peak = -1e30
    x_sum = 0.0
    y_sum = 0.0
    t_peak = -1e30
    t_sum = 0.0
    expected = 0.0
    for start in range(0, vocab_size, BV):
        cols = start + tl.arange(0, BV)  # [BV]
        inside = cols < vocab_size
        b_x = tl.load(p_logits + cols, mask=inside, other=-float("inf")).to(tl.float32)
        last_peak = peak
        peak = tl.maximum(peak, tl.max(b_x, 0))
        drop = last_peak - peak
        b_x -= peak
        x_sum = x_sum * tl.exp(drop) + tl.sum(tl.exp(b_x), 0)
        if TEMPERED:
            y_sum = y_sum * tl.exp(drop / temperature) + tl.sum(tl.exp(b_x / temperature), 0)
        if DENSE:
            b_t = tl.load(p_teacher + cols, mask=inside, other=-float("inf")).to(tl.float32) / temperature
            last_t_peak = t_peak
            t_peak = tl.maximum(t_peak, tl.max(b_t, 0))
            kept = tl.exp(last_t_peak - t_peak)
            b_t = tl.exp(b_t - t_peak)
            # sum of the teacher's weights times the student's logits / T, these relative to the running peak
            here = tl.sum(b_t * tl.where(inside, b_x, 0.0), 0) / temperature
            expected = kept * (expected + t_sum * (drop / temperature)) + here
            t_sum = kept * t_sum + tl.sum(b_t, 0)

    if SPARSE:
        k = tl.arange(0, BK)  # [BK]
        in_range = k < num_listed
        b_id = tl.load(p_ids + token * num_listed + k, mask=in_range, other=-1)
        b_probability = tl.load(p_probability + token * num_listed + k, mask=in_range, other=0.0)
        b_listed = tl.load(p_listed + token * num_listed + k, mask=in_range, other=-float("inf"))
        is_listed = b_id >= 0
        tail = tl.load(p_tail + token)
        # of what was summed; a listed logit may lie far above it, and all log-sum-exps are relative to the highest
        x_peak = peak
        top = tl.max(b_listed, 0)
        # every id is listed: nothing is left (and NaN is not 0)
        if x_sum == 0.0:
            x_peak = top
        peak = tl.maximum(x_peak, top)
        gap = x_peak - peak
        b_listed -= peak
    # the second pass overwrites what other threads read in the first
    tl.debug_barrier()

    if SPARSE:
        rest = gap + log_or_minus_infinity(x_sum)
        lse = lse_with(rest, b_listed)
        at_label -= peak
        # -inf in the token where the label is listed
        is_label = b_id == label
        label_listed = tl.sum(is_label.to(tl.int32), 0) > 0
        at_label = tl.where(label_listed, tl.sum(tl.where(is_label, b_listed, 0.0), 0), at_label)
        b_y_listed = b_listed
        y_rest = rest
        y_lse = lse
        if TEMPERED:
            b_y_listed = b_listed / temperature
            y_rest = gap / temperature + log_or_minus_infinity(y_sum)
            y_lse = lse_with(y_rest, b_y_listed)
    else:
        at_label -= peak
        lse = tl.log(x_sum)
        y_lse = lse
        if TEMPERED:
            y_lse = tl.log(y_sum)

    hard = lse - at_label
    full_lse = peak + lse
    total = (1.0 - distill_weight) * hard + z_loss * full_lse * full_lse
    if DENSE:
        total += distill_weight * temperature * temperature * (y_lse - expected / t_sum)
    if SPARSE:
        soft = tl.sum(b_probability * tl.where(is_listed, y_lse - b_y_listed, 0.0), 0)
        soft += tail * tl.where(tail > 0.0, y_lse - y_rest, 0.0)
        total += distill_weight * temperature * temperature * soft
    tl.store(p_total + token, scale * total)
    tl.store(p_hard + token, hard)

    if GRAD:
        of_label = scale * (1.0 - distill_weight)
        unit = scale * distill_weight * temperature
        of_x = of_label + scale * 2.0 * z_loss * full_lse
        if SPARSE:
            of_y = unit * (tl.sum(b_probability, 0) + tail)
            b_grad = of_x * tl.exp(b_listed - lse) + of_y * tl.exp(b_y_listed - y_lse) - unit * b_probability
            b_grad -= tl.where(is_label, of_label, 0.0)
            tl.store(p_listed + token * num_listed + k, b_grad, mask=in_range)
            of_label = tl.where(label_listed, 0.0, of_label)
            x_norm = of_x * tl.exp(gap - lse)
            last_sum, y_gap = x_sum, gap
            if TEMPERED:
                last_sum, y_gap = y_sum, gap / temperature
            # the sum over the rest is at least 1, its peak's, or 0
            y_norm = of_y * tl.exp(y_gap - y_lse) - unit * tail / tl.where(last_sum < 1.0, 1.0, last_sum)
            peak = x_peak
        else:
            x_norm = of_x / x_sum
            y_norm = 0.0
            if DENSE:
                y_norm = unit / x_sum
                if TEMPERED:
                    y_norm = unit / y_sum
        if not TEMPERED:
            x_norm += y_norm
        if DENSE:
            t_norm = unit / t_sum
        for start in range(0, vocab_size, BV):
            cols = start + tl.arange(0, BV)  # [BV]
            inside = cols < vocab_size
            b_x = tl.load(p_logits + cols, mask=inside, other=-float("inf")).to(tl.float32) - peak
            b_grad_x = x_norm * tl.exp(b_x)
            if TEMPERED:
                b_grad_x += y_norm * tl.exp(b_x / temperature)
            if DENSE:
                b_t = tl.load(p_teacher + cols, mask=inside, other=-float("inf")).to(tl.float32) / temperature
                b_grad_x -= t_norm * tl.exp(b_t - t_peak)
            b_grad_x -= tl.where(cols == label, of_label, 0.0)
            tl.store(p_logits + cols, b_grad_x, mask=inside)


@triton.jit
def log_or_minus_infinity(x):
    """log x, and -inf at 0 without a warning."""
    return tl.where(x == 0.0, -float("inf"), tl.log(tl.where(x == 0.0, 1.0, x)))


@triton.jit
def lse_with(rest, b_listed):
    """Log-sum-exp of a scalar and a block; either may be -inf, not both."""
    top = tl.maximum(rest, tl.max(b_listed, 0))
    return top + tl.log(tl.exp(rest - top) + tl.sum(tl.exp(b_listed - top), 0))


def unsupported_reason(request: LossRequest) -> str | None:
    """Why this backend cannot serve the call, or None."""
    if request.dtype not in DTYPES:
        return f'backend "triton" computes in fp32 and takes fp32, bf16 or fp16, not {request.dtype}; use "chunked"'
    if INTERPRETED and request.dtype == torch.bfloat16:
        return "Triton's interpreter has no bf16; use fp32 or fp16 with TRITON_INTERPRET=1"
    if INTERPRETED and request.device.type != "cpu":
        return f"Triton's interpreter runs on CPU tensors, and hidden is on {request.device}"
    if not INTERPRETED and request.device.type != "cuda":
        return (
            f'backend "triton" needs CUDA tensors, and hidden is on {request.device}; use backend="auto", or set '
            "TRITON_INTERPRET=1 before Python starts to try the kernel in Triton's interpreter"
        )
    if not INTERPRETED and torch.cuda.get_device_capability(request.device) < (8, 0):
        return f'backend "triton" needs sm_80 or newer; {torch.cuda.get_device_name(request.device)} is older'
    return None


def launch_shape(vocab_size: int, *, dense: bool) -> tuple[int, int]:
    """(ids in a block, warps): 8 or 16 ids per thread in the largest blocks."""
    block = min(MAX_BLOCK // 2 if dense else MAX_BLOCK, max(32, triton.next_power_of_2(vocab_size)))
    return block, 8 if block > 1024 else 4


def chunk_loss(
    logits: Tensor, label: Tensor, *, terms: LossTerms, teacher: Tensor | None, soft: SoftLabels | None,
    scale: Tensor | None, grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A `ChunkLossFn`."""
    tokens, vocab_size = logits.shape
    total, hard = torch.empty(2, tokens, dtype=torch.float32, device=logits.device)
    ids = probabilities = tail = listed = None
    if soft is not None:
        ids, probabilities, tail = soft.ids.contiguous(), soft.probabilities.contiguous(), soft.tail.contiguous()
        is_listed, index, listed = split_listed(logits, ids)
        listed = listed.float()
    block, warps = launch_shape(vocab_size, dense=teacher is not None)
    # Triton launches on the current device
    with torch.cuda.device_of(logits):
        linear_loss_kernel[(tokens,)](
            logits, teacher, label.contiguous(), None if scale is None else scale.contiguous(), ids, probabilities,
            tail, listed, total, hard, vocab_size, 0 if ids is None else ids.shape[1],
            terms.z_loss, terms.distill_weight, terms.temperature,
            DENSE=teacher is not None, SPARSE=soft is not None, SCALED=scale is not None,
            TEMPERED=terms.distill_weight > 0.0 and terms.temperature != 1.0, GRAD=grad, BV=block,
            BK=1 if ids is None else triton.next_power_of_2(ids.shape[1]), num_warps=warps, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
    if listed is not None and grad:
        logits.scatter_add_(1, index, listed.masked_fill_(~is_listed, 0.0).to(logits.dtype))
    return total, hard
