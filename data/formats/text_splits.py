"""Splits that names of plain texts declare: `train.txt` beside `test.txt`, `train/pos/1.txt` beside `test/pos/2.txt`.

    TextSplits(paths, card=..., by_folders=True).of("test/pos/2.txt")    "test"

A text is a document of its own and may be called anything, so that the name of its file (`dev.txt`, `wiki.test.tokens`)
declares a held-out split only where another text's has a word for training in that place: the same words stand before
it, and the same or, in one of the two, none behind it (`train.txt`, `test_unseen.txt`; not `training_day.txt`,
`test_results.txt`). Names of folders count as everywhere (`data.formats.splits`), but in a tree with programs
(`by_folders=False`), whose folder `test` may be that of its tests, by the same rule as names of files.
"""

import os
from collections.abc import Iterable, Iterator

from data.formats.card import Card
from data.formats.splits import FILES, FOLDERS, HELD_OUT, UNASSIGNED, NamedSplits
from data.split_names import WORDS, split_words


class TextSplits(NamedSplits):
    """What the names of texts (paths relative to their source) declare."""

    def __init__(self, paths: Iterable[str], *, card: Card, by_folders: bool):
        paths, self.by_folders = list(paths), by_folders
        names = {name for path in paths for name in (*path.split("/")[:-1], _bare(path))}
        self.trains = {
            (before, after) for name in names for before, split, after in split_words(name) if split == "train"
        }
        super().__init__(paths, files=True, card=card)

    def _names(self, path: str) -> Iterator[tuple[str, str]]:
        for folder in path.split("/")[:-1]:
            yield folder, FOLDERS
        yield _bare(path), FILES

    def _split_of(self, name: str, origin: str = FILES) -> str:
        if self.by_folders and origin == FOLDERS:
            return super()._split_of(name)
        told = [
            split for before, split, after in split_words(name) if split == "train" or self._has_train(before, after)
        ]
        return next((split for split in told if split in HELD_OUT), told[0] if told else UNASSIGNED)

    def _has_train(self, before: tuple[str, ...], after: tuple[str, ...]) -> bool:
        return any(before == others and (after == behind or not after or not behind) for others, behind in self.trains)


def _bare(path: str) -> str:
    stem, ending = os.path.splitext(os.path.basename(path))
    # of parallel texts the language may come first (`en.train`)
    return stem + ending if ending[1:].lower() in WORDS else stem
