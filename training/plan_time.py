"""How long a step should take, by term, and the model FLOP utilisation that comes of it.

    steps = step_time(case, GPUS["h200"], num_micro=4)
    steps.total_s, steps.mfu(GPUS["h200"])

Operations are counted from shapes as `model.flops` counts them: attention by its unmasked area, one document to a row
(packed rows of several cost less). They are divided by a data sheet's peak times an assumed efficiency
(`training.gpus`); nothing here was measured. MFU counts a forward pass three times and nothing that is done again.

What the machine really does is more. Attention's backward pass forms five products where the forward has two, and the
portable kernels form scores and their gradients twice (once for dq, once for dk and dv), which makes seven: 3.5 forward
passes in place of 2. Recomputation adds a forward pass of what is not kept, local layers that keep one input between
them another, a tiled MLP one more of its own. The head's products are never done again.

What goes to host memory is copied beside computations (`training.offload`), yet counts in full until a GPU has shown
how much of it is hidden. Communication is hidden behind what it can be hidden behind: gathering and summing parameters
behind the whole pass, the ring behind attention; what is left over counts. Sums over replicas that come after the last
backward pass always count. Chunks are taken to be dealt evenly. Not counted: waiting for data, validation, launches of
small kernels, which dominate for small models.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.flops import causal_area
from training.context import chunk_tokens
from training.gpus import Device
from training.plan_memory import (
    WIDE,
    Case,
    block_matrices,
    block_parameters,
    block_tensors,
    num_parameters,
    offloaded,
)

BACKWARD_ATTENTION = 3.5
"""Forward passes that attention's backward pass is worth; MFU bills 2."""
TRAFFIC = 3.0
"""Times that what a block saves goes through memory in a step: written, read, and its gradients."""
UPDATE_BYTES = 28
"""Read and written by the optimiser for one number: weight, gradient, two moments."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step, by term, and its operations on all ranks."""

    terms: dict[str, float]
    model_flops: float
    """Forward three times, unmasked area, nothing that is done again; of all ranks."""
    tokens: int
    ranks: int

    @property
    def total_s(self) -> float:
        """Sum of `terms`."""
        return sum(self.terms.values())

    @property
    def limit(self) -> str:
        """The largest term."""
        return max(self.terms, key=self.terms.get)

    def mfu(self, device: Device) -> float:
        """Share of the data sheet's peak that model FLOPs come to."""
        return self.model_flops / (self.total_s * self.ranks * device.matmul_flops)


def areas(case: Case) -> tuple[int, int]:
    """(local, global) visible pairs of one row: causal, one document."""
    return causal_area(case.row_tokens, case.model.window), causal_area(case.row_tokens)


def model_flops(case: Case, num_rows: int) -> float:
    """Operations of a step over `num_rows` rows, as they are billed; patches left out, as they are few."""
    config = case.model
    local, everywhere = areas(case)
    num_global = config.num_global_layers
    area = (config.num_layers - num_global) * local + num_global * everywhere
    matrices = config.num_layers * block_matrices(config) + config.vocab_size * config.dim
    return 3.0 * num_rows * (
        2 * matrices * case.row_tokens + 4 * config.num_heads * config.head_dim * area
    )  # fmt: skip


def step_time(case: Case, device: Device, *, num_micro: int = 1) -> StepTime:
    """One step of `num_micro` forward passes on each of the case's ranks."""
    terms = _compute(case, device)
    work_s = sum(terms.values())
    ring_s = _ring(case, device)
    terms["ring, not hidden"] = max(0.0, ring_s - terms["attention, global"] - terms["attention, local"])
    terms["parameters gathered and summed, not hidden"] = max(0.0, _sharding(case, device) - work_s)
    terms["to the host and back"] = _offload(case, device)
    terms = {name: num_micro * seconds for name, seconds in terms.items()}
    terms["sum over replicas"] = _replicas(case, device)
    rate = device.memory_bytes_per_s * device.efficiency.memory
    terms["optimizer"] = UPDATE_BYTES * num_parameters(case.model) / case.shard / rate
    rows = num_micro * case.micro_rows * case.ranks // case.context
    return StepTime(
        {name: seconds for name, seconds in terms.items() if seconds},
        model_flops(case, rows),
        rows * case.row_tokens,
        case.ranks,
    )


