"""What one rank holds while it trains, by term, from shapes alone.

    memory(Case(model, row_tokens=2**20, checkpointing="full", mlp_tile=8192)).peak_bytes

A step's memory is what stays (weights, gradients, optimiser, the batch, the rotary tables, what blocks keep for the
backward pass) and the most that any one of three moments adds to it:

    loss           hidden states and their gradient, the head's gradient, a chunk of logits
    MLP            the last block computed again, and its MLP's gradients, or those of one tile
    attention      the rest of that block, attention's gradients and workspace, the ring's buffers

`block_tensors` lists what autograd saves in a block, one tensor at a time, as the uncompiled code of
`model/transformer.py` does it; tests compare it with the saved tensors of real models, byte by byte. Compiled blocks
save fewer: what the compiler is assumed to fuse away (`FUSED`) is left out for them, and no test holds that. Not exact
are the temporary tensors of a backward pass (those alive at its widest point are counted), attention's scratch and
FSDP's buffers (two gathered blocks, one being reduced).

Not counted: the interpreter and its libraries, the loader's queues on the host, fragments of the allocator (a device's
`reserve`), a teacher. On a CPU `python -m benchmarks.planner` holds the peak against the resident memory of real
steps: in seventeen cases of 2.1 to 3.6 GiB per rank (recomputation of every kind, layers that share an input, tiles,
compiled blocks, float32 and bfloat16, patches, two ranks that share parameters, rows or both) the estimate was 0.95 to
1.08 times what was measured. Terms were mended while looking at some of them, so those are a fit; patches and four of
the five cases of two ranks were right unseen. On a GPU nothing has been validated.

N tokens of this rank, E width, H query heads, K key heads, D head dim, M MLP width, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

from data.sequence import FIELDS
from kernels.attention.plan import CALL_ROWS
from kernels.linear_loss.walk import CHUNK_LOGITS, CHUNK_TOKENS
from model.config import ModelConfig
from training.activations import local_runs

WIDE = 4
"""Bytes of the stream, norms, weights, gradients and optimiser: float32."""
BATCH_BYTES = 2 * 8 + 3 * 4 + 4 * 4
"""Of a token in a batch: its id and label (int64), position (3 float32), document, block, kind, context (int32)."""
SPAN_BYTES = 2 * 2 * 4
"""Of a token in the masks: lo and hi, int32, for local and global layers."""
BATCHES_AHEAD = 2
"""Batches on a card beside the one at work (`data.prefetch`): the next one, and that of the step which the host queues
behind it, as it reads a step's numbers one step late."""

AGAIN = "block computed again"
GLOBAL_KEPT = ("out of global layers", "lse of global layers", "middles of global layers")
"""Terms of what a global layer keeps beside its input where its attention is not done again."""
STAGING = "checkpoint staging"
MLP_PARTS = ("resid_mid", "mlp")
"""How the tensors of `block_tensors` begin that are let go before attention's backward pass."""
FUSED = ("attn_norm", "attn.widened", "attn.qk_norm", "mlp_norm", "mlp.silu")
"""Tensors of `block_tensors` that a compiled block is assumed to make again inside other kernels."""


