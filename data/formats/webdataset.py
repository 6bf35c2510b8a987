"""WebDataset shards: tars whose members of one name are one sample, read in place.

    shard-0001.tar:  a/heron.jpg  a/heron.txt  a/heron.json  a/wren.jpg  a/wren.cls

A member's name up to its first dot (behind the last slash) is its sample. Words come from `.txt`, then `.caption`,
then a `.json` with `text` or `caption`, then `.cls`; pictures, sounds and films go by their endings, and any other
member is passed over and counted. A `.json` that holds a whole document (`content`, `messages`, `conversations`,
`texts`) is read as such, its paths being members of the same tar. A sample of words alone is a text.

Nothing is unpacked: media are addressed `shard-0001.tar::a/heron.jpg` and read when they are decoded
(`data.archive`). Members need not lie together. A shard that was cut gives the samples before the cut, and one
record that says so. The split is that of the shard's name or folder (`train-0001.tar`), where it has one.
"""

import dataclasses
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.archive import TarIndex, resolve_container, tar_index
from data.document import Document, DocumentError, Quarantined, Text
from data.endings import medium_of
from data.formats.captioned import words_of
from data.formats.lines import parse_object
from data.formats.manifest import form_of, object_document, splits_of_paths
from data.formats.media_folder import paired
from data.formats.source import Limits
from data.formats.splits import UNASSIGNED
from data.text import decode_text

_WORDS = ("txt", "caption", "json", "cls")
_WHOLE = ("content-parts", "chat", "llava", "obelics")


def webdataset_documents(
    root: Path, shards: list[str], limits: Limits, skipped: Counter
) -> Iterator[Document | Quarantined]:
    """A document for each sample of the shards (paths relative to `root`, resolved), shard by shard."""
    splits = splits_of_paths(shards)
    for shard in shards:
        try:
            file = resolve_container(root, shard)
            index = tar_index(file)
        except (DocumentError, OSError) as error:
            yield Quarantined(shard, shard, str(error))
            continue
        prefix = "" if len(shards) == 1 else f"{shard[:-4]}/"
        yield from _shard(file, shard, index, limits, skipped, prefix=prefix, split=splits[shard])
        for name, reason in index.refused.items():
            name = name.encode("utf-8", "replace").decode()
            yield Quarantined(f"{shard}::{name}"[:900], shard, f"member {name[:200]!r} of {shard!r} {reason}")
        if index.cut:
            yield Quarantined(shard, shard, f"tar {shard!r} {index.cut}; {len(index.members)} members before that")


def _shard(
    file: Path, shard: str, index: TarIndex, limits: Limits, skipped: Counter, *, prefix: str, split: str
) -> Iterator[Document | Quarantined]:
    samples: dict[str, list[str]] = {}
    for name in index.members:
        samples.setdefault(_sample_of(name), []).append(name)
    # what is missing from a sample must not turn its caption into a text of its own
    broken = {_sample_of(name) for name in index.refused}
    with open(file, "rb") as stream:
        for sample, names in samples.items():
            try:
                if sample in broken:
                    raise DocumentError(f"a member of sample {sample[:200]!r} cannot be read")
                tar = _Shard(shard, index, stream, limits)
                document = _document(tar, f"{prefix}{sample}", names, skipped)
            except DocumentError as error:
                yield Quarantined(f"{prefix}{sample}", f"{shard}::{names[0]}", f"{shard!r}: {error}")
                continue
            if document is not None:
                open_split = document.split == UNASSIGNED
                yield dataclasses.replace(document, split=split) if open_split else document


@dataclasses.dataclass(frozen=True)
class _Shard:
    name: str
    index: TarIndex
    stream: BinaryIO
    limits: Limits

    def text(self, member: str) -> str:
        offset, size = self.index.members[member]
        if size > self.limits.max_line_mib * 2**20:
            raise DocumentError(f"member {member!r} is longer than max_line_mib={self.limits.max_line_mib:g}")
        self.stream.seek(offset)
        return decode_text(self.stream.read(size), f"member {member!r}")

    def address(self, member: str) -> str:
        return f"{self.name}::{member}"


def _sample_of(name: str) -> str:
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".", 1)[0])


def _document(tar: _Shard, name: str, members: list[str], skipped: Counter) -> Document | None:
    media = [tar.address(member) for member in members if medium_of(member)]
    words = {}
    for member in members:
        ending = member.rsplit(".", 1)[-1].lower()
        if ending in _WORDS and not medium_of(member):
            words.setdefault(ending, member)
        elif not medium_of(member):
            skipped[f"member .{ending[:20]}"] += 1
    fields = parse_object(tar.text(words["json"]).encode()) if "json" in words else {}
    if form_of(fields) in _WHOLE:
        return _whole(tar, fields, name, skipped)
    text = ""
    for ending in _WORDS:
        if ending in words and not text.strip():
            text = words_of(fields) if ending == "json" else tar.text(words[ending])
    if not words and not media:
        return None
    if not text.strip():
        raise DocumentError(f"sample {name!r} has no words: none in .{', .'.join(_WORDS)}")
    source = os.path.basename(os.path.dirname(tar.name)) or tar.name.removesuffix(".tar")
    if not media:
        return Document(id=name, parts=(Text(text),), kind="text", split=UNASSIGNED, source=source)
    return paired(name, media, text, source=source)


def _whole(tar: _Shard, fields: dict, name: str, notes: Counter) -> Document:
    """A document written out in a sample's JSON, with its media taken from the tar."""
    given = {"id": name} | fields
    document = object_document(given, root=Path(), name=name, max_file_mib=tar.limits.max_file_mib, notes=notes)
    folder = posixpath.dirname(_sample_of(name))
    parts = []
    for part in document.parts:
        if not isinstance(part, Text):
            member = posixpath.normpath(part.path)
            beside = posixpath.normpath(posixpath.join(folder, part.path))
            part = dataclasses.replace(part, path=tar.address(beside if beside in tar.index.members else member))
        parts.append(part)
    split = document.split if "split" in fields else UNASSIGNED
    return dataclasses.replace(document, parts=tuple(parts), split=split)
