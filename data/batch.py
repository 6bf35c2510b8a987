"""Packed sequences to tensors of one fixed shape.

    B packed sequences · T = seq_len tokens each · N_m patches of modality m = B * budget of m, padding included

Chunks follow one another; the rest is padding (pad token, document -1, label -100). labels[b, t] is the token at t + 1
where that is a target of the same chunk and outside t's media block, whose tokens see each other; else -100. Patches
are concatenated per modality in their storage dtypes, each with the flat index b * T + t of its media token; unused
ones are zero bytes with index B * T, one past the end, which the model drops. Shapes depend on the plan alone, so a
compiled model never sees a new one. Host-side statistics are counted here, so that a step needs no device sync.

The cost is the number of numpy calls, not the bytes, so token fields are concatenated over the whole batch and written
once; only patches are handled document by document. Augmentation is a `transform` that samples from
`counter_generator(seed, document, sequence_index)`: neither the number of workers nor a restart changes a sample.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from brine.data.config import EncodeConfig
from brine.data.document import MODALITIES
from brine.data.packing.length_schedule import segment_starts
from brine.data.sequence import FIELDS, EncodedDocument
from brine.data.tokenizer import MEDIA_TOKEN_ID, PAD_ID
from brine.model.inputs import TENSORS, Inputs

IGNORE_INDEX = -100
Transform = Callable[[int, EncodedDocument, int], EncodedDocument]
"""transform(document, sequence, sequence_index) -> a sequence of the same length with the same media tokens. A pure
function of its arguments, and picklable where a loader has workers."""
TENSOR_FIELDS = ("document", "labels", "kind", "modality_context")
"""Tensors (B, T) of a batch beside those of its inputs."""
CACHED_STATS = ("target_index", "num_targets", "mixture")  # statistics that are computed once, on the host


@dataclass
class Batch:
    """One micro-batch of packed sequences: the model's inputs, and each token's label, document and kind.

    Statistics are computed on first use and kept by `to` and `pin_memory`; `dataclasses.replace` drops them.
    """

    inputs: Inputs
    """What the model reads."""
    document: torch.Tensor
    """(B, T) int32 index into the corpus; -1 is padding. No packed sequence holds two chunks of one document."""
    labels: torch.Tensor
    """(B, T) int64: the token at i + 1 where it is a target, else -100."""
    kind: torch.Tensor
    """(B, T) int16 index into corpus.kinds; -1 for padding."""
    modality_context: torch.Tensor
    """(B, T) uint8: the media (index into data.sequence.MODALITY_CONTEXTS) that stand before the token at i + 1."""
    sequence_index: tuple[int, ...] = ()
    """Global indices of the packed sequences; -1 for one past the end of the plan."""
    failures: tuple[tuple[int, str], ...] = ()
    """(document, reason) of documents that could not be loaded and became padding."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on a device, and the masks that were made."""
        return self._map(
            self.inputs.to(device, non_blocking=non_blocking), lambda x: x.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; torch's DataLoader calls this by name."""
        return self._map(self.inputs.pin_memory(), torch.Tensor.pin_memory)

    @cached_property
    def target_index(self) -> torch.Tensor:
        """(num_targets,) int64 flat indices of the labels that are targets, ascending; where the batch is."""
        return torch.nonzero(self.labels.flatten() >= 0).flatten()

    @cached_property
    def num_targets(self) -> int:
        return len(self.target_index)

    @cached_property
    def mixture(self) -> dict[str, int]:
        """Tokens that are text (boundaries of media included), each modality's, and padding."""
        size, media = self.inputs.token_ids.numel(), self.inputs.media
        # patches that pad the batch point past its last token
        media = {name: int((media[name][1] < size).sum()) if name in media else 0 for name in MODALITIES}
        padding = int((self.document < 0).sum())
        return {"text": size - padding - sum(media.values()), **media, "padding": padding}

    def with_cached_stats(self) -> "Batch":
        """The same batch, with all its statistics computed."""
        for name in CACHED_STATS:
            getattr(self, name)
        return self

    def _map(self, inputs: Inputs, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        fields = {name: change(getattr(self, name)) for name in TENSOR_FIELDS}
        moved = Batch(inputs, **fields, sequence_index=self.sequence_index, failures=self.failures)
        if self.labels.device.type == "cpu":
            self.with_cached_stats()
        known = {name: self.__dict__[name] for name in CACHED_STATS if name in self.__dict__}
        if "target_index" in known:
            known["target_index"] = change(known["target_index"])
        # a cached property is an entry like any other
        moved.__dict__.update(known)
        return moved


def counter_generator(seed: int, *counters: int) -> np.random.Generator:
    """Random numbers that follow from the numbers given (integers of up to 64 bits with sign) alone.

    Lists that differ in any element or in length give independent streams: a SHA-256 of them is the key of a Philox.
    """
    content = struct.pack(f"<{1 + len(counters)}q", seed, *counters)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(content).digest()[:16], "little")))


