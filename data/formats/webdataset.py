"""WebDataset shards: tars whose members of one name are one sample, read in place.

    shard-0001.tar:  a/heron.jpg  a/heron.txt  a/heron.json  a/wren.jpg  a/wren.cls

A sample's name ends at the first dot after the last slash, as in the webdataset library; but media and a text that
share the whole name before their last extension are a sample (`22.05.png`, `22.06.png`). Text comes from `.txt`, then
`.caption`, then a `.json` (read like a manifest's line, with paths of members), then `.cls`. Media are addressed
`shard-0001.tar::a/heron.jpg` and read when they are decoded. A truncated shard gives the samples before the cut and one
record of it. The split is that of the shard's name or folder, else of the sample's folder inside the tar.
"""

import dataclasses
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from brine.data.document import Document, DocumentError, Image, Quarantined, media_paths
from brine.data.files import extensions
from brine.data.files.addresses import untagged
from brine.data.files.archive import AGAIN, TarIndex, resolve_container, tar_index
from brine.data.files.compressed import nested_archive_hint
from brine.data.files.pointers import pointer_of
from brine.data.files.source_files import LANGUAGES
from brine.data.files.text import decode_text
from brine.data.formats.folders.captioned import caption_in
from brine.data.formats.folders.media_folder import read_words
from brine.data.formats.lines import samples
from brine.data.formats.lines.fields import prompt_pair_hint
from brine.data.formats.source import NOTE_PREFIX, ReadLimits, skip_file
from brine.data.formats.splits.names import HELD_OUT, word_set
from brine.data.formats.splits.rules import UNASSIGNED, PathSplits, SplitWithOrigin

_WORDS = ("txt", "caption", "json", "cls")
_MANY = ("jsonl", "ndjson", "jsonlines", "parquet", "arrow", "csv", "tsv")
_MANY_OBJECTS = re.compile(r"\s*(\[|\{[^\n]*\}[ \t\r]*\n\s*\{)")
_EXTRACT = "extract it (`tar -xf FILE`) and give the folder"
# extensions of members that are text or notes of some kind, so that a text beside them stands alone
_TEXTUAL = {"", *(ending.lstrip(".") for ending in LANGUAGES)} | word_set(
    "id idx index key meta metadata info src url lang hash sha256 license md rst html htm xml csv tsv jsonl yaml yml "
    "toml srt vtt ass log"
)


def webdataset_documents(
    root: Path, shards: list[str], limits: ReadLimits, skipped: Counter, splits: PathSplits | None = None
) -> Iterator[Document | Quarantined]:
    """A document for each sample of the shards (paths relative to `root`, resolved), shard by shard."""
    splits = splits or PathSplits(shards, files=True)
    for shard in shards:
        name, num_items = untagged(shard), 0
        try:
            file = resolve_container(root, shard)
            index = tar_index(file)
        except (DocumentError, OSError) as error:
            yield Quarantined(name, name, str(error))
            continue
        prefix = "" if len(shards) == 1 else f"{os.path.splitext(name)[0]}/"
        with open(file, "rb") as stream:
            for item in _Shard(shard, index, stream, limits, skipped).documents(prefix, splits.split_of(shard)):
                num_items += 1
                yield item
        members = [member for member in index.members if not _is_hidden(member)]
        if members and not (num_items or index.refused or index.cut):
            yield Quarantined(
                name, name, f"tar {name!r} holds no samples, but files such as {members[0][:200]!r}: {_EXTRACT}"
            )
        for member, reason in index.refused.items():
            member = member.encode("utf-8", "replace").decode()
            yield Quarantined(f"{shard}::{member}"[:900], name, f"member {member[:200]!r} of {shard!r} {reason}")
        if index.cut:
            yield Quarantined(name, name, f"tar {name!r} {index.cut}; {len(index.members)} members before that")


