"""Media that show or say nothing: blank images, silence, saturated audio, videos that stand still.

Measured from the patches that the corpus stores, which is what the model would see:

    contrast            of an image or video, in levels of 0..255: the larger of the largest standard deviation inside a
                        patch and the largest difference between patch means
    silent_fraction     of audio: frames of 10 ms in which no mel band is above `silence_level`
    saturated_fraction  of audio: frames louder than a sine at full scale, of those that are not silent
    motion              of a video, in levels: the largest mean difference of a patch between neighbouring frames

The log-mel shows no single clipped samples, but power above a full-scale sine's (mean square 1/2): bands sum to
3 N^2 / 16 times the mean square of N samples under a Hann window (Parseval), to about 10 %. A video's audio track is
not measured. Cost: about 80 MB/s a process for images and videos, 300 MB/s for audio.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from brine.data.config import EncodeConfig
from brine.data.corpus.store import CorruptDocumentError, EncodedCorpus
from brine.data.document import MODALITIES
from brine.data.filters.filter_context import FilterContext, FilterResult, check_splits, empty_column
from brine.data.sequence import SILENCE, EncodedDocument
from brine.data.tokenizer import MEDIA_START_ID

_MEASURES = ("contrast", "silent_fraction", "saturated_fraction", "motion")
_LOG_MIDDLE, _LOG_HALF = -1.0, 5.0
"""The affine map of `brine.data.media.audio`, whose -6 and 4 become -1 and 1; not imported, since that imports
torch."""


@dataclass(frozen=True)
class MediaQuality:
    """Drop documents whose media show or say nothing. Raises ValueError for a field that cannot be."""

    drop_when: str = "all"
    """"all": when every image, audio and video of the document is bad, "any": when one is."""
    min_contrast: float = 4.0
    """An image or video of less contrast is blank, in levels of 0..255."""
    silence_level: float = -0.5
    """Mel value of the loudest band below which a frame is silent: a tone of -75 dB, noise of about -65 dB."""
    max_silent_fraction: float = 0.98
    """Audio with a larger fraction of silent frames is silence."""
    saturated_rms: float = 0.75
    """Root mean square above which a frame is saturated; a sine at full scale has 0.71."""
    max_saturated_fraction: float = 0.25
    """Audio with a larger fraction of saturated frames is saturated."""
    min_motion: float = 2.0
    """A video with less motion is frozen, in levels of 0..255; videos of one tubelet are not measured."""
    kinds: tuple[str, ...] | None = None
    """Kinds inspected; None for all."""
    splits: tuple[str, ...] = ("train",)
    """Splits inspected."""
    name: ClassVar[str] = "media_quality"

    def __post_init__(self):
        check_splits("MediaQuality", self.splits)
        if self.drop_when not in ("any", "all"):
            raise ValueError(f'MediaQuality.drop_when must be "any" or "all", not {self.drop_when!r}')

    def apply(self, filter_context: FilterContext) -> FilterResult:
        """Columns `media_<measure>`, a document's worst; drops unreadable ones.

        CorpusError for a corpus without media.
        """
        corpus = filter_context.corpus
        documents = filter_context.select(splits=self.splits, kinds=self.kinds)
        documents = documents[sum(corpus.num_media[name][documents] for name in MODALITIES) > 0]
        columns = {f"media_{name}": empty_column(corpus.num_documents, np.float32) for name in _MEASURES}
        reasons: dict[int, str] = {}
        function = functools.partial(_measure_documents, filter_=self)
        for number, media in filter_context.map(function, documents, chunk_documents=16, needs_media=True):
            if isinstance(media, str):
                reasons[number] = media
                continue
            for name in _MEASURES:
                values = [found[name] for _, found in media if name in found]
                if values:
                    columns[f"media_{name}"][number] = (max if name.endswith("fraction") else min)(values)
            faults = [self._fault(modality, found) for modality, found in media]
            if (any if self.drop_when == "any" else all)(faults):
                number_bad = next(index for index, fault in enumerate(faults) if fault)
                reasons[number] = f"media item {number_bad + 1} of {len(media)} is {faults[number_bad]}"
        return FilterResult(documents, reasons, columns)

    def _fault(self, modality: str, found: dict[str, float]) -> str:
        contrast, motion = found.get("contrast"), found.get("motion")
        if contrast is not None and contrast < self.min_contrast:
            return f"a blank {modality}: contrast {contrast:.3g} is below {self.min_contrast:g}"
        if motion is not None and motion < self.min_motion:
            return f"a frozen video: motion {motion:.3g} is below {self.min_motion:g}"
        for name, what in (("silent_fraction", "silence"), ("saturated_fraction", "saturated audio")):
            limit = getattr(self, f"max_{name}")
            if found.get(name, 0.0) > limit:
                return f"{what}: {name} {found[name]:.3g} is above {limit:g}"
        return ""


def _measure_documents(
    corpus: EncodedCorpus, numbers: list[int], *, filter_: MediaQuality
) -> list[list[tuple[str, dict[str, float]]] | str]:
    """Modality and measures of all media of each document, or why it cannot be read."""
    found = []
    for number, sequence in corpus.encoded_documents(numbers).items():
        if isinstance(sequence, CorruptDocumentError):
            found.append(f"document {number} cannot be read: {sequence}")
            continue
        found.append([(name, _measure(name, *item, corpus.config, filter_)) for name, *item in iter_media(sequence)])
    return found


def iter_media(sequence: EncodedDocument) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(modality, patches (n, dim), block (n,)) of all media in order, a video's audio track left out."""
    opens = np.isin(sequence.token_ids, list(MEDIA_START_ID.values()))
    opened = sequence.token_ids[opens]
    item = np.cumsum(opens) - 1
    media_number = {name: item[sequence.media_positions(name)] for name in MODALITIES}
    for number, token in enumerate(opened.tolist()):
        name = next(name for name in MODALITIES if MEDIA_START_ID[name] == token)
        mine = media_number[name] == number
        if mine.any():
            yield name, getattr(sequence, name)[mine], sequence.block[sequence.media_positions(name)[mine]]


