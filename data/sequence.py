"""One encoded document: tokens, positions and patches as numpy arrays.

    S tokens · one value each in token_ids, position, block, loss_mask, modality_context
    n patches of a modality, in the order of their media tokens in token_ids

An `EncodedDocument` is what the store keeps and what a batch is made from. It can be sliced (long documents are split
over packed sequences) and blanked (media content removed, positions kept); documents are edited before encoding.
"""

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from brine.data.document import MODALITIES
from brine.data.tokenizer import MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID

MODALITY_CONTEXTS = ("none", *MODALITIES)
GREY = 128
SILENCE = -1.0  # value of a blank mel: the floor of the fixed affine map in `brine.data.media.audio`

FIELDS = {
    "token_ids": np.dtype(np.int32),
    "position": np.dtype(np.float32),
    "block": np.dtype(np.int32),
    "loss_mask": np.dtype(np.bool_),
    "modality_context": np.dtype(np.uint8),
    "image": np.dtype(np.uint8),
    "audio": np.dtype(np.float16),
    "video": np.dtype(np.uint8),
}
TOKEN_FIELDS = ("token_ids", "position", "block", "loss_mask", "modality_context")


@dataclass(frozen=True)
class EncodedDocument:
    """An encoded document of S tokens."""

    token_ids: np.ndarray
    """(S,) int32; media tokens hold their modality's id."""
    position: np.ndarray
    """(S, 3) float32: (t, h, w); t in time steps of one audio token where media have a clock."""
    block: np.ndarray
    """(S,) int32: 0 outside media, else the number of the image, tubelet or second of audio, from 1."""
    loss_mask: np.ndarray
    """(S,) bool: this token is a target."""
    modality_context: np.ndarray
    """(S,) uint8: index into MODALITY_CONTEXTS of the last media that are open or have closed before this token."""
    image: np.ndarray
    """(n, image_dim) uint8 patches."""
    audio: np.ndarray
    """(n, audio_dim) float16 mel tokens in about [-1, 1]."""
    video: np.ndarray
    """(n, video_dim) uint8 tubelet patches."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def media_positions(self, modality: str) -> np.ndarray:
        """(n,) int64 indices of a modality's media tokens, ascending."""
        return np.flatnonzero(self.token_ids == MEDIA_TOKEN_ID[modality])

    def media_totals(self) -> np.ndarray:
        """(S + 1, modalities) int64: how many media tokens of each modality lie before every index."""
        total = np.zeros((len(self) + 1, len(MODALITIES)), dtype=np.int64)
        for column, name in enumerate(MODALITIES):
            np.cumsum(self.token_ids == MEDIA_TOKEN_ID[name], out=total[1:, column])
        return total

    def validate(self) -> "EncodedDocument":
        """Itself, when shapes, dtypes and media token counts agree; ValueError otherwise."""
        for name, dtype in FIELDS.items():
            array = getattr(self, name)
            if array.dtype != dtype:
                raise ValueError(f"sequence field {name} has dtype {array.dtype}, not {dtype}")
            if name in TOKEN_FIELDS and array.shape != ((len(self), 3) if name == "position" else (len(self),)):
                raise ValueError(f"sequence field {name} has shape {array.shape} for {len(self)} tokens")
            if name in MODALITIES:
                num_media_tokens = np.count_nonzero(self.token_ids == MEDIA_TOKEN_ID[name])
                if array.ndim != 2 or len(array) != num_media_tokens:
                    raise ValueError(f"sequence has {num_media_tokens} {name} tokens and patches {array.shape}")
        return self

    def slice(self, start: int, stop: int) -> "EncodedDocument":
        """Tokens start..stop with their patches; positions stay as they are in the document."""
        if start == 0 and stop == len(self):
            return self
        fields = {name: getattr(self, name)[start:stop] for name in TOKEN_FIELDS}
        for name in MODALITIES:
            first, last = np.searchsorted(self.media_positions(name), (start, stop))
            fields[name] = getattr(self, name)[first:last]
        return EncodedDocument(**fields)

    def with_blank_media(self, modalities: Iterable[str] = MODALITIES) -> "EncodedDocument":
        """The same tokens with grey images and frames, or silence, for these modalities; a "video" keeps its audio."""
        blank = {}
        for name in modalities:
            if name not in MODALITIES:
                raise ValueError(f"unknown modality {name!r}; there are {', '.join(MODALITIES)}")
            patches = getattr(self, name)
            fill = np.asarray(SILENCE if name == "audio" else GREY, dtype=patches.dtype)
            blank[name] = np.broadcast_to(fill, patches.shape)
        return dataclasses.replace(self, **blank)

    def split_points(self) -> np.ndarray:
        """(c,) int64 indices, ascending, where a chunk may end and the next begin, 0 and S included.

        They are outside media (from start to end token), and never between an end token and a target, so that a
        following chunk, begun one token earlier where that token is text, predicts every target once.
        """
        opens = np.isin(self.token_ids, list(MEDIA_START_ID.values()))
        closes = np.isin(self.token_ids, list(MEDIA_END_ID.values()))
        inside = np.cumsum(opens.astype(np.int64)) - np.cumsum(closes.astype(np.int64))
        free = np.ones(len(self) + 1, dtype=bool)
        free[1:-1] = (inside[:-1] == 0) & ~(closes[:-1] & self.loss_mask[1:])
        return np.flatnonzero(free)

    def crc32(self) -> int:
        """Checksum over all arrays, stored beside a cached sequence and compared when it is read."""
        value = 0
        for name in FIELDS:
            if getattr(self, name).size:
                value = zlib.crc32(np.ascontiguousarray(getattr(self, name)), value)
        return value
