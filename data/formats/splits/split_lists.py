"""Splits that lists of files declare: `testing_list.txt` with the names of the media that are held out, line by line.

    testing_list.txt  validation_list.txt      Speech Commands: what neither names is for training
    meta/train.txt  ImageSets/Main/val.txt     Food-101, Pascal VOC: paths without extensions, names alone

A list is a text whose name has a word for one split and more than half of whose lines name media, alone or as the first
word (where sentences follow, only beside a list of its name for another split). Media that several lists name have the
strictest of their splits; media in their folder that no list names are `test` beside a list for training, else `train`.
Lists for training alone, and lists that leave nothing to train on, do not count; both are noted.
"""

import contextlib
import functools
import hashlib
import itertools
import operator
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from brine.common.files import file_digest
from brine.data.document import Document, media_paths
from brine.data.files.addresses import split_address
from brine.data.files.compressed import head_of
from brine.data.files.extensions import conversion_hint, media_type_of, stem_of
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
    """What lists of files below a folder (resolved) declare, read when first asked.

    skipped: takes notes on the others.
    """

    def __init__(self, root: Path, skipped: Counter | None = None):
        self.root, self.skipped = root, Counter() if skipped is None else skipped
        self._split: dict[str, str] = {}
        # (folder with a slash after it, split of what no list names there), the deepest first
        self._rest: list[tuple[str, str]] = []
        self._held_out: set[str] = set()

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """List -> its split, of the lists that count."""
        found, files = _lists_below(self.root), {}
        media = _Media(self.root) if found else None
        # folder of lists -> list -> (the media that it names, whether words follow them)
        groups: dict[str, dict[str, tuple[set[str], bool]]] = defaultdict(dict)
        for file in found:
            # words or boxes of a media file of its name
            if stem_of(file) not in media.by_name and (named := media.named_in(self.root / file)) is not None:
                groups[os.path.dirname(file)][file] = named
        for group in groups.values():
            around = {file: {(before, after) for before, _, after in split_words(stem_of(file))} for file in group}
            counts = Counter(itertools.chain.from_iterable(around.values()))
            lists = {
                file: named
                for file, (named, is_wordy) in group.items()
                if not is_wordy or any(counts[name] > 1 for name in around[file])
            }
            files |= self._take({file: found[file] for file in lists}, lists, media.keys) if lists else {}
        self._rest.sort(key=lambda item: -len(item[0]))
        for file in files:
            record_text_path(file)
        return files

    def split_of_document(self, document: Document, named: SplitWithOrigin, *, is_declared: bool) -> SplitWithOrigin:
        """The split of a document by its media; named: what their folders say. is_declared: its manifest says some."""
        paths = [path for path in media_paths(document) if not split_address(path)]
        return prefer_held_out((self.split_of(path, named, is_declared=is_declared) for path in paths), named)

    def split_of(self, path: str, named: SplitWithOrigin, *, is_declared: bool = False) -> SplitWithOrigin:
        """The split of media at a path; named: its folders' split.

        is_declared: a list without this file changes nothing.
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

    def _take(self, splits: dict[str, str], lists: dict[str, set[str]], media: set[str]) -> dict[str, str]:
        shown, note = ", ".join(list(splits)[:3]) + (", ..." if len(splits) > 3 else ""), ""
        every = set().union(*lists.values())
        folder = os.path.join(os.path.commonpath([os.path.dirname(key) for key in every]), "").lstrip("/")
        others = {key for key in media if key.startswith(folder)} - every
        has_train, found = "train" in splits.values(), {}
        for file, keys in lists.items():
            found |= {key: strictest_split(splits[file], found.get(key, "train")) for key in keys}
        rest = "test" if has_train else "train"
        named = {*found.values(), *([rest] if others else [])}
        counts = set(splits.values()) != {"train"} and "train" in named
        if set(splits.values()) == {"train"} and others:
            note = (
                f"{len(every):,} of {len(every) + len(others):,} media are named in {shown}, and no list names what is "
                "held out: it declares nothing; write a list such as test.txt to hold others out"
            )
        elif "train" not in named:
            note = f"lists of files were not taken for splits, since they leave nothing to train on ({shown}): keep "
            note += "those of one fold"
        elif has_train and others:
            note = f"{len(others):,} media that none of the lists names count as test ({shown})"
        self.skipped.update([f"{NOTE_PREFIX}{note}"] if note else ())
        if not counts:
            return {}
        self._split |= {key: strictest_split(split, self._split.get(key, "train")) for key, split in found.items()}
        self._rest.append((folder, rest))
        self._held_out |= named & set(HELD_OUT)
        return splits


class _Media:
    """The media below a folder, without extensions, found by the end of a path."""

    def __init__(self, root: Path):
        paths = (path for path, _ in walk(root, enter=is_visible) if media_type_of(path) or conversion_hint(path))
        self.keys = {os.path.splitext(path)[0] for path in paths}
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for key in sorted(self.keys):
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
        steps = name.replace("\\", "/").split("/")
        if (media_type_of(name) or conversion_hint(name)) and steps[-1] not in self.by_name:
            steps[-1] = os.path.splitext(steps[-1])[0]
        known = self.by_name.get(steps[-1], ())
        if len(known) > 1:
            same = (map(operator.eq, steps[::-1], key.split("/")[::-1]) for key in known)
            alike = [sum(itertools.takewhile(bool, each)) for each in same]
            known = [key for key, count in zip(known, alike, strict=True) if count == max(alike)]
        return known[0] if len(known) == 1 else ""


def _lines(file: Path) -> Iterable[str]:
    """The distinct lines of a text that are not empty; none of a file that is not a text."""
    data = head_of(file, _MAX_BYTES + 1)
    lines = [] if b"\0" in data or len(data) > _MAX_BYTES else data.decode("utf-8-sig", "replace").splitlines()
    return dict.fromkeys(filter(None, map(str.strip, lines)))


def _lists_below(root: Path) -> dict[str, str]:
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
        parts.append(path)
        with contextlib.suppress(OSError):
            parts.append(file_digest(root / path))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest() if parts[1:] else digest
