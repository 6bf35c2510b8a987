"""What one rank holds in memory while it trains, by term, from shapes alone.

The peak is what is held during the whole backward pass and the most that one of three phases adds: the loss, the MLP or
the attention of a block. Saved tensors are those of the uncompiled code; of compiled blocks `FUSED` is left out by
assumption. Not counted: the interpreter, the loader's queues, fragments of the allocator, a teacher. On a CPU 0.95 to
1.08 times the resident memory of seventeen cases, to which some terms were fitted; not validated on a GPU.
"""

from dataclasses import dataclass, field

from brine.data.sequence import FIELDS
from brine.kernels.attention.cpu.tile_plan import CALL_ROWS
from brine.kernels.linear_loss.autograd_function import CHUNK_LOGITS, CHUNK_TOKENS
from brine.model.flops import block_matrices
from brine.planner.run_settings import (
    FP32_BYTES,
    RunSettings,
    block_parameters,
    num_parameters,
    outer_parameters,
)

BATCH_BYTES = 2 * 8 + 3 * 4 + 4 * 4
"""Of a token in a batch: its id and label (int64), position (3 float32), document, block, kind, context (int32)."""
SPAN_BYTES = 2 * 2 * 4
"""Of a token in the masks: lo and hi, int32, for local and global layers."""
BATCHES_AHEAD = 2
"""Batches on a GPU beside the current one (`brine.data.prefetch`): the next one, and that of the step which the host
queues behind it, as it reads a step's numbers one step late."""

RECOMPUTED_BLOCK = "recomputed block"
GLOBAL_SAVED = ("out of global layers", "lse of global layers", "pre-MLP residuals of global layers")
"""Terms of what a global layer keeps beside its input where its attention is not recomputed."""
STAGING = "checkpoint staging"
MLP_PARTS = ("resid_mid", "mlp")
"""Prefixes of the tensors of `block_saved_tensors` that are freed before attention's backward pass."""
FUSED = ("attn_norm", "attn.widened", "attn.qk_norm", "mlp_norm", "mlp.silu")
"""Tensors of `block_saved_tensors` that a compiled block is assumed to recompute inside other kernels."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank by term: held during the whole backward pass, added by each phase, and in host memory."""

    persistent: dict[str, float]
    peak_phases: dict[str, dict[str, float]]
    host: dict[str, float] = field(default_factory=dict)

    @property
    def peak_phase(self) -> str:
        """The moment that adds most."""
        return max(self.peak_phases, key=lambda name: sum(self.peak_phases[name].values()))

    @property
    def terms(self) -> dict[str, float]:
        """What the peak is made of."""
        return self.persistent | self.peak_phases[self.peak_phase]

    @property
    def peak_bytes(self) -> float:
        """Sum of `terms`."""
        return sum(self.terms.values())


def block_saved_tensors(case: RunSettings) -> dict[str, int]:
    """Bytes per token of every tensor that autograd saves in a block which keeps everything, the block's input first.

    Views of one tensor are counted once. With `mlp_tile_tokens` the second half of a block keeps the tiles' input
    alone. The casts of weights are not here (`cast_weights`).
    """
    config, low = case.model, case.low
    dim, inner = config.dim, config.mlp_dim
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mixed = low != FP32_BYTES
    saved = {
        "input": dim * FP32_BYTES,
        "attn_norm": dim * FP32_BYTES + FP32_BYTES,
        "attn.input": dim * low,
        "attn.qkv": (heads + 2 * keys) * low,
        # half-precision queries and keys are widened first, and the wide copy is kept
        "attn.widened": (heads + keys) * FP32_BYTES * mixed,
        "attn.qk_norm": (heads + keys) * FP32_BYTES + (config.num_heads + config.num_kv_heads) * FP32_BYTES,
        "attn.turned": (heads + keys) * low,
        "attn.out": heads * low,
        "attn.lse": config.num_heads * FP32_BYTES,
        "resid_mid": dim * FP32_BYTES,
    }
    if not case.tile_tokens:
        saved |= {"mlp_norm": dim * FP32_BYTES + FP32_BYTES, "mlp.input": dim * low}
        saved |= {"mlp.gate_up": 2 * inner * low, "mlp.silu": inner * low, "mlp.act": inner * low}
    return {name: size for name, size in saved.items() if not (case.compiled and name in FUSED)}


