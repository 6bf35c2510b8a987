"""Several sources as one: `open_sources` returns a `DocumentSource` like any other.

    media paths     NAME/path, each below its source's own root (`brine.data.files.roots`)
    source          NAME, or NAME:former where the document had one
    id              as it was; NAME/id where an earlier source has the id already
    split           by its source alone; `test` instead of `train` where consent does not allow training

A training document whose content, or whose id, another source holds out is quarantined with that reason. Documents
come in the order of the sources, each in its own order. Cost: one more reading of the texts (`held_out`).
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from brine.data.document import Document, Quarantined, Text
from brine.data.files.roots import MediaRoots
from brine.data.formats.corpus_source import CorpusSource
from brine.data.formats.held_out import HeldOutDocuments
from brine.data.formats.lines.lines import json_items
from brine.data.formats.open import FOLDER_FORMATS, open_source
from brine.data.formats.source import (
    NOTE_PREFIX,
    UNREAD_SPLIT,
    DocumentSource,
    ReadLimits,
    record_text_path,
    recording_text_paths,
)
from brine.data.formats.splits.rules import SplitWithOrigin


def open_sources(
    sources: Sequence[CorpusSource], *, synth: Path | None = None, max_file_mib: float = 256.0
) -> DocumentSource:
    """The documents of all sources. synth: manifest of the synthetic corpus, where one of them is that.

    Raises ValueError that names the source.
    """
    opened = [_open(source, synth, max_file_mib) for source in sources]
    roots = MediaRoots({source.name: found.root for source, found in zip(sources, opened, strict=True)})
    held_out: list[HeldOutDocuments] = []

    def read(include_decode: bool, skipped: Counter) -> Iterator[Document | Quarantined]:
        if not held_out:
            held_out.append(_find_held_out(sources, opened, max_file_mib))
        taken: set[str] = set()
        for number, (source, found) in enumerate(zip(sources, opened, strict=True)):
            own: set[str] = set()
            for item in _recording(source.name, found.documents(include_decode=include_decode)):
                if isinstance(item, Document):
                    own.add(item.id)
                    item = _joined_document(item, number, sources, held_out[0], taken)
                elif item.file:
                    item = dataclasses.replace(item, file=f"{source.name}/{item.file}")
                yield item
            taken |= own
            for reason, count in found.skipped.items():
                skipped[_of_source(reason, source.name)] += count

    def digest(media: bool) -> str:
        found = zip(sources, opened, strict=True)
        return joined_digest([(source.name, source.consent, each.digest(media)) for source, each in found])

    def count() -> int | None:
        counts = [found.count() for found in opened]
        return None if None in counts else sum(counts)

    described = tuple(
        {
            "name": source.name,
            "consent": source.consent,
            "path": str(found.path.resolve()),
            "format": found.format,
            "sha256": found.digest(False),
        }
        | ({"labelled_by": labelling_models(found.json_files)} if source.consent == "pseudo" else {})
        for source, found in zip(sources, opened, strict=True)
    )
    containers = tuple(
        f"{source.name}/{name}" for source, found in zip(sources, opened, strict=True) for name in found.containers
    )
    label = Path(" + ".join(source.name for source in sources))
    format = " + ".join(dict.fromkeys(found.format for found in opened))
    return DocumentSource(label, format, roots, read, digest, count, containers, described=described)


def labelling_models(files: Iterable[Path]) -> list[str]:
    """Sorted SHA-256 of the weights of the models whose words a pool has (`brine.salt.pseudo_pool`), from the field
    `pseudo.origin` of the lines of its JSON files, compressed ones too; [] for another source."""
    found = set()
    for file in files:
        for _, item in json_items(file, max_line_mib=ReadLimits().max_line_mib):
            said = item.get("pseudo") if isinstance(item, dict) else None
            if isinstance(said, dict) and isinstance(origin := said.get("origin"), str):
                found.add(origin)
    return sorted(found)


def joined_digest(parts: Sequence[tuple[str, str, str]]) -> str:
    """Hex SHA-256 of several sources by name, class of consent and digest of each, in order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open(source: CorpusSource, synth: Path | None, max_file_mib: float) -> DocumentSource:
    path = synth if source.path is None else source.path
    if path is None:
        raise ValueError(
            f"source {source.name}: the synthetic corpus was not made: give its manifest, {source.name}=PATH"
        )
    # a corpus's folder has a manifest of its documents, but not its media, filters and splits as they were
    if (path / "index").is_dir() and (path / "meta.json").is_file():
        raise ValueError(
            f"source {source.name}: {path} is a built corpus, which is trained on alone (corpus.manifest): give the "
            "documents that it was built from, or build one corpus of all sources (`brine data build FOLDER --sources`)"
        )
    try:
        return open_source(path, format=source.format, max_file_mib=max_file_mib)
    except ValueError as error:
        raise ValueError(f"source {source.name}: {error}") from None


def _find_held_out(
    sources: Sequence[CorpusSource], opened: Sequence[DocumentSource], max_file_mib: float
) -> HeldOutDocuments:
    by_path = frozenset(number for number, each in enumerate(opened) if set(each.format.split(" + ")) & FOLDER_FORMATS)
    found = HeldOutDocuments([each.root for each in opened], max_file_mib=max_file_mib, named_by_path=by_path)
    # of one source there is nothing to compare
    for number, (source, each) in enumerate(zip(sources, opened, strict=True) if len(opened) > 1 else ()):
        for item in each.documents():
            if isinstance(item, Document) and (item.split != "train" or not source.is_trained_on):
                found.add(number, item)
    return found


def _joined_document(
    document: Document, number: int, sources: Sequence[CorpusSource], held_out: HeldOutDocuments, taken: set[str]
) -> Document | Quarantined:
    source = sources[number]
    name = f"{source.name}/{document.id}" if document.id in taken else document.id
    split = document.split
    if split == "train" and not source.is_trained_on:
        split = SplitWithOrigin("test", f"consent ({source.consent})")
    elif split == "train" and (against := held_out.reason_against(number, document)):
        what, other = against
        return Quarantined(
            name, "", f"source {sources[other].name} holds out a document of the same {what}: not trained on"
        )
    parts = tuple(
        part if isinstance(part, Text) else dataclasses.replace(part, path=f"{source.name}/{part.path}")
        for part in document.parts
    )
    origin = f"{source.name}:{document.source}" if document.source else source.name
    return Document(name, parts, document.kind, document.level, split, origin)


def _recording(name: str, items: Iterator[Document | Quarantined]) -> Iterator[Document | Quarantined]:
    """The items, with the texts that they are made from recorded by their paths in the joined source."""
    while True:
        with recording_text_paths() as texts:
            item = next(items, None)
        for path in texts:
            record_text_path(f"{name}/{path}")
        if item is None:
            return
        yield item


def _of_source(reason: str, name: str) -> str:
    """A reason for skipped files, or a note, with the name of the source."""
    if reason.startswith(NOTE_PREFIX):
        return f"{NOTE_PREFIX}source {name}: {reason.removeprefix(NOTE_PREFIX)}"
    if reason.startswith(UNREAD_SPLIT):
        split, _, what = reason.partition(": ")
        return f"{split}: source {name}: {what}"
    return f"{reason} (source {name})"
