"""WebDataset shards: tars whose members of one name are one sample, read in place.

    shard-0001.tar:  a/heron.jpg  a/heron.txt  a/heron.json  a/wren.jpg  a/wren.cls

Which sample a member belongs to is told by its name (`samples_of`): up to its first dot behind the last slash, as the
webdataset library has it, so that `a.left.jpg`, `a.right.jpg` and `a.txt` are one; but a medium and words that share
the whole name before their last ending are a sample of their own, so that `22.05.png` and `22.05.txt` stay apart from
`22.06.png` and `22.06.txt`. Endings may be upper-case, folders may have dots. Of two members of one name the first is
read and the other set aside. Hidden members (`._a.png`) are passed over.

Words come from `.txt`, then `.caption`, then a `.json` with `text` or `caption`, then `.cls`; images, sounds and films
go by their endings, and any other member is passed over and counted; but words whose only company is of a kind that
nobody reads (`a.npy`, `a.image`) are set aside, since they are about that. What a `.json` says is read as in a line
of a manifest (`data.formats.samples`): split, marks, media by name, a whole document (`content`, `messages`,
`conversations`, `texts`); its paths are members of the same tar. A sample of words alone is a text.

Nothing is unpacked: media are addressed `shard-0001.tar::a/heron.jpg` and read when they are decoded
(`data.archive`). Members need not lie together. A shard that was cut gives the samples before the cut, and one
record that says so. The split is that of the shard's name or folder (`train-0001.tar`), else that of the sample's
folder inside the tar, where there is one.
"""

import dataclasses
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.archive import AGAIN, TarIndex, resolve_container, tar_index
from data.compressed import nested_kind
from data.document import Document, DocumentError, Image, Quarantined, Text, untagged
from data.endings import FILM_OR_CODE, ending_of, medium_by, medium_of, remedy_for
from data.formats.captioned import words_of
from data.formats.fields import asked_in_pairs
from data.formats.media_folder import numbers_in, pass_over
from data.formats.samples import captioned_sample, is_whole, named_in, note_text_beside, object_beside, whole_sample
from data.formats.source import Limits
from data.formats.splits import HELD_OUT, UNASSIGNED, NamedSplits, SplitFrom, splits_of_paths
from data.pointers import pointer_of
from data.text import decode_text
from data.workbench.source import LANGUAGES

_WORDS = ("txt", "caption", "json", "cls")
_MANY = ("jsonl", "ndjson", "jsonlines", "parquet", "arrow", "csv", "tsv")
_MANY_OBJECTS = re.compile(r"\s*(\[|\{[^\n]*\}[ \t\r]*\n\s*\{)")
_EXTRACT = "extract it (`tar -xf FILE`) and give the folder"
_ASIDE = {
    *("", "id", "idx", "index", "key", "meta", "metadata", "info", "src", "url", "lang", "hash", "sha256", "license"),
    *("md", "rst", "html", "htm", "xml", "csv", "tsv", "jsonl", "yaml", "yml", "toml", "srt", "vtt", "ass", "log"),
    *(ending.lstrip(".") for ending in LANGUAGES),
}
"""Endings of members that are words or notes of some kind, so that a text beside them is one of its own."""


def webdataset_documents(
    root: Path, shards: list[str], limits: Limits, skipped: Counter, splits: NamedSplits | None = None
) -> Iterator[Document | Quarantined]:
    """A document for each sample of the shards (paths relative to `root`, resolved), shard by shard."""
    named = splits_of_paths(shards, splits=splits)
    for shard in shards:
        try:
            file = resolve_container(root, shard)
            index = tar_index(file)
        except (DocumentError, OSError) as error:
            yield Quarantined(untagged(shard), untagged(shard), str(error))
            continue
        prefix = "" if len(shards) == 1 else f"{os.path.splitext(untagged(shard))[0]}/"
        is_empty = not index.refused and not index.cut
        for item in _shard(file, shard, index, limits, skipped, prefix=prefix, named=named[shard]):
            is_empty = False
            yield item
        if is_empty and (members := [name for name in index.members if not _is_hidden(name)]):
            own, member = untagged(shard), members[0][:200]
            yield Quarantined(own, own, f"tar {own!r} holds no samples, but files such as {member!r}: {_EXTRACT}")
        for name, reason in index.refused.items():
            name = name.encode("utf-8", "replace").decode()
            yield Quarantined(f"{shard}::{name}"[:900], untagged(shard), f"member {name[:200]!r} of {shard!r} {reason}")
        if index.cut:
            own = untagged(shard)
            yield Quarantined(own, own, f"tar {own!r} {index.cut}; {len(index.members)} members before that")


