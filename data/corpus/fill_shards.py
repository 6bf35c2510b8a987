"""Writes the shards of a corpus and joins them: by decoders of this process, or by an engine, block by block."""

from pathlib import Path

from brine.common.formatting import progress_bar
from brine.data.config import EncodeConfig
from brine.data.corpus.blocks.build import encode_blocks
from brine.data.corpus.blocks.engine import BlockEngine
from brine.data.corpus.blocks.finished import absorb_blocks
from brine.data.corpus.file_records import FileRecorder
from brine.data.corpus.shards import ShardWriter
from brine.data.document import Quarantined
from brine.data.formats.source import DocumentSource
from brine.data.media.pool import DecodePool
from brine.data.tokenizer import Tokenizer


def fill_shards(
    folder: Path,
    source: DocumentSource,
    *,
    identity: dict,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    engine: BlockEngine | None,
    num_workers: int,
    progress: bool,
) -> dict:
    """Write what is missing of the shards and the index below `folder`; returns counts and names for meta.json."""
    (folder / "shards").mkdir(exist_ok=True)
    if engine is None:
        absorb_blocks(folder, block_items=identity["shard_documents"])
    else:
        encode_blocks(
            folder, source, identity=identity, tokenizer=tokenizer, config=config, engine=engine, progress=progress
        )
    writer = ShardWriter(
        folder,
        keep_media=identity["keep_media"],
        shard_bytes=int(identity["shard_mib"] * 2**20),
        shard_documents=identity["shard_documents"],
    )
    if engine is None:
        with DecodePool(root=source.root, tokenizer=tokenizer, config=config, num_servers=num_workers) as pool:
            _encode_here(writer, source, pool, progress=progress)
    return writer.finish()


def _encode_here(writer: ShardWriter, source: DocumentSource, pool: DecodePool, *, progress: bool) -> None:
    with FileRecorder(source, max_file_mib=pool.config.max_file_mib) as recorder:
        results = progress_bar(
            pool.encode(recorder.items(writer.items_done, writer.undecoded_ids())),
            desc="encode", unit=" docs", smoothing=0.05,
            initial=writer.items_done, total=source.num_documents_hint, quiet=not progress,
        )  # fmt: skip
        for result in results:
            writer.note(recorder.take())
            writer.add(result)
            if not isinstance(result, Quarantined) and result.quarantined is not None:
                source.uncount(result.document)
        writer.close_shard()