def saved_activation_bytes(case: RunSettings) -> dict[str, float]:
    """What the forward pass of all blocks leaves for the backward pass, by term; without the casts of weights."""
    config, tokens = case.model, case.num_tokens
    tensors = block_saved_tensors(case)
    if case.mode == "none":
        return {"saved block activations": config.num_layers * tokens * sum(tensors.values())}
    inputs = float(len(case.ac_groups) * tokens * tensors["input"])
    kept = {"block inputs": inputs}
    if case.mode != "full":
        each = (tensors["attn.out"], tensors["attn.lse"], tensors["resid_mid"] * bool(case.tile_tokens))
        kept |= {
            name: float(tokens * config.num_global_layers * size) for name, size in zip(GLOBAL_SAVED, each, strict=True)
        }
    return kept


def offloaded_bytes(case: RunSettings) -> dict[str, float]:
    """What of `saved_activation_bytes` waits in host memory."""
    if case.mode != "offload":
        return {}
    kept = saved_activation_bytes(case)
    # uncompiled, the policy keeps what attention gave to itself
    out, _, middle = GLOBAL_SAVED
    return {name: kept[name] for name in ("block inputs", middle, *([out] if case.compiled else []))}


def cast_weights(case: RunSettings, num_blocks: int) -> float:
    """Bytes of the half-precision copies of matrices that autocast makes; sharded blocks are gathered in it instead."""
    return 0.0 if case.low == FP32_BYTES or case.dp_shard > 1 else case.low * num_blocks * block_matrices(case.model)


def rope_table_bytes(case: RunSettings) -> int:
    """Rotary tables, cos and sin (float32) for local and for global layers."""
    return 4 * case.num_tokens * case.model.head_dim * FP32_BYTES


def memory(case: RunSettings) -> MemoryEstimate:
    """The estimate of one rank; see the top of the file."""
    config, tokens = case.model, case.num_tokens
    parameters = num_parameters(config) / case.dp_shard
    away = offloaded_bytes(case)
    persistent = {
        "parameters": FP32_BYTES * parameters,
        "gradients": FP32_BYTES * parameters if case.dp_shard == 1 or case.accumulates_gradients else 0.0,
        "optimizer": FP32_BYTES * _optimizer_numbers(case) / case.dp_shard,
        "batch, masks, tables": tokens * (BATCH_BYTES + SPAN_BYTES) + rope_table_bytes(case),
        "patches": _patches(case),
        "prefetched batches": _batches_ahead(case),
        **{name: size for name, size in saved_activation_bytes(case).items() if name not in away},
        # one hidden state is on its way out, one on its way back
        "offload buffers": min(sum(away.values()), 2.0 * tokens * config.dim * FP32_BYTES),
    }
    if case.mode == "none":
        persistent["half-precision weights"] = cast_weights(case, config.num_layers)
    peak_phases = {"loss": _loss(case), "MLP": _mlp(case), "attention": _attention(case)}
    if case.dp_shard > 1:
        peak_phases = {name: terms | _gathered(case, name) for name, terms in peak_phases.items()}
    return MemoryEstimate(
        _some(persistent), {name: _some(terms) for name, terms in peak_phases.items()}, _some(host_bytes(case))
    )


def _some(terms: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in terms.items() if size}


def _optimizer_numbers(case: RunSettings) -> float:
    every = num_parameters(case.model)
    muon = case.model.num_layers * block_matrices(case.model) if case.optimizer == "muon" else 0
    return 2 * (every - muon) + muon


