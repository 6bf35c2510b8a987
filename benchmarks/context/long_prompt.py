"""Prompts of a given length from the synthetic corpus: text, images, audio and video in turn, as one document on disk.

A few hundred documents are rendered and encoded once (code, pages, screenshots, narration, recordings); a prompt joins
them in shuffled order, repeatedly where it is longer than they are, as one document of many parts: positions continue,
blocks are numbered through, and there is no end token. What attention costs does not depend on what is
repeated. Token fields and patches are raw files that are mapped, not read: a million tokens have more bytes of patches
than of keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brine.common.files import read_json, write_json
from brine.data.config import EncodeConfig
from brine.data.corpus.readers import iter_texts
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.document import MODALITIES
from brine.data.formats.open import open_source
from brine.data.sequence import FIELDS, MODALITY_CONTEXTS, EncodedDocument
from brine.data.tokenizer import EOS_ID, MEDIA_START_ID, Tokenizer, train_tokenizer
from brine.synth import SynthConfig, SynthCounts, build_synth_corpus

COUNTS = SynthCounts(
    text=40, screenshot=(0, 20, 60, 60), narration=(10, 10, 30, 60), recording=(0, 10, 30, 30), page=(10, 10, 20, 40)
)
QUICK_COUNTS = SynthCounts(text=4, screenshot=(2, 2, 0, 0), narration=(2, 0, 0, 0), recording=(2, 0, 0, 0))
VOCAB_SIZE = 384
SEED = 17


def make_material(
    folder: Path, *, quick: bool, tokenizer: Tokenizer | None = None, config: EncodeConfig | None = None
) -> EncodedCorpus:
    """The encoded documents that prompts are made of, built once. tokenizer, config: those of a trained model."""
    config = config or EncodeConfig(max_image_tokens=384, max_video_tokens=384)
    synth = SynthConfig(
        train=QUICK_COUNTS if quick else COUNTS,
        validation=SynthCounts(),
        test=SynthCounts(),
        max_files=60 if quick else 600,
    )
    if not (folder / "corpus" / "summary.json").is_file():
        build_synth_corpus(synth, folder / "corpus", progress=not quick)
    source = open_source(folder / "corpus" / "manifest.jsonl", max_file_mib=config.max_file_mib)
    tokenizer = tokenizer or train_tokenizer(iter_texts(source.documents()), VOCAB_SIZE)
    return build_corpus(source, folder / "encoded", tokenizer=tokenizer, config=config, progress=not quick)


def shuffled(corpus: EncodedCorpus) -> Iterator[EncodedDocument]:
    """The documents without their end token, for ever, each time round in another order."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    while True:
        for number in generator.permutation(len(corpus)):
            sequence = corpus.encoded_document(int(number))
            yield sequence.slice(0, len(sequence) - int(sequence.token_ids[-1] == EOS_ID))


def joined(corpus: EncodedCorpus, num_tokens: int) -> Iterator[EncodedDocument]:
    """Parts of one document of exactly `num_tokens` tokens, placed one after another."""
    position_offset, blocks, left = 0.0, 0, num_tokens
    for sequence in shuffled(corpus):
        if len(sequence) > left:
            # cut between media blocks, or take another document where that leaves nothing
            split_points = sequence.split_points()
            sequence = sequence.slice(0, int(split_points[split_points <= left][-1]))
        if not len(sequence):
            continue
        position = sequence.position + np.float32(position_offset)
        block = np.where(sequence.block > 0, sequence.block + blocks, 0).astype(np.int32)
        position_offset, blocks = float(np.ceil(position.max())) + 1.0, max(blocks, int(block.max()))
        left -= len(sequence)
        yield dataclasses.replace(sequence, position=position, block=block)
        if not left:
            return


def write_prompt(corpus: EncodedCorpus, num_tokens: int, folder: Path) -> EncodedDocument:
    """Make the prompt in `folder`, unless it is there, and open it."""
    if not (folder / "prompt.json").is_file():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shapes: dict[str, list[int]] = {}
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(partial / name, "wb")) for name in FIELDS}
            for sequence in joined(corpus, num_tokens):
                for name, file in files.items():
                    array = np.ascontiguousarray(getattr(sequence, name))
                    array.tofile(file)
                    shape = shapes.setdefault(name, [0, *array.shape[1:]])
                    shape[0] += len(array)
        write_json(partial / "prompt.json", {"shapes": shapes})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return open_prompt(folder)


def open_prompt(folder: Path) -> EncodedDocument:
    """A prompt that was written: arrays that are mapped, not read."""
    fields = {}
    for name, shape in read_json(folder / "prompt.json")["shapes"].items():
        empty = not np.prod(shape)
        # an empty file cannot be mapped
        fields[name] = (
            np.zeros(shape, FIELDS[name])
            if empty
            else np.memmap(folder / name, dtype=FIELDS[name], mode="r", shape=tuple(shape))
        )
    return EncodedDocument(**fields).validate()


def mixture(prompt: EncodedDocument) -> dict[str, int]:
    """What a prompt is made of: tokens of each modality, text being the rest; "media" are those opened."""
    counts = {name: len(getattr(prompt, name)) for name in MODALITIES}
    media = {
        name: int(np.count_nonzero(prompt.token_ids == MEDIA_START_ID[name]))
        for name in MODALITY_CONTEXTS
        if name in MEDIA_START_ID
    }
    return {"text": len(prompt) - sum(counts.values()), **counts, "media": media}
