"""What one source of a corpus holds out must not be trained on from another: by equal content, and by id.

Held-out documents are known before the first document is given out: their ids and a hash of their texts, 16 bytes each.
Only where a training document of another source has the same texts and sorts of media are the media of both read, once
each, and compared by SHA-256; so a caption that is common costs a reading of its pictures, and nothing else does.
An id counts where both sources give their documents ids; those of a folder of files are paths, and two folders may well
have a `README.md` each. Nearly equal documents are left to `near_duplicates`, copies inside one source to
`exact_duplicates`.
"""

import hashlib
import json
from pathlib import Path

from brine.common.files import file_digest
from brine.data.document import Document, DocumentError, Text, media_paths, modality_of
from brine.data.files.archive import open_media


class HeldOutDocuments:
    """The held-out documents of all sources; `add` each, then ask `reason_against` for each training document."""

    def __init__(self, roots: list[Path], *, max_file_mib: float, named_by_path: frozenset[int] = frozenset()):
        """roots: folder of each source's media. named_by_path: numbers of the sources whose ids are paths."""
        self.roots, self.max_file_mib, self.named_by_path = roots, max_file_mib, named_by_path
        self._ids: dict[str, set[int]] = {}
        self._texts: dict[bytes, list[tuple[int, str, tuple[str, ...]]]] = {}
        self._media: dict[bytes, list[tuple[int, str, tuple[bytes, ...] | None]]] = {}

    def add(self, source: int, document: Document) -> None:
        """Note a held-out document of source number `source`, with the id and paths that it has there."""
        if source not in self.named_by_path:
            self._ids.setdefault(document.id, set()).add(source)
        self._texts.setdefault(_text_hash(document), []).append((source, document.id, tuple(media_paths(document))))

    def reason_against(self, source: int, document: Document) -> tuple[str, int] | None:
        """("id" or "content", number of the source that holds it out) where a training document of source number
        `source` is held out by another one; else None."""
        key = _text_hash(document)
        found = self._texts.get(key, ())
        if any(other != source for other, _, _ in found):
            if key not in self._media:
                self._media[key] = [(other, name, self._hashes(other, paths)) for other, name, paths in found]
            mine = self._hashes(source, tuple(media_paths(document)))
            for other, _, theirs in self._media[key]:
                if other != source and mine is not None and mine == theirs:
                    return "content", other
        others = set() if source in self.named_by_path else self._ids.get(document.id, set()) - {source}
        return ("id", min(others)) if others else None

    def _hashes(self, source: int, paths: tuple[str, ...]) -> tuple[bytes, ...] | None:
        """SHA-256 of each media file; None where one cannot be read, which will be quarantined."""
        try:
            found = []
            for path in paths:
                with open_media(self.roots[source], path, max_file_mib=self.max_file_mib) as file:
                    found.append(bytes.fromhex(file_digest(file)))
            return tuple(found)
        except (DocumentError, OSError):
            return None


def _text_hash(document: Document) -> bytes:
    parts = [part.text if isinstance(part, Text) else [modality_of(part)] for part in document.parts]
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:16]