def _gathered(case: RunSettings, moment: str) -> dict[str, float]:
    """What FSDP holds beside a rank's part. Embeddings and head stay gathered from the forward pass on."""
    config, block = case.model, block_parameters(case.model)
    ends = {"all-gathered embedding and head": FP32_BYTES * outer_parameters(config)}
    if moment == "loss":
        return ends
    return ends | {
        # a block at work and the next one
        "all-gathered blocks": 2 * case.low * block,
        # that of the head, until its group's sum at the end; a block's, and the float32 in which it is summed
        "unsharded gradients": FP32_BYTES * config.vocab_size * config.dim
        + (case.low + FP32_BYTES * (moment == "attention")) * block,
    }


def _patches(case: RunSettings) -> float:
    config, size = case.model, 0.0
    for name, count in case.patches:
        width = config.patch_dims[name]
        # as stored, as floats, normed (and cast), projected, normed
        stored = width * (FIELDS[name].itemsize + 2 * FP32_BYTES)
        patch = stored + (width + config.dim) * case.low + 2 * config.dim * FP32_BYTES
        size += case.micro_batch_size * count / case.context_parallel * patch
    return size


def _batches_ahead(case: RunSettings) -> float:
    """Batches and masks that are on a GPU already, patches as they are stored; tables are made when they are used."""
    if case.device != "cuda":
        return 0.0
    stored = sum(count * case.model.patch_dims[name] * FIELDS[name].itemsize for name, count in case.patches)
    tokens = case.num_tokens * (BATCH_BYTES + SPAN_BYTES)
    return BATCHES_AHEAD * (tokens + case.micro_batch_size * stored / case.context_parallel)


def flash_accumulator_bytes(case: RunSettings) -> float:
    """Bytes in which the backward pass of a flash package accumulates: dq in float32 and, where query heads share a key
    head, dk and dv. (Under deterministic algorithms flash-attn 2 and torch's need the first of these several times,
    which is not counted.)"""
    if case.device != "cuda" or case.low == FP32_BYTES or case.attention_backend not in ("auto", "flash"):
        return 0.0
    config = case.model
    shared = 2 * config.num_kv_heads * (config.num_heads > config.num_kv_heads)
    return case.num_tokens * (config.num_heads + shared) * config.head_dim * FP32_BYTES


