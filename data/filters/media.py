"""Media that show or say nothing: blank pictures, silence, saturated sound, films that stand still.

Everything is computed from the patches that the corpus stores, which is what the model would see:

    contrast        of a picture or film, in levels of 0..255: the larger of the largest standard deviation inside a
                    patch and the largest difference between patch means. One dark word on a white page counts; the
                    noise that a codec leaves in flat paper does not.
    silent_share    of a sound: frames of 10 ms in which no mel band is above `silence_level`
    saturated_share of a sound: frames that are louder than a sine at full scale, of those that are not silent
    motion          of a film, in levels: the largest mean difference of a patch between neighbouring frames

The log-mel keeps no waveform, so single clipped samples cannot be seen. What can is sound driven so far into the
limit that its power exceeds a full-scale sine's (mean square 1/2): bands sum to the power of the window, 3 N^2 / 16
times the mean square for N samples under a Hann window (Parseval), so a frame's mean square is known to about 10 %.
A film's sound track may be silent without fault and is not judged. Blanks made in training are not stored and
so not met here.

Costs reading every patch once: about 80 MB/s a process for pictures and films, 300 MB/s for sound. What this does not
do: judge sharpness, faces or taste.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.config import EncodeConfig
from data.document import MODALITIES
from data.filters.pool import Pool, Verdict, check_splits, empty_column
from data.sequence import SILENCE, Sequence
from data.store import CorruptDocument, EncodedCorpus
from data.tokenizer import OPEN_ID

_MEASURES = ("contrast", "silent_share", "saturated_share", "motion")
_LOG_MIDDLE, _LOG_HALF = -1.0, 5.0
"""The affine map of `data.decode_audio`, whose -6 and 4 become -1 and 1; not imported, since that imports torch."""


@dataclass(frozen=True)
class MediaQuality:
    """Drop documents whose media show or say nothing. Raises ValueError for a field that cannot be."""

    drop_when: str = "all"
    """"all": when every medium of the document is bad, "any": when one is."""
    min_contrast: float = 4.0
    """A picture or film of less contrast is blank, in levels of 0..255."""
    silence_level: float = -0.5
    """Mel value of the loudest band below which a frame is silent: a tone of -75 dB, noise of about -65 dB."""
    max_silent_share: float = 0.98
    """A sound with a larger share of silent frames is silence."""
    saturated_rms: float = 0.75
    """Root mean square above which a frame is saturated; a sine at full scale has 0.71."""
    max_saturated_share: float = 0.25
    """A sound with a larger share of saturated frames is saturated."""
    min_motion: float = 2.0
    """A film with less motion is frozen, in levels of 0..255; films of one tubelet are not asked."""
    kinds: tuple[str, ...] | None = None
    """Kinds judged; None for all."""
    splits: tuple[str, ...] = ("train",)
    """Splits judged."""
    name: ClassVar[str] = "media_quality"

    def __post_init__(self):
        check_splits("MediaQuality", self.splits)
        if self.drop_when not in ("any", "all"):
            raise ValueError(f'MediaQuality.drop_when must be "any" or "all", not {self.drop_when!r}')

    def judge(self, pool: Pool) -> Verdict:
        """Columns `media_<measure>`, the worst of a document's media. A document that cannot be read is dropped.

        Raises CorpusError for a corpus that was built without media.
        """
        corpus = pool.corpus
        documents = pool.of(splits=self.splits, kinds=self.kinds)
        documents = documents[sum(corpus.num_media[name][documents] for name in MODALITIES) > 0]
        columns = {f"media_{name}": empty_column(corpus.num_documents, np.float32) for name in _MEASURES}
        reasons: dict[int, str] = {}
        function = functools.partial(_measure_documents, rule=self)
        for number, media in pool.map(function, documents, chunk_documents=16, reads_media=True):
            if isinstance(media, str):
                reasons[number] = media
                continue
            for name in _MEASURES:
                values = [found[name] for _, found in media if name in found]
                if values:
                    columns[f"media_{name}"][number] = (max if name.endswith("share") else min)(values)
            faults = [self._fault(modality, found) for modality, found in media]
            if (any if self.drop_when == "any" else all)(faults):
                place = next(place for place, fault in enumerate(faults) if fault)
                reasons[number] = f"medium {place + 1} of {len(media)} is {faults[place]}"
        return Verdict(documents, reasons, columns)

    def _fault(self, modality: str, found: dict[str, float]) -> str:
        """What is wrong with a medium, or nothing."""
        contrast, motion = found.get("contrast"), found.get("motion")
        if contrast is not None and contrast < self.min_contrast:
            return f"a blank {modality}: contrast {contrast:.3g} is below {self.min_contrast:g}"
        if motion is not None and motion < self.min_motion:
            return f"a frozen video: motion {motion:.3g} is below {self.min_motion:g}"
        for name, what in (("silent_share", "silence"), ("saturated_share", "saturated sound")):
            limit = getattr(self, f"max_{name}")
            if found.get(name, 0.0) > limit:
                return f"{what}: {name} {found[name]:.3g} is above {limit:g}"
        return ""


def _measure_documents(
    corpus: EncodedCorpus, numbers: list[int], *, rule: MediaQuality
) -> list[list[tuple[str, dict[str, float]]] | str]:
    """Modality and measures of each medium of each document, or why it cannot be read."""
    found = []
    for number, sequence in corpus.sequences(numbers).items():
        if isinstance(sequence, CorruptDocument):
            found.append(f"document {number} cannot be read: {sequence}")
            continue
        found.append([(name, _measure(name, *medium, corpus.config, rule)) for name, *medium in media_of(sequence)])
    return found


def media_of(sequence: Sequence) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(modality, patches (n, dim), block (n,)) of each medium in order, a film's sound track left out."""
    opens = np.isin(sequence.token_ids, list(OPEN_ID.values()))
    opened = sequence.token_ids[opens]
    medium = np.cumsum(opens) - 1
    owner = {name: medium[sequence.slots(name)] for name in MODALITIES}
    for place, token in enumerate(opened.tolist()):
        name = next(name for name in MODALITIES if OPEN_ID[name] == token)
        mine = owner[name] == place
        if mine.any():
            yield name, getattr(sequence, name)[mine], sequence.block[sequence.slots(name)[mine]]