def _compute(case: Case, device: Device) -> dict[str, float]:
    """Seconds of one forward and backward pass on one rank, communication left out."""
    config, tokens, share = case.model, case.num_tokens, device.efficiency
    # what a data sheet says of bfloat16 holds for nothing wider; float32 products are taken to run at an eighth
    peak = device.matmul_flops / (8 if case.dtype == "float32" and device.kind == "cuda" else 1)
    blocks = 2.0 * config.num_layers * block_matrices(config) * tokens
    mlp = 2.0 * config.num_layers * 3 * config.dim * config.mlp_dim * tokens
    # layers that share an input are gone through once more
    shared = sum(len(run) for run in case.runs if len(run) > 1) * (case.mode != "none")
    again = blocks * ((case.mode != "none") + shared / config.num_layers) + mlp * bool(case.tile_tokens)
    local, everywhere = areas(case)
    num_global = config.num_global_layers
    pair = 4.0 * config.num_heads * config.head_dim * case.micro_rows / case.context
    passes = 1 + BACKWARD_ATTENTION + (case.mode != "none")
    kept = passes - (case.mode in ("selective", "offload"))
    local_passes = (config.num_layers - num_global) * passes + shared
    traffic = TRAFFIC * config.num_layers * tokens * sum(block_tensors(case).values())
    return {
        "products of blocks": 3 * blocks / (peak * share.matmul),
        "products done again": again / (peak * share.matmul),
        "head and loss": 6.0 * config.vocab_size * config.dim * tokens / (peak * share.matmul),
        "attention, global": pair * num_global * everywhere * kept / (peak * share.global_attention),
        "attention, local": pair * local_passes * local / (peak * share.local_attention),
        "norms, activations": traffic / (device.memory_bytes_per_s * share.memory),
    }


def link_rate(ranks: int, device: Device) -> float:
    """Bytes per second between neighbouring ranks, by the slowest link among so many of them."""
    rate = device.link_bytes_per_s if ranks <= device.devices_per_machine else device.network_bytes_per_s
    return rate * device.efficiency.network


def _ring(case: Case, device: Device) -> float:
    if case.context == 1:
        return 0.0
    config, tokens = case.model, case.num_tokens
    pair = 2 * config.num_kv_heads * config.head_dim
    # half of the others' tokens lie after these on average
    far = tokens * (case.context - 1) / 2
    chunk = chunk_tokens(case.row_tokens, case.context)
    near = far if config.window is None else min(far, case.micro_rows * config.window * -(-tokens // chunk))
    # forward, once more where it is done again, backward, and gradients back in float32
    fetches = 2 + (case.mode != "none")
    kept = fetches - (case.mode in ("selective", "offload"))
    num_global = config.num_global_layers
    moved = num_global * far * (kept * case.low + WIDE) + (config.num_layers - num_global) * near * (
        fetches * case.low + WIDE
    )
    return pair * moved / link_rate(case.context, device)


def _sharding(case: Case, device: Device) -> float:
    if case.shard == 1:
        return 0.0
    config = case.model
    blocks = config.num_layers * block_parameters(config)
    outer = num_parameters(config) - blocks
    # blocks gathered twice and summed in float32; the ends gathered and summed in float32
    moved = blocks * (2 * case.low + WIDE) + outer * 2 * WIDE
    return moved * (case.shard - 1) / case.shard / link_rate(case.shard, device)


def _replicas(case: Case, device: Device) -> float:
    replicate = case.ranks // case.shard
    if replicate == 1:
        return 0.0
    moved = 2 * WIDE * num_parameters(case.model) / case.shard * (replicate - 1) / replicate
    return moved / link_rate(case.ranks, device)


def _offload(case: Case, device: Device) -> float:
    return 2 * sum(offloaded(case).values()) / (device.host_bytes_per_s * device.efficiency.network)
