"""A stack of filter rounds below a corpus folder. Each judges what the rounds before it have kept.

    rounds/01_exact_duplicates/keep.npy             (n,) bool: false where this round dropped the document
                               columns/<name>.npy   (n,) float32 or int64 scores; NaN or -1 where not judged
                               dropped.jsonl        document, id, kind and reason of everything dropped, in corpus order
                               round.json           rule, configuration, counts, fingerprint of the corpus, digests

    rounds = Rounds.open(corpus)
    rounds.add(rule)      rounds.undo()      rounds.kept()      rounds.column(name)      print(rounds.report())

A round is written into a hidden folder and renamed, so it is complete or absent; a killed one leaves a folder that
nobody reads and the next `add` clears away. `round.json` carries the digest of the one before, so rounds that were
shuffled, edited or copied from another corpus are refused and not silently applied. It carries no time and no host:
the same rules on the same corpus give the same bytes.

What a document is worth is stored apart from the documents, so nothing here touches the corpus, and undoing is a
rename. Only the last round can be undone, because later ones have judged what it left. Memory is a byte a document
for each round, and what its reasons take.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from data.filters.pool import Pool, RoundError, Rule, Verdict
from data.store import EncodedCorpus

FORMAT = 1
_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
_FOLDER = re.compile(r"(\d{2,4})_([a-z][a-z0-9_]{0,79})")


class Rounds:
    """The rounds of one corpus, oldest first in `records` (the content of each round.json)."""

    def __init__(self, corpus: EncodedCorpus):
        self.corpus = corpus
        self.folder = Path(corpus.folder) / "rounds"
        self._fingerprint = corpus.fingerprint
        self.records: list[dict] = []
        self._digests: list[str] = []
        for number, path in enumerate(self._paths(), start=1):
            record, digest = self._read(number, path)
            self.records.append(record)
            self._digests.append(digest)

    @classmethod
    def open(cls, corpus: EncodedCorpus) -> "Rounds":
        """The rounds that lie below a corpus, none for a new one. Raises RoundError for rounds that do not belong."""
        return cls(corpus)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def digest(self) -> str:
        """Identifies corpus, rounds and their order; a plan made from `kept` can carry it."""
        return hashlib.sha256(json.dumps([self._fingerprint, *self._digests]).encode()).hexdigest()

    def _paths(self) -> list[Path]:
        """Folders of whole rounds in order."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
        return sorted(found, key=lambda path: (int(path.name.split("_")[0]), path.name))

    def _read(self, number: int, path: Path) -> tuple[dict, str]:
        remedy = f"delete {path} and the rounds after it, and add them again"
        try:
            content = (path / "round.json").read_bytes()
            record = json.loads(content)
        except (OSError, ValueError) as error:
            raise RoundError(f"round {path} cannot be read ({error}): {remedy}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise RoundError(f"round {path} is not of format {FORMAT}: {remedy}")
        if record.get("corpus") != self._fingerprint:
            raise RoundError(f"round {path} was made for another corpus than {self.corpus.folder}: {remedy}")
        if (record.get("number"), record.get("before")) != (number, self._digests[-1] if self._digests else ""):
            raise RoundError(f"round {path} does not follow the rounds before it: {remedy}")
        whole = all(isinstance(record.get(name), dict) for name in ("config", "columns", "sha256"))
        if not whole or path.name != f"{number:02d}_{record.get('name')}":
            raise RoundError(f"round {path} has a round.json that is not its own: {remedy}")
        return record, hashlib.sha256(content).hexdigest()

    def path_of(self, record: dict) -> Path:
        """Folder of one of `records`."""
        return self.folder / f"{record['number']:02d}_{record['name']}"

    def _array(self, record: dict, name: str) -> np.ndarray:
        path = self.path_of(record) / f"{name}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RoundError(f"{path} cannot be read ({error}): undo the round and add it again") from None
        if _sha256(array) != record["sha256"][name] or array.shape != (self.corpus.num_documents,):
            raise RoundError(f"{path} differs from its round.json: undo the round and add it again")
        return array

    def kept(self) -> np.ndarray:
        """(n,) bool documents that every round has kept; all of them without rounds."""
        keep = np.ones(self.corpus.num_documents, dtype=bool)
        for record in self.records:
            keep &= self._array(record, "keep")
        return keep

    def column(self, name: str) -> np.ndarray:
        """(n,) scores that a round has left under this name, the latest where several have. Raises RoundError."""
        for record in reversed(self.records):
            if name in record["columns"]:
                return self._array(record, f"columns/{name}")
        known = sorted({column for record in self.records for column in record["columns"]})
        hint = f"there are {', '.join(known)}" if known else "no round has left one"
        raise RoundError(f"no column {name!r}: {hint}")

    def dropped(self, number: int) -> list[dict]:
        """Lines of round `number` (from 1): document, id, kind, reason."""
        if not 1 <= number <= len(self):
            raise RoundError(f"no round {number}: there are {len(self)}")
        with open(self.path_of(self.records[number - 1]) / "dropped.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def add(self, rule: Rule, *, num_workers: int = 1, progress: bool = False) -> dict:
        """Judge what is kept by one more rule and write the round; returns its record.

        num_workers: processes that read documents. They do not change the result. Raises RoundError for a rule that
        is on the stack already, or where another process has changed the stack meanwhile.
        """
        if num_workers < 1:
            raise RoundError(f"num_workers = {num_workers}: give at least 1")
        if not _NAME.fullmatch(rule.name):
            raise RoundError(f"a rule's name is lower-case letters, digits and _, not {rule.name!r}")
        config = _config_of(rule)
        for record in self.records:
            if (record["name"], record["config"]) == (rule.name, config):
                raise RoundError(
                    f"round {record['number']:02d} has applied {rule.name} with this configuration already: change a "
                    "field, or undo back to that round"
                )
        kept = self.kept()
        pool = Pool(self.corpus, np.flatnonzero(kept), self.column, num_workers, progress)
        verdict = rule.judge(pool)
        record = self._record(rule.name, config, pool, verdict)
        return self._write(record, verdict)

    def _record(self, name: str, config: dict, pool: Pool, verdict: Verdict) -> dict:
        corpus, dropped = self.corpus, np.array(sorted(verdict.reasons), dtype=np.int64)
        kinds, counts = np.unique(corpus.kind[dropped], return_counts=True)
        return {
            "format": FORMAT,
            "number": len(self) + 1,
            "name": name,
            "config": config,
            "corpus": self._fingerprint,
            "before": self._digests[-1] if self._digests else "",
            "judged": len(verdict.judged),
            "dropped": len(dropped),
            "kept": len(pool.documents) - len(dropped),
            "tokens_judged": int(corpus.num_tokens[verdict.judged].sum()),
            "tokens_dropped": int(corpus.num_tokens[dropped].sum()),
            "tokens_kept": int(corpus.num_tokens[pool.documents].sum() - corpus.num_tokens[dropped].sum()),
            "dropped_by_kind": {corpus.kinds[kind]: int(count) for kind, count in zip(kinds, counts, strict=True)},
            "columns": {column: str(array.dtype) for column, array in sorted(verdict.columns.items())},
        }

    def _write(self, record: dict, verdict: Verdict) -> dict:
        final = self.path_of(record)
        self.folder.mkdir(exist_ok=True)
        self._clear()
        partial = self.folder / f".{final.name}.partial"
        (partial / "columns").mkdir(parents=True)
        keep = np.ones(self.corpus.num_documents, dtype=bool)
        keep[list(verdict.reasons)] = False
        arrays = {"keep": keep} | {f"columns/{name}": array for name, array in sorted(verdict.columns.items())}
        for name, array in arrays.items():
            self._check(name, array)
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        with open(partial / "dropped.jsonl", "w", encoding="utf-8") as file:
            for number in sorted(verdict.reasons):
                line = {
                    "document": number,
                    "id": self.corpus.ids[number],
                    "kind": self.corpus.kinds[self.corpus.kind[number]],
                    "reason": verdict.reasons[number],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        record = record | {"sha256": {name: _sha256(array) for name, array in arrays.items()}}
        content = json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"
        (partial / "round.json").write_bytes(content)
        # two processes that judged side by side must not both be next
        if [path.name for path in self._paths()] != [self.path_of(known).name for known in self.records]:
            raise RoundError(f"the rounds in {self.folder} have changed meanwhile: open them again and add the rule")
        os.rename(partial, final)
        self.records.append(record)
        self._digests.append(hashlib.sha256(content).hexdigest())
        return record

    def _check(self, name: str, array: np.ndarray) -> None:
        if array.shape != (self.corpus.num_documents,) or array.dtype not in (np.bool_, np.float32, np.int64):
            raise RoundError(f"{name} has shape {array.shape}, dtype {array.dtype}: give one float32 or int64 each")
        if name != "keep" and not _NAME.fullmatch(name.removeprefix("columns/")):
            raise RoundError(f"a column's name is lower-case letters, digits and _, not {name!r}")

    def _clear(self) -> None:
        """Remove what killed rounds and killed undoings have left."""
        for leftover in sorted(self.folder.glob(".*")):
            if leftover.name.endswith((".partial", ".undone")):
                shutil.rmtree(leftover)

    def undo(self) -> dict:
        """Take the last round away; returns its record. Raises RoundError when there is none."""
        if not self.records:
            raise RoundError(f"corpus {self.corpus.folder} has no round to undo")
        path = self.path_of(self.records[-1])
        undone = self.folder / f".{path.name}.undone"
        if undone.exists():
            shutil.rmtree(undone)
        os.rename(path, undone)
        shutil.rmtree(undone)
        self._digests.pop()
        return self.records.pop()

    def report(self) -> str:
        """A table with a line a round: documents judged, dropped and kept, tokens dropped and kept."""
        head = ("round", "judged", "dropped", "kept", "tokens dropped", "tokens kept")
        lines = [head]
        lines.append(("corpus", "", "", f"{self.corpus.num_documents:,}", "", f"{int(self.corpus.num_tokens.sum()):,}"))
        for record in self.records:
            share = record["tokens_dropped"] / max(1, record["tokens_dropped"] + record["tokens_kept"])
            lines.append(
                (
                    f"{record['number']:02d} {record['name']}",
                    f"{record['judged']:,}",
                    f"{record['dropped']:,}",
                    f"{record['kept']:,}",
                    f"{record['tokens_dropped']:,} ({share:.1%})",
                    f"{record['tokens_kept']:,}",
                )
            )
        widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
        form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
        return "\n".join(form.format(*line) for line in lines)


def _config_of(rule: Rule) -> dict:
    """A rule's fields as JSON gives them back; an array is known by its digest."""
    fields = {}
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if isinstance(value, np.ndarray):
            value = {"sha256": _sha256(value), "shape": list(value.shape)}
        elif dataclasses.is_dataclass(value):
            value = dataclasses.asdict(value)
        fields[field.name] = value
    return json.loads(json.dumps(fields))


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() + str(array.dtype).encode()).hexdigest()
