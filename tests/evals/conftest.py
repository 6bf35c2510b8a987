"""A corpus in memory, and a model whose loss is known on paper.

The stand-in model looks at the first number of each document's media and at nothing else. Documents come in two sorts
whose media are all 1 or all about 1/2 in size, and their first text token tells which; so it can tell matched, blank
and mismatched media apart, and gives the true next token a probability of 1/2, 1/4 and 1/8. Losses per token are ln 2,
ln 4 and ln 8 then, and the gain is exactly 1/2.
"""

import os

import numpy as np
import pytest
import torch

from brine.data.config import EncodeConfig
from brine.data.document import SPLITS, Audio, Document, Image, Text, Video
from brine.data.encode import assemble
from brine.data.lengths import VideoLayout
from brine.data.media.decode import DecodedAudio, DecodedImage, DecodedVideo
from brine.data.tokenizer import train_tokenizer
from brine.evals.cli import evaluate as measure
from brine.model.config import ModelConfig
from brine.model.embed import floats
from tests.evals.command_runs import ARGUMENTS, make_documents, make_run

ENCODE = EncodeConfig(patch_size=4, mel_bins=16)
PROBABILITY = {"matched": 0.5, "blank": 0.25, "mismatched": 0.125}


@pytest.fixture(scope="session")
def tokenizer():
    """A plain byte model: every text is one token a byte."""
    return train_tokenizer(["ab"], 267)


class MemoryCorpus:
    """What the evals package reads of an EncodedCorpus."""

    def __init__(self, documents, sequences, root=None):
        self.documents, self.sequences, self.root = documents, sequences, root
        self.num_documents = len(documents)
        self.kinds = sorted({document.kind for document in documents})
        self.kind = np.array([self.kinds.index(document.kind) for document in documents], np.int16)
        self.level = np.array([document.level for document in documents], np.int16)
        self.split = np.array([SPLITS.index(document.split) for document in documents], np.int8)
        self.num_tokens = np.array([len(sequence) for sequence in sequences], np.int64)

    def encoded_document(self, number):
        return self.sequences[number]

    def document(self, number):
        return self.documents[number]

    def path_of(self, part):
        return self.root / part.path


def make_document(tokenizer, number, kind, *, level=1, split="test", text=None, sound=False):
    """(document, sequence): "+" or "-" and a medium all 1 or all about 1/2, then text to be told from it."""
    high = number % 2 == 0
    name = f"{kind}-{level}-{number}"
    sign = Text("+" if high else "-", loss_mask=False)
    target = Text(text if text is not None else f"line {number}")
    pixel = 255 if high else 64
    audio = np.full((3, ENCODE.audio_dim), 1.0 if high else 0.5, np.float16)
    if kind == "text":
        parts, media = (target,), []
    elif kind == "screenshot":
        parts = (sign, Image(f"{name}.png"), target)
        media = [DecodedImage((1, 3), np.full((3, ENCODE.image_dim), pixel, np.uint8))]
    elif kind == "narration":
        parts, media = (sign, Audio(f"{name}.wav"), target), [DecodedAudio(audio)]
    else:
        parts = (sign, Video(f"{name}.mp4"), target)
        layout = VideoLayout((1, 2), (0.0,), 3 if sound else 0)
        patches = np.full((2, ENCODE.video_dim), pixel, np.uint8)
        media = [DecodedVideo(layout, patches, audio if sound else np.zeros((0, ENCODE.audio_dim), np.float16))]
    document = Document(id=name, parts=parts, kind=kind, level=level, split=split)
    return document, assemble(document, media, tokenizer, ENCODE)


@pytest.fixture
def make_corpus(tokenizer):
    """Factory: `make_corpus([(kind, how many, keywords of make_document), ...])`."""

    def build(cells, root=None):
        pairs = []
        for kind, count, more in cells:
            first = len(pairs)
            pairs += [make_document(tokenizer, first + number, kind, **more) for number in range(count)]
        return MemoryCorpus([document for document, _ in pairs], [sequence for _, sequence in pairs], root)

    return build


class KnownModel:
    """The stand-in of this file's opening."""

    def __init__(self, tokenizer):
        self.vocab = tokenizer.vocab_size
        self.head_weight = torch.eye(self.vocab)
        self.loss_backend = "auto"
        self.config = ModelConfig(vocab_size=self.vocab)
        self.plus = tokenizer.encode("+")[0]
        self.calls = 0

    def num_parameters(self):
        return 0

    def __call__(self, inputs):
        token_ids, document, media = inputs.token_ids, inputs.segment, inputs.media
        self.calls += 1
        rows, length = token_ids.shape
        first = torch.full((rows * length,), torch.nan)
        for name in ("image", "video", "audio"):
            if name in media:
                patches, media_index = media[name]
                first[media_index] = floats(patches[:, 0]).float()
        first = first.view(rows, length)
        hidden = torch.zeros(rows, length, self.vocab)
        for row in range(rows):
            for number in document[row].unique():
                if number < 0:
                    continue
                inside = document[row] == number
                seen = first[row][inside]
                # a video's frames come before its audio track
                condition = self._condition(seen[~seen.isnan()][:1], token_ids[row][inside][0] == self.plus)
                probability = PROBABILITY[condition]
                following = torch.roll(token_ids[row], -1)
                logits = torch.full((int(inside.sum()), self.vocab), np.log((1 - probability) / (self.vocab - 1)))
                logits.scatter_(1, following[inside][:, None], float(np.log(probability)))
                hidden[row][inside] = logits
        return hidden

    @staticmethod
    def _condition(seen, is_plus):
        if not len(seen) or not (seen == 1.0 or 0.4 < abs(seen) < 0.6):
            return "blank"
        return "matched" if bool(seen == 1.0) == bool(is_plus) else "mismatched"


@pytest.fixture
def known_model(tokenizer):
    """A model whose loss is known on paper."""
    return KnownModel(tokenizer)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of different tokenizers, documents, and what each measured on them, with what was printed."""
    base = tmp_path_factory.mktemp("evals")
    runs = [make_run(base / "one", seeds=(0, 1)), make_run(base / "two", seeds=(5,), vocab_size=270)]
    documents, printed = make_documents(base / "documents"), []
    before = os.umask(0o027)
    with pytest.MonkeyPatch.context() as patch:
        for run in runs:
            out = []
            patch.setattr("builtins.print", lambda *words, out=out, **_: out.append(" ".join(map(str, words))))
            code = measure([str(run), "--data", str(documents), "--out", str(base / f"{run.name}-on"), *ARGUMENTS])
            assert code == 0, out
            printed.append(out)
    os.umask(before)
    return base, printed
