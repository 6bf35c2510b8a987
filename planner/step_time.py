"""How long a training step should take, by term, and its model FLOP utilisation (MFU).

Operations are counted from shapes as in `brine.model.flops` and divided by the data sheet's peak times an assumed
efficiency; nothing was measured. MFU counts three forward passes and no recomputation; the time counts what really
runs. Communication counts as far as it exceeds what can hide it, offloading in full, sums over replicas always. Not
counted: waiting for data, validation, launches of small kernels, which dominate for small models.
"""

from dataclasses import dataclass

from brine.model.flops import block_matrices, forward_flops, num_causal_pairs
from brine.planner.memory import block_saved_tensors, offloaded_bytes
from brine.planner.run_settings import FP32_BYTES, RunSettings, block_parameters, num_parameters
from brine.training.logging.device_specs import DeviceSpec
from brine.training.parallel.context_parallel import chunk_tokens

BACKWARD_ATTENTION = 3.5
"""Forward passes that attention's backward pass is worth; MFU counts 2."""
TRAFFIC = 3.0
"""Times that what a block saves goes through memory in a step: written, read, and its gradients."""
UPDATE_BYTES = 28
"""Read and written by the optimizer for one number: weight, gradient, two moments."""


@dataclass(frozen=True)
class StepTimeEstimate:
    """Seconds of one optimizer step, by term, and its operations on all ranks."""

    terms: dict[str, float]
    model_flops: float
    """Three forward passes, unmasked area, no recomputation; of all ranks."""
    tokens: int
    ranks: int

    @property
    def total_s(self) -> float:
        """Sum of `terms`."""
        return sum(self.terms.values())

    @property
    def bottleneck(self) -> str:
        """The largest term."""
        return max(self.terms, key=self.terms.get)

    def mfu(self, device: DeviceSpec) -> float:
        """Share of the data sheet's peak that model FLOPs come to."""
        return self.model_flops / (self.total_s * self.ranks * device.matmul_flops)


def areas(case: RunSettings) -> tuple[int, int]:
    """(local, global) visible pairs of one sequence: causal, one document."""
    return num_causal_pairs(case.seq_len, case.model.window), num_causal_pairs(case.seq_len)


def model_flops(case: RunSettings, num_sequences: int) -> float:
    """FLOPs of a step over `num_sequences`, as the cost accounting counts them; patches left out, as they are few."""
    local, everywhere = areas(case)
    pairs = {"local_pairs": local, "global_pairs": everywhere}
    return 3.0 * num_sequences * forward_flops(case.model, num_tokens=case.seq_len, **pairs)


def step_time(case: RunSettings, device: DeviceSpec, *, gradient_accumulation_steps: int = 1) -> StepTimeEstimate:
    """One step of `gradient_accumulation_steps` forward passes on each of the case's ranks."""
    terms = _compute(case, device)
    work_s = sum(terms.values())
    ring_s = _ring(case, device)
    terms["ring, not hidden"] = max(0.0, ring_s - terms["attention, global"] - terms["attention, local"])
    terms["parameters gathered and summed, not hidden"] = max(0.0, _sharding(case, device) - work_s)
    host_rate = device.host_bytes_per_s * device.efficiency.network
    terms["to the host and back"] = 2 * sum(offloaded_bytes(case).values()) / host_rate
    terms = {name: gradient_accumulation_steps * seconds for name, seconds in terms.items()}
    terms["sum over replicas"] = _replicas(case, device)
    rate = device.memory_bytes_per_s * device.efficiency.memory
    terms["optimizer"] = UPDATE_BYTES * num_parameters(case.model) / case.dp_shard / rate
    sequences = gradient_accumulation_steps * case.micro_batch_size * case.ranks // case.context_parallel
    return StepTimeEstimate(
        {name: seconds for name, seconds in terms.items() if seconds},
        model_flops(case, sequences),
        sequences * case.seq_len,
        case.ranks,
    )


