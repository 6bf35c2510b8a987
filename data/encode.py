"""Document to `EncodedDocument`: every token with its position (t, h, w).

    text       t = h = w, one step per token
    boundary   a start and an end token around each image, audio or video, positioned like text, in no media block
    image      from base = start + 1: patch (i, j) at (base, base + i, base + j); one media block
    audio      token k at t = h = w = base + k; one media block per second
    video      the tubelet at s seconds: t = base + s / time step, h = t + i, w = t + j; one block per tubelet. Its
               audio track is audio on the same clock; the two are interleaved by seconds, tubelets first
    after      text continues at max(t, h, w) + 1 over the whole of it
    end        an end token closes the document; it is a target when the last part is a text that is one

Only target texts and that end token are targets. `assemble` takes decoded media and is pure; `encode` decodes in this
process (`brine.data.media.pool` does so in processes that can be killed, as files from outside should be read).
"""

from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np

from brine.data.config import EncodeConfig
from brine.data.document import MODALITIES, Document, Text, modality_of
from brine.data.files.roots import MediaRoots, resolved_root
from brine.data.lengths import audio_second
from brine.data.media.decode import Decoded, DecodedAudio, DecodedImage, DecodedVideo, decode_part
from brine.data.sequence import FIELDS, MODALITY_CONTEXTS, EncodedDocument
from brine.data.tokenizer import EOS_ID, MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID, Tokenizer


def encode(
    document: Document, *, root: Path | MediaRoots, tokenizer: Tokenizer, config: EncodeConfig
) -> EncodedDocument:
    """Decode and assemble one document of the folder `root`. DocumentError for media that cannot be decoded."""
    root = resolved_root(root)
    media = [decode_part(part, root, config) for part in document.parts if not isinstance(part, Text)]
    return assemble(document, media, tokenizer, config)


def assemble(document: Document, media: Items[Decoded], tokenizer: Tokenizer, config: EncodeConfig) -> EncodedDocument:
    """The sequence of a document with its decoded media, one per media part."""
    builder, decoded = _DocumentBuilder(config), iter(media)
    for part in document.parts:
        if isinstance(part, Text):
            builder.text(tokenizer.encode(part.text), part.loss_mask)
        else:
            builder.add_media(modality_of(part), next(decoded))
    last = document.parts[-1]
    builder.text([EOS_ID], isinstance(last, Text) and last.loss_mask)
    return builder.build()


def assemble_chunks(
    runs: Items[list[int] | tuple[str, Decoded]], config: EncodeConfig, *, position_offset: float = 0.0
) -> EncodedDocument:
    """The sequence, without targets, of text ids and (modality, decoded media). position_offset: of the first token."""
    builder = _DocumentBuilder(config, position_offset)
    for run in runs:
        if isinstance(run, list):
            builder.text(run, False)
        else:
            builder.add_media(*run)
    return builder.build()


class _DocumentBuilder:
    """Collects runs of tokens; `position_offset` is where the next text token goes, `blocks` counts media blocks."""

    def __init__(self, config: EncodeConfig, position_offset: float = 0.0):
        self.config, self.position_offset = config, position_offset
        self.blocks = self.modality_context = 0
        self.runs: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}

    def _add(self, tokens, position: np.ndarray, *, block=0, loss_mask: bool = False) -> None:
        """One run: `tokens` and `block` scalar or (n,), position (n, 3) float64."""
        context = self.modality_context
        values = {"token_ids": tokens, "block": block, "loss_mask": loss_mask, "modality_context": context}
        for name, value in values.items():
            # np.full and np.array, since broadcasting costs five times as much on runs of one token
            is_scalar, dtype = isinstance(value, int), FIELDS[name]
            self.runs[name].append(np.full(len(position), value, dtype) if is_scalar else np.array(value, dtype))
        self.runs["position"].append(position.astype(np.float32))

    def text(self, ids: list[int], loss_mask: bool) -> None:
        position = self.position_offset + np.arange(len(ids), dtype=np.float64)
        self._add(ids, np.repeat(position[:, None], 3, axis=1), loss_mask=loss_mask)
        self.position_offset += len(ids)

    def add_media(self, modality: str, decoded: Decoded) -> None:
        # the start token counts as inside, so that its context is the modality that it opens
        self.modality_context = MODALITY_CONTEXTS.index(modality)
        self.text([MEDIA_START_ID[modality]], False)
        base = self.position_offset
        if isinstance(decoded, DecodedImage):
            max_position = self._patches(decoded.grid, base, "image")
            self.runs["image"].append(decoded.patches)
        elif isinstance(decoded, DecodedAudio):
            max_position = self._audio(0, len(decoded.tokens), base)
            self.runs["audio"].append(decoded.tokens)
        else:
            max_position = self._video(decoded, base)
        self.position_offset = max_position + 1
        self.text([MEDIA_END_ID[modality]], False)

    def _patches(self, grid: tuple[int, int], t: float, modality: str) -> float:
        """A media block of rows x columns patches at time t; returns the largest coordinate used."""
        rows, cols = grid
        position = np.full((rows, cols, 3), t)
        position[..., 1] += np.arange(rows)[:, None]
        position[..., 2] += np.arange(cols)
        self.blocks += 1
        self._add(MEDIA_TOKEN_ID[modality], position.reshape(-1, 3), block=self.blocks)
        return t + max(rows, cols) - 1

    def _audio(self, first: int, stop: int, base: float) -> float:
        """Audio tokens first..stop of audio that began at `base`, a media block per second; returns the largest t."""
        time_steps = np.arange(first, stop)
        seconds = audio_second(time_steps, self.config)
        block = self.blocks + 1 + seconds - seconds[0]
        self.blocks = int(block[-1])
        position = np.repeat((base + time_steps)[:, None], 3, axis=1).astype(np.float64)
        self._add(MEDIA_TOKEN_ID["audio"], position, block=block)
        return base + stop - 1

    def _video(self, decoded: DecodedVideo, base: float) -> float:
        layout, max_position = decoded.layout, base
        audio_seconds = audio_second(np.arange(layout.num_audio_tokens), self.config)
        last = max([int(layout.tubelet_s[-1]), *audio_seconds[-1:].tolist()])
        for second in range(last + 1):
            for time_s in layout.tubelet_s:
                if int(time_s) == second:
                    end = self._patches(layout.grid, base + time_s / self.config.time_step_s, "video")
                    max_position = max(max_position, end)
            first, stop = np.searchsorted(audio_seconds, (second, second + 1)).tolist()
            if stop > first:
                max_position = max(max_position, self._audio(first, stop, base))
        self.runs["video"].append(decoded.patches)
        self.runs["audio"].append(decoded.audio_tokens)
        # positions after the video are whole numbers again
        return float(np.ceil(max_position))

    def build(self) -> EncodedDocument:
        shapes = {name: (0, self.config.dims[name]) for name in MODALITIES} | {"position": (0, 3)}
        fields = {
            name: np.concatenate([np.zeros(shapes.get(name, 0), dtype), *self.runs[name]])
            for name, dtype in FIELDS.items()
        }
        return EncodedDocument(**fields).validate()
