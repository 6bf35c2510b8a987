"""Document to Sequence: every token at its place (t, h, w).

    text       t = h = w, one step a token
    boundary   one token opens and one closes each medium, placed like text, outside every block
    image      from base = open + 1: patch (i, j) at (base, base + i, base + j); one block
    audio      token k at t = h = w = base + k; one block per second
    video      the tubelet at s seconds: t = base + s / tick, h = t + i, w = t + j; one block per tubelet; its sound
               track is audio on the same clock, and the two are interleaved second by second: the tubelets that begin
               in second n, then the audio tokens that begin in it
    after      text goes on at max(t, h, w) + 1 over the whole medium
    end        an end token closes the document; it is a target when the last part is a learned text

Only learned text and that end token are targets. Decoding is not done here: `assemble` takes decoded media, so that
it is pure, and `encode` is the two together for one process (see `data.decode_server` for processes that can be
killed, which is how corpora are built and how files from outside should be read).
"""

from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np

from data.config import EncodeConfig
from data.decode import Decoded, DecodedAudio, DecodedImage, DecodedVideo, decode_part
from data.document import MODALITIES, Document, Text, modality_of
from data.lengths import sound_second
from data.sequence import CONTEXT, FIELDS, Sequence
from data.tokenizer import CLOSE_ID, END_ID, OPEN_ID, SLOT_ID, Tokenizer


def encode(document: Document, *, root: Path, tokenizer: Tokenizer, config: EncodeConfig) -> Sequence:
    """Decode and place one document in this process; `root` is the manifest's folder.

    Raises DocumentError with file and reason when a medium cannot be decoded.
    """
    root = Path(root).resolve()
    media = [decode_part(part, root, config) for part in document.parts if not isinstance(part, Text)]
    return assemble(document, media, tokenizer, config)


def assemble(
    document: Document, media: Items[Decoded], tokenizer: Tokenizer, config: EncodeConfig, *, end: bool = True
) -> Sequence:
    """The sequence of a document whose media are decoded, one entry of `media` per media part in order.

    `end=False` leaves the end token off, which is what a prompt to be continued needs.
    """
    builder = _Builder(config)
    decoded = iter(media)
    for part in document.parts:
        if isinstance(part, Text):
            builder.text(tokenizer.encode(part.text), part.learn)
        else:
            builder.medium(modality_of(part), next(decoded))
    if end:
        last = document.parts[-1]
        builder.text([END_ID], isinstance(last, Text) and last.learn)
    return builder.sequence()


def assemble_runs(
    runs: Items[list[int] | tuple[str, Decoded]], config: EncodeConfig, *, place: float = 0.0
) -> Sequence:
    """The sequence of runs that are encoded already: ids of text, or (modality, decoded medium). Nothing is a target.

    place: where the first token stands, for what continues another sequence. Knowing every run's tokens, a caller can
    make a sequence of an exact length.
    """
    builder = _Builder(config, place=place)
    for run in runs:
        if isinstance(run, list):
            builder.text(run, False)
        else:
            builder.medium(*run)
    return builder.sequence()


class _Builder:
    """Gathers runs of tokens; `place` is where the next text token goes and `blocks` how many blocks there are."""

    def __init__(self, config: EncodeConfig, *, place: float = 0.0):
        self.config = config
        self.place = place
        self.blocks = 0
        self.context = 0
        self.runs: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}

    def _add(self, tokens, position: np.ndarray, *, block=0, learn: bool = False) -> None:
        """One run: `tokens` and `block` scalar or (n,), position (n, 3) float64."""
        count = len(position)
        values = {"token_ids": tokens, "block": block, "learn": learn, "context": self.context}
        for name, value in values.items():
            # np.full and np.array, since broadcasting costs five times as much on runs of one token
            scalar = isinstance(value, int)
            run = np.full(count, value, FIELDS[name]) if scalar else np.array(value, FIELDS[name])
            self.runs[name].append(run)
        self.runs["position"].append(position.astype(np.float32))

    def text(self, ids: list[int], learn: bool) -> None:
        line = self.place + np.arange(len(ids), dtype=np.float64)
        self._add(ids, np.repeat(line[:, None], 3, axis=1), learn=learn)
        self.place += len(ids)

    def medium(self, modality: str, decoded: Decoded) -> None:
        # the opening token counts as inside, so that context tells the medium that is open
        self.context = CONTEXT.index(modality)
        self.text([OPEN_ID[modality]], False)
        base = self.place
        if isinstance(decoded, DecodedImage):
            tops = self._patches(decoded.grid, base, "image")
            self.runs["image"].append(decoded.patches)
        elif isinstance(decoded, DecodedAudio):
            tops = self._sound(0, len(decoded.tokens), base)
            self.runs["audio"].append(decoded.tokens)
        else:
            tops = self._video(decoded, base)
        self.place = tops + 1
        self.text([CLOSE_ID[modality]], False)

    def _patches(self, grid: tuple[int, int], t: float, modality: str) -> float:
        """A block of rows x cols patches at time t; returns the largest coordinate used."""
        rows, cols = grid
        position = np.full((rows, cols, 3), t)
        position[..., 1] += np.arange(rows)[:, None]
        position[..., 2] += np.arange(cols)
        self.blocks += 1
        self._add(SLOT_ID[modality], position.reshape(-1, 3), block=self.blocks)
        return t + max(rows, cols) - 1

    def _sound(self, first: int, stop: int, base: float) -> float:
        """Audio tokens first..stop of a sound that began at `base`, a block per second; returns the largest t."""
        ticks = np.arange(first, stop)
        seconds = sound_second(ticks, self.config)
        block = self.blocks + 1 + seconds - seconds[0]
        self.blocks = int(block[-1])
        self._add(SLOT_ID["audio"], np.repeat((base + ticks)[:, None], 3, axis=1).astype(np.float64), block=block)
        return base + stop - 1

    def _video(self, decoded: DecodedVideo, base: float) -> float:
        layout, tops = decoded.layout, base
        second_of_sound = sound_second(np.arange(layout.num_sound), self.config)
        last = max(int(layout.tubelet_s[-1]), int(second_of_sound[-1]) if layout.num_sound else 0)
        for second in range(last + 1):
            for time_s in layout.tubelet_s:
                if int(time_s) == second:
                    tops = max(tops, self._patches(layout.grid, base + time_s / self.config.tick_s, "video"))
            first, stop = np.searchsorted(second_of_sound, (second, second + 1))
            if stop > first:
                tops = max(tops, self._sound(int(first), int(stop), base))
        self.runs["video"].append(decoded.patches)
        self.runs["audio"].append(decoded.sound)
        # places after the medium are whole again, so text stays on whole steps
        return float(np.ceil(tops))

    def sequence(self) -> Sequence:
        fields = {}
        for name, dtype in FIELDS.items():
            if name in MODALITIES:
                empty = np.zeros((0, self.config.dims[name]), dtype)
            else:
                empty = np.zeros((0, 3) if name == "position" else 0, dtype)
            fields[name] = np.concatenate([empty, *self.runs[name]])
        return Sequence(**fields).validate()
