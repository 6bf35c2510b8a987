"""What of a folder nobody reads: every file below it is accounted for when its documents have been read.

    accounted(source, read=names)    the source, which also counts in `skipped` each file that no document was made from

A file is accounted for when documents were read from it (`read`), or one takes it as its medium or its words, also one
that was set aside. All others are counted by kind, with the first names and what to do about them; those that are named
after a split are told apart (LOST), since no half may vanish. Nothing is said about what goes with any data
set: its card, licence, citation, checksums, hidden files, and what the `datasets` package writes about it.

Cost: one walk over the names each time that the documents are read, and 120 bytes a medium;
of texts named after splits the first lines, to tell lists of media that are read from words that nobody reads.
"""

import contextlib
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from data.compressed import packed_kind
from data.document import Document, Quarantined, Text, split_address, untagged
from data.endings import ending_of, medium_in, medium_of, remedy_for
from data.formats.lines import LINES
from data.formats.opening import is_named_lines
from data.formats.refusals import what_foreign, wrapped
from data.formats.source import LOST, NOTE, Source, note_text, reading
from data.formats.splits import HELD_OUT, NamedSplits, stem_of_lines
from data.formats.walk import is_open, walk
from data.pointers import awaited, pointer_in
from data.split_names import split_words

_CARDS = re.compile(
    r"(read[-_ ]?me|licen[cs]es?|copying|copyright|notice|change(log|s)|citation|authors|contributing|code_of_conduct|"
    r"dataset_(infos?|dict|card)|state|(md5|sha1|sha256|sha512|crc)(sums?)?|checksums?|_success|thumbs|desktop)"
    r"([-_.][\w-]+)?(\.(md|txt|rst|json|cff|bib|html?|pdf|db|ini))?",
    re.IGNORECASE,
)
_SUMS = ("md5", "sha1", "sha256", "sha512", "md5sum", "sha1sum", "sha256sum", "sha512sum", "sig", "asc", "crc", "crc32")
_NAMED = 3
_UNTAKEN = "medium that no document takes"
_TO_READ_BOTH = "what lies on top may name media anywhere: move it into a folder with its media, and these are read too"
_POINTERS_LOOKED_FOR = 1000
_LISTS = ("", "txt", "text", "lst", "list", "scp", "token")
_LISTS_LOOKED_FOR, _LINES, _MEDIA_KNOWN = 10_000, 20, 500_000
_BETWEEN = re.compile(r"[\s,;|#]")


def accounted(
    source: Source,
    *,
    read: Iterable[str],
    splits: NamedSplits | None = None,
    counted: Collection[str] = (),
    notes: Iterable[str] = (),
) -> Source:
    """The source of a folder, with every other file below it counted.

    read: paths below the root of the files that documents come from. splits: what names of the source declare.
    counted: folders right below the root whose other files a reader counts itself. notes: what else is to be told.
    """
    notes, real = tuple(notes), _Real(source.root)
    read = frozenset(untagged(name) for name in read)

    def documents(include_decode: bool, skipped: Counter) -> Iterator[Document | Quarantined]:
        taken: set[int] = set()
        media: set[int] = set()
        items = source.read(include_decode, skipped)
        while True:
            with reading() as texts:
                item = next(items, None)
            for path in texts:
                note_text(path)
            if item is None:
                break
            taken.update(hash(real.path(path)) for path in (*_files_of(item), *texts))
            if len(media) < _MEDIA_KNOWN:
                media.update(hash(_stem(path)) for path in _files_of(item))
            yield item
        skipped.update(f"{NOTE}{note}" for note in notes)
        left = (entry for entry in _others(source.root, counted, skipped) if entry[0] not in read)
        left = (entry for entry in left if hash(entry[0]) not in taken)
        _count(left, source.root, splits, skipped, read, media)

    return dataclasses.replace(source, read=documents)


class _Real:
    """Paths as a walk meets them: without the links to folders that lead to them."""

    def __init__(self, root: Path):
        self.root, self.folders = root, {"": ""}

    def path(self, path: str) -> str:
        folder, _, name = os.path.normpath(path).rpartition("/")
        if folder not in self.folders:
            real = os.path.realpath(self.root / folder)
            self.folders[folder] = os.path.relpath(real, self.root) if real.startswith(f"{self.root}/") else folder
        return f"{self.folders[folder]}/{name}" if folder else name


def is_about(path: str) -> bool:
    """Whether a file tells about a data set and is no part of it."""
    name = os.path.basename(path)
    return name.startswith(".") or ending_of(name) in _SUMS or bool(_CARDS.fullmatch(name))


def _files_of(item: Document | Quarantined) -> Iterator[str]:
    paths = [item.file] if isinstance(item, Quarantined) else [p.path for p in item.parts if not isinstance(p, Text)]
    for path in filter(None, paths):
        address = split_address(path)
        yield untagged(address[0]) if address else path


def _others(root: Path, counted: Collection[str], skipped: Counter) -> Iterator[tuple[str, str]]:
    for path, problem in walk(root, enter=lambda folder: is_open(folder) and folder not in counted, skipped=skipped):
        if not is_about(path) and not ((held := awaited(path)) and os.path.lexists(root / held)):
            yield path, problem


