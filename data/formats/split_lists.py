"""Splits that lists of files declare: `testing_list.txt` with the names of the media that are held out, line by line.

    lists = SplitLists(root)
    lists.of("bed/0c40e715.wav", named)    its split, where its folders say `named`
    lists.files                            the texts that are such lists

    testing_list.txt  validation_list.txt          Speech Commands: what neither names is for training
    meta/train.txt  meta/test.txt                  Food-101: paths without endings, below another folder
    ImageSets/Main/train.txt  .../val.txt          Pascal VOC: names alone
    trainlist01.txt                                UCF101: a path and a number

A list is a text, at most three folders deep, whose own name has a word for one split (`data.split_names`) and more than
half of whose lines name a medium: by a path or a name, with its ending or without, alone or as the first word of the
line. A path may begin on another machine, as far as its end tells one medium below the root, and some may not be there;
a name without an ending must be. A medium that several lists name is held out if one of them says so, and `test` goes
before `validation`.

Where there is a list for training, a medium that no list names is `test`: whoever wrote it did not mean to train on it.
Where there are only lists of what is held out, all others are for training. A list for training that names everything
declares nothing. Where lists leave nothing to train on, such as those of several folds, none counts, and that is told.
"""

import functools
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from data.document import Document, Text, split_address
from data.endings import medium_of, remedy_for
from data.formats.source import NOTE, file_sha256, note_text
from data.formats.splits import HELD_OUT, SplitFrom, files_near
from data.formats.walk import is_open, walk
from data.split_names import split_words

LISTS = "lists of files"
"""Where such a split came from."""
_ENDINGS = (".txt", ".lst", ".list")
_MAX_BYTES, _DEPTH = 2**26, 3
_BETWEEN = re.compile(r"[\s,;|]")


class SplitLists:
    """What the lists of files below a folder (resolved) declare. They are looked for when the first medium is met, and
    media when there is one.

    skipped: counts what is to be told of lists that do not count.
    """

    def __init__(self, root: Path, skipped: Counter | None = None):
        self.root, self.skipped = root, Counter() if skipped is None else skipped
        self._split: dict[str, str] = {}
        self._rest, self._held_out = "", set()

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """List -> its split, of the lists that count."""
        found = lists_below(self.root)
        files = self._read(found) if found else {}
        for file in files:
            note_text(file)
        return files

    def of_document(self, document: Document, named: SplitFrom) -> SplitFrom:
        """The split of a document by its media; named: what their folders say."""
        paths = [part.path for part in document.parts if not isinstance(part, Text) and not split_address(part.path)]
        found = [self.of(path, named) for path in paths]
        return next((split for split in found if split in HELD_OUT), found[0] if found else named)

    def of(self, path: str, named: SplitFrom) -> SplitFrom:
        """The split of a medium at a path relative to the root; named: what its folders say."""
        if named in HELD_OUT or not self.files:
            return named
        split = self._split.get(os.path.splitext(path)[0], self._rest)
        if split == "train" and "validation" not in self._held_out:
            return SplitFrom(origin=LISTS, among=("validation",))
        return SplitFrom(split, LISTS)

    def _read(self, found: dict[str, str]) -> dict[str, str]:
        media = _Media(self.root)
        files, said = {}, defaultdict(set)
        for file, split in found.items():
            named = None if os.path.splitext(file)[0] in media.keys else media.named_in(self.root / file)
            if named is not None:
                files[file] = split
                for key in named:
                    said[key].add(split)
        self._split = {
            key: next((each for each in HELD_OUT if each in splits), "train") for key, splits in said.items()
        }
        self._rest = "test" if "train" in files.values() else "train"
        there = {*self._split.values()} | ({self._rest} if len(said) < len(media.keys) else set())
        self._held_out = there & set(HELD_OUT)
        if files and "train" not in there:
            shown = ", ".join(list(files)[:3]) + (", ..." if len(files) > 3 else "")
            self.skipped[
                f"{NOTE}lists of files were not taken for splits, since they leave nothing to train on ({shown}): keep "
                "those of one fold"
            ] += 1
        return files if "train" in there and self._held_out else {}


class _Media:
    """The media below a folder, without endings, to be found by the end of a path."""

    def __init__(self, root: Path):
        self.keys: set[str] = set()
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path, _ in walk(root, enter=is_open):
            if medium_of(path) or remedy_for(path):
                key = os.path.splitext(path)[0]
                if key not in self.keys:
                    self.keys.add(key)
                    self.by_name[os.path.basename(key)].append(key)

    def named_in(self, file: Path) -> set[str] | None:
        """The media that the lines of a text name; None where it is no list of them."""
        lines, alike, found = 0, 0, set()
        for line in _lines(file):
            lines, word = lines + 1, _BETWEEN.split(line, maxsplit=1)[0]
            key = self._of(line) or self._of(word)
            found |= {key} if key else set()
            # some of a list may not be here
            alike += bool(key or medium_of(line) or medium_of(word))
            if lines % 1000 == 0 and 4 * alike < lines:
                return None
        return found if found and 2 * alike > lines else None

    def _of(self, name: str) -> str:
        """The medium that a name or path means; "" for none, and where it may be several."""
        steps = name.replace("\\", "/").split("/")
        if (medium_of(name) or remedy_for(name)) and steps[-1] not in self.by_name:
            steps[-1] = os.path.splitext(steps[-1])[0]
        known = self.by_name.get(steps[-1], ())
        if len(known) > 1:
            alike = [_common_steps(steps, key.split("/")) for key in known]
            known = [key for key, count in zip(known, alike, strict=True) if count == max(alike)]
        return known[0] if len(known) == 1 else ""


def _common_steps(one: list[str], other: list[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def _lines(file: Path) -> Iterator[str]:
    """The distinct lines of a text that are not empty; none of what is no text."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError:
        return
    if b"\0" in data or len(data) > _MAX_BYTES:
        return
    yield from dict.fromkeys(line for raw in data.decode("utf-8-sig", "replace").splitlines() if (line := raw.strip()))


def lists_below(root: Path) -> dict[str, str]:
    """Path -> split of the texts below a root whose names have a word for one split, as far as a bounded look goes."""
    found = {}
    for folder, entry in files_near(root, depth=_DEPTH):
        stem, ending = os.path.splitext(entry.name)
        if ending.lower() in _ENDINGS and entry.is_file(follow_symlinks=False):
            splits = {split for _, split, _ in split_words(stem)}
            if len(splits) == 1:
                found[f"{folder}{entry.name}"] = splits.pop()
    return {path: found[path] for path in sorted(found)}


def digest_of_lists(root: Path, digest: str) -> str:
    """The digest of a source with the texts that may be lists of its splits."""
    parts = [digest]
    for path in lists_below(root):
        try:
            parts += [path, file_sha256(root / path)]
        except OSError:
            parts.append(path)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest() if parts[1:] else digest
