"""The packing plan: which chunk of which document lies in which packed sequence, decided before training begins.

    chunk e       document[e], start[e]..stop[e], blank[e]
    sequence i    chunks offset[i]..offset[i+1], one after another; the rest is padding

Sequence i is a pure function of (plan, i), so the loader's state is one integer and resuming is exact at any number of
ranks. An epoch samples every document as often as its weight says (`brine.data.packing.samples`), shuffled by hashes;
documents longer than a sequence are split (`brine.data.packing.chunks`), exclusions counted with the reason, and
nothing truncated. A tenth of the documents with media are blanked in training (grey, silence), by a hash of (seed,
document, sample). Cost: about a microsecond and 60 bytes per document.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brine.common.files import replacing
from brine.data.document import MODALITIES, SPLITS
from brine.data.packing.chunks import find_chunks
from brine.data.packing.composition import realized_mixture
from brine.data.packing.counter_rng import BLANK, CHUNK, SEQUENCES, hash_counters, uniform
from brine.data.packing.mixture import Mixture
from brine.data.packing.pack import pack
from brine.data.packing.samples import SampleStream

CHUNK_ARRAYS = ("document", "start", "stop", "blank")
ARRAYS = (*CHUNK_ARRAYS, "offset")


@dataclass(frozen=True)
class PackingPlan:
    """Packed sequences of known content: made by `build`, kept by `save`, read by `load`."""

    document: np.ndarray
    """(E,) int32 index into the corpus."""
    start: np.ndarray
    """(E,) int32 first token of the chunk."""
    stop: np.ndarray
    """(E,) int32 end of the chunk."""
    blank: np.ndarray
    """(E,) bool: media of this sample are blanked."""
    offset: np.ndarray
    """(R + 1,) int64 first chunk of each sequence."""
    seq_len: int
    """Tokens in a sequence, padding included."""
    media_budget: dict[str, int]
    """Maximum number of patches per packed sequence, by modality."""
    fingerprint: str
    """Of the corpus the plan was made for; it covers documents, tokenizer and encoding."""
    info: dict
    """How it was made: name, split, seed, epochs begun, mixture, packing efficiency, documents used, and excluded with
    counts and reasons (of the first thousand)."""
    lengths: tuple[tuple[int, int], ...] = ()
    """(sequence, tokens): how much of a document attention may see from that sequence on, ascending
    (`LengthSchedule.by_sequence`); before the first, or where empty, all of it."""

    def __len__(self) -> int:
        return len(self.offset) - 1

    def chunks(self, number: int) -> list[tuple[int, int, int, bool]]:
        """Chunks (document, start, stop, blank) of one sequence."""
        if not 0 <= number < len(self):
            raise IndexError(f"sequence {number} of a plan of {len(self)} sequences")
        chunks = slice(self.offset[number], self.offset[number + 1])
        return list(zip(*(getattr(self, name)[chunks].tolist() for name in CHUNK_ARRAYS), strict=True))

    def segment_tokens(self, number: int) -> int | None:
        """How many tokens of a document attention may see together in a sequence; None: all."""
        return next((tokens for first, tokens in reversed(self.lengths) if number >= first), None)

    @property
    def packing_efficiency(self) -> float:
        """Fraction of the tokens that are documents, not padding."""
        tokens = self.stop.sum(dtype=np.int64) - self.start.sum(dtype=np.int64)
        return float(tokens / max(1, len(self) * self.seq_len))

    def sample_counts(self) -> np.ndarray:
        """(documents of the corpus,) int32: how often each is begun."""
        size = self.info.get("num_documents", int(self.document.max(initial=-1)) + 1)
        return np.bincount(self.document[self.start == 0], minlength=size).astype(np.int32)

    def mixture(self, corpus, *, num_bins: int = 10) -> dict:
        """{"sequences": edges, "kind": {name: shares of tokens}, "source", "modality"} of `num_bins` equal parts."""
        return realized_mixture(self, corpus, num_bins)

    def slice(self, start: int, stop: int) -> "PackingPlan":
        first, last = int(self.offset[start]), int(self.offset[stop])
        arrays = {name: getattr(self, name)[first:last] for name in CHUNK_ARRAYS}
        before = [tokens for number, tokens in self.lengths if number <= start][-1:]
        after = [(number - start, tokens) for number, tokens in self.lengths if number > start]
        lengths = (*((0, tokens) for tokens in before), *after)
        return dataclasses.replace(self, **arrays, offset=self.offset[start : stop + 1] - first, lengths=lengths)

    @classmethod
    def build(
        cls,
        corpus,
        *,
        split: str = "train",
        seq_len: int,
        media_budget: dict[str, int] | None = None,
        num_sequences: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        blank_fraction: float | None = None,
        documents: Iterable[int] | np.ndarray | None = None,
        mixture: Mixture | None = None,
        lengths: tuple[tuple[int, int], ...] = (),
        long: str = "split",
        name: str | None = None,
    ) -> "PackingPlan":
        """Plan `num_sequences` packed sequences, or as many as `epochs` fill (one when neither is given).

        corpus: an EncodedCorpus (or anything with its arrays). media_budget: patches per sequence and modality, seq_len
        where absent. blank_fraction: 0.1 for the train split and 0 for others unless given. documents: indices or a
        mask (n,) to choose from. mixture: weights by kind and source. lengths: (sequence, tokens), how far attention
        sees along a document from there on. long: "split" documents that exceed a sequence, or "drop" them. name:
        under which the plan is saved; the split's unless given. Raises ValueError when nothing is left to plan.
        """
        if seq_len < 2:
            raise ValueError(f"seq_len must be at least 2, not {seq_len}")
        if num_sequences is not None and epochs is not None:
            raise ValueError("give num_sequences or epochs, not both")
        for what, value, known in (("split", split, SPLITS), ("long", long, ("split", "drop"))):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; there are {', '.join(known)}")
        if unknown := sorted(set(media_budget or {}) - set(MODALITIES)):
            raise ValueError(f"unknown modality {unknown[0]!r} in media_budget; there are {', '.join(MODALITIES)}")
        name = split if name is None else _check_plan_name(name)
        budget = {each: int((media_budget or {}).get(each, seq_len)) for each in MODALITIES}
        blank_fraction = (0.1 if split == "train" else 0.0) if blank_fraction is None else blank_fraction
        mixture = mixture or Mixture()
        chosen = _chosen(corpus, split, documents)
        chunk_table = find_chunks(corpus, chosen, seq_len=seq_len, budget=budget, long=long)
        samples = SampleStream(corpus, chunk_table, mixture, seq_len=seq_len, budget=budget, seed=seed)
        document, number, phase, begun = samples.take(num_sequences=num_sequences, epochs=epochs or 1)
        blank = _blanked(corpus, document, number, fraction=blank_fraction, seed=seed)
        del number
        columns = [each for each in MODALITIES if budget[each] < seq_len]
        tokens, media, start, sample = chunk_table.expand(document, columns)
        if sample is not None:
            document, blank = document[sample], blank[sample]
            phase = None if phase is None else phase[sample]
        limits = np.array([budget[each] for each in columns], dtype=np.int64)
        sequence, made = pack(tokens, media, document, seq_len=seq_len, budget=limits, phase=phase)
        count = made if num_sequences is None else num_sequences
        order, offset = _order_chunks(sequence, made, phase, count=count, seed=seed)
        del sequence, phase, media
        start = np.zeros(len(order), dtype=np.int32) if start is None else start[order]
        arrays = (document[order], start, start + tokens[order], blank[order], offset)
        plan = cls(*arrays, seq_len, budget, corpus.fingerprint, {}, lengths)
        info = {
            "name": name,
            "split": split,
            "seed": seed,
            "epochs_begun": begun,
            "sequences": len(plan),
            "packing_efficiency": round(plan.packing_efficiency, 6),
            "documents": len(chunk_table.usable),
            "num_documents": int(corpus.num_documents),
            "blank_fraction": blank_fraction,
            "long": long,
            "mixture": mixture.to_dict(),
            "excluded": chunk_table.num_excluded,
            "excluded_counts": chunk_table.excluded_counts,
            "excluded_reasons": {str(each): reason for each, reason in sorted(chunk_table.excluded.items())},
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
        return {name: getattr(self, name) for name in ("seq_len", "media_budget", "fingerprint", "lengths", "info")}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the plan without pickle, by rename, complete or absent -> its file.

        path: a .npz file, or a folder, in which the plan becomes plans/<name>.npz. The same plan again changes nothing;
        ValueError where another one is there, unless `overwrite`.
        """
        path = Path(path)
        if path.suffix != ".npz":
            path = path / "plans" / f"{_check_plan_name(self.info.get('name', 'plan'))}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not overwrite:
            if _is_plan(path, self.digest()):
                return path
            raise ValueError(f"{path} holds another plan: give this one another name, or ask to overwrite")
        with replacing(path, "wb") as file:
            meta = np.frombuffer(json.dumps(self._meta()).encode(), dtype=np.uint8)
            np.savez(file, **{name: getattr(self, name) for name in ARRAYS}, meta=meta)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "PackingPlan":
        """Read a plan. Raises ValueError when the file is missing or is not a plan."""
        try:
            with zipfile.ZipFile(path) as archive:
                # what numpy wrote is stored plainly; anything else could grow without end
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ValueError("its arrays are compressed")
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(file["meta"].tobytes())
                plan = cls(**{name: file[name] for name in ARRAYS}, **meta)
            plan._check()
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            MemoryError,
            zipfile.BadZipFile,
        ) as e:
            raise ValueError(f"{path} is not a packing plan ({e}): build it again with PackingPlan.build") from None
        return plan

    def _check(self) -> None:
        size = len(self.document)
        for name in ARRAYS:
            array, kinds = getattr(self, name), "b" if name == "blank" else "iu"
            if array.ndim != 1 or array.dtype.kind not in kinds or (name != "offset" and len(array) != size):
                raise ValueError(f"array {name} has dtype {array.dtype} and shape {array.shape}")
        if not len(self.offset) or self.offset[0] != 0 or self.offset[-1] != size or (np.diff(self.offset) < 0).any():
            raise ValueError(f"offset does not divide {size} chunks into sequences")
        length = self.stop.astype(np.int64) - self.start
        if (self.document < 0).any() or (self.start < 0).any() or (length < 1).any():
            raise ValueError("a chunk is outside its document")
        total = np.concatenate([[0], np.cumsum(length)])[self.offset]
        if not isinstance(self.seq_len, int) or (np.diff(total) > self.seq_len).any():
            raise ValueError(f"a sequence is longer than {self.seq_len} tokens")
        if not all(isinstance(at, int) and isinstance(tokens, int) and tokens > 0 for at, tokens in self.lengths):
            raise ValueError("lengths must be pairs of a sequence and a number of tokens")
        if not isinstance(self.info, dict) or not isinstance(self.media_budget, dict):
            raise ValueError("info and media_budget must be objects")