def _stems(names: Iterable[str]) -> set[str]:
    """The paths of JSON without endings."""
    return {os.path.splitext(name)[0] for name in names if name.lower().endswith((*LINES, ".json"))}


def _is_made_of(path: str, stems: set[str]) -> bool:
    """Whether a table or list lies where `data.formats.word_tables` wrote one of the files that are read from it."""
    if ending_of(path) not in ("csv", "tsv", "json"):
        return False
    folder, name = os.path.split(os.path.splitext(path)[0])
    *above, last = ("", *folder.split("/"))
    made = {name, stem_of_lines(name), f"{last}-{name}", *(f"{step}-{last}-{name}" for step in above)}
    if not split_words(name) and os.path.join(folder, "metadata") in stems:
        return True
    while folder and not any(os.path.join(folder, name) in stems for name in made):
        folder = os.path.dirname(folder)
    return any(os.path.join(folder, name) in stems for name in made)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _lists(file: Path, media: set[int]) -> bool:
    """Whether the lines of a text begin with the names of such media, as Kaldi's `text` and LibriSpeech's lists do."""
    if not media or ending_of(file.name) not in _LISTS:
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
    splits: NamedSplits | None,
    skipped: Counter,
    read: Collection[str],
    media: set[int],
) -> None:
    """Count files by kind and split; `read` are the paths of what documents come from, `media` hashes of the
    names that they take."""
    stems, is_on_top = _stems(read), any("/" not in name for name in read)
    found: dict[tuple[str, str], list[str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    known: dict[str, str] = {}
    from data.formats.repository import PROGRAMS

    for looked, (path, problem) in enumerate(files):
        kind, remedy = (f"file that {problem}", "") if problem else _kind(root, path, looked < _POINTERS_LOOKED_FOR)
        if is_on_top and "/" in path and kind == _UNTAKEN and _has_words(root, path):
            kind, remedy = "captioned medium beside what lies on top", _TO_READ_BOTH
        # a photo `test.png` or a script `train.py` is of no split, its folder may be
        is_program = os.path.splitext(path)[1].lower() in PROGRAMS and not kind.endswith("beside what is read")
        is_alone = medium_of(path) or remedy_for(path) or is_program
        name = path.rpartition("/")[0] + "/" if is_alone else path
        if name not in known:
            known[name] = splits.declared(name) if splits is not None and name != "/" else ""
        # the table that a manifest was written from is not lost
        is_made_of = not problem and _is_made_of(path, stems)
        kind, remedy = (
            (f"file .{ending_of(path)} of whose name a manifest is read", "") if is_made_of else (kind, remedy)
        )
        # the words or boxes of a medium are of its name
        may_list = known[name] and not problem and (ending_of(path) != "txt" or hash(_stem(path)) not in media)
        if may_list and looked < _LISTS_LOOKED_FOR and _lists(root / path, media):
            # its words were written into what is read, or its media have others
            is_made_of, kind, remedy = True, f"{kind}, a list of media that documents take", ""
        split = "" if is_made_of else known[name]
        key = (f"{kind}{f' ({remedy})' if remedy else ''}", split)
        counts[key] += 1
        found.setdefault(key, [])
        if len(found[key]) < _NAMED:
            found[key].append(path)
    for (kind, split), names in found.items():
        more = ", ..." if counts[kind, split] > len(names) else ""
        is_lost = split in HELD_OUT or (split == "train" and bool(splits and splits.held_out))
        lost = f"{LOST}{split}: " if is_lost else ""
        skipped[f"{lost}{kind}: {', '.join(names)}{more}"] += counts[kind, split]


def _has_words(root: Path, path: str) -> bool:
    stem = os.path.splitext(path)[0]
    return any(os.path.lexists(root / f"{name}{ending}") for name in (stem, path) for ending in (".txt", ".caption"))


def _kind(root: Path, path: str, look: bool) -> tuple[str, str]:
    """(what a file is, what to do about it)."""
    ending = ending_of(path)[:20]
    if remedy := remedy_for(path):
        return f"medium .{ending}", remedy
    try:
        if look and (problem := pointer_in(root / path)):
            return f"file that {problem}", ""
    except OSError:
        return "file that cannot be read", "change its permissions"
    if kind := packed_kind(path):
        return kind, ""
    if medium_in(root, path):
        return _UNTAKEN, ""
    if ending in ("csv", "tsv"):
        return f"table .{ending} beside what is read", "`data check FILE` tells how to convert it"
    if what_foreign(path):
        return f"file .{ending} of other data", "write it as JSON lines or Parquet"
    try:
        if look and ending == "json" and wrapped(root / path):
            return "file .json of one object with lists of rows", "`data check FILE` tells how to convert it"
        is_lines = is_named_lines(root / path)
    except OSError:
        return "file that cannot be read", "change its permissions"
    if is_lines or ending in ("tar", "parquet", "arrow", "json"):
        return f"file .{ending} beside what is read", "give it by itself, or convert it"
    return f"file .{ending}" if ending else "file without an ending", ""
