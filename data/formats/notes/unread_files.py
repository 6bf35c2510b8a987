"""Files of a folder that no document was made from: each is counted, by kind, with what to do about it.

A file is accounted for when documents were read from it, or one takes it as its media or words, also one that was
quarantined. Those that are named after a split are listed separately (UNREAD_SPLIT), since no part of a split may be
lost unnoticed. Cards, licences, checksums, hidden files and what the `datasets` package writes are passed over. Cost:
one walk over the names each time that the documents are read, and 120 bytes for each media file.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from brine.data.document import Document, Quarantined, media_paths
from brine.data.files.addresses import split_address, untagged
from brine.data.files.compressed import compressed_hint
from brine.data.files.extensions import conversion_hint, extension_of, media_type_in, media_type_of, stem_of
from brine.data.files.pointers import dvc_target, pointer_in
from brine.data.files.walk import is_visible, walk
from brine.data.formats.detect import PROGRAMS, is_named_lines
from brine.data.formats.lines.lines import LINES
from brine.data.formats.notes.refusals import describe_foreign_file, describe_wrapped_json
from brine.data.formats.source import NOTE_PREFIX, UNREAD_SPLIT, DocumentSource, record_text_path, recording_text_paths
from brine.data.formats.splits.names import split_words
from brine.data.formats.splits.rules import HELD_OUT, PathSplits, split_first_stem

_CARDS = re.compile(
    r"(read[-_ ]?me|licen[cs]es?|copying|copyright|notice|change(log|s)|citation|authors|contributing|code_of_conduct|"
    r"dataset_(infos?|dict|card)|state|(md5|sha1|sha256|sha512|crc)(sums?)?|checksums?|_success|thumbs|desktop)"
    r"([-_.][\w-]+)?(\.(md|txt|rst|json|cff|bib|html?|pdf|db|ini))?",
    re.IGNORECASE,
)
_SUMS = ("md5", "sha1", "sha256", "sha512", "md5sum", "sha1sum", "sha256sum", "sha512sum", "sig", "asc", "crc", "crc32")
_UNUSED_MEDIA, _BESIDE = "media file that no document takes", "beside what is read"
_CAPTIONED = (
    "captioned media file beside a manifest or table on top (a manifest on top may name media anywhere: move it into a "
    "folder with its media to have these read too)"
)
_NAMED, _POINTERS_LOOKED_FOR, _LISTS_LOOKED_FOR, _LINES, _MEDIA_KNOWN = 3, 1000, 10_000, 20, 500_000
_LISTS = ("", "txt", "text", "lst", "list", "scp", "token")
_BETWEEN = re.compile(r"[\s,;|#]")


def with_unread_files_counted(
    source: DocumentSource,
    *,
    read: Iterable[str],
    splits: PathSplits | None = None,
    counted: Collection[str] = (),
    notes: Iterable[str] = (),
) -> DocumentSource:
    """The source of a folder, which also counts every other file below it in `skipped`.

    read: paths below the root of the files that documents come from. splits: what names of the source declare.
    counted: folders right below the root whose other files a reader counts itself. notes: what else is noted.
    """
    notes, resolve = tuple(notes), functools.cache(functools.partial(_real_folder, source.root))
    read = frozenset(untagged(name) for name in read)

    def key(path: str) -> int:
        # paths as a walk meets them: without the links to folders that lead to them
        folder, _, name = os.path.normpath(path).rpartition("/")
        return hash(f"{resolve(folder)}/{name}" if folder else name)

    def documents(include_decode: bool, skipped: Counter) -> Iterator[Document | Quarantined]:
        taken, media = set(), set()
        items = source.read(include_decode, skipped)
        while True:
            with recording_text_paths() as texts:
                item = next(items, None)
            for path in texts:
                record_text_path(path)
            if item is None:
                break
            paths = [item.file] if isinstance(item, Quarantined) else media_paths(item)
            files = [_file_of(path) for path in paths if path]
            taken.update(map(key, (*files, *texts)))
            if len(media) < _MEDIA_KNOWN:
                media.update(hash(stem_of(path)) for path in files)
            yield item
        skipped.update(f"{NOTE_PREFIX}{note}" for note in notes)
        files = walk(source.root, enter=lambda folder: is_visible(folder) and folder not in counted, skipped=skipped)
        unread = _UnreadFiles(source.root, splits, read, media)
        for path, problem in files:
            is_held = (held := dvc_target(path)) and os.path.lexists(source.root / held)
            if not (is_dataset_metadata_file(path) or is_held or path in read or hash(path) in taken):
                unread.add(path, problem)
        unread.count(skipped)

    return dataclasses.replace(source, read=documents)


def _file_of(path: str) -> str:
    address = split_address(path)
    return untagged(address[0]) if address else path


def _real_folder(root: Path, folder: str) -> str:
    real = os.path.realpath(root / folder)
    return os.path.relpath(real, root) if real.startswith(f"{root}/") else folder


def is_dataset_metadata_file(path: str) -> bool:
    """Whether a file describes a data set and is no part of it."""
    name = os.path.basename(path)
    return name.startswith(".") or extension_of(name) in _SUMS or bool(_CARDS.fullmatch(name))


class _UnreadFiles:
    """Files by kind and split. read: paths of what documents come from; media: hashes of names that they take."""

    def __init__(self, root: Path, splits: PathSplits | None, read: Collection[str], media: set[int]):
        self.root, self.splits, self.media = root, splits, media
        self.stems = {os.path.splitext(name)[0] for name in read if name.lower().endswith((*LINES, ".json"))}
        self.is_on_top = any("/" not in name for name in read)
        self.declared = functools.cache(splits.declared) if splits is not None else lambda name: ""
        self.found: dict[tuple[str, str], list[str]] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.num_files = 0

    def add(self, path: str, problem: str) -> None:
        kind = f"file that {problem}" if problem else self._kind(path, look=self.num_files < _POINTERS_LOOKED_FOR)
        # a photo `test.png` or a script `train.py` is of no split, its folder may be
        is_program = os.path.splitext(path)[1].lower() in PROGRAMS and _BESIDE not in kind
        is_alone = media_type_of(path) or conversion_hint(path) or is_program
        name = path.rpartition("/")[0] + "/" if is_alone else path
        split = self.declared(name) if name != "/" else ""
        # the table that a manifest was written from is not lost
        if not problem and self._is_converted(path):
            kind, split = f"file .{extension_of(path)} of whose name a manifest is read", ""
        # the words or boxes of a media file are of its name
        may_list = split and not problem and (extension_of(path) != "txt" or hash(stem_of(path)) not in self.media)
        if may_list and self.num_files < _LISTS_LOOKED_FOR and self._lists_media(path):
            # its words were written into what is read, or its media have others
            kind, split = f"{kind}, a list of media that documents take", ""
        names = self.found.setdefault((kind, split), [])
        names += [path] if len(names) < _NAMED else []
        self.counts[kind, split] += 1
        self.num_files += 1

    def count(self, skipped: Counter) -> None:
        for (kind, split), names in self.found.items():
            more = ", ..." if self.counts[kind, split] > len(names) else ""
            is_lost = split in HELD_OUT or (split == "train" and bool(self.splits and self.splits.held_out))
            lost = f"{UNREAD_SPLIT}{split}: " if is_lost else ""
            skipped[f"{lost}{kind}: {', '.join(names)}{more}"] += self.counts[kind, split]

    def _is_converted(self, path: str) -> bool:
        """Whether one of the read files was written from a table or list at `path` by `brine data convert`."""
        if extension_of(path) not in ("csv", "tsv", "json"):
            return False
        folder, name = os.path.split(os.path.splitext(path)[0])
        *above, last = ("", *folder.split("/"))
        made = {name, split_first_stem(name), f"{last}-{name}", *(f"{step}-{last}-{name}" for step in above)}
        if not split_words(name) and os.path.join(folder, "metadata") in self.stems:
            return True
        folders = ["", *(each for each in (folder, *map(str, Path(folder).parents)) if each != ".")]
        return any(os.path.join(each, name) in self.stems for each in folders for name in made)

    def _lists_media(self, path: str) -> bool:
        """Whether the lines of a text begin with the names of such media, as Kaldi's `text` and LibriSpeech's do."""
        if not self.media or extension_of(path) not in _LISTS:
            return False
        with contextlib.suppress(OSError), open(self.root / path, "rb") as stream:
            lines = stream.read(2**14).decode("utf-8-sig", "replace").splitlines()[:_LINES]
            firsts = [_BETWEEN.split(line.strip(), maxsplit=1)[0] for line in lines if line.strip()]
            count = sum(not self.media.isdisjoint((hash(first), hash(stem_of(first)))) for first in firsts)
            return count > 0 and 2 * count >= len(firsts)
        return False

    def _kind(self, path: str, *, look: bool) -> str:
        file, ending = self.root / path, extension_of(path)[:20]
        try:
            if remedy := conversion_hint(path):
                return f"media file .{ending} ({remedy})"
            if look and (problem := pointer_in(file)):
                return f"file that {problem}"
            if kind := compressed_hint(path):
                return kind
            if media_type_in(self.root, path):
                return _CAPTIONED if self.is_on_top and "/" in path and self._has_words(path) else _UNUSED_MEDIA
            if ending in ("csv", "tsv"):
                return f"table .{ending} {_BESIDE} (`brine data convert FILE` writes a manifest)"
            if describe_foreign_file(path):
                return f"file .{ending} of other data (write it as JSON lines or Parquet)"
            if look and ending == "json" and describe_wrapped_json(file):
                return "file .json of one object with lists of rows (`brine data convert FILE` writes a manifest)"
            if is_named_lines(file) or ending in ("tar", "parquet", "arrow", "json"):
                return f"file .{ending} {_BESIDE} (give it separately, or convert it)"
        except OSError:
            return "file that cannot be read (change its permissions)"
        return f"file .{ending}" if ending else "file without an extension"

    def _has_words(self, path: str) -> bool:
        stem = os.path.splitext(path)[0]
        return any(
            os.path.lexists(self.root / f"{name}{ending}") for name in (stem, path) for ending in (".txt", ".caption")
        )
