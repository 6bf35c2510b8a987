"""Which documents are held out: those that their own field or a name says, the others by a hash.

**Names.** A folder or a file of documents named after a split declares it: `train`, `training`, `validation`, `val`,
`valid`, `dev`, `eval`, `test`, `testing` and a few more (`data.split_names`, which fields share), in any case, as the
whole first word of a name (`test2017`, `train-00000-of-00002.parquet`; not `tests`). A word further on counts too where
another name of the same source says what it means: one with a word for training in its place, alike before or behind
it (`coco_train`, `coco_val`; `llava_train_v1`, `llava_test_v1`), or one that is the same without it (`data`,
`data_test`). Names of folders count everywhere, names of files only where a file holds many documents: manifests, tars
and tables, and tars and tables that a manifest takes media from; of plain texts and pages beside such a one for
training (`data.formats.text_splits`). A photo `test.png` or a page `training_day.md` is no split.

A path may have several such names. One that is held out wins over `train`, so that nothing in a folder named `test` is
ever trained on (`test/train/7.png` may be a picture of a train); of two that are held out the upper one counts.

**The hash.** Where nothing is declared, the SHA-256 of the id, read as a number in [0, 1), decides: below 0.05 it is
`test`, below 0.10 `validation`, else `train`. So a document stays where it is when others come and go, and order and
worker count play no part. Documents of equal id stay together. Names that say `train` alone declare nothing, since
nothing would be held out. Where `test` is declared and no `validation`, the documents of `train` from 0.05 to 0.10
become `validation`, for nothing would be measured while training otherwise; where `validation` is declared, all other
documents are `train`.

A small source could miss a split by chance, so in one of 10 to 256 documents the smallest number is `test` and the
next `validation` where none came out that way. Only the first 256 documents (or 64 MiB of text) are held back to find
out; with more, missing a split has a chance below 1 in 400,000 and the plain rule holds. Below 10 documents nothing
is forced, and nothing taken from a `train` that is declared: there is too little to measure on.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.document import Document, DocumentError, Quarantined, Text, split_address, untagged
from data.formats.card import Card, read_card
from data.split_names import own_split, split_words, words_of_name

UNASSIGNED = ""
"""Split of a document whose format does not name one; no document leaves `with_splits` with it."""
HELD_OUT = ("test", "validation")
TEST_BELOW, VALIDATION_BELOW = 0.05, 0.10
MIN_DOCUMENTS = 10
"""From this many documents on, each split gets at least one."""
OWN, FORM, FOLDERS, FILES, HASH = "own field", "form without a field", "names of folders", "names of files", "hash"
CARD = "the configs of README.md"
"""Where a split came from."""
_HELD_DOCUMENTS, _HELD_CHARACTERS = 256, 2**26
_OF_MANY = re.compile(r"\d+[-_]of[-_]\d+([-_][0-9a-f]{8,})?")
_ENDINGS = re.compile(r"(\.(jsonl?|ndjson|jsonlines|jl|tar|tgz|parquet|arrow|csv|tsv|gz|xz|bz2|zst))+$", re.IGNORECASE)
_NO_CARD = Card()
_CONTAINERS = (".tar", ".parquet", ".arrow")
_LOOKED_AT, _DEPTH, _HOLDERS_DEPTH = 200_000, 3, 6


class SplitFrom(str):
    """A split that knows where it came from; an open one (equal to UNASSIGNED) has what the hash decides among."""

    origin: str
    among: tuple[str, ...]

    def __new__(cls, split: str = UNASSIGNED, origin: str = HASH, among: tuple[str, ...] = HELD_OUT):
        made = super().__new__(cls, split)
        made.origin, made.among = origin, among
        return made

    @property
    def is_open(self) -> bool:
        """Whether no name says anything about the split."""
        return self == UNASSIGNED and self.origin == HASH and self.among == HELD_OUT


def ruling(*splits: str) -> str:
    """The one that counts of several splits of a document: `test` before `validation` before `train`."""
    return next((split for split in (*HELD_OUT, "train") if split in splits), UNASSIGNED)


def split_in(fields: dict) -> str:
    """The split that an object names itself (`data.split_names`); "" for none. DocumentError names the field."""
    try:
        return own_split(fields)
    except ValueError as error:
        raise DocumentError(str(error)) from None


class NamedSplits:
    """The splits that names in a source declare.

    paths: relative to the source, those of files (a path that ends in a slash is a folder). files: whether the names
    of files count. card: what the data set's README says, which goes before names.
    """

    def __init__(self, paths: Iterable[str], *, files: bool, card: Card = _NO_CARD):
        paths, self.files, self.card = list(paths), files, card
        names = {name for path in paths for name, _ in self._names(path)}
        around = [(before, after) for name in names for before, split, after in split_words(name) if split == "train"]
        self.before, self.after = ({pair[place] for pair in around} for place in (0, 1))
        self.names = {words_of_name(name) for name in names}
        self.held_out = {self._declared(path)[0] for path in paths} & set(HELD_OUT)

    def of(self, path: str) -> SplitFrom:
        """The split of what lies at a path: a declared one, or an open one."""
        split, origin = self._declared(path)
        if split in HELD_OUT or not self.held_out:
            return SplitFrom(split if self.held_out else UNASSIGNED, origin if self.held_out else HASH)
        if "validation" in self.held_out:
            return SplitFrom("train", origin)
        return SplitFrom(UNASSIGNED, origin, ("validation",))

    def of_one(self, path: str) -> SplitFrom:
        """The split of what a file of one document holds: its own name says nothing, but a card may name it."""
        if self.card.patterns and self.card.of(path):
            return self.of(path)
        return self.of(path.rpartition("/")[0] + "/" if "/" in path else "")

    def declared(self, path: str) -> str:
        """What a path says, whether or not anything is held out; "" for nothing."""
        return self._declared(path)[0]

    def _names(self, path: str) -> Iterator[tuple[str, str]]:
        *folders, file = path.split("/")
        for folder in folders:
            yield folder, FOLDERS
        if self.files and file:
            yield name_of_many(file), FILES

    def _declared(self, path: str) -> tuple[str, str]:
        if self.card.patterns and (split := self.card.of(untagged(path))):
            return split, CARD
        found = [(self._split_of(name, origin), origin) for name, origin in self._names(path)]
        found = [item for item in found if item[0]]
        return next((item for item in found if item[0] in HELD_OUT), found[0] if found else (UNASSIGNED, HASH))

    def _split_of(self, name: str, origin: str = FOLDERS) -> str:
        found = split_words(name)
        if found and not found[0][0]:
            return found[0][1]
        told = [split for before, split, after in found if self._is_told(before, after)]
        return next((split for split in told if split in HELD_OUT), told[0] if told else UNASSIGNED)

    def _is_told(self, before: tuple[str, ...], after: tuple[str, ...]) -> bool:
        """Whether another name says that the word between these is one for a split."""
        return before in self.before or after in self.after or before + after in self.names


def name_of_many(file: str) -> str:
    """The name of a file of many documents, without its endings and its number."""
    return _OF_MANY.sub("", _ENDINGS.sub("", file))


def folder_of_split(file: Path, base: Path) -> str:
    """The folder of a file, below one above, that is named after a split, a held-out one first; "" for none."""
    steps = file.parent.resolve().relative_to(base).parts
    named = [(split == "train", step) for step in steps for _, split, _ in split_words(step)]
    return min(named, key=lambda item: item[0], default=(False, ""))[1]


def stem_of_lines(stem: str) -> str:
    """A stem whose word for a held-out split stands first: further on it says something beside siblings alone."""
    held = next(((before, split) for before, split, _ in split_words(stem) if split in HELD_OUT), ((), ""))
    return f"{held[1]}-{stem}" if held[0] else stem


def named_after(file: Path, base: Path) -> str:
    """The name of lines that are written of a file into a folder above it: other splits and folders have others."""
    steps = file.parent.resolve().relative_to(base).parts
    folder = folder_of_split(file, base)
    split = next((split for _, split, _ in split_words(folder)), "")
    # a word for a split decides where it stands first
    first = folder if not folder or not split_words(folder)[0][0] else f"{split}-{folder}"
    return f"{'-'.join(dict.fromkeys(filter(None, (first, *steps[-1:]))))}{'-' if steps else ''}{file.stem}.jsonl"


class MediaSplits:
    """The split of a document by the folders, tars and tables that its media lie in, where neither it nor its manifest
    names one.

    What is declared is found out from those on disk, three deep, when a medium in `train/` is met first: the lines of
    a manifest that are still to come are not known. A folder without a file declares nothing: it holds nothing out.
    Documents whose media lie elsewhere stay open.
    """

    def __init__(self, root: Path):
        self.root, self.splits = root, NamedSplits((), files=False)
        self.looked, self.card = False, read_card(root)

    def of(self, document: Document) -> SplitFrom:
        """The split of a document; open where no folder of its media is named after one."""
        media = [part.path for part in document.parts if not isinstance(part, Text)]
        # a tar or table is the folder of what lies in it
        paths = [
            f"{_as_folder(address[0])}{address[1]}" if (address := split_address(path)) else path for path in media
        ]
        if not any("/" in path for path in paths):
            return SplitFrom()
        if not self.looked:
            self.splits, self.looked = _of_holders(self.root, self.card), True
        found = [self.splits._declared(path) for path in paths]
        held = next((item for item in found if item[0] in HELD_OUT), None)
        if held:
            return SplitFrom(*held)
        known = next((path for path, item in zip(paths, found, strict=True) if item[0] == "train"), None)
        return SplitFrom() if known is None else self.splits.of(known)


def _as_folder(container: str) -> str:
    folder, _, name = untagged(container).rpartition("/")
    return f"{folder}/{name_of_many(name)}/" if folder else f"{name_of_many(name)}/"


def holders_of_media(root: Path) -> list[str]:
    """The folders below a root that hold a file, and its tars and tables as such, as far as a bounded look goes.

    Each has a slash behind it; links are not followed.
    """
    found = set()
    for folder, entry in files_near(root, depth=_HOLDERS_DEPTH):
        found.add(folder)
        if entry.name.lower().endswith(_CONTAINERS):
            found.add(_as_folder(f"{folder}{entry.name}"))
    # the folders above one that holds something
    for name in list(found):
        steps = name.split("/")[:-1]
        found.update("/".join(steps[:count]) + "/" for count in range(1, len(steps)))
    return sorted(name for name in found if 0 < name.count("/") <= _DEPTH)


def files_near(root: Path, *, depth: int) -> Iterator[tuple[str, os.DirEntry]]:
    """(folder with a slash behind it, or "", entry) of what is no folder, upper folders first, as far as a bounded look
    goes; hidden names are passed over and links to folders not followed."""
    open_folders, seen = [""], 0
    while open_folders and seen < _LOOKED_AT:
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
    """The folders in some of those right below a root, and these, each with a slash behind it."""
    tops = set(tops)
    return [name for name in holders_of_media(root) if name.split("/")[0] in tops] if tops else []


def _of_holders(root: Path, card: Card) -> NamedSplits:
    splits = NamedSplits(holders_of_media(root), files=False, card=card)
    # a card names files, and which of them are media is not known here
    splits.held_out |= {split for _, split in card.patterns} & set(HELD_OUT)
    return splits


def digest_of_card(root: Path, digest: str) -> str:
    """The digest of a source with what its card says about splits."""
    patterns = read_card(root).patterns
    return hashlib.sha256(f"{digest} {patterns!r}".encode("utf-8", "replace")).hexdigest() if patterns else digest


def digest_of_holders(root: Path, digest: str) -> str:
    """The digest of manifests with the folders that hold something out: they decide splits, and may come later."""
    splits = NamedSplits(holders := holders_of_media(root), files=False)
    found = [name for name in holders if splits._declared(name)[0] in HELD_OUT]
    digest = digest_of_card(root, digest)
    if not found:
        return digest
    return hashlib.sha256("\0".join([digest, *found]).encode("utf-8", "surrogateescape")).hexdigest()


def splits_of_paths(paths: Iterable[str], *, splits: NamedSplits | None = None) -> dict[str, SplitFrom]:
    """Path -> split of the documents in a file of many, such as a tar, table or manifest.

    `splits` knows the names of the whole source where the files are a part of it.
    """
    paths = list(paths)
    splits = splits or NamedSplits(paths, files=True)
    return {path: splits.of(path) for path in paths}


def split_number(name: str) -> float:
    """The number in [0, 1) that an id stands for."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def split_of(name: str, among: tuple[str, ...] = HELD_OUT) -> str:
    """The split of one id by the plain rule; a held-out split that is not `among` these is `train`."""
    number = split_number(name)
    split = "test" if number < TEST_BELOW else "validation" if number < VALIDATION_BELOW else "train"
    return split if split in among else "train"


