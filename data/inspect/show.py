"""One document as the model will see it: found, encoded, and taken apart again into what can be drawn.

    view_corpus(folder, id)     from a corpus: exactly the arrays that training reads
    view_source(source, id)     from anything `brine.data.formats` reads: encoded now, by a decoding server

Everything shown comes from the `EncodedDocument`, never from the media files: images from their patches, mel from audio
tokens, frames and their times from tubelets and positions. So scaling, padding and a video's sampling are seen. The
mask is computed here, independent of the attention kernels: query i sees keys lo[i] <= j < hi[i], with hi = i + 1
outside media and the block's end inside.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from brine.data.config import EncodeConfig
from brine.data.corpus.store import CorruptDocumentError, DecodingCorpus, EncodedCorpus
from brine.data.document import MODALITIES, Document, Quarantined, Text, modality_of
from brine.data.media.pool import DecodePool
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID, SPECIAL_TOKENS, Tokenizer


@dataclass(frozen=True)
class DocumentView:
    """A document with its sequence and what is needed to read it."""

    document: Document
    sequence: EncodedDocument
    tokenizer: Tokenizer
    config: EncodeConfig
    origin: str  # the corpus or source it was taken from


@dataclass(frozen=True)
class MediaRange:
    """One image, audio or video of a sequence, from its opening token to its closing one."""

    modality: str
    path: str
    start: int  # index of the opening token
    stop: int  # one past the closing token


def view_corpus(folder: str | Path, name: str) -> DocumentView:
    """A document of a corpus, by id or number. Raises ValueError when there is none or it cannot be read."""
    corpus = EncodedCorpus.open(folder)
    ids = corpus.ids
    if name in ids:
        number = ids.index(name)
    elif name.isdecimal() and int(name) < len(corpus):
        number = int(name)
    else:
        raise ValueError(_unknown(name, ids[:5], len(corpus)))
    document, origin = corpus.document(number), f"{folder}, document {number:,}"
    if not corpus.meta["identity"]["keep_media"]:
        corpus = DecodingCorpus(folder)
    try:
        return DocumentView(document, corpus.encoded_document(number), corpus.tokenizer, corpus.config, origin)
    except CorruptDocumentError as error:
        raise ValueError(str(error)) from None
    finally:
        corpus.close()


def view_source(source, name: str, *, tokenizer: Tokenizer, config: EncodeConfig) -> DocumentView:
    """A document of a source, by id or by number among those that can be read. ValueError with the reason for none."""
    number, document = _find(source, name)
    with DecodePool(root=source.root, tokenizer=tokenizer, config=config, num_servers=1, batch_documents=1) as pool:
        result = next(pool.encode([document]))
    if result.encoded is None:
        raise ValueError(f"document {document.id!r} cannot be used: {result.quarantined.reason}")
    return DocumentView(document, result.encoded, tokenizer, config, f"{source.format}, document {number:,}")


def _find(source, name: str) -> tuple[int, Document]:
    by_number, ids, count = None, [], 0
    for item in source.documents(include_decode=True):
        if isinstance(item, Quarantined):
            if item.id == name:
                raise ValueError(f"document {name!r} cannot be used: {item.reason}")
            continue
        if item.id == name:
            return count, item
        if len(ids) < 5:
            ids.append(item.id)
        if name.isdecimal() and int(name) == count:
            # an id that looks like a number goes before a number
            by_number = item
        count += 1
    if by_number is None:
        raise ValueError(_unknown(name, ids, count))
    return int(name), by_number


def _unknown(name: str, ids: list[str], count: int) -> str:
    return f"no document {name[:200]!r} among {count:,}: give an id such as {', '.join(map(repr, ids)) or '(none)'}" + (
        f", or a number from 0 to {count - 1:,}" if count else ""
    )


def media_ranges(view: DocumentView) -> list[MediaRange]:
    """The media of a document in order."""
    ids = view.sequence.token_ids
    starts = np.flatnonzero(np.isin(ids, list(MEDIA_START_ID.values())))
    stops = np.flatnonzero(np.isin(ids, list(MEDIA_END_ID.values()))) + 1
    parts = [part for part in view.document.parts if not isinstance(part, Text)]
    return [
        MediaRange(modality_of(part), part.path, int(start), int(stop))
        for part, start, stop in zip(parts, starts, stops, strict=True)
    ]


def pixels_of(view: DocumentView, media_range: MediaRange) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, H, W, 3) uint8 of an image (n = 1) or video, and their times (n,) in seconds."""
    sequence, config, name = view.sequence, view.config, media_range.modality
    media_positions = sequence.media_positions(name)
    chosen = (media_positions >= media_range.start) & (media_positions < media_range.stop)
    positions, patches = media_positions[chosen], getattr(sequence, name)[chosen]
    frames_a_patch = config.tubelet_frames if name == "video" else 1
    frames, times = [], []
    for block in np.unique(sequence.block[positions]):
        mine = sequence.block[positions] == block
        position = sequence.position[positions[mine]]
        rows, cols = (int(position[:, axis].max() - position[:, axis].min()) + 1 for axis in (1, 2))
        form = {"r": rows, "c": cols, "f": frames_a_patch, "p": config.patch_size, "q": config.patch_size}
        frames.append(rearrange(patches[mine], "(r c) (f p q d) -> f (r p) (c q) d", **form))
        begins_s = (position[0, 0] - media_start_position(view, media_range)) * config.time_step_s
        times.append(begins_s + np.arange(frames_a_patch) / config.video_fps)
    return np.concatenate(frames), np.concatenate(times)


