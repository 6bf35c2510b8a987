"""Files of a folder that no document was made from: each is counted, by kind, with what to do about it.

A file is accounted for when documents were read from it, or one takes it as its media or words, also one that was set
aside. Those that are named after a split are listed apart (UNREAD_SPLIT), since no part of a split may be lost
unnoticed. Cards, licences, checksums, hidden files and what the `datasets` package writes are passed over. Cost: one
walk over the names each time that the documents are read, and 120 bytes for each media file.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from brine.data.document import Document, Quarantined, Text
from brine.data.files.addresses import split_address, untagged
from brine.data.files.compressed import compressed_hint
from brine.data.files.extensions import conversion_hint, extension_of, media_type_in, media_type_of
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
_NAMED = 3
_UNUSED_MEDIA = "media file that no document takes"
_CAPTIONED = "captioned media file beside a manifest or table on top"
_TO_READ_BOTH = "a manifest on top may name media anywhere: move it into a folder with its media to have these read too"
_POINTERS_LOOKED_FOR = 1000
_LISTS = ("", "txt", "text", "lst", "list", "scp", "token")
_LISTS_LOOKED_FOR, _LINES, _MEDIA_KNOWN = 10_000, 20, 500_000
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
        taken: set[int] = set()
        media: set[int] = set()
        items = source.read(include_decode, skipped)
        while True:
            with recording_text_paths() as texts:
                item = next(items, None)
            for path in texts:
                record_text_path(path)
            if item is None:
                break
            files = list(_files_of(item))
            taken.update(map(key, (*files, *texts)))
            if len(media) < _MEDIA_KNOWN:
                media.update(hash(_stem(path)) for path in files)
            yield item
        skipped.update(f"{NOTE_PREFIX}{note}" for note in notes)
        others = _others(source.root, counted, skipped)
        left = (entry for entry in others if entry[0] not in read and hash(entry[0]) not in taken)
        _count(left, source.root, splits, skipped, read, media)

    return dataclasses.replace(source, read=documents)


def _real_folder(root: Path, folder: str) -> str:
    real = os.path.realpath(root / folder)
    return os.path.relpath(real, root) if real.startswith(f"{root}/") else folder


def is_dataset_metadata_file(path: str) -> bool:
    """Whether a file tells about a data set and is no part of it."""
    name = os.path.basename(path)
    return name.startswith(".") or extension_of(name) in _SUMS or bool(_CARDS.fullmatch(name))


def _files_of(item: Document | Quarantined) -> Iterator[str]:
    paths = [item.file] if isinstance(item, Quarantined) else [p.path for p in item.parts if not isinstance(p, Text)]
    for path in filter(None, paths):
        address = split_address(path)
        yield untagged(address[0]) if address else path


def _others(root: Path, counted: Collection[str], skipped: Counter) -> Iterator[tuple[str, str]]:
    for path, problem in walk(root, enter=lambda folder: is_visible(folder) and folder not in counted, skipped=skipped):
        if not is_dataset_metadata_file(path) and not ((held := dvc_target(path)) and os.path.lexists(root / held)):
            yield path, problem


def _is_made_of(path: str, stems: set[str]) -> bool:
    """Whether one of the read files (without endings) was written from a table or list at `path` by `word_tables`."""
    if extension_of(path) not in ("csv", "tsv", "json"):
        return False
    folder, name = os.path.split(os.path.splitext(path)[0])
    *above, last = ("", *folder.split("/"))
    made = {name, split_first_stem(name), f"{last}-{name}", *(f"{step}-{last}-{name}" for step in above)}
    if not split_words(name) and os.path.join(folder, "metadata") in stems:
        return True
    folders = [folder, *map(str, Path(folder).parents)] if folder else [""]
    return any(os.path.join("" if each == "." else each, name) in stems for each in folders for name in made)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _lists(file: Path, media: set[int]) -> bool:
    """Whether the lines of a text begin with the names of such media, as Kaldi's `text` and LibriSpeech's lists do."""
    if not media or extension_of(file.name) not in _LISTS:
        return False
    with contextlib.suppress(OSError), open(file, "rb") as stream:
        lines = stream.read(2**14).decode("utf-8-sig", "replace").splitlines()[:_LINES]
        firsts = [_BETWEEN.split(line.strip(), maxsplit=1)[0] for line in lines if line.strip()]
        count = sum(not media.isdisjoint((hash(first), hash(_stem(first)))) for first in firsts)
        return count > 0 and 2 * count >= len(firsts)
    return False


def _count(
    files: Iterable[tuple[str, str]],
    root: Path,
    splits: PathSplits | None,
    skipped: Counter,
    read: Collection[str],
    media: set[int],
) -> None:
    """Count files by kind and split; `read`: paths of what documents come from, `media`: hashes of names they take."""
    stems = {os.path.splitext(name)[0] for name in read if name.lower().endswith((*LINES, ".json"))}
    is_on_top = any("/" not in name for name in read)
    found: dict[tuple[str, str], list[str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    declared = functools.cache(splits.declared) if splits is not None else lambda name: ""
    for index, (path, problem) in enumerate(files):
        look = index < _POINTERS_LOOKED_FOR
        kind, remedy = (f"file that {problem}", "") if problem else _kind(root, path, look)
        if is_on_top and "/" in path and kind == _UNUSED_MEDIA and _has_words(root, path):
            kind, remedy = _CAPTIONED, _TO_READ_BOTH
        # a photo `test.png` or a script `train.py` is of no split, its folder may be
        is_program = os.path.splitext(path)[1].lower() in PROGRAMS and not kind.endswith("beside what is read")
        is_alone = media_type_of(path) or conversion_hint(path) or is_program
        name = path.rpartition("/")[0] + "/" if is_alone else path
        split = declared(name) if name != "/" else ""
        # the table that a manifest was written from is not lost
        if not problem and _is_made_of(path, stems):
            kind, remedy, split = f"file .{extension_of(path)} of whose name a manifest is read", "", ""
        # the words or boxes of a media file are of its name
        may_list = split and not problem and (extension_of(path) != "txt" or hash(_stem(path)) not in media)
        if may_list and index < _LISTS_LOOKED_FOR and _lists(root / path, media):
            # its words were written into what is read, or its media have others
            kind, remedy, split = f"{kind}, a list of media that documents take", "", ""
        key = (f"{kind}{f' ({remedy})' if remedy else ''}", split)
        counts[key] += 1
        found.setdefault(key, [])
        if len(found[key]) < _NAMED:
            found[key].append(path)
    for (kind, split), names in found.items():
        more = ", ..." if counts[kind, split] > len(names) else ""
        is_lost = split in HELD_OUT or (split == "train" and bool(splits and splits.held_out))
        lost = f"{UNREAD_SPLIT}{split}: " if is_lost else ""
        skipped[f"{lost}{kind}: {', '.join(names)}{more}"] += counts[kind, split]


def _has_words(root: Path, path: str) -> bool:
    stem = os.path.splitext(path)[0]
    return any(os.path.lexists(root / f"{name}{ending}") for name in (stem, path) for ending in (".txt", ".caption"))


def _kind(root: Path, path: str, look: bool) -> tuple[str, str]:
    """(what a file is, what to do about it)."""
    ending = extension_of(path)[:20]
    try:
        if remedy := conversion_hint(path):
            return f"media file .{ending}", remedy
        if look and (problem := pointer_in(root / path)):
            return f"file that {problem}", ""
        if kind := compressed_hint(path):
            return kind, ""
        if media_type_in(root, path):
            return _UNUSED_MEDIA, ""
        if ending in ("csv", "tsv"):
            return f"table .{ending} beside what is read", "`data check FILE` tells how to convert it"
        if describe_foreign_file(path):
            return f"file .{ending} of other data", "write it as JSON lines or Parquet"
        if look and ending == "json" and describe_wrapped_json(root / path):
            return "file .json of one object with lists of rows", "`data check FILE` tells how to convert it"
        if is_named_lines(root / path) or ending in ("tar", "parquet", "arrow", "json"):
            return f"file .{ending} beside what is read", "give it by itself, or convert it"
    except OSError:
        return "file that cannot be read", "change its permissions"
    return f"file .{ending}" if ending else "file without an ending", ""
