"""The row plan: which stretch of which document lies in which row, decided before training begins.

    entry e     document[e], start[e]..stop[e], blank[e]
    row i       entries offset[i]..offset[i+1], laid one after another; the rest of the row is padding

Row i is a pure function of (plan, i), so the loader's whole state is one integer, resuming is exact at any number of
ranks, and skipping a bad stretch of training is arithmetic.

An epoch visits every chosen document (as often as its weight says; `data.mixture` makes the stream of visits), in an
order shuffled by hashes of (seed, document, visit). Rows are packed in about that order by `data.pack`, under one
budget of tokens and one per modality, so that batches have one shape; a row never holds two stretches of one document
(equal ids side by side would be one document to attention). Rows left open are carried into the next epoch, and
otherwise an epoch's rows come before the next one's. Documents that exceed a row, in tokens or media, are spread over
several rows at places outside media, so that every target is predicted once, or left out whole where `long="drop"`;
what is left out is counted with the reason, and nothing is ever cut short.

A tenth of the documents with media are blanked in training (grey, silence), so that a model asked about a blank
is not surprised. Which ones is a hash of (seed, document, visit), independent of packing.

Cost: about a microsecond and 60 bytes a document, in arrays; 10 million documents are planned in some 10 s (`python -m
benchmarks.data_plan`). Only documents that are split cost more: each is read, to know where its media lie.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.counters import BLANK, CHUNK, ROWS, hashed, unit
from data.document import MODALITIES, SPLITS
from data.mixture import Mixture, Stream, realised
from data.pack import pack
from data.segments import find_segments

ARRAYS = ("document", "start", "stop", "blank", "offset")


@dataclass(frozen=True)
class Plan:
    """Rows of known content. Build with `Plan.build`, keep with `save`, read with `load`."""

    document: np.ndarray
    """(E,) int32 index into the corpus."""
    start: np.ndarray
    """(E,) int32 first token of the stretch."""
    stop: np.ndarray
    """(E,) int32 end of the stretch."""
    blank: np.ndarray
    """(E,) bool: media of this occurrence are blanked."""
    offset: np.ndarray
    """(R + 1,) int64 first entry of each row."""
    row_tokens: int
    """Tokens in a row, padding included."""
    media_budget: dict[str, int]
    """Most patches of each modality in a row."""
    fingerprint: str
    """Of the corpus the plan was made for; it covers documents, tokenizer and encoding."""
    info: dict
    """How it was made: name, split, seed, epochs begun, mixture, fill fraction, documents used, and left out with
    reasons (of the first thousand) and counts."""
    lengths: tuple[tuple[int, int], ...] = ()
    """(row, tokens): how much of a document attention may see from that row on, ascending (`LengthSchedule.by_row`);
    before the first row, or where empty, all of it."""

    def __len__(self) -> int:
        return len(self.offset) - 1

    def row(self, number: int) -> list[tuple[int, int, int, bool]]:
        """Entries (document, start, stop, blank) of one row."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of a plan of {len(self)} rows")
        entries = slice(self.offset[number], self.offset[number + 1])
        columns = (getattr(self, name)[entries].tolist() for name in ("document", "start", "stop", "blank"))
        return list(zip(*columns, strict=True))

    def segment_tokens(self, number: int) -> int | None:
        """How many tokens of a document attention may see together in a row; None: all."""
        return next((tokens for first, tokens in reversed(self.lengths) if number >= first), None)

    @property
    def fill(self) -> float:
        """Fraction of the rows' tokens that are documents, not padding."""
        tokens = self.stop.sum(dtype=np.int64) - self.start.sum(dtype=np.int64)
        return float(tokens / max(1, len(self) * self.row_tokens))

    def visits(self) -> np.ndarray:
        """(documents of the corpus,) int32: how often each is begun in these rows."""
        size = self.info.get("num_documents", int(self.document.max(initial=-1)) + 1)
        return np.bincount(self.document[self.start == 0], minlength=size).astype(np.int32)

    def mixture(self, corpus, *, num_bins: int = 10) -> dict:
        """What `num_bins` equal stretches of the rows are made of: {"rows": edges, "kind": {name: shares}, "source",
        "modality"}; shares are of tokens, padding left out. Raises ValueError for another corpus's plan."""
        return realised(self, corpus, num_bins)

    def with_blank(self, blank: bool) -> "Plan":
        """The same rows with every document blanked, or none: for measuring what media contribute."""
        return dataclasses.replace(self, blank=np.full(len(self.document), blank))

    def rows(self, start: int, stop: int) -> "Plan":
        """Rows start..stop as a plan of their own."""
        first, last = int(self.offset[start]), int(self.offset[stop])
        pieces = {name: getattr(self, name)[first:last] for name in ("document", "start", "stop", "blank")}
        offset = self.offset[start : stop + 1] - first
        return dataclasses.replace(self, **pieces, offset=offset, lengths=_from_row(self.lengths, start))

    @classmethod
    def build(
        cls,
        corpus,
        *,
        split: str = "train",
        row_tokens: int,
        media_budget: dict[str, int] | None = None,
        num_rows: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        blank_fraction: float | None = None,
        documents: Iterable[int] | np.ndarray | None = None,
        kinds: Iterable[str] | None = None,
        levels: Iterable[int] | None = None,
        kind_weights: dict | None = None,
        mixture: Mixture | None = None,
        lengths: tuple[tuple[int, int], ...] = (),
        long: str = "split",
        shuffle: bool = True,
        name: str | None = None,
    ) -> "Plan":
        """Plan `num_rows` rows, or as many as `epochs` visits fill (one when neither is given).

        corpus: an EncodedCorpus (or anything with its arrays). media_budget: patches a row per modality, row_tokens
        where absent. blank_fraction: 0.1 for the train split and 0 for others unless given. documents: indices or a
        mask (n,) to choose from; kinds, levels narrow further. kind_weights: visits per epoch, by kind
        ("page": 2) or kind and level ("page/1": 0.5); a fraction visits that part of the documents, others each
        epoch; kinds without an entry weigh 1. mixture: weights by source too, and along the rows; added to
        kind_weights. lengths: (row, tokens), how far attention sees along a document from a row on; which
        documents lie where does not depend on it. long: "split" documents that exceed a row, or "drop" them.
        name: under which the plan is saved; the split's unless given. Raises ValueError when nothing is left to
        plan.
        """
        if row_tokens < 2:
            raise ValueError(f"row_tokens must be at least 2, not {row_tokens}")
        if num_rows is not None and epochs is not None:
            raise ValueError("give num_rows or epochs, not both")
        for what, value, known in (("split", split, SPLITS), ("long", long, ("split", "drop"))):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; there are {', '.join(known)}")
        unknown = sorted(set(media_budget or {}) - set(MODALITIES))
        if unknown:
            raise ValueError(f"unknown modality {unknown[0]!r} in media_budget; there are {', '.join(MODALITIES)}")
        budget = {each: int((media_budget or {}).get(each, row_tokens)) for each in MODALITIES}
        blank_fraction = (0.1 if split == "train" else 0.0) if blank_fraction is None else blank_fraction
        mixture = (mixture or Mixture()) + _of_kinds(kind_weights, corpus)
        segments = find_segments(
            corpus, _chosen(corpus, split, documents, kinds, levels), row_tokens=row_tokens, budget=budget, long=long
        )
        visits = Stream(corpus, segments, mixture, row_tokens=row_tokens, budget=budget, seed=seed, shuffle=shuffle)
        document, number, phase, begun = visits.take(num_rows=num_rows, epochs=epochs or 1)
        blank = _blanked(corpus, document, number, fraction=blank_fraction, seed=seed)
        del number
        piece = segments.expand(document, columns=[each for each in MODALITIES if budget[each] < row_tokens])
        if piece.visit is not None:
            document, blank = document[piece.visit], blank[piece.visit]
            phase = None if phase is None else phase[piece.visit]
        row, made = pack(
            piece.tokens,
            piece.media,
            document,
            row_tokens=row_tokens,
            budget=np.array([budget[each] for each in piece.columns], dtype=np.int64),
            phase=phase,
            keep_order=not shuffle,
        )
        count = made if num_rows is None else num_rows
        order, offset = _arranged(row, made, phase, count=count, shuffle=shuffle, seed=seed)
        del row, phase
        tokens = piece.tokens[order]
        start = np.zeros(len(order), dtype=np.int32) if piece.start is None else piece.start[order]
        plan = cls(
            document[order],
            start,
            start + tokens,
            blank[order],
            offset,
            row_tokens,
            budget,
            corpus.fingerprint,
            {},
            lengths,
        )
        info = {
            "name": split if name is None else _plain(name),
            "split": split,
            "seed": seed,
            "epochs_begun": begun,
            "rows": len(plan),
            "fill": round(plan.fill, 6),
            "documents": len(segments.usable),
            "num_documents": int(corpus.num_documents),
            "blank_fraction": blank_fraction,
            "long": long,
            "mixture": mixture.to_dict(),
            "left_out": segments.num_left_out,
            "left_out_counts": segments.left_out_counts,
            "left_out_reasons": {str(each): reason for each, reason in sorted(segments.left_out.items())},
        }
        return dataclasses.replace(plan, info=info)

    def digest(self) -> str:
        """sha256 of everything in the plan."""
        found = hashlib.sha256(json.dumps(self._meta(), sort_keys=True).encode())
        for name in ARRAYS:
            array = getattr(self, name)
            found.update(f"{name} {array.dtype.str} {len(array)}".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def _meta(self) -> dict:
        return {name: getattr(self, name) for name in ("row_tokens", "media_budget", "fingerprint", "lengths", "info")}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the plan without pickle, by rename, complete or absent -> its file.

        path: a .npz file, or a folder, in which the plan becomes plans/<name>.npz. The same plan again changes nothing;
        ValueError where another one has its place, unless `overwrite`.
        """
        path = Path(path)
        if path.suffix != ".npz":
            path = path / "plans" / f"{_plain(self.info.get('name', 'plan'))}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not overwrite:
            if _is_plan(path, self.digest()):
                return path
            raise ValueError(f"{path} holds another plan: give this one another name, or ask to overwrite")
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            meta = np.frombuffer(json.dumps(self._meta()).encode(), dtype=np.uint8)
            np.savez(file, **{name: getattr(self, name) for name in ARRAYS}, meta=meta)
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan. Raises ValueError when the file is missing or is no plan."""
        try:
            with zipfile.ZipFile(path) as archive:
                # what numpy wrote is stored plainly; anything else could grow without end
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ValueError("its arrays are compressed")
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(file["meta"].tobytes())
                return cls(**{name: file[name] for name in ARRAYS}, **meta)._checked()
        except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a row plan ({error}): build it again with Plan.build") from None

    def _checked(self) -> "Plan":
        """Itself, when arrays and numbers can be a plan's; ValueError otherwise."""
        size = len(self.document)
        for name in ARRAYS:
            array, kinds = getattr(self, name), "b" if name == "blank" else "iu"
            if array.ndim != 1 or array.dtype.kind not in kinds or (name != "offset" and len(array) != size):
                raise ValueError(f"array {name} has dtype {array.dtype} and shape {array.shape}")
        if not len(self.offset) or self.offset[0] != 0 or self.offset[-1] != size or (np.diff(self.offset) < 0).any():
            raise ValueError(f"offset does not divide {size} entries into rows")
        length = self.stop.astype(np.int64) - self.start
        if (self.document < 0).any() or (self.start < 0).any() or (length < 1).any():
            raise ValueError("an entry is no stretch of a document")
        total = np.concatenate([[0], np.cumsum(length)])[self.offset]
        if not isinstance(self.row_tokens, int) or (np.diff(total) > self.row_tokens).any():
            raise ValueError(f"a row is longer than {self.row_tokens} tokens")
        if not all(isinstance(row, int) and isinstance(tokens, int) and tokens > 0 for row, tokens in self.lengths):
            raise ValueError("lengths must be pairs of a row and a number of tokens")
        if not isinstance(self.info, dict) or not isinstance(self.media_budget, dict):
            raise ValueError("info and media_budget must be objects")
        return self


def _from_row(lengths: tuple[tuple[int, int], ...], start: int) -> tuple[tuple[int, int], ...]:
    """Steps by row as they look when rows are counted from `start`."""
    passed = [tokens for row, tokens in lengths if row <= start][-1:]
    return (*((0, tokens) for tokens in passed), *((row - start, tokens) for row, tokens in lengths if row > start))


def _of_kinds(kind_weights: dict | None, corpus) -> Mixture:
    """kind_weights as a mixture; ValueError names the key as it was given."""
    for key in kind_weights or {}:
        kind, _, level = ("/".join(map(str, key)) if isinstance(key, tuple) else key).partition("/")
        if kind not in corpus.kinds or (level and not level.isdigit()):
            raise ValueError(f"kind_weights: {key!r} is no kind, nor kind/level; kinds: {', '.join(corpus.kinds)}")
    return Mixture.of_kinds(kind_weights or {})


def _chosen(corpus, split, documents, kinds, levels) -> np.ndarray:
    """(n,) bool documents that pass every filter."""
    mask = corpus.split == SPLITS.index(split)
    if documents is not None:
        documents = np.asarray(list(documents) if not isinstance(documents, np.ndarray) else documents)
        if documents.dtype == bool and documents.shape != mask.shape:
            raise ValueError(f"a document mask needs {len(mask)} entries, not {len(documents)}")
        keep = np.zeros(len(mask), dtype=bool)
        keep[documents if documents.dtype == bool else documents.astype(np.int64)] = True
        mask = mask & keep
    if kinds is not None:
        kinds = list(kinds)
        unknown = sorted(set(kinds) - set(corpus.kinds))
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; the corpus has {', '.join(corpus.kinds)}")
        mask = mask & np.isin(corpus.kind, [corpus.kinds.index(kind) for kind in kinds])
    if levels is not None:
        mask = mask & np.isin(corpus.level, list(levels))
    return mask


def _blanked(corpus, document: np.ndarray, number: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """(v,) bool: visits whose media are blanked."""
    blank = np.zeros(len(document), dtype=bool)
    has_media = np.zeros(len(corpus.split), dtype=bool)
    for each in MODALITIES:
        has_media |= corpus.num_media[each] > 0
    for first in range(0, len(document) if fraction > 0 else 0, CHUNK):
        part = first + np.flatnonzero(has_media[document[first : first + CHUNK]])
        blank[part] = unit(seed, BLANK, document[part], number[part]) < fraction
    return blank


def _arranged(row: np.ndarray, made: int, phase, *, count: int, shuffle: bool, seed: int):
    """Order of the stretches, row after row, and the offsets of `count` rows: (E,) and (count + 1,) int64.

    Phase by phase, rows carried over from the one before first; else in the order they were closed, but for a shuffle
    of neighbours: full rows close early, and their order must not tell. Rows that are too many are the last to close.
    """
    kept = row < count
    late = np.zeros(count, dtype=np.int32)
    if phase is not None:
        early = np.full(count, phase[-1], dtype=np.int32)
        np.maximum.at(late, row[kept], phase[kept])
        np.minimum.at(early, row[kept], phase[kept])
        late = 2 * late + (early == late)
    order = np.argsort(late, kind="stable")
    if shuffle:
        within = np.arange(count) - np.searchsorted(late[order], late[order])
        index = order.astype(np.int64)
        random = hashed(seed, ROWS, index, np.zeros_like(index))
        order = order[np.lexsort((random, within // max(1024, made // 64), late[order]))]
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    # one sort of keys (row, place in the stream) instead of an argsort
    key = np.flatnonzero(kept) if count < made else np.arange(len(row), dtype=np.int64)
    key |= place[row[key]] << 32
    key.sort()
    offset = np.searchsorted(key, np.arange(count + 1, dtype=np.int64) << 32)
    key &= 2**32 - 1
    return key, offset


def _plain(name: str) -> str:
    """The name, when it can be a file's; ValueError otherwise."""
    if not name or len(name) > 100 or set(name) & set("/\\\0") or name.startswith("."):
        raise ValueError(f"plan name {name!r} must be a plain file name")
    return name


def _is_plan(path: Path, digest: str) -> bool:
    try:
        return Plan.load(path).digest() == digest
    except ValueError:
        return False