def mel_spectrogram_of(view: DocumentView, media_range: MediaRange) -> np.ndarray:
    """(frames, mel_bins) float32 mel of audio or of a video's audio track; no frames where there is none."""
    media_positions = view.sequence.media_positions("audio")
    tokens = view.sequence.audio[(media_positions >= media_range.start) & (media_positions < media_range.stop)]
    return rearrange(tokens.astype(np.float32), "n (f b) -> (n f) b", b=view.config.mel_bins)


def media_start_position(view: DocumentView, media_range: MediaRange) -> float:
    """The t at which the media begin: one step after the opening token."""
    return float(view.sequence.position[media_range.start, 0]) + 1


def modality_ids(sequence: EncodedDocument) -> np.ndarray:
    """(S,) int64: 0 for text and boundary tokens, 1, 2, 3 for tokens of image, audio, video."""
    kinds = np.zeros(len(sequence), np.int64)
    for number, name in enumerate(MODALITIES, start=1):
        kinds[sequence.token_ids == MEDIA_TOKEN_ID[name]] = number
    return kinds


def spans_of(sequence: EncodedDocument) -> tuple[np.ndarray, np.ndarray]:
    """(S,) int64 lo and hi: query i of this one document sees keys lo[i] <= j < hi[i]."""
    queries = np.arange(len(sequence))
    # a block is a maximal run of equal ids above 0; its end is one past its last token
    ends = np.append(np.flatnonzero(np.diff(sequence.block)) + 1, len(sequence))
    end_of_run = ends[np.searchsorted(ends, queries, side="right")]
    return np.zeros(len(sequence), np.int64), np.where(sequence.block > 0, end_of_run, queries + 1)


def mask_image(sequence: EncodedDocument, *, max_side: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """(n, n) int8 over n evenly spaced tokens (0 hidden, 1 visible, 2 visible and later), and their indices (n,)."""
    positions = np.unique(np.linspace(0, len(sequence) - 1, min(len(sequence), max_side)).round().astype(np.int64))
    lo, hi = (bound[positions][:, None] for bound in spans_of(sequence))
    seen = (positions >= lo) & (positions < hi)
    return seen.astype(np.int8) + (seen & (positions > positions[:, None])), positions


def token_texts(view: DocumentView, start: int, stop: int) -> list[str]:
    """Each token of start..stop in characters: text, `\\xNN` for bytes that are none, names of special tokens."""
    words, pending = [], b""
    for token in view.sequence.token_ids[start:stop].tolist():
        if token < len(SPECIAL_TOKENS):
            words.append(SPECIAL_TOKENS[token].strip("<|>").replace("_", " "))
            pending = b""
            continue
        content = pending + view.tokenizer.token_bytes(token)
        try:
            words.append(content.decode("utf-8"))
            pending = b""
        except UnicodeDecodeError as error:
            # a character spelt by several tokens is shown at the last of them
            cut = error.reason == "unexpected end of data" and len(content) - error.start < 4
            words.append(content[: error.start].decode("utf-8") if cut else content.decode("utf-8", "backslashreplace"))
            pending = content[error.start :] if cut else b""
    return words