def _shard(
    file: Path, shard: str, index: TarIndex, limits: Limits, skipped: Counter, *, prefix: str, named: SplitFrom
) -> Iterator[Document | Quarantined]:
    # what is missing from a sample must not turn its caption into a text of its own; a repeated one is not missing
    broken = {name for name in index.refused if AGAIN not in name}
    samples = samples_of([*index.members, *broken])
    folders = NamedSplits(samples, files=False)
    with open(file, "rb") as stream:
        for sample, all_names in samples.items():
            names = [name for name in all_names if name in index.members and not _is_hidden(name)]
            if num_hidden := sum(map(_is_hidden, all_names)):
                skipped["hidden member"] += num_hidden
            if not names:
                continue
            try:
                if len(names) < len(all_names) and not broken.isdisjoint(all_names):
                    raise DocumentError(f"a member of sample {sample[:200]!r} cannot be read")
                tar = _Shard(shard, index, stream, limits)
                document = _document(tar, f"{prefix}{sample}", names, skipped)
            except DocumentError as error:
                yield Quarantined(f"{prefix}{sample}", f"{shard}::{names[0]}", f"{shard!r}: {error}")
                continue
            if document is not None:
                if document.split == UNASSIGNED:
                    inner = folders.of(sample)
                    held = inner in HELD_OUT and named not in HELD_OUT
                    document = document.in_split(inner if held or named.is_open else named)
                yield document


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
        content = self.stream.read(size)
        if problem := pointer_of(content):
            raise DocumentError(f"member {member!r} {problem}, before it is packed")
        return decode_text(content, f"member {member!r}")

    def medium(self, member: str) -> type | None:
        offset, size = self.index.members[member]

        def read(count: int) -> bytes:
            self.stream.seek(offset)
            return self.stream.read(min(count, size))

        return medium_by(member, read)

    def address(self, member: str) -> str:
        return f"{self.name}::{member}"


