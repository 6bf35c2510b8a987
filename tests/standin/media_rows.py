"""Documents of every medium in memory, the rows that training reads of them, and a model that is tiny in every number.

Nothing is decoded and nothing read, so a row takes a millisecond: what these tests ask is where tensors lie.
"""

from __future__ import annotations

import numpy as np
import torch

from brine.data.batch import Batch, collate
from brine.data.config import EncodeConfig
from brine.data.document import SPLITS, Audio, Document, Image, Text, Video
from brine.data.encode import assemble
from brine.data.lengths import VideoLayout
from brine.data.media.decode import DecodedAudio, DecodedImage, DecodedVideo
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import Tokenizer, train_tokenizer
from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.training.config import TrainConfig
from brine.training.micro_batch import PackedSequenceSource

ENCODE = EncodeConfig(patch_size=4, mel_bins=16)
KINDS = ("narration", "recording", "screenshot", "text")
ROW, BUDGET = 48, {"image": 16, "audio": 16, "video": 16}
EVALS = EvalConfig(validation_per_cell=1, documents_per_cell=2, seq_len=ROW, batch_size=2)
MODEL = ModelConfig(
    vocab_size=275, dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40, window=7,
    global_every=3, image_dim=ENCODE.image_dim, audio_dim=ENCODE.audio_dim, video_dim=ENCODE.video_dim,
)  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """Every text is one token a byte."""
    return train_tokenizer(["ab"], 267)


def document(number: int, tokenizer: Tokenizer) -> tuple[Document, EncodedDocument]:
    """Document `number` of the corpus, kinds taking turns: a medium of random numbers and a line about it."""
    rng = np.random.default_rng(number)
    kind, name = KINDS[number % len(KINDS)], f"{number}"
    sound = rng.uniform(-1, 1, (5, ENCODE.audio_dim)).astype(np.float16)
    parts, media = [Text(f"line {number} of it")], []
    if kind == "screenshot":
        parts.insert(0, Image(f"{name}.png"))
        media = [DecodedImage((2, 3), rng.integers(0, 256, (6, ENCODE.image_dim), np.uint8))]
    elif kind == "narration":
        parts.insert(0, Audio(f"{name}.wav"))
        media = [DecodedAudio(sound)]
    elif kind == "recording":
        parts.insert(0, Video(f"{name}.mp4"))
        films = rng.integers(0, 256, (4, ENCODE.video_dim), np.uint8)
        media = [DecodedVideo(VideoLayout((2, 2), (0.0,), 5), films, sound)]
    described = Document(id=name, parts=tuple(parts), kind=kind, level=1, split=SPLITS[number // 4 % 3])
    return described, assemble(described, media, tokenizer, ENCODE)


class MemoryCorpus:
    """What evaluation and selection read of an `EncodedCorpus`."""

    def __init__(self, num_documents: int = 24):
        self.tokenizer, self.config, self.kinds = byte_tokenizer(), ENCODE, list(KINDS)
        pairs = [document(number, self.tokenizer) for number in range(num_documents)]
        self.documents, self.sequences = [one for one, _ in pairs], [one for _, one in pairs]
        self.num_documents = num_documents
        self.kind = np.arange(num_documents, dtype=np.int16) % len(KINDS)
        self.level = np.ones(num_documents, np.int16)
        self.split = np.array([SPLITS.index(one.split) for one in self.documents], np.int8)
        self.num_tokens = np.array([len(one) for one in self.sequences], np.int64)

    def __len__(self) -> int:
        return self.num_documents

    def encoded_document(self, number: int) -> EncodedDocument:
        """A document's tokens and patches."""
        return self.sequences[number]


class MemoryPlan:
    """Rows of two documents each, going round the corpus."""

    def __init__(self, corpus: MemoryCorpus, num_sequences: int = 64):
        self.corpus, self.num_sequences = corpus, num_sequences

    def __len__(self) -> int:
        return self.num_sequences

    def chunks(self, number: int) -> list[tuple[int, int, int, bool]]:
        """(document, start, stop, blank) of what is in a row."""
        chosen = [(2 * number + k) % self.corpus.num_documents for k in range(2)]
        found, room = [], ROW
        for one in chosen:
            stop = min(room, int(self.corpus.num_tokens[one]))
            found.append((one, 0, stop, False))
            room -= stop
        return [entry for entry in found if entry[2]]

    def batch(self, rows) -> Batch:
        """The rows as tensors."""
        lines = [
            [
                (one, stop - start, self.corpus.encoded_document(one).slice(start, stop))
                for one, start, stop, _ in self.chunks(row)
            ]
            for row in rows
        ]
        options = {"seq_len": ROW, "media_budget": BUDGET, "config": ENCODE, "kinds": self.corpus.kind}
        return collate(lines, **options, sequence_index=tuple(rows))

    def source(self, config: TrainConfig) -> PackedSequenceSource:
        """As the loop reads them."""
        micro = config.micro_batch_size_on(1)

        def open_rows(start: int):
            for first in range(start, self.num_sequences - micro + 1, micro):
                yield self.batch(range(first, first + micro))

        return PackedSequenceSource(open=open_rows, num_sequences=self.num_sequences)


def model_of(*, seed: int = 0, **changes) -> Transformer:
    """A model with weights."""
    config = ModelConfig(**{**MODEL.to_dict(), **changes})
    return Transformer(config, generator=torch.Generator().manual_seed(seed))


def train_config_of(**changes) -> TrainConfig:
    """A run of four steps of two micro-batches."""
    values = {
        "model": MODEL,
        "num_steps": 4,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "warmup_steps": 1,
        "learning_rate": 1e-2,
        "checkpoint_every": 2,
        "log_every": 2,
        "seed": 3,
    }
    return TrainConfig(**{**values, **changes})
