"""Writes an encoded corpus shard by shard, and joins the shards' indexes; a killed build resumes after the last one.

    shards/00000/<field>.npy       the fields of `brine.data.sequence.Sequence`, concatenated over the shard's documents
                 index/<name>.npy  the columns of the index, in which kinds and sources are numbered within the shard
                 documents.jsonl, quarantine.jsonl
                 media.txt, media.npy      the files it was encoded from (`brine.data.corpus.file_records`)
                 shard.json        items read, documents kept, first reason, names of kinds and sources

A shard is closed by size or by number of documents, appears by rename and is never touched again. Memory holds one
shard, and one column of one shard while indexes are joined, whatever the size of the corpus.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

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
"""Columns of a corpus and their dtypes, one entry a document."""


class ShardWriter:
    """Collects results into shards below `folder`; knows which shards a killed build left whole."""

    def __init__(self, folder: Path, *, keep_media: bool, shard_bytes: int, shard_documents: int):
        self.folder, self.keep_media = folder, keep_media
        self.shard_bytes, self.shard_documents = shard_bytes, shard_documents
        self.shards: list[dict] = []
        for leftover in (folder / "shards").glob("*.partial"):
            shutil.rmtree(leftover)
        while shard := read_json(self._path(len(self.shards)) / "shard.json"):
            self.shards.append(shard)
        self.items_done = sum(shard["items"] for shard in self.shards)
        self._begin()

    def _path(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:05d}"

    def _begin(self) -> None:
        self.items = self.size = 0
        self.kinds: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.columns: dict[str, list[int]] = {name: [] for name in _DOCUMENT_COLUMNS}
        self.arrays: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
        self.lines: list[bytes] = []
        self.rejects: list[dict] = []
        self.files: dict[str, FileRecord] = {}

    def note(self, files: dict[str, FileRecord]) -> None:
        """Take the files that the next item was made from."""
        self.files |= files

    def add(self, result: EncodeResult | Quarantined) -> None:
        """Take one item of the source: an encoded document, or one that is set aside."""
        self.items += 1
        reject = result if isinstance(result, Quarantined) else result.quarantined
        if reject is not None:
            self.rejects.append(reject.to_json())
        else:
            document, sequence = result.document, result.sequence
            self.lines.append(json.dumps(document.to_json(), ensure_ascii=False).encode() + b"\n")
            row = {
                "kind": self.kinds.setdefault(document.kind, len(self.kinds)),
                "level": document.level,
                "split": SPLITS.index(document.split),
                "source": self.sources.setdefault(document.source, len(self.sources)),
                "num_tokens": len(sequence),
                **{f"num_{name}": len(getattr(sequence, name)) for name in MODALITIES},
                "crc32": result.crc32,
                "line_bytes": len(self.lines[-1]),
            }
            for name, value in row.items():
                self.columns[name].append(value)
            for name in FIELDS:
                array = getattr(sequence, name)
                array = array[:0] if name in MODALITIES and not self.keep_media else array
                self.size += array.nbytes
                self.arrays[name].append(array)
        if self.size >= self.shard_bytes or self.items >= self.shard_documents:
            self.close_shard()

    def close_shard(self) -> None:
        """Write what was collected as one shard, by rename."""
        if not self.items:
            return
        final = self._path(len(self.shards))
        partial = final.with_suffix(".partial")
        (partial / "index").mkdir(parents=True)
        if self.lines:
            for name in FIELDS:
                np.save(partial / f"{name}.npy", np.concatenate(self.arrays[name]), allow_pickle=False)
        for name, dtype in _DOCUMENT_COLUMNS.items():
            np.save(partial / "index" / f"{name}.npy", np.asarray(self.columns[name], dtype), allow_pickle=False)
        for name in FIELDS:
            sizes = np.array([len(array) for array in self.arrays[name]], np.int64)
            starts = np.cumsum(sizes) - sizes
            np.save(partial / "index" / f"start_{name}.npy", starts, allow_pickle=False)
        (partial / "documents.jsonl").write_bytes(b"".join(self.lines))
        with open(partial / "quarantine.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(reject, ensure_ascii=False) + "\n" for reject in self.rejects)
        save_file_records(partial, self.files)
        shard = {
            "items": self.items,
            "documents": len(self.lines),
            "first_reason": self.rejects[0]["reason"] if self.rejects else "",
            "kinds": list(self.kinds),
            "sources": list(self.sources),
        }
        write_json(partial / "shard.json", shard)
        os.rename(partial, final)
        self.shards.append(shard)
        self._begin()

    def finish(self) -> dict:
        """Join the shards' indexes; returns counts and names for meta.json."""
        for name in ("documents.jsonl", "quarantine.jsonl"):
            with open(self.folder / name, "wb") as out:
                for number in range(len(self.shards)):
                    with open(self._path(number) / name, "rb") as file:
                        shutil.copyfileobj(file, out)
        (self.folder / "index").mkdir(exist_ok=True)
        names = {key: sorted({name for shard in self.shards for name in shard[key]}) for key in ("kinds", "sources")}
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
        """Write one column of all shards into the corpus's index; returns its sum."""
        path = self.folder / "index" / f"{name}.npy"
        if not documents:
            np.save(path, np.zeros(0, INDEX[name]), allow_pickle=False)
            return 0
        column = np.lib.format.open_memmap(path, mode="w+", dtype=INDEX[name], shape=(documents,))
        start = line_start = 0
        for number, shard in enumerate(self.shards):
            if name == "shard":
                values = np.full(shard["documents"], number)
            elif name == "line_start":
                sizes = self._column(number, "line_bytes").astype(np.int64)
                values = line_start + np.cumsum(sizes) - sizes
                line_start += int(sizes.sum())
            elif name in ("kind", "source"):
                order = names[f"{name}s"]
                numbers = np.array([order.index(each) for each in shard[f"{name}s"]], dtype=INDEX[name])
                values = numbers[self._column(number, name)]
            else:
                values = self._column(number, name)
            column[start : start + len(values)] = values
            start += len(values)
        column.flush()
        return int(column.sum(dtype=np.int64))

    def _column(self, number: int, name: str) -> np.ndarray:
        return np.load(self._path(number) / "index" / f"{name}.npy", allow_pickle=False)


def drop_shards(folder: Path, first: int) -> None:
    """Delete the shards below `folder` from a number on, last one first, and the joined index."""
    shutil.rmtree(folder / "index", ignore_errors=True)
    for path in sorted((folder / "shards").glob("[0-9]" * 5), reverse=True):
        if int(path.name) >= first:
            shutil.rmtree(path)


def read_json(path: Path) -> dict:
    """A JSON file's content; an empty dict when it is absent or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value) -> None:
    """Write a JSON file by rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)