def samples_of(names: list[str]) -> dict[str, list[str]]:
    """Sample -> its members, of all members of a tar, in their order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folder, base = posixpath.split(name)
        # a hidden name begins with a dot that ends nothing
        first = base[:1] + base[1:].partition(".")[0]
        groups.setdefault(posixpath.join(folder, first), []).append(name)
    found: dict[str, list[str]] = {}
    for first, members in groups.items():
        for name, sample in zip(members, _keys(first, members), strict=True):
            found.setdefault(sample, []).append(name)
    return found


def _keys(first: str, members: list[str]) -> list[str]:
    """The samples of members that share their name up to the first dot, which is `first`."""
    stems = [posixpath.splitext(name)[0] for name in members]
    if all(stem == first for stem in stems):
        return stems
    known = [(stem, extensions.extension_of(name), name) for stem, name in zip(stems, members, strict=True)]
    texts = [ending for _, ending, _ in known if ending in _WORDS]
    words = {stem for stem, ending, _ in known if ending in _WORDS}
    # in a tar of samples a .ts is a video
    media = {
        stem
        for stem, ending, name in known
        if extensions.media_type_of(name) or extensions.conversion_hint(name) or ending in extensions.VIDEO_OR_CODE
    }
    # two texts are two samples where every media file goes with one of them
    if not words & media and (len(set(texts)) == len(texts) or not all(_above(stem, words, first) for stem in media)):
        return [first] * len(members)
    anchors = words & media or words
    return [_above(stem, anchors, first) or _above(stem, words, first) or stem for stem in stems]


def _above(stem: str, anchors: set[str], first: str) -> str:
    """The longest of the anchors that a stem is, or begins with before a dot; empty for none."""
    while stem not in anchors:
        if len(stem) <= len(first):
            return ""
        stem = stem.rpartition(".")[0]
    return stem


def _is_hidden(name: str) -> bool:
    return posixpath.basename(name).startswith(".")


@dataclasses.dataclass(frozen=True)
class _Shard:
    name: str
    index: TarIndex
    stream: BinaryIO
    limits: ReadLimits
    skipped: Counter

    def documents(self, prefix: str, named: SplitWithOrigin) -> Iterator[Document | Quarantined]:
        """The documents of the samples. prefix: of their ids. named: what the shard's name says of their split."""
        # what is missing from a sample must not turn its caption into a text; a repeated one is not missing
        broken = {name for name in self.index.refused if AGAIN not in name}
        by_sample = samples_of([*self.index.members, *broken])
        folders = PathSplits(by_sample, files=False)
        for sample, all_names in by_sample.items():
            names = [name for name in all_names if name in self.index.members and not _is_hidden(name)]
            if num_hidden := sum(map(_is_hidden, all_names)):
                self.skipped["hidden member"] += num_hidden
            if not names:
                continue
            try:
                if len(names) < len(all_names) and not broken.isdisjoint(all_names):
                    raise DocumentError(f"a member of sample {sample[:200]!r} cannot be read")
                document = self._document(f"{prefix}{sample}", names)
            except DocumentError as error:
                yield Quarantined(f"{prefix}{sample}", self._address(names[0]), f"{self.name!r}: {error}")
                continue
            if document is not None and document.split == UNASSIGNED:
                inner = folders.split_of(sample)
                is_inner = named.is_undeclared or (inner in HELD_OUT and named not in HELD_OUT)
                document = document.with_split(inner if is_inner else named)
            if document is not None:
                yield document

    def _read(self, member: str, most: int | None = None) -> bytes:
        offset, size = self.index.members[member]
        self.stream.seek(offset)
        return self.stream.read(size if most is None else min(most, size))

    def _text(self, member: str) -> str:
        if self.index.members[member][1] > self.limits.max_line_mib * 2**20:
            raise DocumentError(f"member {member!r} is longer than max_line_mib={self.limits.max_line_mib:g}")
        content = self._read(member)
        if problem := pointer_of(content):
            raise DocumentError(f"member {member!r} {problem}, before it is packed")
        return decode_text(content, f"member {member!r}")

    def _address(self, member: str) -> str:
        return f"{self.name}::{member}"

    def _document(self, name: str, members: list[str]) -> Document | None:
        kinds, unread, words, others = {}, [], {}, []
        # of two texts the one with the shorter name is the sample's
        for member in sorted(members, key=lambda member: member.count(".")):
            ending = extensions.extension_of(member)
            if kind := extensions.media_type_by_content(member, lambda count, member=member: self._read(member, count)):
                kinds[member] = kind
            elif ending in words:
                note = f"a sample has several members .{ending}, of which the one with the shortest name is read"
                self.skipped[NOTE_PREFIX + note] += 1
            elif ending in _WORDS:
                words[ending] = member
            elif extensions.conversion_hint(member):
                unread.append(member)
            else:
                others += [] if ending in _TEXTUAL else [member]
                reason = f"member .{ending[:20]}" if ending else "member without an extension"
                reason += f", which holds documents: {_EXTRACT}" if ending in _MANY else ""
                self.skipped[nested_archive_hint(member) or reason] += 1
        media = {self._address(member): kinds[member] for member in members if member in kinds}
        texts = [words[ending] for ending in ("txt", "caption", "json") if ending in words]
        try:
            text, fields, numbers = read_words(texts, self._text, self.skipped, of_images={*media.values()} == {Image})
        except DocumentError:
            if not media and "json" in words and _MANY_OBJECTS.match(self._text(words["json"])):
                why = f"holds several documents and is not a sample: {_EXTRACT}"
                raise DocumentError(f"member {words['json'][:200]!r} {why}") from None
            raise
        if numbers and not text.strip() and not {"json", "cls"} & words.keys():
            raise DocumentError(f"the text of sample {name[:200]!r}: member {numbers}")
        inside = samples.named_in(posixpath.dirname(words.get("json", members[0])), self.index.members.__contains__)

        def find(path: str) -> str | None:
            member = inside(path)
            return None if member is None else self._address(member)

        if samples.is_complete_record(fields):
            samples.note_ignored_caption(text, self.skipped)
            limit = self.limits.max_file_mib
            document = samples.record_sample(name, media, fields, find=find, max_file_mib=limit, notes=self.skipped)
            if unused := len(media.keys() - set(media_paths(document))):
                self.skipped["media file beside a complete record that does not name it"] += unused
            return document
        if unread and not media:
            raise DocumentError(f"member {unread[0]!r} is not read: {extensions.conversion_hint(unread[0])}")
        if others and words and not media:
            # what a caption is about, of a kind that is not read, and not a text by itself
            why = "is not a media file that is read: store the image, audio or video itself, or"
            raise DocumentError(f"member {others[0][:200]!r} {why} leave it out where the text stands alone")
        for member in unread:
            skip_file(member, self.skipped)
        if not words and not media:
            return None
        if not text.strip() and not caption_in(fields)[1].strip():
            text = self._text(words["cls"]) if "cls" in words else ""
            if not text.strip():
                pair = prompt_pair_hint(fields)
                raise DocumentError(f"sample {name!r} has no text: none in .{', .'.join(_WORDS)}{pair}")
        source = os.path.basename(os.path.dirname(self.name)) or untagged(self.name).removesuffix(".tar")
        if len({posixpath.splitext(address)[0] for address in media}) > 1:
            self.skipped["note: media whose names differ behind a dot (a.jpg, a.left.jpg) are one sample"] += 1
        return samples.captioned_sample(name, media, text, fields, find=find, source=source, notes=self.skipped)
