"""Which documents the names of folders and files hold out; `hash_split` decides about the others.

A folder or a file of documents declares the split that its first word stands for (`test2017`, `train-00000-of-00002`;
not `tests`). A word further on counts where another name of the source says what it means: one with a word for training
in its position (`llava_train_v1`, `llava_test_v1`), or the same name without it (`data`, `data_test`). Names of files
count only where a file holds many documents (`PathSplits`), or is a text beside one for training (`TextFileSplits`).
A held-out name wins over `train`, the upper one of two; a dataset card goes before names. Where `test` is declared and
no `validation`, the hash takes `validation` from `train`; names that say `train` alone declare nothing.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from brine.data.document import Document, DocumentError, media_paths
from brine.data.files.addresses import CONTAINERS, split_address, untagged
from brine.data.formats.folders.dataset_card import DatasetCard, read_dataset_card
from brine.data.formats.splits.names import HELD_OUT, WORDS, declared_split, prefer_held_out, split_words, words_of_name

UNASSIGNED = ""  # split of a document whose format names none; no document leaves `with_splits` with it
FROM_FIELD, FROM_RECORD_FORMAT, FROM_HASH = "field of the record", "record format without a field", "hash"
FROM_FOLDERS, FROM_FILES, FROM_CARD = "names of folders", "names of files", "the configs of README.md"
_SHARD_NUMBER = re.compile(r"\d+[-_]of[-_]\d+([-_][0-9a-f]{8,})?")
_ENDINGS = re.compile(r"(\.(jsonl?|ndjson|jsonlines|jl|tar|tgz|parquet|arrow|csv|tsv|gz|xz|bz2|zst))+$", re.IGNORECASE)
_MAX_ENTRIES, _MAX_DEPTH, _FILES_DEPTH = 200_000, 3, 6


class SplitWithOrigin(str):
    """A split that knows where it came from; an open one (equal to UNASSIGNED) has what the hash decides among."""

    origin: str
    among: tuple[str, ...]

    def __new__(cls, split: str = UNASSIGNED, origin: str = FROM_HASH, among: tuple[str, ...] = HELD_OUT):
        made = super().__new__(cls, split)
        made.origin, made.among = origin, among
        return made

    @property
    def is_undeclared(self) -> bool:
        """Whether no name says anything about the split."""
        return self == UNASSIGNED and self.origin == FROM_HASH and self.among == HELD_OUT


def strictest_split(*splits: str) -> str:
    """The one that counts of several splits of a document: `test` before `validation` before `train`."""
    return next((split for split in (*HELD_OUT, "train") if split in splits), UNASSIGNED)


def split_in(fields: dict) -> str:
    """The split that an object names itself; "" for none. DocumentError names the field."""
    try:
        return declared_split(fields)
    except ValueError as error:
        raise DocumentError(str(error)) from None


class PathSplits:
    """The splits that names in a source declare.

    paths: relative to the source, those of files (a path that ends in a slash is a folder). files: whether the names
    of files count. card: what the data set's README says, which goes before names.
    """

    def __init__(self, paths: Iterable[str], *, files: bool, card: DatasetCard | None = None):
        paths, self.files, self.card = list(paths), files, card or DatasetCard()
        names = {name for path in paths for name, _ in self._names(path)}
        self.trains = {(before, after) for name in names for before, s, after in split_words(name) if s == "train"}
        self.before, self.after = ({pair[index] for pair in self.trains} for index in (0, 1))
        self.names = {words_of_name(name) for name in names}
        self.held_out = {self.declared(path) for path in paths} & set(HELD_OUT)

    def split_of(self, path: str) -> SplitWithOrigin:
        """The split of what is at a path: a declared one, or an open one."""
        split, origin = self.declared_with_origin(path)
        if not self.held_out:
            return SplitWithOrigin()
        if split in HELD_OUT or "validation" in self.held_out:
            return SplitWithOrigin(split if split in HELD_OUT else "train", origin)
        return SplitWithOrigin(UNASSIGNED, origin, ("validation",))

    def split_of_single(self, path: str) -> SplitWithOrigin:
        """The split of a file of one document: its name says nothing, but a card may name it."""
        if self.card.patterns and self.card.split_of(path):
            return self.split_of(path)
        return self.split_of(path[: path.rfind("/") + 1])

    def declared(self, path: str) -> str:
        """What a path says, whether or not anything is held out; "" for nothing."""
        return self.declared_with_origin(path)[0]

    def declared_with_origin(self, path: str) -> tuple[str, str]:
        """(what a path says, where from)."""
        if self.card.patterns and (split := self.card.split_of(untagged(path))):
            return split, FROM_CARD
        found = [(split, origin) for name, origin in self._names(path) if (split := self._split_of(name, origin))]
        return next((item for item in found if item[0] in HELD_OUT), found[0] if found else (UNASSIGNED, FROM_HASH))

    def _names(self, path: str) -> Iterator[tuple[str, str]]:
        *folders, file = path.split("/")
        yield from ((folder, FROM_FOLDERS) for folder in folders)
        if self.files and file:
            yield self._file_name(file), FROM_FILES

    def _file_name(self, file: str) -> str:
        return shard_group_name(file)

    def _split_of(self, name: str, origin: str) -> str:
        found = split_words(name)
        if found and not found[0][0]:
            return found[0][1]
        return prefer_held_out(
            split
            for before, split, after in found
            if before in self.before or after in self.after or before + after in self.names
        )


class TextFileSplits(PathSplits):
    """The same for plain texts, of which each is a document and may be called anything.

    A file's name (`dev.txt`, `wiki.test.tokens`) holds out only where another text's has a word for training in that
    position, with the same words before it, and the same or in one of the two none after it (not `test_results.txt`).
    by_folders: whether names of folders count as everywhere; in a tree with programs `test` may hold their tests.
    """

    def __init__(self, paths: Iterable[str], *, card: DatasetCard, by_folders: bool):
        self.by_folders = by_folders
        super().__init__(paths, files=True, card=card)

    def _file_name(self, file: str) -> str:
        stem, ending = os.path.splitext(file)
        # of parallel texts the language may come first (`en.train`)
        return file if ending[1:].lower() in WORDS else stem

    def _split_of(self, name: str, origin: str) -> str:
        if self.by_folders and origin == FROM_FOLDERS:
            return super()._split_of(name, origin)
        return prefer_held_out(
            split
            for before, split, after in split_words(name)
            if split == "train"
            or any(before == others and (after == ends or not after or not ends) for others, ends in self.trains)
        )


class MediaPathSplits:
    """The split of a document by the folders (three deep, with files), tars and tables that its media are in."""

    def __init__(self, root: Path):
        self.root = root

    @functools.cached_property
    def splits(self) -> PathSplits:
        card = read_dataset_card(self.root)
        splits = PathSplits(_media_folders(self.root), files=False, card=card)
        # a card names files, and which of them are media is not known here
        splits.held_out |= {split for _, split in card.patterns} & set(HELD_OUT)
        return splits

    def split_of(self, document: Document) -> SplitWithOrigin:
        """The split of a document; open where no folder of its media is named after one."""
        # a tar or table is the folder of what is in it
        addresses = ((path, split_address(path)) for path in media_paths(document))
        paths = [f"{_as_folder(inner[0])}{inner[1]}" if inner else path for path, inner in addresses]
        if not any("/" in path for path in paths):
            return SplitWithOrigin()
        found = {path: self.splits.declared_with_origin(path) for path in paths}
        held_out = (SplitWithOrigin(split, origin) for split, origin in found.values() if split in HELD_OUT)
        trained = (self.splits.split_of(path) for path, (split, _) in found.items() if split == "train")
        return next(held_out, None) or next(trained, SplitWithOrigin())


def shard_group_name(file: str) -> str:
    """The name of a file of many documents, without its extensions and its number."""
    return _SHARD_NUMBER.sub("", _ENDINGS.sub("", file))


def folder_of_split(file: Path, base: Path) -> str:
    """The folder of a file, below one above, that is named after a split, a held-out one first; "" for none."""
    steps = file.parent.resolve().relative_to(base).parts
    named = [(split == "train", step) for step in steps for _, split, _ in split_words(step)]
    return min(named, key=lambda item: item[0], default=(False, ""))[1]


def split_first_stem(stem: str) -> str:
    """A stem whose word for a held-out split stands first: further on it counts beside siblings alone."""
    held = next(((before, split) for before, split, _ in split_words(stem) if split in HELD_OUT), ((), ""))
    return f"{held[1]}-{stem}" if held[0] else stem


def manifest_name_for(file: Path, base: Path) -> str:
    """The name of lines that are written of a file into a folder above it: other splits and folders have others."""
    folder = folder_of_split(file, base)
    words = split_words(folder)
    first = f"{words[0][1]}-{folder}" if words and words[0][0] else folder
    steps = file.parent.resolve().relative_to(base).parts[-1:]
    return "-".join([*dict.fromkeys(filter(None, (first, *steps))), f"{file.stem}.jsonl"])


def _as_folder(container: str) -> str:
    folder, _, name = untagged(container).rpartition("/")
    return f"{folder}/{shard_group_name(name)}/".lstrip("/")


def _media_folders(root: Path) -> list[str]:
    found = set()
    for folder, entry in files_near(root, depth=_FILES_DEPTH):
        found.add(folder)
        if entry.name.lower().endswith(CONTAINERS):
            found.add(_as_folder(f"{folder}{entry.name}"))
    for name in list(found):
        steps = name.split("/")[:-1]
        found.update("/".join(steps[:count]) + "/" for count in range(1, len(steps)))
    return sorted(name for name in found if 0 < name.count("/") <= _MAX_DEPTH)


def files_near(root: Path, *, depth: int) -> Iterator[tuple[str, os.DirEntry]]:
    """(folder with a slash after it, or "", entry) of at most 200,000 files, upper folders first.

    Hidden names are skipped and links to folders not followed. Several times as fast as `walk`, which asks for links.
    """
    open_folders, seen = [""], 0
    while open_folders and seen < _MAX_ENTRIES:
        folder = open_folders.pop(0)
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    seen += 1
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir(follow_symlinks=False):
                        yield folder, entry
                    elif folder.count("/") < depth:
                        open_folders.append(f"{folder}{entry.name}/")
        except OSError:
            continue


def folders_in(root: Path, tops: Iterable[str]) -> list[str]:
    """The folders in some of those right below a root, and these, each with a slash after it."""
    tops = set(tops)
    return [name for name in _media_folders(root) if name.split("/")[0] in tops] if tops else []


def digest_of_card(root: Path, digest: str) -> str:
    """The digest of a source with what its card says about splits."""
    patterns = read_dataset_card(root).patterns
    return hashlib.sha256(f"{digest} {patterns!r}".encode("utf-8", "replace")).hexdigest() if patterns else digest


def digest_of_containers(root: Path, digest: str) -> str:
    """The digest of manifests with the folders that hold something out: they decide splits, and may come later."""
    splits = PathSplits(folders := _media_folders(root), files=False)
    found = [digest_of_card(root, digest), *(name for name in folders if splits.declared(name) in HELD_OUT)]
    return hashlib.sha256("\0".join(found).encode("utf-8", "surrogateescape")).hexdigest() if found[1:] else found[0]