@dataclass(frozen=True)
class Case:
    """One way to run one model: what a rank's memory depends on."""

    model: ModelConfig
    row_tokens: int
    micro_rows: int = 1
    """Rows of one forward pass; `context` ranks share them."""
    ranks: int = 1
    context: int = 1
    shard: int = 1
    checkpointing: str = "none"
    checkpoint_layers: int = 1
    mlp_tile: int = 0
    dtype: str = "bfloat16"
    """"bfloat16" (autocast over float32 weights) or "float32"."""
    device: str = "cuda"
    compiled: bool = False
    """Are the blocks compiled? See `FUSED`."""
    attention_backend: str = "auto"
    """As `kernels.attention` names it; "auto" may take "flash" on a card, and is counted so."""
    optimizer: str = "adamw"
    patches: tuple[tuple[str, int], ...] = ()
    """(modality, most patches of a row)."""
    accumulated: bool = False
    """Are gradients of an earlier forward pass of the step there? If not, those of sharded parameters come one block
    after another, while what blocks keep goes."""

    @property
    def num_tokens(self) -> int:
        """N, tokens of this rank in one forward pass."""
        return self.micro_rows * -(-self.row_tokens // self.context)

    @property
    def tile_tokens(self) -> int:
        """Tokens of a row that an MLP takes at a time on this rank; 0 where a tile would hold them all."""
        return self.mlp_tile if self.mlp_tile < self.num_tokens // self.micro_rows else 0

    @property
    def low(self) -> int:
        """Bytes of a number in matrix products and attention."""
        return 2 if self.dtype == "bfloat16" else WIDE

    @property
    def mode(self) -> str:
        """`checkpointing` as it is carried out: on a CPU there is nothing to offload to."""
        return "selective" if self.checkpointing == "offload" and self.device == "cpu" else self.checkpointing

    @property
    def runs(self) -> tuple[range, ...]:
        """Layers that keep one input between them."""
        return _runs(self.model, self.checkpoint_layers)


@cache
def _runs(config: ModelConfig, layers: int) -> tuple[range, ...]:
    return tuple(local_runs(config, range(config.num_layers), layers))


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    lasting: dict[str, float]
    """Held during the whole backward pass, by term."""
    moments: dict[str, dict[str, float]]
    """What each moment adds, by term."""
    host: dict[str, float] = field(default_factory=dict)
    """In host memory, per rank, beside a GPU's."""

    @property
    def worst(self) -> str:
        """The moment that adds most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def terms(self) -> dict[str, float]:
        """What the peak is made of."""
        return self.lasting | self.moments[self.worst]

    @property
    def peak_bytes(self) -> float:
        """Sum of `terms`."""
        return sum(self.terms.values())


def block_matrices(config: ModelConfig) -> int:
    """Numbers in the four matrices of a block."""
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.dim * (2 * heads + 2 * keys + 3 * config.mlp_dim)


def block_parameters(config: ModelConfig) -> int:
    """Numbers trained in a block: its matrices, two norms of the stream, those of queries and keys."""
    return block_matrices(config) + 2 * config.dim + 2 * config.head_dim


def outer_parameters(config: ModelConfig) -> int:
    """Numbers trained outside of blocks: the token table, embedders, last norm and head."""
    tables = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    normed = config.embedder == "ln_linear_ln"
    embedders = sum(
        size * config.dim + config.dim + (2 * size + 2 * config.dim if normed else 0)
        for size in config.patch_dims.values()
    )
    return tables + embedders + config.dim


def num_parameters(config: ModelConfig) -> int:
    """All numbers trained."""
    return config.num_layers * block_parameters(config) + outer_parameters(config)


def block_tensors(case: Case) -> dict[str, int]:
    """Bytes per token of every tensor that autograd saves in a block which keeps everything, the block's input first.

    Views of one tensor are counted once. With `mlp_tile` the second half of a block keeps the tiles' input alone. The
    casts of weights are not here (`cast_weights`).
    """
    config, low = case.model, case.low
    dim, inner = config.dim, config.mlp_dim
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mixed = low != WIDE
    saved = {
        "input": dim * WIDE,
        "attn_norm": dim * WIDE + WIDE,
        "attn.input": dim * low,
        "attn.qkv": (heads + 2 * keys) * low,
        # half-precision queries and keys are widened first, and the wide copy is kept
        "attn.widened": (heads + keys) * WIDE * mixed,
        "attn.qk_norm": (heads + keys) * WIDE + (config.num_heads + config.num_kv_heads) * WIDE,
        "attn.turned": (heads + keys) * low,
        "attn.out": heads * low,
        "attn.lse": config.num_heads * WIDE,
        "resid_mid": dim * WIDE,
    }
    if not case.tile_tokens:
        saved |= {"mlp_norm": dim * WIDE + WIDE, "mlp.input": dim * low}
        saved |= {"mlp.gate_up": 2 * inner * low, "mlp.silu": inner * low, "mlp.act": inner * low}
    return {name: size for name, size in saved.items() if not (case.compiled and name in FUSED)}


def kept_bytes(case: Case) -> dict[str, float]:
    """What the forward pass of all blocks leaves for the backward pass, by term; without the casts of weights."""
    config, tokens = case.model, case.num_tokens
    tensors = block_tensors(case)
    if case.mode == "none":
        return {"kept by blocks": config.num_layers * tokens * sum(tensors.values())}
    inputs = float(len(case.runs) * tokens * tensors["input"])
    kept = {"block inputs": inputs}
    if case.mode != "full":
        each = (tensors["attn.out"], tensors["attn.lse"], tensors["resid_mid"] * bool(case.tile_tokens))
        kept |= {
            name: float(tokens * config.num_global_layers * size) for name, size in zip(GLOBAL_KEPT, each, strict=True)
        }
    return kept


def offloaded(case: Case) -> dict[str, float]:
    """What of `kept_bytes` waits in host memory."""
    if case.mode != "offload":
        return {}
    kept = kept_bytes(case)
    # uncompiled, the policy keeps what attention gave to itself
    out, _, middle = GLOBAL_KEPT
    return {name: kept[name] for name in ("block inputs", middle, *([out] if case.compiled else []))}


def cast_weights(case: Case, num_blocks: int) -> float:
    """Bytes of the half-precision copies of matrices that autocast makes; sharded blocks are gathered in it instead."""
    return 0.0 if case.low == WIDE or case.shard > 1 else case.low * num_blocks * block_matrices(case.model)


def table_bytes(case: Case) -> int:
    """Rotary tables, cos and sin (float32) for local and for global layers."""
    return 4 * case.num_tokens * case.model.head_dim * WIDE


def memory(case: Case) -> Memory:
    """Everything; see the top of the file."""
    config, tokens = case.model, case.num_tokens
    own = num_parameters(config) / case.shard
    away = offloaded(case)
    lasting = {
        "parameters": WIDE * own,
        "gradients": WIDE * own if case.shard == 1 or case.accumulated else 0.0,
        "optimizer": WIDE * _optimizer_numbers(case) / case.shard,
        "batch, masks, tables": tokens * (BATCH_BYTES + SPAN_BYTES) + table_bytes(case),
        "patches": _patches(case),
        "batches ahead": _batches_ahead(case),
        **{name: size for name, size in kept_bytes(case).items() if name not in away},
        # one stream is on its way there, one on its way back
        "on the way to the host": min(sum(away.values()), 2.0 * tokens * config.dim * WIDE),
    }
    if case.mode == "none":
        lasting["weights in half precision"] = cast_weights(case, config.num_layers)
    moments = {"loss": _loss(case), "MLP": _mlp(case), "attention": _attention(case)}
    if case.shard > 1:
        moments = {name: terms | _gathered(case, name) for name, terms in moments.items()}
    return Memory(_some(lasting), {name: _some(terms) for name, terms in moments.items()}, _some(host_bytes(case)))


def _some(terms: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in terms.items() if size}


def _optimizer_numbers(case: Case) -> float:
    every = num_parameters(case.model)
    muon = case.model.num_layers * block_matrices(case.model) if case.optimizer == "muon" else 0
    return 2 * (every - muon) + muon


def _gathered(case: Case, moment: str) -> dict[str, float]:
    """What FSDP holds beside a rank's own part. Ends stay gathered from the forward pass on."""
    config, block = case.model, block_parameters(case.model)
    ends = {"gathered ends": WIDE * outer_parameters(config)}
    if moment == "loss":
        return ends
    return ends | {
        # a block at work and the next one
        "gathered blocks": 2 * case.low * block,
        # that of the head, until its group's sum at the end; a block's own, and the float32 in which it is summed
        "whole gradients": WIDE * config.vocab_size * config.dim + (case.low + WIDE * (moment == "attention")) * block,
    }


def _patches(case: Case) -> float:
    config, size = case.model, 0.0
    for name, count in case.patches:
        width = config.patch_dims[name]
        # as stored, as floats, normed (and cast), projected, normed
        size += case.micro_rows * count / case.context * (width * (FIELDS[name].itemsize + 2 * WIDE)
                                                          + (width + config.dim) * case.low
                                                          + 2 * config.dim * WIDE)  # fmt: skip
    return size


def _batches_ahead(case: Case) -> float:
    """Batches and masks that are on a card already, patches as they are stored; tables are made when they are used."""
    if case.device != "cuda":
        return 0.0
    stored = sum(count * case.model.patch_dims[name] * FIELDS[name].itemsize for name, count in case.patches)
    tokens = case.num_tokens * (BATCH_BYTES + SPAN_BYTES)
    return BATCHES_AHEAD * (tokens + case.micro_rows * stored / case.context)


def flash_sums(case: Case) -> float:
    """Bytes in which the backward pass of a flash package adds up: dq in float32 and, where query heads share a key
    head, dk and dv. (Under deterministic algorithms flash-attn 2 and torch's own take the first of these several times,
    which is not counted.)"""
    if case.device != "cuda" or case.low == WIDE or case.attention_backend not in ("auto", "flash"):
        return 0.0
    config = case.model
    shared = 2 * config.num_kv_heads * (config.num_heads > config.num_kv_heads)
    return case.num_tokens * (config.num_heads + shared) * config.head_dim * WIDE


def chunk_tokens(case: Case) -> int:
    """Tokens in a chunk of the loss, as `kernels.linear_loss.walk.default_chunk` takes them."""
    least = CHUNK_TOKENS[case.device] * (2 if case.device == "cpu" and case.low == 2 else 1)
    return min(case.num_tokens, max(least, CHUNK_LOGITS // case.model.vocab_size))


def _loss(case: Case) -> dict[str, float]:
    config, tokens = case.model, case.num_tokens
    stream = tokens * config.dim * WIDE
    head = config.vocab_size * config.dim
    chunk = chunk_tokens(case) * config.vocab_size
    half = case.low != WIDE
    return {
        # the last block's output, what the last norm keeps, what it gives
        "last norm": 3 * stream + tokens * WIDE,
        "gradient of hidden states": stream,
        "gradient of the head": WIDE * head,
        "loss chunk": chunk * (case.low + (WIDE if half else 0)) + (case.low * head if half else 0),
        # autocast keeps its casts until the forward pass is over
        "casts of weights": 0.0 if case.mode == "none" else cast_weights(case, config.num_layers),
    }


def _again(case: Case, *, mlp: bool) -> float:
    """Bytes of a block that was computed again, without its input, which is kept anyway; `mlp`: with the MLP's."""
    tensors = block_tensors(case)
    if case.mode == "none":
        # kept already, and let go as the backward pass goes
        gone = sum(size for name, size in tensors.items() if name.startswith(MLP_PARTS))
        return 0.0 if mlp else -case.num_tokens * gone
    parts = sum(size for name, size in tensors.items() if name != "input" and (mlp or not name.startswith(MLP_PARTS)))
    if case.mode != "full":
        # in global layers out and lse are there; the widest block is a local one unless there is none
        parts -= (tensors["attn.out"] + tensors["attn.lse"]) * (case.model.num_global_layers == case.model.num_layers)
    return case.num_tokens * parts + cast_weights(case, 1)


def _found_again(case: Case) -> dict[str, float]:
    """What the layers of the longest run were given, but for its first one's, which is kept anyway; and, where that run
    comes after it in the backward pass, what the last layer had kept."""
    longest_run = max(map(len, case.runs)) if case.mode != "none" else 1
    if longest_run == 1:
        return {}
    found = {"inputs found again": float(case.num_tokens * case.model.dim * WIDE * (longest_run - 1))}
    if len(case.runs[-1]) < longest_run:
        away, kept = offloaded(case), kept_bytes(case)
        of_last = {"block inputs": len(case.runs)} | dict.fromkeys(GLOBAL_KEPT, case.model.num_global_layers)
        found["kept by the last layer, let go"] = -sum(
            kept[name] / layers for name, layers in of_last.items() if name in kept and name not in away
        )
    return found


def _stream_gradient(case: Case) -> float:
    """Bytes of the stream's gradient, and of its cast for the branch."""
    return case.num_tokens * case.model.dim * (WIDE + (case.low if case.low != WIDE else 0))


def _mlp(case: Case) -> dict[str, float]:
    config, tokens, low = case.model, case.num_tokens, case.low
    tile = case.tile_tokens * case.micro_rows
    parts = {AGAIN: _again(case, mlp=True), **_found_again(case)}
    if tile:
        stream = tokens * config.dim * WIDE
        # a tile's activations, then as much again of gradients; the gradients of the tiles' inputs
        parts["MLP tile"] = tile * (config.dim * (3 * WIDE + low) + 6 * config.mlp_dim * low)
        return parts | {"gradient of the stream": stream, "tiles side by side": stream}
    return parts | {
        "gradient of the stream": _stream_gradient(case),
        "MLP gradients": 2 * tokens * config.mlp_dim * low,
    }


def _attention(case: Case) -> dict[str, float]:
    config, tokens, low = case.model, case.num_tokens, case.low
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    both = heads + 2 * keys
    results = tokens * (heads + both) * low
    # two numbers to a row and head; sums of several ranks' parts in float32
    scratch = tokens * (both if case.context > 1 else 2 * config.num_heads) * WIDE
    if case.device == "cpu":
        # causal rows in one call: copies with each head on its own; in several calls, as windows are: sums, and a
        # call's rows and keys with their gradients
        row = tokens // case.micro_rows
        scratch = tokens * both * WIDE + min(tokens, max(row, CALL_ROWS // 2)) * 4 * (heads + keys) * WIDE
        if case.micro_rows <= max(1, CALL_ROWS // (2 * row)):
            scratch = max(scratch, tokens * (3 * heads + 2 * keys + both) * low)
    # those of rotary turn and norm take the place of attention's scratch afterwards
    sums, turned = flash_sums(case), 0 if case.compiled else 4 * tokens * heads * WIDE
    parts = {
        AGAIN if case.mode != "none" else "MLP of the last block, let go": _again(case, mlp=False),
        **_found_again(case),
        "gradient of the stream": _stream_gradient(case),
        # of out, q, k and v
        "attention gradients": results,
        "sums of flash": sums,
        "attention workspace": max(scratch, turned - sums),
    }
    if case.context > 1:
        # keys and values in use, coming and leaving; their gradients, made, leaving and coming back
        parts["ring buffers"] = 3 * 2 * tokens * keys * low + 3 * 2 * tokens * keys * WIDE
    return parts


def host_bytes(case: Case) -> dict[str, float]:
    """Per rank: a checkpoint's copy twice (staged, and put together into a file), and what waits there."""
    weights = WIDE * (num_parameters(case.model) + _optimizer_numbers(case)) / case.shard
    return {STAGING: 2 * weights} | offloaded(case)


def longest(case: Case, fits, *, most: int = 2**27) -> int:
    """Most row tokens for which `fits(case)`, in multiples of 1,024 (of 16 a rank below); 0 where nothing fits."""
    step = 1024 if fits(replace(case, row_tokens=1024)) else 16 * case.context
    if not fits(replace(case, row_tokens=step)):
        return 0
    low, high = 1, 2
    while high * step <= most and fits(replace(case, row_tokens=high * step)):
        low, high = high, 2 * high
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(replace(case, row_tokens=middle * step)) else (low, middle)
    return low * step