def _compute(case: RunSettings, device: DeviceSpec) -> dict[str, float]:
    config, tokens, share = case.model, case.num_tokens, device.efficiency
    # what a data sheet says of bfloat16 holds for nothing wider; float32 matmuls are taken to run at an eighth
    peak = device.matmul_flops / (8 if case.dtype == "float32" and device.kind == "cuda" else 1)
    blocks = 2.0 * config.num_layers * block_matrices(config) * tokens
    mlp = 2.0 * config.num_layers * 3 * config.dim * config.mlp_dim * tokens
    # layers that share a checkpoint are recomputed once more
    shared = sum(len(run) for run in case.ac_groups if len(run) > 1) * (case.mode != "none")
    again = blocks * ((case.mode != "none") + shared / config.num_layers) + mlp * bool(case.tile_tokens)
    local, everywhere = areas(case)
    num_global = config.num_global_layers
    pair = 4.0 * config.num_heads * config.head_dim * case.micro_batch_size / case.context_parallel
    passes = 1 + BACKWARD_ATTENTION + (case.mode != "none")
    kept = passes - (case.mode in ("selective", "offload"))
    local_passes = (config.num_layers - num_global) * passes + shared
    traffic = TRAFFIC * config.num_layers * tokens * sum(block_saved_tensors(case).values())
    return {
        "matmuls of blocks": 3 * blocks / (peak * share.matmul),
        "recomputed matmuls": again / (peak * share.matmul),
        "head and loss": 6.0 * config.vocab_size * config.dim * tokens / (peak * share.matmul),
        "attention, global": pair * num_global * everywhere * kept / (peak * share.global_attention),
        "attention, local": pair * local_passes * local / (peak * share.local_attention),
        "norms, activations": traffic / (device.memory_bytes_per_s * share.memory),
    }


def link_rate(ranks: int, device: DeviceSpec) -> float:
    """Bytes per second between neighbouring ranks, by the slowest link among so many of them."""
    rate = device.link_bytes_per_s if ranks <= device.devices_per_machine else device.network_bytes_per_s
    return rate * device.efficiency.network


def _ring(case: RunSettings, device: DeviceSpec) -> float:
    if case.context_parallel == 1:
        return 0.0
    config, tokens = case.model, case.num_tokens
    pair = 2 * config.num_kv_heads * config.head_dim
    # half of the others' tokens lie after these on average
    far = tokens * (case.context_parallel - 1) / 2
    chunk = chunk_tokens(case.seq_len, case.context_parallel)
    near = far if config.window is None else min(far, case.micro_batch_size * config.window * -(-tokens // chunk))
    # forward, once more where it is recomputed, backward, and gradients back in float32
    fetches = 2 + (case.mode != "none")
    kept = fetches - (case.mode in ("selective", "offload"))
    num_global = config.num_global_layers
    moved = num_global * far * (kept * case.low + FP32_BYTES) + (config.num_layers - num_global) * near * (
        fetches * case.low + FP32_BYTES
    )
    return pair * moved / link_rate(case.context_parallel, device)


def _sharding(case: RunSettings, device: DeviceSpec) -> float:
    if case.dp_shard == 1:
        return 0.0
    config = case.model
    blocks = config.num_layers * block_parameters(config)
    outer = num_parameters(config) - blocks
    # blocks gathered twice and summed in float32; the ends gathered and summed in float32
    moved = blocks * (2 * case.low + FP32_BYTES) + outer * 2 * FP32_BYTES
    return moved * (case.dp_shard - 1) / case.dp_shard / link_rate(case.dp_shard, device)


def _replicas(case: RunSettings, device: DeviceSpec) -> float:
    replicate = case.ranks // case.dp_shard
    if replicate == 1:
        return 0.0
    moved = 2 * FP32_BYTES * num_parameters(case.model) / case.dp_shard * (replicate - 1) / replicate
    return moved / link_rate(case.ranks, device)