def chunk_tokens(case: RunSettings) -> int:
    """Tokens in a chunk of the loss, as `brine.kernels.linear_loss.autograd_function.default_chunk` takes them."""
    least = CHUNK_TOKENS[case.device] * (2 if case.device == "cpu" and case.low == 2 else 1)
    return min(case.num_tokens, max(least, CHUNK_LOGITS // case.model.vocab_size))


def _loss(case: RunSettings) -> dict[str, float]:
    config, tokens = case.model, case.num_tokens
    stream = tokens * config.dim * FP32_BYTES
    head = config.vocab_size * config.dim
    chunk = chunk_tokens(case) * config.vocab_size
    half = case.low != FP32_BYTES
    return {
        # the last block's output, what the last norm keeps, what it gives
        "last norm": 3 * stream + tokens * FP32_BYTES,
        "gradient of hidden states": stream,
        "gradient of the head": FP32_BYTES * head,
        "loss chunk": chunk * (case.low + (FP32_BYTES if half else 0)) + (case.low * head if half else 0),
        # autocast keeps its casts until the forward pass is over
        "autocast copies of weights": 0.0 if case.mode == "none" else cast_weights(case, config.num_layers),
    }


def _recomputed_bytes(case: RunSettings, *, mlp: bool) -> float:
    """Bytes of a recomputed block, without its input, which is kept anyway; `mlp`: with the MLP's."""
    tensors = block_saved_tensors(case)
    if case.mode == "none":
        # kept already, and freed as the backward pass proceeds
        gone = sum(size for name, size in tensors.items() if name.startswith(MLP_PARTS))
        return 0.0 if mlp else -case.num_tokens * gone
    parts = sum(size for name, size in tensors.items() if name != "input" and (mlp or not name.startswith(MLP_PARTS)))
    if case.mode != "full":
        # in global layers out and lse are there; the widest block is a local one unless there is none
        parts -= (tensors["attn.out"] + tensors["attn.lse"]) * (case.model.num_global_layers == case.model.num_layers)
    return case.num_tokens * parts + cast_weights(case, 1)


def _recomputed_inputs(case: RunSettings) -> dict[str, float]:
    """Inputs of the layers of the longest group but the first, whose input is kept anyway; and, where that group comes
    after it in the backward pass, what the last layer had kept."""
    longest_run = max(map(len, case.ac_groups)) if case.mode != "none" else 1
    if longest_run == 1:
        return {}
    found = {"recomputed inputs": float(case.num_tokens * case.model.dim * FP32_BYTES * (longest_run - 1))}
    if len(case.ac_groups[-1]) < longest_run:
        away, kept = offloaded_bytes(case), saved_activation_bytes(case)
        of_last = {"block inputs": len(case.ac_groups)} | dict.fromkeys(GLOBAL_SAVED, case.model.num_global_layers)
        found["activations of the last layer, freed"] = -sum(
            kept[name] / layers for name, layers in of_last.items() if name in kept and name not in away
        )
    return found


def _stream_gradient(case: RunSettings) -> float:
    return case.num_tokens * case.model.dim * (FP32_BYTES + (case.low if case.low != FP32_BYTES else 0))


def _mlp(case: RunSettings) -> dict[str, float]:
    config, tokens, low = case.model, case.num_tokens, case.low
    tile = case.tile_tokens * case.micro_batch_size
    parts = {RECOMPUTED_BLOCK: _recomputed_bytes(case, mlp=True), **_recomputed_inputs(case)}
    if tile:
        stream = tokens * config.dim * FP32_BYTES
        # a tile's activations, then as much again of gradients; the gradients of the tiles' inputs
        parts["MLP tile"] = tile * (config.dim * (3 * FP32_BYTES + low) + 6 * config.mlp_dim * low)
        return parts | {"residual-stream gradient": stream, "gradients of MLP tile inputs": stream}
    return parts | {
        "residual-stream gradient": _stream_gradient(case),
        "MLP gradients": 2 * tokens * config.mlp_dim * low,
    }


def _attention(case: RunSettings) -> dict[str, float]:
    config, tokens, low = case.model, case.num_tokens, case.low
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    both = heads + 2 * keys
    results = tokens * (heads + both) * low
    # two numbers per query and head; sums of several ranks' parts in float32
    scratch = tokens * (both if case.context_parallel > 1 else 2 * config.num_heads) * FP32_BYTES
    if case.device == "cpu":
        # causal sequences in one call: copies with heads apart; in several calls, as windows are: sums, and a call's
        # queries and keys with their gradients
        row = tokens // case.micro_batch_size
        scratch = tokens * both * FP32_BYTES + min(tokens, max(row, CALL_ROWS // 2)) * 4 * (heads + keys) * FP32_BYTES
        if case.micro_batch_size <= max(1, CALL_ROWS // (2 * row)):
            scratch = max(scratch, tokens * (3 * heads + 2 * keys + both) * low)
    # those of rotation and norm replace attention's scratch afterwards
    sums, turned = flash_accumulator_bytes(case), 0 if case.compiled else 4 * tokens * heads * FP32_BYTES
    parts = {
        RECOMPUTED_BLOCK if case.mode != "none" else "MLP of the last block, freed": _recomputed_bytes(case, mlp=False),
        **_recomputed_inputs(case),
        "residual-stream gradient": _stream_gradient(case),
        # of out, q, k and v
        "attention gradients": results,
        "flash backward accumulators": sums,
        "attention workspace": max(scratch, turned - sums),
    }
    if case.context_parallel > 1:
        # keys and values in use, coming and leaving; their gradients, made, leaving and coming back
        parts["ring buffers"] = 3 * 2 * tokens * keys * low + 3 * 2 * tokens * keys * FP32_BYTES
    return parts


def host_bytes(case: RunSettings) -> dict[str, float]:
    """Per rank: a checkpoint's copy twice (staged, and assembled into a file), and offloaded activations."""
    weights = FP32_BYTES * (num_parameters(case.model) + _optimizer_numbers(case)) / case.dp_shard
    return {STAGING: 2 * weights} | offloaded_bytes(case)
