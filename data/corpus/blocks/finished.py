"""Finished blocks: checked, and moved in block order among the shards of the corpus, without encoding anything again.

Shards of a block keep their bytes and get the numbers that they have in a build by one process, which closes a shard
after every `shard_documents` items as well. Moving is by rename, one shard after another, and a kill between two is
repaired by the next call; so what is below `shards/` is at all times the beginning of the corpus.
"""

import os
import shutil
from pathlib import Path

from brine.common.files import file_digest, read_json
from brine.data.corpus.blocks.encode_block import BLOCK_FILE, block_path, items_path, progress_path
from brine.data.corpus.file_records import find_changed_files
from brine.data.corpus.shards import drop_shards, shard_path
from brine.data.files.roots import MediaRoots


class BlockMerger:
    """Moves the blocks below `folder`, a corpus that is built, among its shards, under the build's lock."""

    def __init__(self, folder: Path, *, block_items: int):
        self.folder, self.block_items = folder, block_items
        self.num_shards = self.items_done = 0
        self._recover()

    @property
    def next_block(self) -> int:
        """The first block that is not among the shards."""
        return self.items_done // self.block_items

    def _recover(self) -> None:
        """Count the shards; finish a move that was interrupted, or drop what belongs to half a block."""
        while shard := read_json(shard_path(self.folder, self.num_shards) / "shard.json"):
            self.items_done += shard["items"]
            self.num_shards += 1
        extra = self.items_done % self.block_items
        record = read_json(block_path(self.folder, self.next_block) / BLOCK_FILE) if extra else None
        if record is not None:
            left = len(_shards_left(block_path(self.folder, self.next_block)))
            if sum(record["shards"][: len(record["shards"]) - left]) == extra:
                self.merge_next()
                return
        while self.items_done % self.block_items:
            self.num_shards -= 1
            self.items_done -= read_json(shard_path(self.folder, self.num_shards) / "shard.json")["items"]
        if extra:
            drop_shards(self.folder, self.num_shards)

    def merge_next(self) -> bool:
        """Move the next block if it is finished; returns whether it was."""
        number = self.next_block
        folder = block_path(self.folder, number)
        if read_json(folder / BLOCK_FILE) is None:
            return False
        for shard in _shards_left(folder):
            self.items_done += read_json(shard / "shard.json")["items"]
            os.rename(shard, shard_path(self.folder, self.num_shards))
            self.num_shards += 1
        shutil.rmtree(folder)
        for attempt in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(attempt, ignore_errors=True)
        for path in (items_path(self.folder, number), progress_path(self.folder, number)):
            path.unlink(missing_ok=True)
        return True

    def keep_usable(self, root: Path | MediaRoots, *, max_file_mib: float) -> set[int]:
        """Numbers of blocks that an earlier build finished, whole to the byte and of unchanged files; others go."""
        kept = set()
        for folder in sorted((self.folder / "blocks").glob("[0-9]" * 5)):
            number = int(folder.name)
            whole = number >= self.next_block and is_whole(folder)
            if whole and not find_changed_files(folder, root, max_file_mib=max_file_mib):
                kept.add(number)
            else:
                shutil.rmtree(folder)
        for attempt in (self.folder / "blocks").glob("*.partial"):
            shutil.rmtree(attempt, ignore_errors=True)
        return kept


def is_whole(folder: Path) -> bool:
    """Whether every file of a finished block has the size and SHA-256 that were noted when it was written."""
    record = read_json(folder / BLOCK_FILE)
    if not isinstance(record, dict):
        return False
    try:
        return all(
            os.path.getsize(folder / name) == size and file_digest(folder / name) == sha256
            # times of files are brought up to date
            for name, (size, sha256) in record["files"].items() if not name.endswith("media.npy")
        )  # fmt: skip
    except OSError:
        return False


def absorb_blocks(folder: Path, *, block_items: int) -> None:
    """Move what a build by blocks has finished among the shards, for a build by one process to continue."""
    if not (folder / "blocks").is_dir():
        return
    merger = BlockMerger(folder, block_items=block_items)
    while merger.merge_next():
        pass
    shutil.rmtree(folder / "blocks")


def _shards_left(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "shards").glob("[0-9]" * 5) if path.is_dir())