def _chosen(corpus, split, documents) -> np.ndarray:
    mask = corpus.split == SPLITS.index(split)
    if documents is not None:
        documents = np.asarray(documents if isinstance(documents, np.ndarray) else list(documents))
        if documents.dtype == bool and documents.shape != mask.shape:
            raise ValueError(f"a document mask needs {len(mask)} entries, not {len(documents)}")
        keep = np.zeros(len(mask), dtype=bool)
        keep[documents if documents.dtype == bool else documents.astype(np.int64)] = True
        mask = mask & keep
    return mask


def _blanked(corpus, document: np.ndarray, number: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    blank = np.zeros(len(document), dtype=bool)
    has_media = np.zeros(len(corpus.split), dtype=bool)
    for each in MODALITIES:
        has_media |= corpus.num_media[each] > 0
    for first in range(0, len(document) if fraction > 0 else 0, CHUNK):
        part = first + np.flatnonzero(has_media[document[first : first + CHUNK]])
        blank[part] = uniform(seed, BLANK, document[part], number[part]) < fraction
    return blank


def _order_chunks(sequence: np.ndarray, made: int, phase, *, count: int, seed: int):
    """Order of the chunks, sequence after sequence, and the offsets of `count` sequences: (E,), (count + 1,) int64.

    Phase by phase, sequences carried over from the one before first; else in the order they were closed, but for a
    shuffle of neighbours, since full ones close early. Sequences that are too many are the last to close.
    """
    kept = sequence < count
    late = np.zeros(count, dtype=np.int32)
    if phase is not None:
        early = np.full(count, phase[-1], dtype=np.int32)
        np.maximum.at(late, sequence[kept], phase[kept])
        np.minimum.at(early, sequence[kept], phase[kept])
        late = 2 * late + (early == late)
    order = np.argsort(late, kind="stable")
    within = np.arange(count) - np.searchsorted(late[order], late[order])
    index = order.astype(np.int64)
    random = hash_counters(seed, SEQUENCES, index, np.zeros_like(index))
    order = order[np.lexsort((random, within // max(1024, made // 64), late[order]))]
    position = np.empty(count, dtype=np.int64)
    position[order] = np.arange(count)
    # one sort of keys (position of the sequence, index in the stream) instead of an argsort
    key = np.flatnonzero(kept) if count < made else np.arange(len(sequence), dtype=np.int64)
    key |= position[sequence[key]] << 32
    key.sort()
    offset = np.searchsorted(key, np.arange(count + 1, dtype=np.int64) << 32)
    key &= 2**32 - 1
    return key, offset


def _check_plan_name(name: str) -> str:
    if not name or len(name) > 100 or set(name) & set("/\\\0") or name.startswith("."):
        raise ValueError(f"plan name {name!r} must be a plain file name")
    return name


def _is_plan(path: Path, digest: str) -> bool:
    try:
        return PackingPlan.load(path).digest() == digest
    except ValueError:
        return False
