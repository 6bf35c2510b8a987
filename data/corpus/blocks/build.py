"""Builds the shards of a corpus by blocks: one process reads the source, workers encode, blocks are joined in order.

    source -> blocks/00012.items.jsonl -> (any worker) blocks/00012/ -> shards/00031 ...

A block is `shard_documents` items whatever the number of workers, and a build by one process closes a shard after as
many, so both write the same bytes. A killed build keeps its finished blocks. Reading ahead is bounded by the engine's
slots. Cost of the one reader: see data/README.md.
"""

import logging
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from brine.common.files import read_json
from brine.common.formatting import progress_bar
from brine.data.config import EncodeConfig
from brine.data.corpus.blocks.encode_block import (
    BLOCK_FILE,
    BlockError,
    BlockJob,
    block_path,
    environment,
    items_path,
    progress_path,
    tokenizer_path,
)
from brine.data.corpus.blocks.engine import BlockEngine
from brine.data.corpus.blocks.finished import BlockMerger
from brine.data.corpus.blocks.items import Block, write_blocks
from brine.data.corpus.file_records import FileRecorder
from brine.data.corpus.shards import ShardWriter
from brine.data.files.roots import root_to_json
from brine.data.formats.source import DocumentSource
from brine.data.tokenizer import Tokenizer

logger = logging.getLogger("brine.store")

STALL_S = 900.0
"""Seconds without a new item, beyond twice a document's time-out, after which the worker of a block is ended."""
IDLE_S = 4 * 3600.0
"""Seconds without a sign of any worker after which a build gives up."""
POLL_S = 1.0


@dataclass
class _Submitted:
    """A block that is being encoded, and how far it was when somebody looked."""

    block: Block
    told: int = 0
    """Items that the progress bar has."""
    seen: int | None = None
    seen_at: float = 0.0


class BlockBuild:
    """One build: what was kept of an earlier one, what is submitted, what is merged."""

    def __init__(
        self, folder: Path, source: DocumentSource, *, identity: dict, tokenizer: Tokenizer, config: EncodeConfig,
        engine: BlockEngine, stall_s: float = STALL_S,
    ):  # fmt: skip
        self.folder, self.source, self.config, self.engine = folder.resolve(), source, config, engine
        self.block_items = identity["shard_documents"]
        self.stall_s = stall_s + 2 * config.decode_timeout_s
        (folder / "blocks").mkdir(exist_ok=True)
        tokenizer.save(tokenizer_path(folder))
        self.job = BlockJob(
            folder=str(self.folder),
            root=root_to_json(source.root),
            number=-1,
            items_sha256="",
            encode=config.to_dict(),
            keep_media=identity["keep_media"],
            shard_bytes=int(identity["shard_mib"] * 2**20),
            shard_documents=self.block_items,
            num_decoders=engine.num_decoders,
            environment=environment(),
        )
        self.merger = BlockMerger(self.folder, block_items=self.block_items)
        self.kept = self.merger.keep_usable(source.root, max_file_mib=config.max_file_mib)
        self.submitted: dict[int, _Submitted] = {}
        self.taken: set[int] = set()
        self.moved_at = time.monotonic()

    def items(self) -> Iterator[int]:
        """Encode everything; yields numbers of items as they are done."""
        while not (yield from self._read_once()):
            logger.warning("%s differs from what was encoded before: it is read again", self.source.path)

    def _read_once(self) -> Generator[int, None, bool]:
        """Read the source, have its blocks encoded; False where a block that was kept turns out to be of other items,
        which are dropped then with what follows."""
        writer = ShardWriter(
            self.folder, keep_media=self.job.keep_media, shard_bytes=self.job.shard_bytes,
            shard_documents=self.block_items,
        )  # fmt: skip
        with FileRecorder(self.source, max_file_mib=self.config.max_file_mib) as recorder:
            blocks = write_blocks(
                recorder.stamped_items(writer.items_done, writer.undecoded_ids()),
                lambda number: None if number in self.kept else items_path(self.folder, number),
                first=self.merger.next_block,
                block_items=self.block_items,
            )
            unlike = None
            for block in blocks:
                if block.number not in self.kept:
                    self.engine.submit(replace(self.job, number=block.number, items_sha256=block.sha256))
                    self.submitted[block.number] = _Submitted(block)
                elif self._is_of(block):
                    yield self._finish(block)
                else:
                    unlike = block.number
                    break
                while len(self.submitted) >= self.engine.slots:
                    yield from self._wait()
            while self.submitted:
                yield from self._wait()
        for number in [] if unlike is None else [number for number in self.kept if number >= unlike]:
            self.kept.discard(number)
            shutil.rmtree(block_path(self.folder, number))
        return unlike is None

    def _is_of(self, block: Block) -> bool:
        record = read_json(block_path(self.folder, block.number) / BLOCK_FILE) or {}
        return record.get("items_sha256") == block.sha256

    def _wait(self) -> Iterator[int]:
        for number in self.engine.finished(POLL_S):
            submitted = self.submitted.pop(number)
            if not self._is_of(submitted.block):
                raise BlockError(f"block {number} in {self.folder} is not the one that was asked for: build it again")
            self.moved_at = time.monotonic()
            yield self._finish(submitted.block) - submitted.told
        now = time.monotonic()
        for number, submitted in self.submitted.items():
            done = read_json(progress_path(self.folder, number))
            if isinstance(done, int) and done != submitted.seen:
                submitted.seen, submitted.seen_at, self.moved_at = done, now, now
                yield max(0, done - submitted.told)
                submitted.told = max(done, submitted.told)
            elif submitted.seen is not None and now - submitted.seen_at > self.stall_s:
                logger.warning("block %d: no new document for %.0f s; its worker is ended", number, self.stall_s)
                self.engine.restart(number)
                progress_path(self.folder, number).unlink(missing_ok=True)
                submitted.seen = None
        if now - self.moved_at > IDLE_S:
            raise BlockError(
                f"no worker has begun or finished anything for {IDLE_S / 3600:.0f} hours: see what the machines do, "
                "and give the same command again"
            )

    def _finish(self, block: Block) -> int:
        """Take what could not be decoded out of the source's counts, and merge what comes next; returns the items."""
        record = read_json(block_path(self.folder, block.number) / BLOCK_FILE) or {}
        for name in record.get("undecoded", ()):
            self.source.uncount(block.media[name])
        # one that was finished meanwhile, and is not looked at yet, stays where it is
        self.taken.add(block.number)
        while self.merger.next_block in self.taken and self.merger.merge_next():
            pass
        return block.num_items


def encode_blocks(
    folder: Path,
    source: DocumentSource,
    *,
    identity: dict,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    engine: BlockEngine,
    progress: bool,
) -> None:
    """Write all shards of a corpus below `folder` by an engine, which is closed afterwards."""
    try:
        build = BlockBuild(folder, source, identity=identity, tokenizer=tokenizer, config=config, engine=engine)
        with progress_bar(
            desc="encode", unit=" docs", initial=build.merger.items_done, total=source.num_documents_hint,
            quiet=not progress,
        ) as bar:  # fmt: skip
            for count in build.items():
                bar.update(count)
    finally:
        engine.close()
    # a worker that was thought dead may still write there
    shutil.rmtree(folder / "blocks", ignore_errors=True)
