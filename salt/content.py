"""Documents known by their content, and media that travel with a manifest.

The digest of a document is the SHA-256 of its parts, media by the SHA-256 of their bytes: ids, paths and kinds do not
enter, so that a document keeps its digest in every round, folder and manifest. `adopt` links a document's media into
another folder under their digests (a copy where links are not possible), since a manifest names only files below it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Set
from pathlib import Path

from brine.common.files import copy_whole, file_digest, link_or_copy
from brine.data.document import Document, DocumentError, Part, Text, part_to_json
from brine.data.files.archive import open_media
from brine.data.files.extensions import extension_of

MAX_FILE_MIB = 256.0
"""Largest media file, as for manifests."""


class ContentHasher:
    """Digests of documents of one folder; each media file is read once."""

    def __init__(self, root: str | Path, *, max_file_mib: float = MAX_FILE_MIB):
        """root: the folder that media paths are relative to."""
        self.root, self.max_file_mib = Path(root).resolve(), max_file_mib
        self.media: dict[str, str] = {}

    def media_digest(self, path: str) -> str:
        """SHA-256 of a media file, also inside a tar or table. DocumentError where it cannot be read."""
        if path not in self.media:
            try:
                with open_media(self.root, path, max_file_mib=self.max_file_mib) as file:
                    self.media[path] = file_digest(file)
            except PermissionError as error:
                raise DocumentError(f"file {path!r} may not be read ({error.strerror})") from None
        return self.media[path]

    def content(self, document: Document) -> str:
        """SHA-256 of all parts, 64 hexadecimal digits."""
        return self._digest(document.parts)

    def prompt(self, document: Document) -> str:
        """The same of what is not a target: equal for documents that differ in their answers alone."""
        return self._digest(tuple(part for part in document.parts if not isinstance(part, Text) or not part.loss_mask))

    def identities(self, document: Document) -> frozenset[str]:
        """The digests that a held-out document may share with this one: whole, prompt, and each media file."""
        media = {self.media_digest(part.path) for part in document.parts if not isinstance(part, Text)}
        asked = {self.prompt(document)} if any(not _is_target(part) for part in document.parts) else set()
        return frozenset({self.content(document), *asked, *media})

    def is_held_out(self, document: Document, held_out: Set[str]) -> bool:
        """Whether a document shares its content, its prompt or a media file with what `held_out` names."""
        return bool(held_out) and not self.identities(document).isdisjoint(held_out)

    def _digest(self, parts: tuple[Part, ...]) -> str:
        plain = [self._plain(part) for part in parts]
        return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def _plain(self, part: Part) -> dict:
        fields = {name: value for name, value in part_to_json(part).items() if name != "role"}
        return fields if isinstance(part, Text) else fields | {fields["type"]: self.media_digest(part.path)}

    def adopt(self, document: Document, folder: Path, *, link: bool = True) -> Document:
        """The document with its media below `folder`, as media/AB/DIGEST.EXTENSION. link: as hard links where possible,
        for files that nobody edits; else as copies."""
        place = link_or_copy if link else copy_whole
        return dataclasses.replace(
            document, parts=tuple(self._adopted(part, Path(folder), place) for part in document.parts)
        )

    def _adopted(self, part: Part, folder: Path, place: Callable[[Path, Path], None]) -> Part:
        if isinstance(part, Text):
            return part
        name = self.media_digest(part.path)
        path = f"media/{name[:2]}/{name}.{extension_of(part.path)}"
        target = folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_media(self.root, part.path, max_file_mib=self.max_file_mib) as file:
                place(file, target)
        return dataclasses.replace(part, path=path)


def hash_order(digest: str, purpose: str) -> str:
    """What to sort by for a choice that depends on content alone, and not on choices made for another purpose."""
    return hashlib.sha256(f"{purpose}/{digest}".encode()).hexdigest()


def hash_fraction(digest: str, purpose: str) -> float:
    """The same as a number in [0, 1)."""
    return int(hash_order(digest, purpose)[:13], 16) / 16**13


def _is_target(part: Part) -> bool:
    return isinstance(part, Text) and part.loss_mask
