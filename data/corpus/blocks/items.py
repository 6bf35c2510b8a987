"""Items of a source on disk, one block of them a file, on their way from the one who reads to those who encode.

    {"document": {...} or "quarantined": {...}, "files": [[path, stamp, kept, container], ...]}

One process reads the source, in order: splits and ids that come twice depend on what was before, and most formats can
only be read from their start. An item is a text and paths; media are opened by whoever encodes it. Documents are taken
as they are, not parsed again: what is wrong with one is found where it is encoded, as in a build by one process.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from brine.common.files import replacing
from brine.data.corpus.file_records import StampedFile
from brine.data.document import Audio, Document, Image, Part, Quarantined, Text, Video

_PARTS: dict[str, type] = {"text": Text, "image": Image, "audio": Audio, "video": Video}
Item = Document | Quarantined


@dataclass
class Block:
    """Consecutive items of a source, the first of which is number * (items of a block)."""

    number: int
    num_items: int = 0
    sha256: str = ""
    """Hex SHA-256 of the items, without the stamps of their files."""
    media: dict[str, Document] = field(default_factory=dict)
    """The documents by id, without their texts, as `DocumentSource.uncount` takes them."""


def write_blocks(
    items: Iterable[tuple[Item, dict[str, StampedFile]]],
    path_of: Callable[[int], Path | None],
    *,
    first: int,
    block_items: int,
) -> Iterator[Block]:
    """Write the items, which begin with block `first`, to a file for each block; yields each block when it is there.

    path_of: the file of a block by number; None where it is not wanted, and the block is only counted and hashed.
    """
    items, number = iter(items), first
    while (head := next(items, None)) is not None:
        block, digest, path = Block(number), hashlib.sha256(), path_of(number)
        with replacing(path) if path is not None else open(os.devnull, "w") as file:
            for item, files in itertools.chain([head], itertools.islice(items, block_items - 1)):
                line = json.dumps({"quarantined" if isinstance(item, Quarantined) else "document": item.to_json()})
                digest.update(line.encode() + b"\n")
                file.write(f'{line[:-1]}, "files": {json.dumps([[name, *each] for name, each in files.items()])}}}\n')
                block.num_items += 1
                if isinstance(item, Document):
                    media = tuple(part for part in item.parts if not isinstance(part, Text))
                    block.media[item.id] = dataclasses.replace(item, parts=media)
        block.sha256 = digest.hexdigest()
        yield block
        number += 1


def read_items(path: Path) -> Iterator[tuple[Item, dict[str, StampedFile]]]:
    """The items of a file that `write_blocks` wrote, with their files."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            fields = json.loads(line)
            files = {
                name: StampedFile(tuple(stamp), tuple(kept), container)
                for name, stamp, kept, container in fields["files"]
            }
            yield _item_of(fields), files


def _item_of(fields: dict) -> Item:
    if "quarantined" in fields:
        return Quarantined(**fields["quarantined"])
    document = dict(fields["document"])
    return Document(parts=tuple(map(_part_of, document.pop("content"))), **document)


def _part_of(fields: dict) -> Part:
    fields = dict(fields)
    kind = fields.pop("type")
    return _PARTS[kind](fields.pop(kind), **fields)