def make_batch(corpus, plan, indices: Iterable[int], *, transform: Transform | None = None) -> Batch:
    """The batch of the given packed sequences of a plan; an index past the plan's end gives padding alone.

    transform: changes whole documents (same length, same media tokens) before they are cut and blanked: an evaluation
    swaps media, training augments. Raises ValueError where a transform returns another length.
    """
    indices = [int(index) if index < len(plan) else -1 for index in indices]
    chunk_lists = [plan.chunks(index) if index >= 0 else [] for index in indices]
    found = corpus.encoded_documents(dict.fromkeys(chunk[0] for chunks in chunk_lists for chunk in chunks))
    packed_sequences, failures = [], {}
    for index, chunks in zip(indices, chunk_lists, strict=True):
        packed_sequence = []
        for document, start, stop, blank in chunks:
            sequence = found[document]
            if isinstance(sequence, EncodedDocument) and stop > len(sequence):
                sequence = ValueError(f"document {document} has {len(sequence)} tokens where the plan needs {stop}")
            if not isinstance(sequence, EncodedDocument):
                failures[document] = str(sequence)
                packed_sequence.append((document, stop - start, None))
                continue
            if transform is not None:
                sequence = _transformed(transform, document, sequence, index)
            sequence = sequence.slice(start, stop)
            packed_sequence.append((document, stop - start, sequence.with_blank_media() if blank else sequence))
        packed_sequences.append(packed_sequence)

    return collate(
        packed_sequences,
        seq_len=plan.seq_len,
        media_budget=plan.media_budget,
        config=corpus.config,
        kinds=corpus.kind,
        segment_tokens=tuple(plan.segment_tokens(index) for index in indices),
        sequence_index=tuple(indices),
        failures=tuple(failures.items()),
    )


def _transformed(transform: Transform, document: int, sequence: EncodedDocument, index: int) -> EncodedDocument:
    changed = transform(document, sequence, index).validate()
    # the plan relies on this length and on these media tokens
    kept = all(np.array_equal(changed.media_positions(name), sequence.media_positions(name)) for name in MODALITIES)
    if len(changed) != len(sequence) or not kept:
        raise ValueError(f"transform changed the length or the media positions of document {document}: keep both")
    return changed


def collate(
    packed: list[list[tuple[int, int, EncodedDocument | None]]],
    *,
    seq_len: int,
    media_budget: dict[str, int] | None = None,
    config: EncodeConfig | None = None,
    kinds=None,
    segment_tokens: tuple[int | None, ...] = (),
    sequence_index: tuple[int, ...] = (),
    failures: tuple[tuple[int, str], ...] = (),
) -> Batch:
    """The batch of some packed sequences: for training, evaluation and prompts alike.

    packed: for each packed sequence its chunks in order, (document, length, sequence); sequence None leaves `length`
    positions of padding (a left-padded prompt begins so). media_budget: patches of each modality per packed sequence,
    padded to that many (needs `config`, which knows their sizes); None: as many as there are. segment_tokens: for each
    packed sequence, the longest run of a document's tokens that attention may see; None or left out: all.
    """
    shape = (len(packed), seq_len)
    out = {
        "token_ids": np.full(shape, PAD_ID, np.int64),
        "position": np.zeros((*shape, 3), np.float32),
        "segment": np.full(shape, -1, np.int32),
        "block": np.zeros(shape, np.int32),
        "document": np.full(shape, -1, np.int32),
        "labels": np.full(shape, IGNORE_INDEX, np.int64),
        "kind": np.full(shape, -1, np.int16),
        "modality_context": np.zeros(shape, np.uint8),
    }
    chunks = _place_chunks(packed, seq_len)
    flat_index, ids = np.zeros(0, np.int64), np.zeros(0, np.int32)
    if chunks:
        flat_index, ids = _fill_tokens(out, chunks, kinds, segment_tokens or (None,) * len(packed))
    media = {}
    for name in MODALITIES:
        own = [getattr(sequence, name) for _, _, _, sequence in chunks if len(getattr(sequence, name))]
        index = flat_index[ids == MEDIA_TOKEN_ID[name]]
        if media_budget is None:
            if own:
                media[name] = torch.from_numpy(np.concatenate(own)), torch.from_numpy(index)
            continue
        patches = np.zeros((len(packed) * media_budget[name], config.dims[name]), FIELDS[name])
        media_index = np.full(len(patches), shape[0] * shape[1], np.int64)
        media_index[: len(index)] = index
        used = 0
        for each in own:
            patches[used : used + len(each)] = each
            used += len(each)
        media[name] = torch.from_numpy(patches), torch.from_numpy(media_index)
    tensors = {name: torch.from_numpy(array) for name, array in out.items()}
    inputs = Inputs(*(tensors.pop(name) for name in TENSORS), media)
    return Batch(inputs, **tensors, sequence_index=sequence_index, failures=failures).with_cached_stats()


