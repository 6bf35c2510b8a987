"""Documents to measure a finished run on, as tokens and patches of the run's own making.

What `data.formats.open_source` opens is encoded. A corpus that `python -m data build` wrote is read as it lies where
its tokenizer and encoder are the run's; where they are others, its documents are encoded anew, from its own record of
them and the media that they name. Documents that its filter rounds left out are left out here too.

All documents count as held out, whatever splits they name, since a training that never saw them held out all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.config import EncodeConfig
from data.document import SPLITS, Document
from data.filters.rounds import Rounds
from data.formats import open_source
from data.formats.source import Source
from data.store import EncodedCorpus, build_corpus, is_corpus, open_corpus
from data.tokenizer import Tokenizer


@contextmanager
def documents_at(
    path: Path, folder: Path, *, tokenizer: Tokenizer, config: EncodeConfig, split: str, workers: int, quiet: bool
) -> Iterator[EncodedCorpus]:
    """The corpus to measure on, all of it in `split` but for what filter rounds left out; what must be encoded is, in
    `folder`. Raises ValueError for what cannot be read or used."""
    built = open_corpus(path) if is_corpus(path) else None
    corpus, kept = built, None
    try:
        if built is not None:
            rounds = Rounds.open(built)
            kept = rounds.kept()
            if not kept.any():
                raise ValueError(f"{path}: its filter rounds left out every document: undo one, or give others")
        if built is None or built.config != config or built.tokenizer.to_str() != tokenizer.to_str():
            source = open_source(path, max_file_mib=config.max_file_mib) if built is None else _again(built, rounds)
            corpus = build_corpus(
                source, folder, tokenizer=tokenizer, config=config, num_workers=workers, progress=not quiet
            )
            kept = None
        elsewhere = SPLITS.index("train")
        corpus.split = np.full(len(corpus), SPLITS.index(split), np.int8)
        if kept is not None:
            corpus.split[~kept] = elsewhere
        yield corpus
    finally:
        for each in (built, corpus):
            if each is not None:
                each.close()


def _again(built: EncodedCorpus, rounds: Rounds) -> Source:
    """The documents of a corpus as a source, to be encoded otherwise."""
    if not built.root.is_dir():
        raise ValueError(
            f"{built.folder} was encoded by another tokenizer or encoder than this run's, and {built.root}, where its "
            "documents came from, is gone: put it back, or give the documents themselves"
        )

    def read(include_decode: bool, skipped: Counter) -> Iterator[Document]:
        for number in np.flatnonzero(rounds.kept()):
            yield built.document(int(number))

    return Source(built.folder, "manifest", built.root, read, digest=lambda media: rounds.digest)
