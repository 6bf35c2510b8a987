"""What is in a folder, archive or manifest, found out by reading and decoding all of it.

    data check PATH      every document through the decoding servers, exactly as a build would, and nothing kept but
                         counts: what passes here is what a corpus built with the same numbers will hold

Documents are encoded by a tokenizer of bytes alone unless another is given, since a folder has no tokenizer yet; so
text lengths are in bytes, an upper bound on those of any trained tokenizer.

Nothing is written unless asked. The quarantine file appears by rename when reading ends, also when it is ended by
Ctrl-C, and in the order of the documents whatever the number of servers. It can be retried: a second check then looks
only at the documents it names. A record that names no document (a line that is no JSON has no id) is retried by its
line number where the source is one manifest; ids that are no longer there are told.

Cost: that of decoding, the same as a build; memory as in `data.tally`, and a few batches of documents.
"""

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from data.compressed import plain_stem
from data.config import EncodeConfig
from data.decode_pool import DecodePool
from data.document import Document, Quarantined
from data.formats.lines import json_items
from data.formats.manifest import FORMS
from data.formats.survey import MANIFESTS
from data.left_out import LeftOut
from data.tally import Tally
from data.tokenizer import MIN_VOCAB, Tokenizer, train_tokenizer


@dataclass
class Check:
    """What a check found, as far as it came."""

    tally: Tally
    interrupted: bool = False
    """Whether Ctrl-C ended it before the last document."""
    missing: tuple[str, ...] = ()
    """Documents named in a quarantine file to be retried that are no longer there."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Retry:
    """The documents that a quarantine file names."""

    ids: frozenset[str]
    lines: frozenset[int]
    """Lines whose record has no document's id."""

    @classmethod
    def read(cls, path: str | Path) -> "Retry":
        """Read quarantine.jsonl. Raises ValueError naming the line that is no record, or when there is none."""
        ids, lines = set(), set()
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        record = json.loads(line)
                        name, place = str(record["id"]), int(record.get("line", 0))
                    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                        raise ValueError(
                            f"{path}, line {number} is no quarantine record: give the file that `data check "
                            "--quarantine` or `data build` wrote"
                        ) from None
                    ids.add(name)
                    if name in (f"line {place}", f"entry {place}"):
                        lines.add(place)
        except OSError as error:
            raise ValueError(f"quarantine file {path} cannot be read ({error.strerror})") from None
        if not ids:
            raise ValueError(f"quarantine file {path} names no document: there is nothing to retry")
        return cls(frozenset(ids), frozenset(lines))

    def mended(self, source) -> "Retry":
        """The same with the ids of documents that stand now in lines which had none, where the source is one file."""
        file = source.path
        if file.is_dir():
            file = next((file / name for name in MANIFESTS if (file / name).is_file()), None)
        if not self.lines or file is None or source.format not in (*FORMS, "manifest"):
            return self
        ids = set(self.ids)
        for number, fields in json_items(file, max_line_mib=16.0):
            if number in self.lines and isinstance(fields, dict):
                ids -= {f"line {number}", f"entry {number}"}
                ids.add(str(fields.get("id") or f"{plain_stem(file)}#{number}"))
        return Retry(frozenset(ids), self.lines)

    def wants(self, item: Document | Quarantined) -> bool:
        """Whether an item is one that the file names."""
        return item.id in self.ids or (isinstance(item, Quarantined) and item.line in self.lines)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer without merges: one token a byte."""
    return train_tokenizer([], MIN_VOCAB)


def default_workers() -> int:
    """Decoding servers to start where nobody says: the cores this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))


def check_source(
    source,
    *,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    num_workers: int,
    limit: int | None = None,
    retry: Retry | None = None,
    quarantine: Path | None = None,
    left_out: LeftOut | None = None,
    progress: bool = True,
) -> Check:
    """Read and decode every document of a source of `data.formats`, or the first `limit`, and count.

    left_out: counts what of the train split fits no row. retry: look only at these documents. quarantine: write what
    was set aside there, as JSON lines. Ctrl-C ends the reading and gives what was counted so far. Raises ValueError
    when the source cannot be read.
    """
    began, found = time.monotonic(), Check(Tally())
    items: Iterable[Document | Quarantined] = source.documents(include_decode=True)
    names: set[str] = set()
    if retry is not None:
        items = _noting(filter(retry.wants, items), names)
    items = itertools.islice(items, limit)
    pool = DecodePool(root=source.root, tokenizer=tokenizer, config=config, num_servers=num_workers)
    with pool, _records(quarantine) as records:
        results = pool.encode_items(items)
        bar = _progress_bar(source, limit, retry) if progress else None
        try:
            for result in results:
                reject = result if isinstance(result, Quarantined) else result.quarantined
                if reject is None:
                    sequence = result.sequence
                    media = {name: len(getattr(sequence, name)) for name in ("image", "audio", "video")}
                    found.tally.add(result.document, media, len(sequence))
                    if left_out is not None and result.document.split == "train":
                        left_out.count(result.document.id, result.document.kind, sequence)
                else:
                    found.tally.reject(reject)
                    if not isinstance(result, Quarantined):
                        source.set_aside(result.document)
                    if records is not None:
                        records.write(json.dumps(reject.to_json()) + "\n")
                if bar is not None:
                    bar.update()
        except KeyboardInterrupt:
            found.interrupted = True
        finally:
            if bar is not None:
                bar.close()
    if retry is not None and limit is None and not found.interrupted:
        found.missing = tuple(sorted(retry.ids - names))
    found.seconds = time.monotonic() - began
    return found


def _noting(items: Iterable[Document | Quarantined], names: set[str]) -> Iterator[Document | Quarantined]:
    for item in items:
        names.add(item.id)
        yield item


def _progress_bar(source, limit: int | None, retry: Retry | None):
    from tqdm import tqdm

    known = [count for count in (getattr(source, "num_documents_hint", None), limit) if count is not None]
    total = len(retry.ids) if retry is not None else min(known, default=None)
    return tqdm(desc="check", unit=" docs", total=total, smoothing=0.05)


def _records(path: Path | None):
    """An open file for quarantine records that gets its name when it is closed, or None where none is wanted."""
    return nullcontext() if path is None else _Records(path)


class _Records:
    def __init__(self, path: Path):
        self.path, self.partial = path, path.with_name(path.name + ".partial")

    def __enter__(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.partial, "w", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"quarantine file {self.path} cannot be written ({error.strerror})") from None
        return self.file

    def __exit__(self, *_) -> None:
        self.file.close()
        os.replace(self.partial, self.path)