def _measure(
    modality: str, patches: np.ndarray, block: np.ndarray, config: EncodeConfig, filter_: MediaQuality
) -> dict[str, float]:
    if modality == "audio":
        return _measure_audio(patches, config, filter_)
    found = {"contrast": contrast(patches)}
    tubelets = len(np.unique(block))
    if modality == "video" and tubelets > 1:
        found["motion"] = motion(patches, tubelets, config.tubelet_frames)
    return found


def contrast(patches: np.ndarray) -> float:
    """Contrast of pixel patches (n, p * p * 3) uint8, or tubelets of several frames; see the module."""
    pixels = patches.reshape(len(patches), -1, 3).astype(np.float32)
    means = pixels.mean(axis=1)
    inside = np.sqrt(np.maximum((pixels**2).mean(axis=1) - means**2, 0))
    return float(max(inside.max(), (means.max(axis=0) - means.min(axis=0)).max()))


def motion(patches: np.ndarray, tubelets: int, frames: int) -> float:
    """Largest mean change of a patch between frames of a video; patches: (tubelets * n, frames * p * p * 3) uint8."""
    pixels = patches.reshape(tubelets, len(patches) // tubelets, frames, -1).swapaxes(1, 2)
    pixels = pixels.reshape(tubelets * frames, *pixels.shape[2:]).astype(np.int16)
    return max(float(np.abs(later - earlier).mean(axis=1).max()) for earlier, later in itertools.pairwise(pixels))


def _measure_audio(tokens: np.ndarray, config: EncodeConfig, filter_: MediaQuality) -> dict[str, float]:
    """Fractions of silent and saturated frames; tokens (n, audio_dim) float16."""
    frames = tokens.reshape(-1, config.mel_bins).astype(np.float32)
    filled = config.mel_frames_per_token - 1
    # the last token is filled up with the floor of the scale
    while filled and len(frames) > 1 and (frames[-1] == SILENCE).all():
        frames, filled = frames[:-1], filled - 1
    silent = frames.max(axis=1) <= filter_.silence_level
    power = (10.0 ** (frames * _LOG_HALF + _LOG_MIDDLE)).sum(axis=1)
    saturated = power > filter_.saturated_rms**2 * config.window_samples**2 * 3 / 16
    return {
        "silent_fraction": float(silent.mean()),
        "saturated_fraction": float(saturated.sum() / max(1, (~silent).sum())),
    }
