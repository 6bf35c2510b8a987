"""What a collection of documents holds, counted: documents, parts, tokens, lengths, and what was set aside.

One `Tally` serves the check (fed document by document as they are decoded) and the build (read from a corpus's index
at once), so that both print the same table and the same JSON.

Tokens of a picture, a sound or a film are its slots, a film's sound track counting as audio; everything else, boundary
and end tokens included, counts as text, so that the four add up to the lengths. Parts are counted as written: a film
with sound is one part of video.

Reasons are grouped by their wording, with file names and numbers left out, and each group keeps its first example. A
tally holds 8 bytes a document and a few numbers a kind, so ten million documents take 80 MB.
"""

import json
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data.document import MODALITIES, SPLITS, Document, Quarantined, modality_of

PARTS = ("text", *MODALITIES)
MAX_REASONS = 200
"""Groups of reasons that are kept apart; further ones are counted together."""


@dataclass
class Tally:
    """Counts that grow as documents are added."""

    documents: Counter = field(default_factory=Counter)
    """Documents kept, by (kind, split)."""
    parts: Counter = field(default_factory=Counter)
    """Parts of kept documents, by modality."""
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    """(4,) int64 tokens of each kind, in the order of PARTS."""
    lengths: dict[str, array] = field(default_factory=dict)
    """Tokens of every document of each kind."""
    reasons: dict[str, list] = field(default_factory=dict)
    """Grouped reason to [count, first Quarantined]."""

    def add(self, document: Document, num_media: dict[str, int], num_tokens: int) -> None:
        """Count one document that is kept: its media slots by modality and its length."""
        self.documents[document.kind, document.split] += 1
        self.parts.update(modality_of(part) for part in document.parts)
        counts = [num_media[name] for name in MODALITIES]
        of_kind = self.tokens.setdefault(document.kind, np.zeros(len(PARTS), np.int64))
        of_kind += [num_tokens - sum(counts), *counts]
        self.lengths.setdefault(document.kind, array("q")).append(num_tokens)

    def reject(self, record: Quarantined) -> None:
        """Count one document that was set aside."""
        group = group_of(record.reason)
        if group not in self.reasons and len(self.reasons) >= MAX_REASONS:
            group = "other reasons"
        self.reasons.setdefault(group, [0, record])[0] += 1

    @classmethod
    def of_corpus(cls, corpus) -> "Tally":
        """The tally of an encoded corpus, from its index, its documents' JSON and its quarantine file."""
        tally = cls()
        for number, kind in enumerate(corpus.kinds):
            chosen = corpus.kind == number
            for place, split in enumerate(SPLITS):
                if count := int((chosen & (corpus.split == place)).sum()):
                    tally.documents[kind, split] = count
            media = [int(corpus.num_media[name][chosen].sum()) for name in MODALITIES]
            total = int(corpus.num_tokens[chosen].sum())
            tally.tokens[kind] = np.array([total - sum(media), *media], np.int64)
            tally.lengths[kind] = array("q", corpus.num_tokens[chosen].astype(np.int64).tobytes())
        with open(corpus.folder / "documents.jsonl", "rb") as file:
            for line in file:
                tally.parts.update(part["type"] for part in json.loads(line)["content"])
        for record in corpus.quarantine():
            tally.reject(Quarantined(record["id"], record["file"], record["reason"], record.get("line", 0)))
        return tally

    @property
    def num_documents(self) -> int:
        """Documents kept."""
        return sum(self.documents.values())

    @property
    def num_quarantined(self) -> int:
        """Documents set aside."""
        return sum(count for count, _ in self.reasons.values())

    @property
    def total(self) -> np.ndarray:
        """(4,) int64 tokens of all kinds, in the order of PARTS."""
        return sum(self.tokens.values(), np.zeros(len(PARTS), np.int64))

    @property
    def kinds(self) -> dict[str, int]:
        """Documents of each kind, most first."""
        counts = Counter()
        for (kind, _), count in self.documents.items():
            counts[kind] += count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def splits(self) -> dict[str, int]:
        """Documents of each split that has any, the usual ones first."""
        counts = Counter()
        for (_, split), count in self.documents.items():
            counts[split] += count
        order = {name: place for place, name in enumerate(SPLITS)}
        return dict(sorted(counts.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))

    def all_lengths(self) -> np.ndarray:
        """(n,) int64 lengths of all documents, kind by kind."""
        pieces = [np.frombuffer(self.lengths[kind], np.int64) for kind in sorted(self.lengths)]
        return np.concatenate([np.zeros(0, np.int64), *pieces])

    def to_json(self) -> dict:
        """The counts as one flat JSON object."""
        return {
            "documents": self.num_documents,
            "parts": {name: self.parts[name] for name in PARTS},
            "tokens": dict(zip(PARTS, self.total.tolist(), strict=True)),
            "quarantined": self.num_quarantined,
            "kinds": self.kinds,
            "splits": self.splits,
            "max_tokens": int(self.all_lengths().max(initial=0)),
        }


def aside_text(records: list[dict]) -> str:
    """What the records of a quarantine file say, in one line: how many, and the most frequent reasons."""
    reasons = Counter(group_of(record["reason"]) for record in records)
    first = "; ".join(f"{count:,} {reason[:200]}" for reason, count in reasons.most_common(5))
    return f"{len(records):,} documents are set aside ({first}{'; ...' if len(reasons) > 5 else ''})"


def group_of(reason: str) -> str:
    """A reason without what differs from file to file: line numbers, quoted names, counts."""
    reason = re.sub(r"^(line|row) \d+: ", "", reason[:1000])
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", reason)
    return re.sub(r"(?<!\w)\d[\d,]*(\.\d+)?", "N", reason)