def assign_splits(names: Iterable[str], among: tuple[str, ...] = HELD_OUT) -> dict[str, str]:
    """The split of each id of a whole source: about 5 % test and 5 % validation, one of each from 10 ids on."""
    ranked = sorted(set(names), key=lambda name: (split_number(name), name))
    if len(ranked) < MIN_DOCUMENTS and among != HELD_OUT:
        return dict.fromkeys(ranked, "train")
    found = {name: split_of(name, among) for name in ranked}
    if len(ranked) >= MIN_DOCUMENTS:
        for split in HELD_OUT:
            if split in among and split not in found.values():
                found[next(name for name in ranked if found[name] != "test")] = split
    return found


def with_splits(items: Iterable[Document | Quarantined]) -> Iterator[Document | Quarantined]:
    """The items with a split for each document that has none yet."""
    items, held, num_held, characters = iter(items), [], 0, 0
    dealt: dict[tuple[str, ...], dict[str, str]] | None = None
    for item in items:
        held.append(item)
        if isinstance(item, Document) and item.split == UNASSIGNED:
            num_held += 1
            characters += sum(len(part.text) for part in item.parts if isinstance(part, Text))
        if num_held > _HELD_DOCUMENTS or characters > _HELD_CHARACTERS or len(held) > 4096:
            break
    else:
        open_names: dict[tuple[str, ...], list[str]] = {}
        for item in held:
            if isinstance(item, Document) and item.split == UNASSIGNED:
                open_names.setdefault(_among(item), []).append(item.id)
        dealt = {among: assign_splits(names, among) for among, names in open_names.items()}
    while held:
        yield _settled(held.pop(0), dealt)
    for item in items:
        yield _settled(item, dealt)


def _among(document: Document) -> tuple[str, ...]:
    return getattr(document.split, "among", HELD_OUT)


def _settled(item: Document | Quarantined, dealt: dict | None) -> Document | Quarantined:
    if isinstance(item, Document) and item.split == UNASSIGNED:
        among = _among(item)
        split = split_of(item.id, among) if dealt is None else dealt[among][item.id]
        # a folder named after training whose documents stay there was named by it
        named = getattr(item.split, "origin", HASH) if split == "train" else HASH
        return item.in_split(SplitFrom(split, named))
    return item
