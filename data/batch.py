"""Rows to tensors of one fixed shape.

    B rows · T tokens a row · N_m patches of modality m = B * budget of m, padding included

Documents are laid one after another in a row and the rest is padding: pad token, document -1, no label. Patches of
all rows of a batch are gathered per modality, each with the flat index (row * T + column) of its slot; unused patches
are zero and point at B * T, one past the end, where a model that scatters into B * T + 1 places drops them. Shapes
depend on the plan alone, so a compiled model never sees a new one.

labels[i] is the token at i + 1 when that token is a target of the same document and row i does not see past
itself (inside a media block it would); -100 otherwise. Patches become float32 here: bytes by x / 127.5 - 1, mel as
it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from data.config import EncodeConfig
from data.document import MODALITIES
from data.sequence import Sequence
from data.tokenizer import PAD_ID

IGNORE = -100
Transform = Callable[[int, Sequence], Sequence]


@dataclass
class Batch:
    """One step's rows of one rank."""

    token_ids: torch.Tensor
    """(B, T) int64."""
    position: torch.Tensor
    """(B, T, 3) float32 (t, h, w)."""
    document: torch.Tensor
    """(B, T) int32 index into the corpus; -1 is padding. No row holds two stretches of one document."""
    block: torch.Tensor
    """(B, T) int32: 0 outside media; numbered within the row."""
    labels: torch.Tensor
    """(B, T) int64: the token at i + 1 where it is a target, else -100."""
    kind: torch.Tensor
    """(B, T) int16 index into corpus.kinds; -1 for padding."""
    context: torch.Tensor
    """(B, T) uint8: the medium (index into data.sequence.CONTEXT) that stands before the token at i + 1."""
    media: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Per modality: (N, dim) float32 patches in about [-1, 1], and (N,) int64 flat slots; B * T is padding."""
    rows: tuple[int, ...] = ()
    """Global row numbers; -1 for a row past the end of the plan."""
    failures: tuple[tuple[int, str], ...] = ()
    """(document, reason) of documents that could not be loaded and became padding."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on a device."""

        def move(tensor):
            return tensor.to(device, non_blocking=non_blocking)

        names = ("token_ids", "position", "document", "block", "labels", "kind", "context")
        media = {name: (move(patches), move(slot)) for name, (patches, slot) in self.media.items()}
        return Batch(
            **{name: move(getattr(self, name)) for name in names}, media=media, rows=self.rows, failures=self.failures
        )

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; torch's DataLoader calls this by name."""
        names = ("token_ids", "position", "document", "block", "labels", "kind", "context")
        media = {name: (patches.pin_memory(), slot.pin_memory()) for name, (patches, slot) in self.media.items()}
        return Batch(
            **{name: getattr(self, name).pin_memory() for name in names},
            media=media,
            rows=self.rows,
            failures=self.failures,
        )


def labels_of(token_ids: np.ndarray, learn: np.ndarray, block: np.ndarray) -> np.ndarray:
    """(S,) int64 labels of one document's stretch, from its tokens, targets and blocks."""
    labels = np.full(len(token_ids), IGNORE, dtype=np.int64)
    # a row sees past itself exactly when the next token is of its own block
    target = learn[1:] & ~((block[1:] == block[:-1]) & (block[1:] > 0))
    labels[:-1][target] = token_ids[1:][target]
    return labels


def floats(patches: np.ndarray) -> np.ndarray:
    """float32 patches in about [-1, 1] from their stored form."""
    if patches.dtype == np.uint8:
        return patches.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return patches.astype(np.float32)


