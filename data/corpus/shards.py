"""Writes an encoded corpus shard by shard, and joins the shards' indexes; a killed build resumes after the last one.

    shards/00000/<field>.npy       fields of `brine.data.sequence.EncodedDocument`, concatenated over its documents
                 index/<name>.npy  the columns of the index, in which kinds and sources are numbered within the shard
                 documents.jsonl, quarantine.jsonl
                 media.txt, media.npy      the files it was encoded from (`brine.data.corpus.file_records`)
                 shard.json        items read, documents kept, first reason, names of kinds and sources

A shard is closed by size and after every `shard_documents` items of the source, so that these many items are encoded
to the same shards wherever they are (`brine.data.corpus.blocks`). It appears by rename and is never touched again.
Memory holds one shard, and one column of one shard while indexes are joined, whatever the size of the corpus.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from brine.common.files import read_json, write_text
from brine.data.corpus.file_records import FileRecord, save_file_records
from brine.data.document import MODALITIES, SPLITS, Quarantined
from brine.data.media.pool import EncodeResult
from brine.data.sequence import FIELDS

_DOCUMENT_COLUMNS = {
    "kind": np.int16,
    "level": np.int16,
    "split": np.int8,
    "source": np.int32,
    "num_tokens": np.int64,
    **{f"num_{name}": np.int64 for name in MODALITIES},
    "crc32": np.uint32,
    "line_bytes": np.int32,
}
INDEX = {
    **{name: dtype for name, dtype in _DOCUMENT_COLUMNS.items() if name != "line_bytes"},
    "shard": np.int32,
    "line_start": np.int64,
    **{f"start_{name}": np.int64 for name in FIELDS},
}
"""Columns of a corpus and their dtypes, one number per document."""


def shard_path(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:05d}"


def write_json(path: Path, value) -> None:
    """Write a JSON file of a corpus: on one line, keys in the order given."""
    write_text(path, json.dumps(value, ensure_ascii=False))


class ShardWriter:
    """Collects results into shards below `folder`; knows which shards a killed build left whole."""

    def __init__(self, folder: Path, *, keep_media: bool, shard_bytes: int, shard_documents: int):
        self.folder, self.keep_media = folder, keep_media
        self.shard_bytes, self.shard_documents = shard_bytes, shard_documents
        self.shards: list[dict] = []
        for leftover in (folder / "shards").glob("*.partial"):
            shutil.rmtree(leftover)
        while shard := read_json(shard_path(folder, len(self.shards)) / "shard.json"):
            self.shards.append(shard)
        self.items_done = sum(shard["items"] for shard in self.shards)
        self._begin()

    def _begin(self) -> None:
        self.items = self.size = 0
        self.names: dict[str, dict[str, int]] = {"kinds": {}, "sources": {}}
        self.columns: list[tuple[int, ...]] = []
        self.arrays: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
        self.lines: list[bytes] = []
        self.quarantine: list[dict] = []
        self.undecoded: list[str] = []
        self.files: dict[str, FileRecord] = {}

    def undecoded_ids(self) -> set[str]:
        """Ids of the documents in the shards that are whole which could be read but not decoded."""
        return {name for shard in self.shards for name in shard.get("undecoded", ())}

    def note(self, files: dict[str, FileRecord]) -> None:
        """Take the files that the next item was made from."""
        self.files |= files

    def add(self, result: EncodeResult | Quarantined) -> None:
        """Take one item of the source: an encoded document, or one that is quarantined."""
        self.items += 1
        quarantined = result if isinstance(result, Quarantined) else result.quarantined
        if quarantined is not None:
            self.quarantine.append(quarantined.to_json())
            if not isinstance(result, Quarantined):
                self.undecoded.append(result.document.id)
        else:
            document, sequence = result.document, result.encoded
            kinds, sources = self.names.values()
            self.lines.append(json.dumps(document.to_json(), ensure_ascii=False).encode() + b"\n")
            numbers = {
                "kind": kinds.setdefault(document.kind, len(kinds)),
                "level": document.level,
                "split": SPLITS.index(document.split),
                "source": sources.setdefault(document.source, len(sources)),
                "num_tokens": len(sequence),
                **{f"num_{name}": len(getattr(sequence, name)) for name in MODALITIES},
                "crc32": result.crc32,
                "line_bytes": len(self.lines[-1]),
            }
            self.columns.append(tuple(numbers[name] for name in _DOCUMENT_COLUMNS))
            for name in FIELDS:
                array = getattr(sequence, name)
                array = array[:0] if name in MODALITIES and not self.keep_media else array
                self.size += array.nbytes
                self.arrays[name].append(array)
        if self.size >= self.shard_bytes or (self.items_done + self.items) % self.shard_documents == 0:
            self.close_shard()

    def close_shard(self) -> None:
        """Write what was collected as one shard, by rename."""
        if not self.items:
            return
        final = shard_path(self.folder, len(self.shards))
        partial = final.with_suffix(".partial")
        (partial / "index").mkdir(parents=True)
        for number, (name, dtype) in enumerate(_DOCUMENT_COLUMNS.items()):
            _save(partial / "index" / f"{name}.npy", np.array([row[number] for row in self.columns], dtype))
        for name in FIELDS:
            sizes = np.array([len(array) for array in self.arrays[name]], np.int64)
            _save(partial / "index" / f"start_{name}.npy", np.cumsum(sizes) - sizes)
            if self.lines:
                _save(partial / f"{name}.npy", np.concatenate(self.arrays[name]))
        (partial / "documents.jsonl").write_bytes(b"".join(self.lines))
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in self.quarantine)
        (partial / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
        save_file_records(partial, self.files)
        shard = {
            "items": self.items,
            "documents": len(self.lines),
            "undecoded": self.undecoded,
            "first_reason": self.quarantine[0]["reason"] if self.quarantine else "",
            **{key: list(names) for key, names in self.names.items()},
        }
        write_json(partial / "shard.json", shard)
        os.rename(partial, final)
        self.shards.append(shard)
        self.items_done += self.items
        self._begin()

    def finish(self) -> dict:
        """Join the shards' indexes; returns counts and names for meta.json."""
        for name in ("documents.jsonl", "quarantine.jsonl"):
            with open(self.folder / name, "wb") as out:
                for number in range(len(self.shards)):
                    with open(shard_path(self.folder, number) / name, "rb") as file:
                        shutil.copyfileobj(file, out)
        (self.folder / "index").mkdir(exist_ok=True)
        names = {key: sorted({name for shard in self.shards for name in shard[key]}) for key in self.names}
        documents = sum(shard["documents"] for shard in self.shards)
        sums = {name: self._join(name, documents, names) for name in INDEX}
        return {
            "documents": documents,
            "quarantined": sum(shard["items"] for shard in self.shards) - documents,
            "first_reason": next((shard["first_reason"] for shard in self.shards if shard["first_reason"]), ""),
            **names,
            "tokens": sums["num_tokens"],
            "media_tokens": {name: sums[f"num_{name}"] for name in MODALITIES},
        }

    def _join(self, name: str, documents: int, names: dict[str, list[str]]) -> int:
        path = self.folder / "index" / f"{name}.npy"
        if not documents:
            _save(path, np.zeros(0, INDEX[name]))
            return 0
        joined = np.lib.format.open_memmap(path, mode="w+", dtype=INDEX[name], shape=(documents,))
        start = line_start = 0
        for number, shard in enumerate(self.shards):
            column = {"line_start": "line_bytes", "shard": "kind"}.get(name, name)
            values = np.load(shard_path(self.folder, number) / "index" / f"{column}.npy", allow_pickle=False)
            if name == "shard":
                values = np.full(len(values), number)
            elif name == "line_start":
                ends = line_start + np.cumsum(values, dtype=np.int64)
                values, line_start = ends - values, int(ends[-1]) if len(ends) else line_start
            elif name in ("kind", "source"):
                order = names[f"{name}s"]
                values = np.array([order.index(each) for each in shard[f"{name}s"]], dtype=INDEX[name])[values]
            joined[start : start + len(values)] = values
            start += len(values)
        joined.flush()
        return int(joined.sum(dtype=np.int64))


def _save(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=False)


def drop_shards(folder: Path, first: int) -> None:
    """Delete the shards below `folder` from a number on, last one first, and the joined index."""
    shutil.rmtree(folder / "index", ignore_errors=True)
    for path in sorted((folder / "shards").glob("[0-9]" * 5), reverse=True):
        if int(path.name) >= first:
            shutil.rmtree(path)
