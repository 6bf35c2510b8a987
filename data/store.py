"""A manifest as arrays on disk: encoded once, in parallel, restartable, read by memory map.

    meta.json                  version, digests of manifest, tokenizer and EncodeConfig; kinds; counts
    tokenizer.json
    index.npz                  per document: shard, place in it, tokens, patches, kind, level, split, crc32
    documents.jsonl            the documents kept, a line each, with offsets in index.npz
    quarantine.jsonl           what was left out: id, file, reason
    shards/00000/*.npy         every field of `data.sequence.Sequence`, documents end to end

Documents are encoded by `DecodePool` in order, SHARD_DOCUMENTS at a time; a shard is written under another name and
renamed, so a build that was killed goes on at its last whole shard. Order, shards and bytes do not depend on the number
of processes. Reading checks a document's crc32, so that a damaged cache shows as a failure and not as a strange loss.

`DecodingCorpus` gives the same sequences from the media files themselves, one at a time and slowly.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.config import EncodeConfig
from data.decode_pool import DecodePool
from data.document import MODALITIES, SPLITS, Document, Part, Quarantined, parse_document
from data.readers import read_manifest
from data.sequence import FIELDS, Sequence
from data.tokenizer import Tokenizer

VERSION = 1
SHARD_DOCUMENTS = 2048
META, INDEX, DOCUMENTS, QUARANTINE = "meta.json", "index.npz", "documents.jsonl", "quarantine.jsonl"


def encode_corpus(
    manifest: str | Path,
    folder: str | Path,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    *,
    workers: int = 2,
    progress: bool = True,
) -> EncodedCorpus:
    """Encode every document of a manifest into `folder` and open it; goes on where an earlier call was cut off.

    Bad documents are written to quarantine.jsonl and counted. Raises ValueError when the manifest cannot be read, when
    none of its documents can be used, or when `folder` holds the encoding of something else.
    """
    manifest, folder = Path(manifest), Path(folder)
    documents = list(read_manifest(manifest, max_file_mib=config.max_file_mib))
    meta = {
        "version": VERSION,
        "manifest": _digest(manifest),
        "root": str(manifest.resolve().parent),
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "encode": config.to_dict(),
    }
    begun = folder / "begun.json"
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    if begun.exists() and _read_json(begun) != meta:
        raise ValueError(f"{folder} holds the encoding of another corpus: remove it, or choose another folder")
    _write(begun, json.dumps(meta))
    tokenizer.save(folder / "tokenizer.json")
    good = [item for item in documents if isinstance(item, Document)]
    numbered = [good[first : first + SHARD_DOCUMENTS] for first in range(0, len(good), SHARD_DOCUMENTS)]
    missing = [number for number in range(len(numbered)) if not (shards / f"{number:05d}").exists()]
    with (
        tqdm(total=len(good), desc="encoding documents", unit="doc", disable=not progress) as bar,
        DecodePool(root=meta["root"], tokenizer=tokenizer, config=config, num_servers=workers) as pool,
    ):
        bar.update(len(good) - sum(len(numbered[number]) for number in missing))
        encoded = pool.encode(document for number in missing for document in numbered[number])
        for number in missing:
            _write_shard(shards / f"{number:05d}", islice(encoded, len(numbered[number])), config, bar)
    quarantined = [item for item in documents if isinstance(item, Quarantined)]
    _finish(folder, meta, len(numbered), quarantined)
    return EncodedCorpus.open(folder)


def _write_shard(folder: Path, encoded: Iterator, config: EncodeConfig, bar: tqdm) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    lines, bad = [], []
    for item in encoded:
        bar.update()
        if item.quarantined is not None:
            bad.append(item.quarantined.to_json())
            continue
        for name in FIELDS:
            arrays[name].append(getattr(item.sequence, name))
        sizes = {name: len(getattr(item.sequence, name)) for name in MODALITIES}
        lines.append({"document": item.document.to_json(), "tokens": len(item.sequence), **sizes, "crc32": item.crc32})
    for name, dtype in FIELDS.items():
        tail = (3,) if name == "position" else (config.dims[name],) if name in MODALITIES else ()
        np.save(partial / f"{name}.npy", np.concatenate([np.zeros((0, *tail), dtype), *arrays[name]]))
    _write(partial / DOCUMENTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    _write(partial / QUARANTINE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in bad))
    partial.rename(folder)


def _finish(folder: Path, meta: dict, num_shards: int, quarantined: list[Quarantined]) -> None:
    """Index, documents and quarantine of all shards; meta.json last."""
    lines, bad = [], [item.to_json() for item in quarantined]
    for number in range(num_shards):
        shard = folder / "shards" / f"{number:05d}"
        lines += [{"shard": number, **line} for line in _read_lines(shard / DOCUMENTS)]
        bad += _read_lines(shard / QUARANTINE)
    _write(folder / QUARANTINE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in bad))
    if not lines:
        first = f"; the first: {bad[0].get('reason')}" if bad else ""
        raise ValueError(
            f"no document of the manifest can be used ({len(bad)} were set aside, see {folder / QUARANTINE}){first}: "
            "mend the manifest or point to another"
        )
    kinds = sorted({line["document"]["kind"] for line in lines})
    text = [json.dumps(line["document"], ensure_ascii=False) + "\n" for line in lines]
    columns = {
        "shard": np.array([line["shard"] for line in lines], np.int32),
        "tokens": np.array([line["tokens"] for line in lines], np.int64),
        "kind": np.array([kinds.index(line["document"]["kind"]) for line in lines], np.int16),
        "level": np.array([line["document"]["level"] for line in lines], np.int16),
        "split": np.array([SPLITS.index(line["document"]["split"]) for line in lines], np.uint8),
        "crc32": np.array([line["crc32"] for line in lines], np.uint32),
        "line": np.cumsum([0, *(len(line.encode()) for line in text)]).astype(np.int64),
        **{name: np.array([line[name] for line in lines], np.int64) for name in MODALITIES},
    }
    with open(folder / f".{INDEX}", "wb") as file:
        np.savez(file, **columns)
    os.replace(folder / f".{INDEX}", folder / INDEX)
    _write(folder / DOCUMENTS, "".join(text))
    _write(folder / META, json.dumps({**meta, "kinds": kinds, "documents": len(lines), "quarantined": len(bad)}))


class EncodedCorpus:
    """An encoded corpus, read by memory map. Open it with `EncodedCorpus.open`."""

    def __init__(self, folder: Path, meta: dict, index: dict[str, np.ndarray]):
        self.folder, self._meta, self._index = folder, meta, index
        self.config = EncodeConfig.from_dict(meta["encode"])
        self.root = Path(meta["root"])
        self.kinds: list[str] = meta["kinds"]
        """Names of the kinds, ascending."""
        self.kind, self.level, self.num_tokens = index["kind"], index["level"], index["tokens"]
        self.split = np.array(SPLITS)[index["split"]]
        """(n,) str: train, validation or test."""
        self.num_patches = {name: index[name] for name in MODALITIES}
        """modality -> (n,) int64 patches of each document."""
        self.num_quarantined: int = meta["quarantined"]
        self._shards: dict[int, dict[str, np.ndarray]] = {}
        # where each document begins in its shard, by field
        self._begin = {name: self._starts(counts) for name, counts in
                       {"tokens": self.num_tokens, **self.num_patches}.items()}  # fmt: skip

    @classmethod
    def open(cls, folder: str | Path) -> EncodedCorpus:
        """Raises ValueError, naming the remedy, when the folder holds no whole corpus of this version."""
        folder = Path(folder)
        meta = _read_json(folder / META)
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise ValueError(f"{folder} holds no encoded corpus of version {VERSION}: build it again")
        try:
            with np.load(folder / INDEX, allow_pickle=False) as file:
                index = {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / INDEX} cannot be read ({error}): build the corpus again") from None
        return cls(folder, meta, index)

    def __reduce__(self):
        # memory maps are opened anew in each process
        return EncodedCorpus.open, (self.folder,)

    @property
    def num_documents(self) -> int:
        """Documents that can be used."""
        return len(self.num_tokens)

    @property
    def ids(self) -> list[str]:
        """Every document's id, in order."""
        return [self.document(number).id for number in range(self.num_documents)]

    def document(self, number: int) -> Document:
        """The document as it stood in the manifest."""
        begin, end = self._index["line"][number : number + 2]
        with open(self.folder / DOCUMENTS, "rb") as file:
            file.seek(begin)
            return parse_document(json.loads(file.read(end - begin)))

    def path_of(self, part: Part) -> Path:
        """Where the file of a media part lies."""
        return self.root / part.path

    def sequence(self, number: int) -> Sequence:
        """An encoded document; its arrays are copies. Raises ValueError when its bytes are not those written."""
        fields = {}
        for name, array in self._shard(int(self._index["shard"][number])).items():
            unit = name if name in MODALITIES else "tokens"
            begin = self._begin[unit][number]
            size = (self.num_patches[name] if name in MODALITIES else self.num_tokens)[number]
            fields[name] = np.array(array[begin : begin + size])
        sequence = Sequence(**fields)
        if sequence.crc32() != self._index["crc32"][number]:
            raise ValueError(f"document {number} of {self.folder} is damaged: its checksum differs; build it again")
        return sequence

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._shards:
            folder = self.folder / "shards" / f"{number:05d}"
            self._shards[number] = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in FIELDS
            }
        return self._shards[number]

    def _starts(self, counts: np.ndarray) -> np.ndarray:
        """(n,) offsets within the shard that each document is in."""
        total = np.concatenate([[0], np.cumsum(counts)[:-1]])
        _, first = np.unique(self._index["shard"], return_index=True)
        shard_of = np.searchsorted(first, np.arange(len(counts)), side="right") - 1
        return total - total[first][shard_of]


class DecodingCorpus(EncodedCorpus):
    """The same documents and lengths, with every sequence decoded from its files when it is asked for.

    Slow, and without a cache of patches on the way: for corpora that are read once, and for checking the cache.
    """

    def __reduce__(self):
        return DecodingCorpus.open, (self.folder,)

    def sequence(self, number: int) -> Sequence:
        """Decode one document in a server process with its time-out. Raises ValueError with the reason it cannot be."""
        if not hasattr(self, "_pool"):
            tokenizer = Tokenizer.load(self.folder / "tokenizer.json")
            self._pool = DecodePool(
                root=self.root, tokenizer=tokenizer, config=self.config, num_servers=1, batch_documents=1
            )
        (item,) = self._pool.encode([self.document(number)])
        if item.sequence is None:
            raise ValueError(f"{item.quarantined.file}: {item.quarantined.reason}")
        return item.sequence

    def close(self) -> None:
        """End the decoding process."""
        if hasattr(self, "_pool"):
            self._pool.close()



def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_lines(path: Path) -> list[dict]:
    # not splitlines(): a text may hold other line separators than the newline
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
