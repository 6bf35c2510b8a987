"""Which documents are held out, where a format does not say.

A document's split is decided by the SHA-256 of its id read as a number in [0, 1): below 0.05 it is `test`, below 0.10
`validation`, else `train`. So a document stays where it is when others come and go, and order and worker count play
no part. Documents of equal id stay together.

A small source could miss a split by chance, so in one of 10 to 256 documents the smallest number is `test` and the
next `validation` where none came out that way. Only the first 256 documents (or 64 MiB of text) are held back to find
out; with more, missing a split has a chance below 1 in 400,000 and the plain rule holds. Below 10 documents nothing
is forced: there is too little to measure on.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

from data.document import Document, Quarantined, Text

UNASSIGNED = ""
"""Split of a document whose format does not name one; no document leaves `with_splits` with it."""
TEST_BELOW, VALIDATION_BELOW = 0.05, 0.10
MIN_DOCUMENTS = 10
"""From this many documents on, each split gets at least one."""
_HELD_DOCUMENTS, _HELD_CHARACTERS = 256, 2**26


def split_number(name: str) -> float:
    """The number in [0, 1) that an id stands for."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def split_of(name: str) -> str:
    """The split of one id by the plain rule."""
    number = split_number(name)
    return "test" if number < TEST_BELOW else "validation" if number < VALIDATION_BELOW else "train"


def assign_splits(names: Iterable[str]) -> dict[str, str]:
    """The split of each id of a whole source: about 5 % test and 5 % validation, one of each from 10 ids on."""
    ranked = sorted(set(names), key=lambda name: (split_number(name), name))
    found = {name: split_of(name) for name in ranked}
    if len(ranked) >= MIN_DOCUMENTS:
        if "test" not in found.values():
            found[ranked[0]] = "test"
        if "validation" not in found.values():
            found[next(name for name in ranked if found[name] != "test")] = "validation"
    return found


def with_splits(items: Iterable[Document | Quarantined]) -> Iterator[Document | Quarantined]:
    """The items with a split for each document that has none yet."""
    items, held, num_held, characters = iter(items), [], 0, 0
    rule = split_of
    for item in items:
        held.append(item)
        if isinstance(item, Document) and item.split == UNASSIGNED:
            num_held += 1
            characters += sum(len(part.text) for part in item.parts if isinstance(part, Text))
        if num_held > _HELD_DOCUMENTS or characters > _HELD_CHARACTERS or len(held) > 4096:
            break
    else:
        names = [item.id for item in held if isinstance(item, Document) and item.split == UNASSIGNED]
        rule = assign_splits(names).__getitem__
    while held:
        yield _settled(held.pop(0), rule)
    for item in items:
        yield _settled(item, rule)


def _settled(item: Document | Quarantined, rule) -> Document | Quarantined:
    if isinstance(item, Document) and item.split == UNASSIGNED:
        return dataclasses.replace(item, split=rule(item.id))
    return item
