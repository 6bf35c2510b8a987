"""Which documents a run was trained on, token for token, by the corpus that is still beside it."""

from contextlib import closing
from pathlib import Path

import numpy as np

from brine.data.corpus.store import EncodedCorpus, is_corpus
from brine.data.document import SPLITS
from brine.evals.run_files import read_object


def seen_in_training(run: Path, corpus: EncodedCorpus, documents: np.ndarray) -> np.ndarray | None:
    """(n,) bool: documents that the run was trained on, token for token; None where its corpus is missing."""
    store = _training_corpus(run)
    if store is None:
        return None
    with closing(EncodedCorpus.open(store)) as trained:
        train = np.asarray(trained.split) == SPLITS.index("train")
        seen = _content_keys(trained)[train]
    return np.isin(_content_keys(corpus)[documents], seen)


def _content_keys(corpus: EncodedCorpus) -> np.ndarray:
    """(num_documents,) uint64: number of tokens and checksum of each document."""
    return (np.asarray(corpus.num_tokens).astype(np.uint64) << np.uint64(32)) | np.asarray(corpus.checksums).astype(
        np.uint64
    )


def _training_corpus(run: Path) -> Path | None:
    """The corpus that a run was trained on, built by it or given; None where it is missing or another has replaced it.

    run: also a stage of it, or a model folder.
    """
    # a stage may be a link into a store, beside which there is no corpus
    for folder in (run.absolute(), *run.absolute().parents[:2]):
        trained_digest = (read_object(folder / "stage.json").get("inputs") or {}).get("encoded")
        done = read_object(folder.parent / "encoded" / "done")
        if trained_digest and done and done.get("digest") != trained_digest:
            return None
        given = (read_object(folder / "recipe.json").get("corpus") or {}).get("manifest")
        for store in (folder / "encoded" / "store", *([Path(given)] if isinstance(given, str) else [])):
            if is_corpus(store):
                return store
    return None
