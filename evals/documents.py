"""Documents to measure a finished run on, as tokens and patches of the run's own making.

What `data.formats.open_source` opens is encoded. A corpus that `python -m data build` wrote is read as it lies where
its tokenizer and encoder are the run's; where they are others, its documents are encoded anew, from its own record of
them and the media that they name. Documents that its filter rounds left out are left out here too.

What was passed over, and why documents were set aside, is told as `data check` tells it.

All documents count as held out, whatever splits they name, since a training that never saw them held out all.
"""

from __future__ import annotations

import json
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
from data.store import CorpusError, EncodedCorpus, build_corpus, is_corpus, open_corpus
from data.tokenizer import Tokenizer
from evals.summary import read_json, write_whole

TOLD = "told.json"
"""Beside the encoded documents: what their reading had to tell."""
MOST_TOLD = 3
"""Documents whose reason is told in full."""


@contextmanager
def documents_at(
    path: Path,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    split: str,
    workers: int,
    quiet: bool,
    format: str | None = None,
) -> Iterator[tuple[EncodedCorpus, list[str]]]:
    """The corpus to measure on, all of it in `split` but for what filter rounds left out, and what its reading had to
    tell, a line each; what must be encoded is, in `folder`. Raises ValueError for what cannot be read or used."""
    built = open_corpus(path) if is_corpus(path) else None
    corpus, kept, told = built, None, []
    try:
        if built is not None:
            rounds = Rounds.open(built)
            kept = rounds.kept()
            if not kept.any():
                raise ValueError(f"{path}: its filter rounds left out every document: undo one, or give others")
        if built is None or built.config != config or built.tokenizer.to_str() != tokenizer.to_str():
            source = (
                open_source(path, format=format, max_file_mib=config.max_file_mib)
                if built is None
                else _again(built, rounds)
            )
            try:
                corpus = build_corpus(
                    source, folder, tokenizer=tokenizer, config=config, num_workers=workers, progress=not quiet
                )
            except CorpusError as error:
                raise ValueError(_none_usable(path, folder, source) or str(error)) from None
            kept, told = None, _told(source, folder.with_name(TOLD))
        elsewhere = SPLITS.index("train")
        corpus.split = np.full(len(corpus), SPLITS.index(split), np.int8)
        if kept is not None:
            corpus.split[~kept] = elsewhere
        yield corpus, told
    finally:
        for each in (built, corpus):
            if each is not None:
                each.close()


def reasons(rejects: list[dict]) -> list[str]:
    """Why documents were set aside, a line for each of the first ones and one for the others."""
    lines = [_reason(each) for each in rejects[:MOST_TOLD]]
    if left := len(rejects) - len(lines):
        common = Counter(str(each["reason"])[:120] for each in rejects[MOST_TOLD:]).most_common(1)[0]
        lines.append(f"{left:,} more, such as {common[1]:,} for: {common[0]}")
    return lines


def _reason(reject: dict) -> str:
    place = ":".join(str(reject[name]) for name in ("file", "line") if reject.get(name) not in (None, ""))
    return f"{str(reject['id'])[:80]}{f' ({place})' if place else ''}: {str(reject['reason'])[:300]}"


def _none_usable(path: Path, folder: Path, source: Source) -> str:
    """What is said where no document is left; "" where something else went wrong. The folder may be gone afterwards."""
    try:
        lines = (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    if not lines:
        return "; ".join([f"{path} holds no document", *source.told()])
    return f"no document of {path} can be used: " + "; ".join(reasons([json.loads(line) for line in lines]))


def _told(source: Source, path: Path) -> list[str]:
    """What the reading of a source had to tell. A build that was done before reads nothing; what it told is kept."""
    if lines := source.told():
        write_whole(path, json.dumps(lines, ensure_ascii=False) + "\n")
        return lines
    found = read_json(path)
    return [str(line) for line in found] if isinstance(found, list) else []


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
