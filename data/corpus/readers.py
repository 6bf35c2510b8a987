"""JSON manifests in, documents out; what cannot be used comes out too, as `Quarantined` with the reason.

`read_manifest` is the short way to one JSONL file or JSON array; `brine.data.formats.open.open_source` opens any
format. Nothing is decoded and no media file is opened.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from brine.data.document import Document, Quarantined, Text
from brine.data.formats.open import open_source


def read_manifest(
    path: str | Path, *, max_line_mib: float = 16.0, max_file_mib: float = 256.0
) -> Iterator[Document | Quarantined]:
    """Documents of a manifest in file order, `Quarantined` for lines that give none; split "decode" is skipped."""
    path = Path(path)
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise ValueError(f"manifest {path} {what}: give a JSONL file with one document a line")
    yield from open_source(path, format="manifest", max_line_mib=max_line_mib, max_file_mib=max_file_mib).documents()


def iter_texts(documents: Iterable[Document | Quarantined], *, split: str = "train") -> Iterator[str]:
    """The text parts of one split, for training a tokenizer on nothing else."""
    for document in documents:
        if isinstance(document, Document) and document.split == split:
            yield from (part.text for part in document.parts if isinstance(part, Text))
