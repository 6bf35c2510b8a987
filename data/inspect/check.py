"""What is in a folder, archive or manifest: every document is read and decoded as a build would, and only counted.

Documents are encoded by a tokenizer of bytes unless another is given, so text lengths are upper bounds on those of any
trained tokenizer. Nothing is written unless asked for: the quarantine file appears by rename when reading ends, also by
Ctrl-C, in the order of the documents whatever the number of servers. A retry looks only at the documents that it names;
a record that names none (a line that is not JSON has no id) is retried by its line number. Cost: that of decoding.
"""

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brine.common.formatting import progress_bar
from brine.common.processes import usable_cores
from brine.data.config import EncodeConfig
from brine.data.corpus.excluded import ExclusionStats
from brine.data.corpus.statistics import CorpusStats
from brine.data.document import MODALITIES, Document, Quarantined
from brine.data.files.compressed import plain_stem
from brine.data.formats.folders.survey import MANIFESTS
from brine.data.formats.lines.lines import json_items
from brine.data.formats.manifest import RECORD_FORMATS
from brine.data.media.pool import DecodePool
from brine.data.tokenizer import MIN_VOCAB_SIZE, Tokenizer, train_tokenizer


@dataclass
class CheckReport:
    """What a check found."""

    stats: CorpusStats
    interrupted: bool = False  # Ctrl-C ended it before the last document
    missing: tuple[str, ...] = ()  # documents named in a quarantine file to be retried that are no longer there
    seconds: float = 0.0


@dataclass(frozen=True)
class RetryList:
    """The documents that a quarantine file names."""

    ids: frozenset[str]
    lines: frozenset[int]  # lines whose record has no document's id

    @classmethod
    def read(cls, path: str | Path) -> "RetryList":
        """Read quarantine.jsonl. Raises ValueError naming the line that is not a record, or when there is none."""
        ids, lines = set(), set()
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        record = json.loads(line)
                        name, at = str(record["id"]), int(record.get("line", 0))
                    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                        raise ValueError(
                            f"{path}, line {number} is not a quarantine record: give the file that `data check "
                            "--quarantine` or `data build` wrote"
                        ) from None
                    ids.add(name)
                    if name in (f"line {at}", f"entry {at}"):
                        lines.add(at)
        except OSError as error:
            raise ValueError(f"quarantine file {path} cannot be read ({error.strerror})") from None
        if not ids:
            raise ValueError(f"quarantine file {path} names no document: there is nothing to retry")
        return cls(frozenset(ids), frozenset(lines))

    def with_fixed_lines(self, source) -> "RetryList":
        """The same with the ids of documents that stand now in lines which had none, where the source is one file."""
        file = source.path
        if file.is_dir():
            file = next((file / name for name in MANIFESTS if (file / name).is_file()), None)
        if not self.lines or file is None or source.format not in (*RECORD_FORMATS, "manifest"):
            return self
        ids = set(self.ids)
        for number, fields in json_items(file, max_line_mib=16.0):
            if number in self.lines and isinstance(fields, dict):
                ids -= {f"line {number}", f"entry {number}"}
                ids.add(str(fields.get("id") or f"{plain_stem(file)}#{number}"))
        return RetryList(frozenset(ids), self.lines)

    def matches(self, item: Document | Quarantined) -> bool:
        """Whether an item is one that the file names."""
        return item.id in self.ids or (isinstance(item, Quarantined) and item.line in self.lines)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer without merges: one token a byte."""
    return train_tokenizer([], MIN_VOCAB_SIZE)


def default_decode_workers() -> int:
    """Decoding servers unless given: the cores this process may use, at most 8."""
    return min(8, usable_cores())


def check_source(
    source,
    *,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    num_workers: int,
    limit: int | None = None,
    retry: RetryList | None = None,
    quarantine: Path | None = None,
    excluded: ExclusionStats | None = None,
    progress: bool = True,
) -> CheckReport:
    """Read and decode all documents of a source, or the first `limit`, and count them; Ctrl-C ends early.

    excluded: counts what of the train split fits no packed sequence. retry: only these documents. quarantine: file for
    the quarantined, as JSON lines. Raises ValueError when the source cannot be read.
    """
    began, found = time.monotonic(), CheckReport(CorpusStats())
    items: Iterable[Document | Quarantined] = source.documents(include_decode=True)
    names: set[str] = set()
    if retry is not None:
        items = _collect_ids(filter(retry.matches, items), names)
        total = len(retry.ids)
    else:
        known = (getattr(source, "num_documents_hint", None), limit)
        total = min((count for count in known if count is not None), default=None)
    pool = DecodePool(root=source.root, tokenizer=tokenizer, config=config, num_servers=num_workers)
    options = {"total": total, "desc": "check", "unit": "document", "quiet": not progress}
    with pool, _quarantine_file(quarantine) as records, progress_bar(**options) as bar:
        try:
            for result in pool.encode(itertools.islice(items, limit)):
                reject = result if isinstance(result, Quarantined) else result.quarantined
                if reject is None:
                    sequence = result.encoded
                    media = {name: len(getattr(sequence, name)) for name in MODALITIES}
                    found.stats.add(result.document, media, len(sequence))
                    if excluded is not None and result.document.split == "train":
                        excluded.count(result.document.id, result.document.kind, sequence)
                else:
                    found.stats.reject(reject)
                    if not isinstance(result, Quarantined):
                        source.uncount(result.document)
                    if records is not None:
                        records.write(json.dumps(reject.to_json()) + "\n")
                bar.update()
        except KeyboardInterrupt:
            found.interrupted = True
    if retry is not None and limit is None and not found.interrupted:
        found.missing = tuple(sorted(retry.ids - names))
    found.seconds = time.monotonic() - began
    return found


def _collect_ids(items: Iterable[Document | Quarantined], names: set[str]) -> Iterator[Document | Quarantined]:
    for item in items:
        names.add(item.id)
        yield item


@contextmanager
def _quarantine_file(path: Path | None) -> Iterator:
    """An open file for quarantine records that gets its name when it is closed; None where none is wanted."""
    if path is None:
        yield None
        return
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise ValueError(f"quarantine file {path} cannot be written ({error.strerror})") from None
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
    finally:
        os.replace(partial, path)
