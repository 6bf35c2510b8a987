"""The documents that a suite may choose from: held-out ones of sources, known by content, each content once.

Every media file is read once for its hash. A document of which a file cannot be read, without a target, or longer than
the bounds is counted with its reason; one content in several cells belongs to the first of them by kind and level, so
that the order of documents and sources does not matter.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from brine.common.files import file_digest
from brine.common.formatting import progress_bar
from brine.data.corpus.store import is_corpus, open_corpus
from brine.data.document import Document, DocumentError, Part, Quarantined, Text
from brine.data.files.addresses import split_address
from brine.data.files.archive import open_media
from brine.data.files.extensions import SUPPORTED, extension_of
from brine.data.filters.filter_log import FilterLog
from brine.data.formats.open import open_source
from brine.evals.suites.case import SuiteCase, content_id, part_of_id


@dataclass(frozen=True)
class CaseSource:
    """Where documents come from. name: its last part alone, since paths are no part of a suite; root: of its media."""

    name: str
    format: str
    fingerprint: str
    root: Path
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Candidate:
    """A document that may become a case. case: what it would be, media by hash; document, source: as it stands."""

    case: SuiteCase
    document: Document
    source: CaseSource


@dataclass
class CandidateCases:
    """All that was found. by_id: content id -> candidate; skipped: reason -> documents; duplicates: contents that came
    again."""

    by_id: dict[str, Candidate] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0


def open_case_source(path: Path, *, splits: Sequence[str], max_file_mib: float, format: str | None) -> CaseSource:
    """The documents of these splits at a path: of any format, a built corpus, or a run, whose corpus is taken.

    Raises ValueError for a path without documents of these splits."""
    stored = path / "encoded" / "store"
    if (corpus_path := stored if is_corpus(stored) else path) and is_corpus(corpus_path):
        with closing(open_corpus(corpus_path)) as corpus:
            kept = np.flatnonzero(FilterLog.open(corpus).kept_mask())
            documents = [corpus.document(int(number)) for number in kept]
            source = CaseSource(
                path.name, "corpus", corpus.meta["identity"]["manifest_sha256"], corpus.root, tuple(documents)
            )
    else:
        opened = open_source(path, format=format, max_file_mib=max_file_mib)
        documents = [item for item in opened.documents() if not isinstance(item, Quarantined)]
        source = CaseSource(
            path.resolve().name, opened.format, opened.fingerprint(media=False), opened.root, tuple(documents)
        )
    chosen = tuple(document for document in source.documents if document.split in splits)
    if not chosen:
        raise ValueError(
            f"{path} has no document of the split {' or '.join(splits)} among {len(documents):,}: give --all-splits, "
            "or a source with held-out documents"
        )
    return replace(source, documents=chosen)


def find_candidates(sources: Sequence[CaseSource], *, max_media_mib: float, max_text_bytes: int) -> CandidateCases:
    """The candidates among the documents of some sources. max_text_bytes: UTF-8 bytes of a case's text."""
    found = CandidateCases()
    total = sum(len(source.documents) for source in sources)
    with progress_bar(total=total, desc="hashes of documents", unit=" docs", leave=False) as bar:
        for source in sources:
            hashed: dict[str, str] = {}
            for document in source.documents:
                bar.update(1)
                problem = _problem(document, max_text_bytes)
                try:
                    parts = () if problem else _content(document, source, hashed, max_media_mib)
                except (DocumentError, OSError) as error:
                    problem = "media that cannot be read" + (" or are too large" if "MiB" in str(error) else "")
                if problem:
                    found.skipped[problem] += 1
                else:
                    _add(found, Candidate(_case(document, parts), document, source))
    return found


def _problem(document: Document, max_text_bytes: int) -> str:
    texts = [part for part in document.parts if isinstance(part, Text)]
    if not any(part.loss_mask and part.text for part in texts):
        return "no target text"
    over = sum(len(part.text.encode()) for part in texts) > max_text_bytes
    return f"over {max_text_bytes:,} bytes of text" if over else ""


def _content(document: Document, source: CaseSource, hashed: dict[str, str], max_media_mib: float) -> tuple[Part, ...]:
    """The parts with media named by hash, and without roles."""
    parts: list[Part] = []
    for part in document.parts:
        if isinstance(part, Text):
            parts.append(replace(part, role=None))
            continue
        if part.path not in hashed:
            with open_media(source.root, part.path, max_file_mib=max_media_mib) as file:
                hashed[part.path] = f"media/{file_digest(file)}{extension(part.path)}"
        parts.append(replace(part, path=hashed[part.path], role=None))
    return tuple(parts)


def extension(path: str) -> str:
    """The extension of a media file with its dot, in lower case; "" for one that is not known."""
    name = extension_of((split_address(path) or (path, path))[1])
    return f".{name}" if name in SUPPORTED else ""


def _case(document: Document, parts: tuple[Part, ...]) -> SuiteCase:
    name = content_id(parts)
    return SuiteCase(name, part_of_id(name), document.kind, document.level, parts)


def _add(found: CandidateCases, new: Candidate) -> None:
    before = found.by_id.get(new.case.id)
    if before is not None:
        found.duplicates += 1
        # of one content under two names of a media file the smaller is kept too
        if _order(before) <= _order(new):
            return
    found.by_id[new.case.id] = new


def _order(candidate: Candidate) -> tuple[str, int, list[str]]:
    case = candidate.case
    return case.kind, case.level, [getattr(part, "path", "") for part in case.parts]


def iter_cells(found: CandidateCases) -> Iterator[tuple[tuple[str, int, str], list[Candidate]]]:
    """((kind, level, part), candidates) of every cell and part that has any, in order."""
    cells: dict[tuple[str, int, str], list[Candidate]] = {}
    for candidate in found.by_id.values():
        case = candidate.case
        cells.setdefault((case.kind, case.level, case.part), []).append(candidate)
    yield from sorted(cells.items(), key=lambda item: item[0])