def make_batch(
    corpus,
    plan,
    rows: Iterable[int],
    *,
    blank_modalities: Iterable[str] = MODALITIES,
    transform: Transform | None = None,
) -> Batch:
    """The batch of the given rows of a plan; a row number past the end gives a row of padding.

    blank_modalities: what is taken away from entries that the plan blanks. transform(document, sequence) may change
    whole documents (same length, same slots) before they are cut and blanked: an evaluation swaps media so.
    """
    rows = [int(number) if number < len(plan) else -1 for number in rows]
    entries = [plan.row(number) if number >= 0 else [] for number in rows]
    found = corpus.sequences(dict.fromkeys(entry[0] for row in entries for entry in row))
    blank_modalities = tuple(blank_modalities)
    lines, failures = [], {}
    for row in entries:
        line = []
        for document, start, stop, blank in row:
            sequence = found[document]
            if isinstance(sequence, Sequence) and stop > len(sequence):
                sequence = ValueError(f"document {document} has {len(sequence)} tokens where the plan needs {stop}")
            if not isinstance(sequence, Sequence):
                failures[document] = str(sequence)
                line.append((document, stop - start, None))
                continue
            if transform is not None:
                sequence = transform(document, sequence)
            sequence = sequence.slice(start, stop)
            line.append((document, stop - start, sequence.blanked(blank_modalities) if blank else sequence))
        lines.append(line)

    return collate(
        lines,
        row_tokens=plan.row_tokens,
        media_budget=plan.media_budget,
        config=corpus.config,
        kinds=corpus.kind,
        rows=tuple(rows),
        failures=tuple(failures.items()),
    )


def collate(
    lines: list[list[tuple[int, int, Sequence | None]]],
    *,
    row_tokens: int,
    media_budget: dict[str, int],
    config: EncodeConfig,
    kinds=None,
    rows: tuple[int, ...] = (),
    failures: tuple[tuple[int, str], ...] = (),
) -> Batch:
    """Lay sequences into rows: each line is a list of (document, length, sequence), None leaving a gap of padding."""
    shape = (len(lines), row_tokens)
    out = {
        "token_ids": np.full(shape, PAD_ID, np.int64),
        "position": np.zeros((*shape, 3), np.float32),
        "document": np.full(shape, -1, np.int32),
        "block": np.zeros(shape, np.int32),
        "labels": np.full(shape, IGNORE, np.int64),
        "kind": np.full(shape, -1, np.int16),
        "context": np.zeros(shape, np.uint8),
    }
    media = {
        name: (
            np.zeros((len(lines) * media_budget[name], config.dims[name]), np.float32),
            np.full(len(lines) * media_budget[name], shape[0] * shape[1], np.int64),
        )
        for name in MODALITIES
    }
    used = dict.fromkeys(MODALITIES, 0)
    for number, line in enumerate(lines):
        column = blocks = 0
        for document, length, sequence in line:
            place = slice(column, column + length)
            if sequence is not None:
                _lay(out, number, place, document, sequence, blocks)
                blocks += int(sequence.block.max(initial=0))
                if kinds is not None:
                    out["kind"][number, place] = kinds[document]
                for name in MODALITIES:
                    patches = getattr(sequence, name)
                    take = slice(used[name], used[name] + len(patches))
                    media[name][0][take] = floats(patches)
                    media[name][1][take] = number * row_tokens + column + sequence.slots(name)
                    used[name] += len(patches)
            column += length
    tensors = {name: torch.from_numpy(array) for name, array in out.items()}
    pairs = {name: (torch.from_numpy(patches), torch.from_numpy(slot)) for name, (patches, slot) in media.items()}
    return Batch(**tensors, media=pairs, rows=rows, failures=failures)


def _lay(out: dict, row: int, place: slice, document: int, sequence: Sequence, blocks: int) -> None:
    """One stretch into its place; `blocks` blocks stand before it in the row."""
    out["token_ids"][row, place] = sequence.token_ids
    out["position"][row, place] = sequence.position
    out["document"][row, place] = document
    out["block"][row, place] = np.where(sequence.block > 0, sequence.block + blocks, 0)
    out["labels"][row, place] = labels_of(sequence.token_ids, sequence.learn, sequence.block)
    out["context"][row, place][:-1] = sequence.context[1:]
