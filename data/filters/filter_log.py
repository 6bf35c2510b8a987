"""The filter passes of a corpus, in its folder or another one. Each inspects what the passes before it have kept.

    filter_log/01_exact_duplicates/keep.npy             (n,) bool: false where this pass dropped the document
                                   columns/<name>.npy   (n,) float32 or int64 scores; NaN or -1 where not inspected
                                   dropped.jsonl        document, id, kind and reason of everything dropped
                                   filter.json          filter, configuration, counts, fingerprint, digests

A pass is written into a hidden folder and renamed, so it is complete or absent. `filter.json` carries the digest of the
one before, so passes that were shuffled, edited or copied from another corpus are refused. The same filters on the same
corpus give bit-identical files. The corpus itself is not touched; only the last pass can be undone.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from brine.common.renamed import current_file
from brine.common.tables import as_text, table
from brine.data.corpus.store import EncodedCorpus
from brine.data.corpus.swap import FILTER_LOG
from brine.data.filters.filter_context import Filter, FilterContext, FilterError, FilterResult

FORMAT = 1
RECORDS = ("filter.json", "round.json")
"""File of a pass's record, and its name until 0.1."""
_FORMER_KEYS = {"judged": "inspected", "tokens_judged": "tokens_inspected"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
_FOLDER = re.compile(r"(\d{2,4})_([a-z][a-z0-9_]{0,79})")


class FilterLog:
    """The filter passes of one corpus, oldest first in `records` (the content of each filter.json)."""

    def __init__(self, corpus: EncodedCorpus, folder: Path | None = None):
        self.corpus = corpus
        self.folder = folder or current_file(Path(corpus.folder) / FILTER_LOG)
        self._fingerprint = corpus.fingerprint
        self.records: list[dict] = []
        self._digests: list[str] = []
        for number, path in enumerate(self._paths(), start=1):
            record, digest = self._read(number, path)
            self.records.append(record)
            self._digests.append(digest)

    @classmethod
    def open(cls, corpus: EncodedCorpus, folder: Path | None = None) -> "FilterLog":
        """The passes of a corpus, none for a new one. folder: where they lie, if not in the corpus, so that several
        sets of passes can be kept over one corpus. Raises FilterError for passes of another corpus or order."""
        return cls(corpus, folder)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def digest(self) -> str:
        """Identifies corpus, passes and their order; a plan made from `kept_mask` can carry it."""
        return hashlib.sha256(json.dumps([self._fingerprint, *self._digests]).encode()).hexdigest()

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
        return sorted(found, key=lambda path: (int(path.name.split("_")[0]), path.name))

    def _read(self, number: int, path: Path) -> tuple[dict, str]:
        remedy = f"delete {path} and the passes after it, and add them again"
        file = path / RECORDS[0 if (path / RECORDS[0]).exists() or not (path / RECORDS[1]).exists() else 1]
        try:
            content = file.read_bytes()
            record = json.loads(content)
        except (OSError, ValueError) as error:
            raise FilterError(f"filter pass {path} cannot be read ({error}): {remedy}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise FilterError(f"filter pass {path} is not of format {FORMAT}: {remedy}")
        if record.get("corpus") != self._fingerprint:
            raise FilterError(f"filter pass {path} was made for another corpus than {self.corpus.folder}: {remedy}")
        if (record.get("number"), record.get("before")) != (number, self._digests[-1] if self._digests else ""):
            raise FilterError(f"filter pass {path} does not follow the passes before it: {remedy}")
        whole = all(isinstance(record.get(name), dict) for name in ("config", "columns", "sha256"))
        if not whole or path.name != f"{number:02d}_{record.get('name')}":
            raise FilterError(f"filter pass {path} has a {file.name} that is not its own: {remedy}")
        record = {_FORMER_KEYS.get(name, name): value for name, value in record.items()}
        return record, hashlib.sha256(content).hexdigest()

    def path_of(self, record: dict) -> Path:
        """Folder of one of `records`."""
        return self.folder / f"{record['number']:02d}_{record['name']}"

    def _array(self, record: dict, name: str) -> np.ndarray:
        path = self.path_of(record) / f"{name}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FilterError(f"{path} cannot be read ({error}): undo the pass and add it again") from None
        if _sha256(array) != record["sha256"][name] or array.shape != (self.corpus.num_documents,):
            raise FilterError(f"{path} differs from its record: undo the pass and add it again")
        return array

    def kept_mask(self) -> np.ndarray:
        """(n,) bool documents that every pass has kept; all of them without passes."""
        keep = np.ones(self.corpus.num_documents, dtype=bool)
        for record in self.records:
            keep &= self._array(record, "keep")
        return keep

    def column(self, name: str) -> np.ndarray:
        """(n,) scores that a pass has left under this name, the latest where several have. Raises FilterError."""
        for record in reversed(self.records):
            if name in record["columns"]:
                return self._array(record, f"columns/{name}")
        known = sorted({column for record in self.records for column in record["columns"]})
        hint = f"there are {', '.join(known)}" if known else "no pass has left one"
        raise FilterError(f"no column {name!r}: {hint}")

    def dropped(self, number: int) -> list[dict]:
        """Lines of pass `number` (from 1): document, id, kind, reason."""
        if not 1 <= number <= len(self):
            raise FilterError(f"no filter pass {number}: there are {len(self)}")
        with open(self.path_of(self.records[number - 1]) / "dropped.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def add(self, filter_: Filter, *, num_workers: int = 1, progress: bool = False) -> dict:
        """Apply one more filter and write the pass; returns its record.

        FilterError if applied already, here or meanwhile.
        """
        if num_workers < 1:
            raise FilterError(f"num_workers = {num_workers}: give at least 1")
        if not _NAME.fullmatch(filter_.name):
            raise FilterError(f"a filter's name is lower-case letters, digits and _, not {filter_.name!r}")
        config = _config_of(filter_)
        for record in self.records:
            if (record["name"], record["config"]) == (filter_.name, config):
                raise FilterError(
                    f"pass {record['number']:02d} has applied {filter_.name} with this configuration already: change a "
                    "field, or undo back to that pass"
                )
        kept = self.kept_mask()
        filter_context = FilterContext(self.corpus, np.flatnonzero(kept), self.column, num_workers, progress)
        result = filter_.apply(filter_context)
        record = self._record(filter_.name, config, filter_context, result)
        return self._write(record, result)

    def _record(self, name: str, config: dict, filter_context: FilterContext, result: FilterResult) -> dict:
        corpus, dropped = self.corpus, np.array(sorted(result.reasons), dtype=np.int64)
        kinds, counts = np.unique(corpus.kind[dropped], return_counts=True)
        return {
            "format": FORMAT,
            "number": len(self) + 1,
            "name": name,
            "config": config,
            "corpus": self._fingerprint,
            "before": self._digests[-1] if self._digests else "",
            "inspected": len(result.inspected),
            "dropped": len(dropped),
            "kept": len(filter_context.documents) - len(dropped),
            "tokens_inspected": int(corpus.num_tokens[result.inspected].sum()),
            "tokens_dropped": int(corpus.num_tokens[dropped].sum()),
            "tokens_kept": int(corpus.num_tokens[filter_context.documents].sum() - corpus.num_tokens[dropped].sum()),
            "dropped_by_kind": {corpus.kinds[kind]: int(count) for kind, count in zip(kinds, counts, strict=True)},
            "columns": {column: str(array.dtype) for column, array in sorted(result.columns.items())},
        }

    def _write(self, record: dict, result: FilterResult) -> dict:
        final = self.path_of(record)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        partial = self.folder / f".{final.name}.partial"
        (partial / "columns").mkdir(parents=True)
        keep = np.ones(self.corpus.num_documents, dtype=bool)
        keep[list(result.reasons)] = False
        arrays = {"keep": keep} | {f"columns/{name}": array for name, array in sorted(result.columns.items())}
        for name, array in arrays.items():
            self._check(name, array)
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        with open(partial / "dropped.jsonl", "w", encoding="utf-8") as file:
            for number in sorted(result.reasons):
                line = {
                    "document": number,
                    "id": self.corpus.ids[number],
                    "kind": self.corpus.kinds[self.corpus.kind[number]],
                    "reason": result.reasons[number],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        record = record | {"sha256": {name: _sha256(array) for name, array in arrays.items()}}
        content = json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"
        (partial / RECORDS[0]).write_bytes(content)
        # two processes at work side by side must not both be next
        if [path.name for path in self._paths()] != [self.path_of(known).name for known in self.records]:
            raise FilterError(f"the passes in {self.folder} have changed meanwhile: open them again and add the filter")
        os.rename(partial, final)
        self.records.append(record)
        self._digests.append(hashlib.sha256(content).hexdigest())
        return record

    def _check(self, name: str, array: np.ndarray) -> None:
        if array.shape != (self.corpus.num_documents,) or array.dtype not in (np.bool_, np.float32, np.int64):
            raise FilterError(f"{name} has shape {array.shape}, dtype {array.dtype}: give one float32 or int64 each")
        if name != "keep" and not _NAME.fullmatch(name.removeprefix("columns/")):
            raise FilterError(f"a column's name is lower-case letters, digits and _, not {name!r}")

    def _clear(self) -> None:
        for leftover in sorted(self.folder.glob(".*")):
            if leftover.name.endswith((".partial", ".undone")):
                shutil.rmtree(leftover)

    def undo(self) -> dict:
        """Remove the last pass; returns its record. Raises FilterError when there is none."""
        if not self.records:
            raise FilterError(f"corpus {self.corpus.folder} has no filter pass to undo")
        path = self.path_of(self.records[-1])
        undone = self.folder / f".{path.name}.undone"
        if undone.exists():
            shutil.rmtree(undone)
        os.rename(path, undone)
        shutil.rmtree(undone)
        self._digests.pop()
        return self.records.pop()

    def table(self):
        """A rich table with one line per pass: documents inspected, dropped and kept, tokens dropped and kept."""
        corpus = self.corpus
        rows = [("corpus", "", "", f"{corpus.num_documents:,}", "", f"{int(corpus.num_tokens.sum()):,}")]
        for record in self.records:
            fraction = record["tokens_dropped"] / max(1, record["tokens_dropped"] + record["tokens_kept"])
            counts = [f"{record[name]:,}" for name in ("inspected", "dropped", "kept")]
            dropped = f"{record['tokens_dropped']:,} ({fraction:.1%})"
            rows.append((f"{record['number']:02d} {record['name']}", *counts, dropped, f"{record['tokens_kept']:,}"))
        return table(("pass", "inspected", "dropped", "kept", "tokens dropped", "tokens kept"), rows)

    def report(self) -> str:
        return as_text(self.table())


def _config_of(filter_: Filter) -> dict:
    """A filter's fields as JSON gives them back; an array is known by its digest."""
    fields = {}
    for field in dataclasses.fields(filter_):
        value = getattr(filter_, field.name)
        if isinstance(value, np.ndarray):
            value = {"sha256": _sha256(value), "shape": list(value.shape)}
        elif dataclasses.is_dataclass(value):
            value = dataclasses.asdict(value)
        fields[field.name] = value
    return json.loads(json.dumps(fields))


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() + str(array.dtype).encode()).hexdigest()
