"""Splits that lists of files declare: `testing_list.txt` with the names of the media that are held out, line by line.

    testing_list.txt  validation_list.txt      Speech Commands: what neither names is for training
    meta/train.txt  ImageSets/Main/val.txt     Food-101, Pascal VOC: paths without endings, names alone
    trainlist01.txt                            UCF101: a path and a number

A list is a text, at most three folders deep, whose name has a word for one split and more than half of whose lines name
a medium, alone or as the first word; where sentences follow most names, only beside a list of its name for another
split. A medium that several lists name has the strictest of their splits. Media in their folder that no list names, and
nothing else, are `test` beside a list for training, else `train`. Lists for training alone, and lists that leave
nothing to train on, do not count; both are noted.
"""

import functools
import hashlib
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from brine.common.files import file_digest
from brine.data.document import Document, Text
from brine.data.files.addresses import split_address
from brine.data.files.extensions import conversion_hint, media_type_of
from brine.data.files.walk import is_visible, walk
from brine.data.formats.source import NOTE_PREFIX, record_text_path
from brine.data.formats.splits.names import HELD_OUT, prefer_held_out, split_words, word_set, words_of_name
from brine.data.formats.splits.rules import SplitWithOrigin, files_near, strictest_split

FROM_LISTS = "lists of files"
_ENDINGS = (".txt", ".lst", ".list")
_MAX_BYTES, _MAX_DEPTH = 2**26, 3
# words in the names of texts that tell about media
_REMARKS = word_set(
    "note notes remark remarks error errors failed failures bad broken corrupt log logs report reports result results "
    "stats statistics summary readme todo changes"
)
_BETWEEN = re.compile(r"[\s,;|]")


class SplitListFiles:
    """What the lists of files below a folder (resolved) declare; looked for when the first medium is met.

    skipped: takes notes on lists that do not count.
    """

    def __init__(self, root: Path, skipped: Counter | None = None):
        self.root, self.skipped = root, Counter() if skipped is None else skipped
        self._split: dict[str, str] = {}
        # (folder with a slash behind it, split of what no list names there), the deepest first
        self._rest: list[tuple[str, str]] = []
        self._held_out: set[str] = set()

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """List -> its split, of the lists that count."""
        found = lists_below(self.root)
        files = self._read(found) if found else {}
        for file in files:
            record_text_path(file)
        return files

    def split_of_document(self, document: Document, named: SplitWithOrigin, *, is_declared: bool) -> SplitWithOrigin:
        """The split of a document by its media; named: what their folders say. is_declared: its manifest says some."""
        paths = [part.path for part in document.parts if not isinstance(part, Text) and not split_address(part.path)]
        return prefer_held_out((self.split_of(path, named, is_declared=is_declared) for path in paths), named)

    def split_of(self, path: str, named: SplitWithOrigin, *, is_declared: bool = False) -> SplitWithOrigin:
        """The split of a medium at a path relative to the root; named: what its folders say.

        is_declared: whether something else names a split, which a list without this medium does not change.
        """
        if named in HELD_OUT or not self.files:
            return named
        split = self._split.get(os.path.splitext(path)[0])
        if split is None and named.is_undeclared and not is_declared:
            split = next((rest for folder, rest in self._rest if path.startswith(folder)), None)
        if split is None:
            return named
        if split == "train" and "validation" not in self._held_out:
            return SplitWithOrigin(origin=FROM_LISTS, among=("validation",))
        return SplitWithOrigin(split, FROM_LISTS)

    def _read(self, found: dict[str, str]) -> dict[str, str]:
        media = _Media(self.root)
        # folder of lists -> list -> the media that it names
        groups: dict[str, dict[str, set[str]]] = defaultdict(dict)
        wordy: dict[str, bool] = {}
        for file in found:
            # words or boxes of a medium of its name
            named = None if _stem(file) in media.by_name else media.named_in(self.root / file)
            if named is not None:
                groups[os.path.dirname(file)][file], wordy[file] = named
        files: dict[str, str] = {}
        for lists in groups.values():
            around = Counter(name for file in lists for name in _around(file))
            for file in [file for file in lists if wordy[file]]:
                if all(around[name] < 2 for name in _around(file)):
                    del lists[file]
            if lists:
                files |= self._take({file: found[file] for file in lists}, lists, media.keys)
        self._rest.sort(key=lambda item: -len(item[0]))
        return files

    def _take(self, splits: dict[str, str], lists: dict[str, set[str]], media: set[str]) -> dict[str, str]:
        """The lists of one folder, where they count."""
        shown = ", ".join(list(splits)[:3]) + (", ..." if len(splits) > 3 else "")
        every = set().union(*lists.values())
        common = os.path.commonpath([os.path.dirname(key) for key in every])
        folder = f"{common}/" if common else ""
        others = {key for key in media if key.startswith(folder)} - every
        if set(splits.values()) == {"train"}:
            if others:
                self._note(
                    f"{len(every):,} of {len(every) + len(others):,} media are named in {shown}, and no list names "
                    "what is held out: it declares nothing; write a list such as test.txt to hold others out"
                )
            return {}
        found: dict[str, str] = {}
        for file, keys in lists.items():
            for key in keys:
                found[key] = strictest_split(splits[file], found.get(key, "train"))
        rest = "test" if "train" in splits.values() else "train"
        if "train" not in {*found.values(), *([rest] if others else [])}:
            self._note(
                f"lists of files were not taken for splits, since they leave nothing to train on ({shown}): keep those "
                "of one fold"
            )
            return {}
        for key, split in found.items():
            self._split[key] = strictest_split(split, self._split.get(key, "train"))
        if rest == "test" and others:
            self._note(f"{len(others):,} media that none of the lists names count as test ({shown})")
        self._rest.append((folder, rest))
        self._held_out |= {*found.values(), *([rest] if others else [])} & set(HELD_OUT)
        return splits

    def _note(self, told: str) -> None:
        self.skipped[f"{NOTE_PREFIX}{told}"] += 1


