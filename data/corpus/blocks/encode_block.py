"""Encodes one block of items to its own shards, in a folder that is whole or absent.

    python -P -m brine.data.corpus.blocks.encode_block JOB.json

    blocks/00012/shards/00000/...   as `brine.data.corpus.shards` writes them, numbered within the block
                 block.json         number and digest of the items, items of each shard, size and SHA-256 of each file

A block may be encoded twice, where a machine was thought dead: each attempt has a folder of its own name, and the first
that is renamed counts; both hold the same bytes. Decoders are processes that can be killed, so a hostile file costs its
document. A worker of other versions of code or libraries than the driver's could encode other bytes and is refused.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import time
import uuid
from collections import deque
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from brine.common.files import file_digest, read_json, write_json
from brine.common.plugins import installed_version
from brine.common.processes import die_with_parent, exit_with_parent
from brine.data.config import EncodeConfig
from brine.data.corpus.blocks.items import read_items
from brine.data.corpus.file_records import FileHasher
from brine.data.corpus.shards import ShardWriter
from brine.data.files.roots import root_from_json
from brine.data.media.pool import DecodePool
from brine.data.tokenizer import Tokenizer

BLOCK_FILE = "block.json"
PROGRESS_S = 1.0
_LIBRARIES = ("av", "numpy", "pillow", "pyarrow", "soundfile", "tokenizers", "torch", "torchaudio")


class BlockError(ValueError):
    """A block that cannot be encoded here; the message says why and what to do."""


@dataclass(frozen=True)
class BlockJob:
    """All that a worker needs to know, as plain values: what it encodes is below `folder` and `root`."""

    folder: str
    """The corpus that is built, on a file system that driver and workers share."""
    root: str | dict[str, str]
    """Folder that media paths are relative to, or one for each source (`root_to_json`)."""
    number: int
    items_sha256: str
    encode: dict
    """`EncodeConfig.to_dict`."""
    keep_media: bool
    shard_bytes: int
    shard_documents: int
    num_decoders: int
    environment: dict
    """`environment()` of the driver."""


def block_path(folder: Path, number: int) -> Path:
    """Where a finished block lies."""
    return folder / "blocks" / f"{number:05d}"


def items_path(folder: Path, number: int) -> Path:
    """The file of a block's items."""
    return folder / "blocks" / f"{number:05d}.items.jsonl"


def tokenizer_path(folder: Path) -> Path:
    """The tokenizer for the workers."""
    return folder / "blocks" / "tokenizer.json"


def progress_path(folder: Path, number: int) -> Path:
    """How many items of a block are encoded: one number, written by whichever attempt is at work."""
    return folder / "blocks" / f"{number:05d}.progress"


@cache
def environment() -> dict[str, str]:
    """Versions of everything that stored bytes may depend on, Brine's own data code by its digest."""
    found = {name: installed_version(name) or "" for name in _LIBRARIES}
    digest, data = hashlib.sha256(), Path(__file__).resolve().parents[2]
    for path in sorted(data.rglob("*.py")):
        digest.update(path.relative_to(data).as_posix().encode() + b"\0" + path.read_bytes())
    return found | {"python": platform.python_version(), "brine": digest.hexdigest()[:16]}


def encode_block(job: BlockJob) -> dict:
    """Encode a block unless it is there; returns what ran it (executable, host).

    Raises BlockError where this machine does not see the folders or runs other versions, RuntimeError where decoders
    cannot be started.
    """
    folder, host = Path(job.folder), socket.gethostname()
    final, ran = block_path(folder, job.number), {"executable": sys.executable, "host": host}
    for path in (folder / "blocks", root_from_json(job.root)):
        if not path.is_dir():
            raise BlockError(f"node {host} does not see {path}: keep source and corpus on a disk that all nodes share")
    if unlike := [name for name, version in job.environment.items() if environment().get(name) != version]:
        theirs = ", ".join(f"{name} {environment().get(name)} instead of {job.environment[name]}" for name in unlike)
        raise BlockError(f"node {host} has {theirs} and could encode other bytes: install the same versions on all")
    if (final / BLOCK_FILE).is_file():
        return ran
    attempt = final.with_name(f"{final.name}.{uuid.uuid4().hex[:12]}.partial")
    attempt.mkdir()
    progress_path(folder, job.number).write_text("0")
    try:
        undecoded = _encode(job, attempt)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    shards = [read_json(path / "shard.json")["items"] for path in sorted((attempt / "shards").iterdir())]
    paths = sorted(path for path in attempt.rglob("*") if path.is_file())
    files = {path.relative_to(attempt).as_posix(): [path.stat().st_size, file_digest(path)] for path in paths}
    record = {"number": job.number, "items_sha256": job.items_sha256, "shards": shards, "undecoded": undecoded}
    write_json(attempt / BLOCK_FILE, record | {"files": files})
    try:
        os.rename(attempt, final)
    except OSError:
        # another attempt was first
        shutil.rmtree(attempt, ignore_errors=True)
        if not (final / BLOCK_FILE).is_file():
            raise
    return ran


def _encode(job: BlockJob, attempt: Path) -> list[str]:
    """Write the shards below `attempt`; returns the ids of documents that could not be decoded."""
    folder, root, config = Path(job.folder), root_from_json(job.root), EncodeConfig.from_dict(job.encode)
    writer = ShardWriter(
        attempt, keep_media=job.keep_media, shard_bytes=job.shard_bytes, shard_documents=job.shard_documents
    )
    pending: deque[dict] = deque()
    tokenizer, told = Tokenizer.load(tokenizer_path(folder)), 0.0
    with (
        FileHasher(root, max_file_mib=config.max_file_mib) as hasher,
        DecodePool(root=root, tokenizer=tokenizer, config=config, num_servers=job.num_decoders) as pool,
    ):

        def items():
            for item, files in read_items(items_path(folder, job.number)):
                pending.append({path: hasher.record(path, file) for path, file in files.items()})
                yield item

        for done, result in enumerate(pool.encode(items()), 1):
            writer.note(pending.popleft())
            writer.add(result)
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                progress_path(folder, job.number).write_text(str(done))
        writer.close_shard()
    return sorted(writer.undecoded_ids())


def main() -> None:
    """The command: exit status 0 when the block is there, 2 with one line on standard error when it cannot be."""
    parent = os.getppid()
    die_with_parent(parent=parent)
    exit_with_parent(parent)
    try:
        encode_block(BlockJob(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{error}", file=sys.stderr)
        sys.exit(2)


def write_job(job: BlockJob, path: Path) -> None:
    """Write the file that `main` reads."""
    write_json(path, asdict(job))


if __name__ == "__main__":
    main()
