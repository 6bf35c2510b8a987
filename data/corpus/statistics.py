"""What a collection of documents holds, counted: documents, parts, tokens, lengths, roles, and what was quarantined.

One `CorpusStats` serves `data check` (document by document) and the build (from a corpus's index), so that both print
the same table and JSON. Tokens of an image, audio or video are its media tokens, a video's audio track counting
as audio; all others, boundary and end tokens included, count as text, so that the four add up to the lengths. Reasons
are grouped by their wording without file names and numbers. Memory: 8 bytes per document.
"""

import json
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from brine.data.document import MODALITIES, SPLITS, Document, Quarantined, modality_of

PART_TYPES = ("text", *MODALITIES)
MAX_REASONS = 200  # groups of reasons that are counted separately; further ones are counted together


@dataclass
class CorpusStats:
    """Counts that grow as documents are added."""

    documents: Counter = field(default_factory=Counter)  # documents kept, by (kind, split)
    parts: Counter = field(default_factory=Counter)  # parts of kept documents, by modality
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    """(4,) int64 tokens of each kind, in the order of PART_TYPES."""
    lengths: dict[str, array] = field(default_factory=dict)  # tokens of every document of each kind
    reasons: dict[str, list] = field(default_factory=dict)  # grouped reason to [count, first Quarantined]

    def add(self, document: Document, num_media: dict[str, int], num_tokens: int) -> None:
        """Count one document that is kept: its media tokens by modality and its length."""
        self.documents[document.kind, document.split] += 1
        self.parts.update(modality_of(part) for part in document.parts)
        counts = [num_media[name] for name in MODALITIES]
        of_kind = self.tokens.setdefault(document.kind, np.zeros(len(PART_TYPES), np.int64))
        of_kind += [num_tokens - sum(counts), *counts]
        self.lengths.setdefault(document.kind, array("q")).append(num_tokens)

    def reject(self, record: Quarantined) -> None:
        """Count one document that was quarantined."""
        group = reason_group(record.reason)
        if group not in self.reasons and len(self.reasons) >= MAX_REASONS:
            group = "other reasons"
        self.reasons.setdefault(group, [0, record])[0] += 1

    @classmethod
    def from_corpus(cls, corpus) -> "CorpusStats":
        """The counts of an encoded corpus, from its index, its documents' JSON and its quarantine file."""
        stats = cls()
        for number, kind in enumerate(corpus.kinds):
            chosen = corpus.kind == number
            for code, split in enumerate(SPLITS):
                if count := int((chosen & (corpus.split == code)).sum()):
                    stats.documents[kind, split] = count
            media = [int(corpus.num_media[name][chosen].sum()) for name in MODALITIES]
            lengths = corpus.num_tokens[chosen].astype(np.int64)
            stats.tokens[kind] = np.array([int(lengths.sum()) - sum(media), *media], np.int64)
            stats.lengths[kind] = array("q", lengths.tobytes())
        with open(corpus.folder / "documents.jsonl", "rb") as file:
            for line in file:
                stats.parts.update(part["type"] for part in json.loads(line)["content"])
        for record in corpus.quarantine():
            stats.reject(Quarantined(record["id"], record["file"], record["reason"], record.get("line", 0)))
        return stats

    @property
    def num_documents(self) -> int:
        return self.documents.total()

    @property
    def num_quarantined(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    @property
    def total(self) -> np.ndarray:
        """(4,) int64 tokens of all kinds, in the order of PART_TYPES."""
        return sum(self.tokens.values(), np.zeros(len(PART_TYPES), np.int64))

    @property
    def kinds(self) -> dict[str, int]:
        """Documents of each kind, most first."""
        return dict(sorted(self._count_by(0).items(), key=lambda item: (-item[1], item[0])))

    @property
    def splits(self) -> dict[str, int]:
        """Documents of each split that has any, the usual ones first."""
        counts = self._count_by(1)
        return {split: counts[split] for split in [*SPLITS, *sorted(set(counts) - set(SPLITS))] if split in counts}

    def _count_by(self, part: int) -> Counter:
        counts = Counter()
        for key, count in self.documents.items():
            counts[key[part]] += count
        return counts

    def all_lengths(self) -> np.ndarray:
        """(n,) int64 lengths of all documents, kind by kind."""
        lengths = [np.frombuffer(self.lengths[kind], np.int64) for kind in sorted(self.lengths)]
        return np.concatenate([np.zeros(0, np.int64), *lengths])

    def to_json(self) -> dict:
        """The counts as one flat JSON object."""
        return {
            "documents": self.num_documents,
            "parts": {name: self.parts[name] for name in PART_TYPES},
            "tokens": dict(zip(PART_TYPES, self.total.tolist(), strict=True)),
            "quarantined": self.num_quarantined,
            "kinds": self.kinds,
            "splits": self.splits,
            "max_tokens": int(self.all_lengths().max(initial=0)),
        }


def quarantine_summary(records: list[dict]) -> str:
    """What the records of a quarantine file say, in one line: how many, and the most frequent reasons."""
    reasons = Counter(reason_group(record["reason"]) for record in records)
    first = "; ".join(f"{count:,} {reason[:200]}" for reason, count in reasons.most_common(5))
    what = "document is" if len(records) == 1 else "documents are"
    return f"{len(records):,} {what} quarantined ({first}{'; ...' if len(reasons) > 5 else ''})"


def reason_group(reason: str) -> str:
    """A reason without what differs from file to file: line numbers, quoted names, counts."""
    reason = re.sub(r"^(line|row) \d+: ", "", reason[:1000])
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", reason)
    return re.sub(r"(?<!\w)(?<!\w-)\d[\d,]*(\.\d+)?", "N", reason)


def roles_in(corpus, documents: np.ndarray, *, per_kind: int = 50) -> list[str]:
    """Roles of parts, sorted, in at most `per_kind` of the documents (n,) of each kind; empty without conversations."""
    found: set[str] = set()
    kinds = np.asarray(corpus.kind)[documents]
    for kind in np.unique(kinds):
        some = documents[kinds == kind]
        chosen = some[np.unique(np.linspace(0, len(some) - 1, min(per_kind, len(some))).astype(int))]
        found |= {part.role for number in chosen for part in corpus.document(int(number)).parts if part.role}
    return sorted(found)