class _Media:
    """The media below a folder, without endings, found by the end of a path."""

    def __init__(self, root: Path):
        self.keys: set[str] = set()
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path, _ in walk(root, enter=is_visible):
            if media_type_of(path) or conversion_hint(path):
                key = os.path.splitext(path)[0]
                if key not in self.keys:
                    self.keys.add(key)
                    self.by_name[os.path.basename(key)].append(key)

    def named_in(self, file: Path) -> tuple[set[str], bool] | None:
        """The media that the lines of a text name, and whether words follow most; None where it is no list of them."""
        lines, alike, wordy, found = 0, 0, 0, set()
        for line in _lines(file):
            lines, word = lines + 1, _BETWEEN.split(line, maxsplit=1)[0]
            whole = self._of(line)
            key = whole or self._of(word)
            wordy += not whole and line[len(word) : len(word) + 1] == " " and len(line.split()) > 2
            found |= {key} if key else set()
            # some of a list may not be here
            alike += bool(key or media_type_of(line) or media_type_of(word))
            if lines % 1000 == 0 and 4 * alike < lines:
                return None
        return (found, 2 * wordy > lines) if found and 2 * alike > lines else None

    def _of(self, name: str) -> str:
        """The medium that a name or path means; "" for none, and where it may be several."""
        steps = name.replace("\\", "/").split("/")
        if (media_type_of(name) or conversion_hint(name)) and steps[-1] not in self.by_name:
            steps[-1] = os.path.splitext(steps[-1])[0]
        known = self.by_name.get(steps[-1], ())
        if len(known) > 1:
            alike = [_common_steps(steps, key.split("/")) for key in known]
            known = [key for key, count in zip(known, alike, strict=True) if count == max(alike)]
        return known[0] if len(known) == 1 else ""


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _around(file: str) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The words around that for a split in the name of a list."""
    return {(before, after) for before, _, after in split_words(_stem(file))}


def _common_steps(one: list[str], other: list[str]) -> int:
    same = (a == b for a, b in zip(reversed(one), reversed(other), strict=False))
    return sum(itertools.takewhile(bool, same))


def _lines(file: Path) -> Iterator[str]:
    """The distinct lines of a text that are not empty; none of a file that is not a text."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError:
        return
    if b"\0" in data or len(data) > _MAX_BYTES:
        return
    yield from dict.fromkeys(line for raw in data.decode("utf-8-sig", "replace").splitlines() if (line := raw.strip()))


def lists_below(root: Path) -> dict[str, str]:
    """Path -> split of the texts below a root whose names have a word for one split."""
    found = {}
    for folder, entry in files_near(root, depth=_MAX_DEPTH):
        stem, ending = os.path.splitext(entry.name)
        if ending.lower() in _ENDINGS and entry.is_file(follow_symlinks=False):
            splits = {split for _, split, _ in split_words(stem)}
            if len(splits) == 1 and _REMARKS.isdisjoint(words_of_name(stem)):
                found[f"{folder}{entry.name}"] = splits.pop()
    return dict(sorted(found.items()))


def digest_of_split_lists(root: Path, digest: str) -> str:
    """The digest of a source with the lists of its splits."""
    parts = [digest]
    for path in SplitListFiles(root).files:
        try:
            parts += [path, file_digest(root / path)]
        except OSError:
            parts.append(path)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest() if parts[1:] else digest
