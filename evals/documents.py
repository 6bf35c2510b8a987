"""Documents to evaluate a finished run on, encoded with the run's tokenizer and encoder.

What `brine.data.formats` opens is encoded. A corpus built by `brine data build` is read as it is where its tokenizer
and encoder are the run's; otherwise its documents are encoded again, from its record of them and their media files.
Documents that its filter passes excluded are excluded here too. All others count as held out, whatever their splits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from brine.common.files import read_json
from brine.data.config import EncodeConfig
from brine.data.corpus.store import CorpusError, EncodedCorpus, build_corpus, is_corpus, open_corpus
from brine.data.document import SPLITS, Document
from brine.data.filters.filter_log import FilterLog
from brine.data.formats.open import open_source
from brine.data.formats.source import DocumentSource
from brine.data.tokenizer import Tokenizer
from brine.evals.run_files import read_jsonl, write_page

NOTES_FILE = "told.json"
"""Beside the encoded documents: the notes of their reader."""
MAX_REASONS_SHOWN = 3
"""Documents whose reason is shown in full."""


@contextmanager
def open_eval_corpus(
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
    """The corpus to evaluate on, its usable documents all in `split`, and the notes of its reader.

    What must be encoded is, in `folder`. Raises ValueError for what cannot be read or used.
    """
    with closing(open_corpus(path)) if is_corpus(path) else nullcontext() as built:
        kept = None
        if built is not None:
            filter_log = FilterLog.open(built)
            kept = filter_log.kept_mask()
            if not kept.any():
                raise ValueError(f"{path}: its filters excluded every document: undo one, or give others")
        if built is not None and built.config == config and built.tokenizer.to_str() == tokenizer.to_str():
            yield _in_split(built, split, kept), []
            return
        source = (
            open_source(path, format=format, max_file_mib=config.max_file_mib)
            if built is None
            else _reencoded_source(built, filter_log)
        )
        try:
            corpus = build_corpus(
                source, folder, tokenizer=tokenizer, config=config, num_workers=workers, progress=not quiet
            )
        except CorpusError as error:
            raise ValueError(_none_usable(path, folder, source) or str(error)) from None
        with closing(corpus):
            yield _in_split(corpus, split), _reader_notes(source, folder.with_name(NOTES_FILE))


def _in_split(corpus: EncodedCorpus, split: str, kept: np.ndarray | None = None) -> EncodedCorpus:
    """The corpus with every kept document in one split, and the others in train."""
    inside = np.ones(len(corpus), bool) if kept is None else kept
    corpus.split = np.where(inside, SPLITS.index(split), SPLITS.index("train")).astype(np.int8)
    return corpus


def quarantine_reasons(rejects: list[dict]) -> list[str]:
    """Why documents were quarantined, a line for each of the first and one for the others."""
    shown, others = rejects[:MAX_REASONS_SHOWN], rejects[MAX_REASONS_SHOWN:]
    lines = [_quarantine_reason(reject) for reject in shown]
    if others:
        reason, count = Counter(str(reject["reason"])[:120] for reject in others).most_common(1)[0]
        lines.append(f"{len(others):,} more, such as {count:,} for: {reason}")
    return lines


def _quarantine_reason(reject: dict) -> str:
    location = ":".join(str(reject[name]) for name in ("file", "line") if reject.get(name) not in (None, ""))
    return f"{str(reject['id'])[:80]}{f' ({location})' if location else ''}: {str(reject['reason'])[:300]}"


def _none_usable(path: Path, folder: Path, source: DocumentSource) -> str:
    """The error where no document is usable; "" for other errors. The folder may be temporary."""
    if not (folder / "quarantine.jsonl").is_file():
        return ""
    rejects = read_jsonl(folder / "quarantine.jsonl")
    if not rejects:
        return "; ".join([f"{path} holds no document", *source.summary_lines()])
    return f"no document of {path} can be used: " + "; ".join(quarantine_reasons(rejects))


def _reader_notes(source: DocumentSource, path: Path) -> list[str]:
    """The notes of a source's reader. A finished build is not read again, so its notes are kept."""
    if lines := source.summary_lines():
        write_page(path, json.dumps(lines, ensure_ascii=False) + "\n")
        return lines
    found = read_json(path)
    return [str(line) for line in found] if isinstance(found, list) else []


def _reencoded_source(built: EncodedCorpus, filter_log: FilterLog) -> DocumentSource:
    """The documents of a corpus as a source, to be encoded again."""
    if not built.root.is_dir():
        raise ValueError(
            f"{built.folder} was encoded by another tokenizer or encoder than this run's, and {built.root}, where its "
            "documents came from, is gone: restore it, or give the documents themselves"
        )

    def read(include_decode: bool, skipped: Counter) -> Iterator[Document]:
        for number in np.flatnonzero(filter_log.kept_mask()):
            yield built.document(int(number))

    return DocumentSource(built.folder, "manifest", built.root, read, digest=lambda media: filter_log.digest)