def _measure(
    modality: str, patches: np.ndarray, block: np.ndarray, config: EncodeConfig, rule: MediaQuality
) -> dict[str, float]:
    if modality == "audio":
        return _measure_sound(patches, config, rule)
    found = {"contrast": contrast(patches)}
    tubelets = len(np.unique(block))
    if modality == "video" and tubelets > 1:
        found["motion"] = motion(patches, tubelets, config.tubelet_frames)
    return found


def contrast(patches: np.ndarray) -> float:
    """Contrast of pixel patches (n, p * p * 3) uint8, or tubelets of several frames; see the top of this file."""
    pixels = patches.reshape(len(patches), -1, 3).astype(np.float32)
    means = pixels.mean(axis=1)
    inside = np.sqrt(np.maximum((pixels**2).mean(axis=1) - means**2, 0))
    return float(max(inside.max(), (means.max(axis=0) - means.min(axis=0)).max()))


def motion(patches: np.ndarray, tubelets: int, frames: int) -> float:
    """Largest mean difference of a patch between neighbouring frames of a film.

    patches: (tubelets * n, frames * p * p * 3) uint8, frames of a tubelet one after the other.
    """
    pixels = patches.reshape(tubelets, len(patches) // tubelets, frames, -1).swapaxes(1, 2)
    pixels = pixels.reshape(tubelets * frames, *pixels.shape[2:]).astype(np.int16)
    return max(float(np.abs(later - earlier).mean(axis=1).max()) for earlier, later in itertools.pairwise(pixels))


def _measure_sound(tokens: np.ndarray, config: EncodeConfig, rule: MediaQuality) -> dict[str, float]:
    """Shares of silent and saturated frames; tokens (n, audio_dim) float16."""
    frames = tokens.reshape(-1, config.mel_bins).astype(np.float32)
    filled = config.mel_frames_per_token - 1
    # the last token is filled up with floor, which is no sound
    while filled and len(frames) > 1 and (frames[-1] == SILENCE).all():
        frames, filled = frames[:-1], filled - 1
    silent = frames.max(axis=1) <= rule.silence_level
    power = (10.0 ** (frames * _LOG_HALF + _LOG_MIDDLE)).sum(axis=1)
    saturated = power > rule.saturated_rms**2 * config.window_samples**2 * 3 / 16
    return {
        "silent_share": float(silent.mean()),
        "saturated_share": float(saturated.sum() / max(1, (~silent).sum())),
    }