def samples_of(names: list[str]) -> dict[str, list[str]]:
    """Sample -> its members, of all members of a tar, in their order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folder, base = posixpath.split(name)
        # a hidden name begins with a dot that ends nothing
        first = base[:1] + base[1:].partition(".")[0]
        groups.setdefault(posixpath.join(folder, first), []).append(name)
    samples: dict[str, list[str]] = {}
    for first, members in groups.items():
        for name, sample in zip(members, _keys(first, members), strict=True):
            samples.setdefault(sample, []).append(name)
    return samples


def _keys(first: str, members: list[str]) -> list[str]:
    """The samples of members that share their name up to the first dot, which is `first`."""
    stems = [posixpath.splitext(name)[0] for name in members]
    if all(stem == first for stem in stems):
        return stems
    endings = [ending_of(name) for name in members]
    is_words = [ending in _WORDS for ending in endings]
    words = {stem for stem, is_word in zip(stems, is_words, strict=True) if is_word}
    # in a tar of samples a .ts is a film
    is_medium = [medium_of(name) or remedy_for(name) or ending_of(name) in FILM_OR_CODE for name in members]
    media = {stem for stem, known in zip(stems, is_medium, strict=True) if known}
    anchors = words & media
    if not anchors:
        told = [ending for ending, is_word in zip(endings, is_words, strict=True) if is_word]
        # two texts are two samples where every medium goes with one of them
        if len(set(told)) == len(told) or not all(_above(stem, words, first) for stem in media):
            return [first] * len(members)
        anchors = words
    return [_above(stem, anchors, first) or _above(stem, words, first) or stem for stem in stems]


def _above(stem: str, anchors: set[str], first: str) -> str:
    """The longest of the anchors that a stem is, or begins with before a dot; empty for none."""
    while stem not in anchors:
        if len(stem) <= len(first):
            return ""
        stem = stem.rpartition(".")[0]
    return stem


def _fields(tar: _Shard, member: str, text: str, *, alone: bool, skipped: Counter) -> dict:
    """The object of a sample. Raises DocumentError."""
    content = tar.text(member)
    try:
        return object_beside(content, text, skipped)
    except DocumentError as error:
        if alone and _MANY_OBJECTS.match(content):
            raise DocumentError(
                f"member {member[:200]!r} holds several documents and is no sample: {_EXTRACT}"
            ) from None
        raise error


def _is_hidden(name: str) -> bool:
    return posixpath.basename(name).startswith(".")


def _document(tar: _Shard, name: str, members: list[str], skipped: Counter) -> Document | None:
    media, unread, words, others = {}, [], {}, []
    # of two texts the one with the shorter name is the sample's own
    for member in sorted(members, key=lambda member: member.count(".")):
        ending = ending_of(member)
        if kind := tar.medium(member):
            media[member] = kind
        elif ending in words:
            skipped[
                f"note: a sample has several members .{ending}, of which the one with the shortest name is read"
            ] += 1
        elif ending in _WORDS:
            words[ending] = member
        elif remedy_for(member):
            unread.append(member)
        else:
            others += [] if ending in _ASIDE else [member]
            reason = f"member .{ending[:20]}" if ending else "member without an ending"
            reason += f", which holds documents of its own: {_EXTRACT}" if ending in _MANY else ""
            skipped[nested_kind(member) or reason] += 1
    media = {tar.address(member): media[member] for member in members if member in media}
    texts = [text for ending in ("txt", "caption") if ending in words and (text := tar.text(words[ending])).strip()]
    if set(media.values()) == {Image} and (numbers := [what for text in texts if (what := numbers_in(text))]):
        texts = [text for text in texts if not numbers_in(text)]
        if not texts and not {"json", "cls"} & words.keys():
            raise DocumentError(f"the text of sample {name[:200]!r} holds {numbers[0]}")
    text = texts[0] if texts else ""
    if len(texts) > 1 and texts[1].strip() != text.strip():
        skipped["note: of several texts of one name the first was read"] += 1
    fields = _fields(tar, words["json"], text, alone=not media, skipped=skipped) if "json" in words else {}
    folder = posixpath.dirname(words.get("json", members[0]))
    inside = named_in(folder, tar.index.members.__contains__)

    def find(path: str) -> str | None:
        member = inside(path)
        return None if member is None else tar.address(member)

    if is_whole(fields):
        note_text_beside(text, skipped)
        limit = tar.limits.max_file_mib
        document = whole_sample(name, media, fields, find=find, max_file_mib=limit, notes=skipped)
        used = {part.path for part in document.parts if not isinstance(part, Text)}
        if others := sum(address not in used for address in media):
            skipped["medium beside a whole document that does not name it"] += others
        return document
    if unread and not media:
        raise DocumentError(f"member {unread[0]!r} is not read: {remedy_for(unread[0])}")
    if others and words and not media:
        # what a caption is about, in a form that nobody reads, and no text of its own
        raise DocumentError(
            f"member {others[0][:200]!r} is of no medium that is read: store the picture, sound or film itself, or "
            "leave it out where the words stand alone"
        )
    pass_over(unread, skipped)
    if not words and not media:
        return None
    if not text and not words_of(fields).strip():
        text = tar.text(words["cls"]) if "cls" in words else ""
        if not text.strip():
            raise DocumentError(f"sample {name!r} has no words: none in .{', .'.join(_WORDS)}{asked_in_pairs(fields)}")
    source = os.path.basename(os.path.dirname(tar.name)) or untagged(tar.name).removesuffix(".tar")
    if len({posixpath.splitext(address)[0] for address in media}) > 1:
        skipped["note: media whose names differ behind a dot (a.jpg, a.left.jpg) are one sample"] += 1
    return captioned_sample(name, media, text, fields, find=find, source=source, notes=skipped)
