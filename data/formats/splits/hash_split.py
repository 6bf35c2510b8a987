"""The split of documents that nothing declares: by the SHA-256 of the id, read as a number in [0, 1).

Below 0.05 it is `test`, below 0.10 `validation`, else `train`. So a document keeps its split when others come and go,
order and worker count play no part, and documents of equal id stay together. A small source could miss a split by
chance: in one of 10 to 256 documents (or 64 MiB of text), which are held back to find out, the smallest number is
`test` and the next `validation` where none came out that way. Nothing is taken from a declared `train` of fewer.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator

from brine.data.document import Document, Quarantined, Text
from brine.data.formats.splits.names import HELD_OUT
from brine.data.formats.splits.rules import FROM_HASH, UNASSIGNED, SplitWithOrigin

TEST_BELOW, VALIDATION_BELOW = 0.05, 0.10
MIN_DOCUMENTS = 10  # from this many documents on, each split gets at least one
_HELD_DOCUMENTS, _HELD_CHARACTERS, _HELD_ITEMS = 256, 2**26, 4096


def split_number(name: str) -> float:
    """The number in [0, 1) that an id stands for."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def hash_split(name: str, among: tuple[str, ...] = HELD_OUT) -> str:
    """The split of one id by the plain rule; a held-out split that is not `among` these is `train`."""
    number = split_number(name)
    split = "test" if number < TEST_BELOW else "validation" if number < VALIDATION_BELOW else "train"
    return split if split in among else "train"


def assign_splits(names: Iterable[str], among: tuple[str, ...] = HELD_OUT) -> dict[str, str]:
    """The split of each id of a whole source: about 5 % test and 5 % validation, one of each from 10 ids on."""
    ranked = sorted(set(names), key=lambda name: (split_number(name), name))
    if len(ranked) < MIN_DOCUMENTS and among != HELD_OUT:
        return dict.fromkeys(ranked, "train")
    found = {name: hash_split(name, among) for name in ranked}
    for split in HELD_OUT if len(ranked) >= MIN_DOCUMENTS else ():
        if split in among and split not in found.values():
            found[next(name for name in ranked if found[name] != "test")] = split
    return found


def with_splits(items: Iterable[Document | Quarantined]) -> Iterator[Document | Quarantined]:
    """The items with a split for each document that has none yet."""
    items, held, characters = iter(items), [], 0
    open_ids: dict[tuple[str, ...], list[str]] = {}
    assigned: dict[tuple[str, ...], dict[str, str]] | None = None
    for item in items:
        held.append(item)
        if _is_open(item):
            open_ids.setdefault(_among(item), []).append(item.id)
            characters += sum(len(part.text) for part in item.parts if isinstance(part, Text))
        num_open = sum(map(len, open_ids.values()))
        if num_open > _HELD_DOCUMENTS or characters > _HELD_CHARACTERS or len(held) > _HELD_ITEMS:
            break
    else:
        assigned = {among: assign_splits(ids, among) for among, ids in open_ids.items()}
    # what was held back is let go of one by one
    for item in itertools.chain(iter(lambda: held.pop(0) if held else None, None), items):
        if _is_open(item):
            among = _among(item)
            split = hash_split(item.id, among) if assigned is None else assigned[among][item.id]
            # documents that stay in a folder named after training were named by it
            origin = getattr(item.split, "origin", FROM_HASH) if split == "train" else FROM_HASH
            item = item.with_split(SplitWithOrigin(split, origin))
        yield item


def _is_open(item: Document | Quarantined) -> bool:
    return isinstance(item, Document) and item.split == UNASSIGNED


def _among(document: Document) -> tuple[str, ...]:
    return getattr(document.split, "among", HELD_OUT)