_PlacedChunk = tuple[int, int, int, EncodedDocument]
"""Index of the packed sequence in its batch, flat index of the first token, document, sequence."""


def _place_chunks(
    packed_sequences: list[list[tuple[int, int, EncodedDocument | None]]], seq_len: int
) -> list[_PlacedChunk]:
    """Every chunk with its position in the batch; padding and empty sequences are left out."""
    found = []
    for b, packed_sequence in enumerate(packed_sequences):
        first = b * seq_len
        for document, length, sequence in packed_sequence:
            if sequence is not None and len(sequence):
                found.append((b, first, document, sequence))
            first += length
    return found


def _fill_tokens(out: dict, chunks: list[_PlacedChunk], kinds, segment_tokens) -> tuple[np.ndarray, np.ndarray]:
    """Fill the token fields of `out`; returns (n,) int64 flat indices and (n,) int32 ids of the tokens written."""
    owners, firsts, documents, sequences = (list(column) for column in zip(*chunks, strict=True))
    lengths = np.array([len(sequence) for sequence in sequences])
    starts = np.cumsum(lengths) - lengths

    def spread(values) -> np.ndarray:
        return np.repeat(np.asarray(values), lengths)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(sequence, name) for sequence in sequences])

    def write(name: str, values: np.ndarray, at: np.ndarray) -> None:
        target = out[name]
        target.reshape(-1, *target.shape[2:])[at] = values

    flat_index = spread(np.array(firsts) - starts) + np.arange(lengths.sum())
    ids, block = joined("token_ids"), joined("block")
    # the next token belongs to the same chunk
    inner = np.ones(len(ids) - 1, dtype=bool)
    inner[starts[1:] - 1] = False
    # a query sees past itself exactly when the next token is of its own media block
    target = inner & joined("loss_mask")[1:] & ~((block[1:] == block[:-1]) & (block[1:] > 0))
    write("token_ids", ids, flat_index)
    write("position", joined("position"), flat_index)
    write("document", spread(documents), flat_index)
    write("segment", _segments(owners, sequences, segment_tokens), flat_index)
    before = _block_offsets(owners, np.maximum.reduceat(block, starts))
    write("block", np.where(block > 0, block + spread(before), 0), flat_index)
    write("labels", ids[1:][target], flat_index[:-1][target])
    write("modality_context", joined("modality_context")[1:][inner], flat_index[:-1][inner])
    if kinds is not None:
        write("kind", spread(kinds[documents]), flat_index)
    return flat_index, ids


def _segments(owners: list[int], sequences: list[EncodedDocument], segment_tokens) -> np.ndarray:
    """(n,) int32 number of each token's segment within its packed sequence."""
    found, current, count = [], -1, 0
    for owner, sequence in zip(owners, sequences, strict=True):
        current, count = owner, count if owner == current else 0
        limit = segment_tokens[owner]
        short = limit is None or len(sequence) <= limit
        starts = [0] if short else segment_starts(sequence.split_points(), limit)
        lengths = np.diff([*starts, len(sequence)])
        found.append(np.repeat(np.arange(count, count + len(starts), dtype=np.int32), lengths))
        count += len(starts)
    return np.concatenate(found)


def _block_offsets(owners: list[int], blocks: np.ndarray) -> np.ndarray:
    before, current, total = np.zeros(len(owners), np.int32), -1, 0
    for i, (owner, count) in enumerate(zip(owners, blocks.tolist(), strict=True)):
        total = 0 if owner != current else total
        before[i], current = total, owner
        total += count
    return before
