"""Which documents do not fit a packed sequence, and whether anything is left to train on: reported before training.

A longer document is split over several packed sequences, outside media (`brine.data.packing.chunks`), and its chunks do
not see each other. It is excluded where the span between two split points, usually one media file, has more tokens
than a sequence or more patches than its budget. `ExclusionStats` counts both by kind and says which number is exceeded
and how large it would have to be. Cost: one comparison a document; only those that exceed a sequence are read.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from brine.data.document import MODALITIES, SPLITS

MAX_EXAMPLE_IDS = 5
_FEWER = {"image": "max_image_tokens", "audio": "max_audio_s", "video": "max_video_tokens"}
"""Fields of EncodeConfig that make media smaller."""


def recipe_option(name: str) -> str:
    """How training spells a field: of its packing, or of the encoding."""
    return f"packing.{name}" if name.endswith(("seq_len", "_budget")) else f"corpus.encode.{name}"


def cli_option(name: str) -> str:
    """How `brine data` spells the same."""
    return "--" + name.replace("_", "-")


@dataclass
class ExclusionStats:
    """Counts of the documents that do not fit a packed sequence, and of those that are split."""

    seq_len: int  # tokens of a packed sequence
    media_budget: dict[str, int]  # maximum number of patches per packed sequence, by modality
    documents: int = 0
    total_documents: int = 0
    tokens: int = 0
    total_tokens: int = 0
    kinds: Counter = field(default_factory=Counter)  # excluded documents, by kind
    first: list[str] = field(default_factory=list)  # ids of the first few
    needs: Counter = field(default_factory=Counter)
    """Modality, or "tokens" for all together -> the most between two split points, where it exceeds its limit."""
    num_with_targets: int = 0  # documents that `count` met and that fit and have a token to predict
    cut: Counter = field(default_factory=Counter)  # documents that are split, by kind
    num_split_with_media: int = 0  # how many of those hold media or a question, which their later chunks do not see
    unsplit_needs: Counter = field(default_factory=Counter)  # as `needs`, of whole documents that are split

    def __post_init__(self):
        self.media_budget = {name: self.media_budget.get(name, self.seq_len) for name in MODALITIES}
        # a document with at most this many tokens exceeds no limit
        self._least = min(self.seq_len, *self.media_budget.values())

    @property
    def share(self) -> float:
        """Fraction of the documents that is excluded."""
        return self.documents / max(1, self.total_documents)

    def count(self, name: str, kind: str, sequence) -> bool:
        """Take one document, by id, kind and encoded form; returns whether it fits."""
        self.total_documents += 1
        self.total_tokens += len(sequence)
        exceeded = self.exceeded_limits(sequence)
        if exceeded:
            self.documents += 1
            self.tokens += len(sequence)
            self.kinds[kind] += 1
            if len(self.first) < MAX_EXAMPLE_IDS:
                self.first.append(name)
            self.needs |= exceeded
        elif len(sequence) > self._least and (whole := self._exceeded(_sizes(sequence, np.array([0, len(sequence)])))):
            self.cut[kind] += 1
            self.num_split_with_media += not sequence.loss_mask[1:].all()
            self.unsplit_needs |= whole
        self.num_with_targets += not exceeded and bool(sequence.loss_mask[1:].any())
        return not exceeded

    def refused(self, *, most: float = 1.0, where: str = "") -> str:
        """Why training would refuse the counted documents, or "". most: largest fraction to exclude."""
        none, fitting = "no document of the train split", self.total_documents - self.documents
        if not self.total_documents:
            return f'{none}{where}: give documents "split": "train", or put their files below train/'
        if not fitting:
            return f"{none} fits a packed sequence"
        if self.share > most:
            return f"more of the train split is excluded than packing.max_excluded_fraction {most:g} allows"
        if self.num_with_targets:
            return ""
        return (
            f"{none} has a target (0 of {fitting:,} documents that fit packed sequences): their text is empty, marked "
            '"loss_mask": false, or said by others than the assistant. Mark what the model is to say to train it'
        )

    def exceeded_limits(self, sequence) -> Counter:
        """The limits a document exceeds, as in `needs`; empty where it fits."""
        if len(sequence) <= self._least:
            return Counter()
        edges = np.unique(np.concatenate([[0], sequence.split_points(), [len(sequence)]]))
        return self._exceeded(_sizes(sequence, edges))

    def _exceeded(self, amounts: dict[str, int]) -> Counter:
        limits = {"tokens": self.seq_len, **self.media_budget}
        return Counter({what: need for what, need in amounts.items() if need > limits[what]})

    def remedies(self, option=recipe_option, *, needs: dict[str, int] | None = None) -> str:
        """The options that help, as they are and as they would have to be."""
        needs = self.needs if needs is None else needs
        fields = {"tokens": ("seq_len", self.seq_len)}
        fields |= {name: (f"{name}_budget", self.media_budget[name]) for name in MODALITIES}
        raised = [f"{option(name)} {now} -> {needs[what]}" for what, (name, now) in fields.items() if what in needs]
        fewer = [option(_FEWER[name]) for name in MODALITIES if name in needs]
        return ", ".join(raised) + (f"; or smaller media by a lower {', '.join(fewer)}" if fewer else "")

    def text(self, option=recipe_option) -> str:
        """A few sentences: how many are excluded or split, which, and what helps."""
        if self.documents:
            names = ", ".join(ascii(name[:60]) for name in self.first) + ", ..." * (self.documents > len(self.first))
            tokens = 100 * self.tokens / max(1, self.total_tokens)
            text = (
                f"{self.documents:,} of {self.total_documents:,} train documents are excluded, since they do not fit a "
                f"packed sequence: {_most_common(self.kinds)}; {100 * self.share:.1f} % of the documents, "
                f"{tokens:.1f} % of the tokens; {names}. What helps: {self.remedies(option)}"
            )
        else:
            text = f"all {self.total_documents:,} train documents fit packed sequences of {self.seq_len:,} tokens"
        if not self.cut:
            return text
        text += f". {self.cut.total():,} of the others fit" if self.documents else f", {self.cut.total():,}"
        text += f" only in chunks that do not see each other: {_most_common(self.cut)}"
        if self.num_split_with_media:
            text += f"; {self.num_split_with_media:,} of these hold media or a question, and later chunks are "
            text += "learned without them"
        return f"{text}. What keeps them whole: {self.remedies(option, needs=self.unsplit_needs)}"

    def to_json(self) -> dict:
        """The same as an object."""
        names = ("documents", "total_documents", "tokens", "total_tokens", "first", "needs", "seq_len", "media_budget")
        cut = {"kinds": dict(self.cut.most_common()), "num_split_with_media": self.num_split_with_media}
        return {name: getattr(self, name) for name in names} | {
            "kinds": dict(self.kinds.most_common()),
            "cut": cut | {"needs": self.unsplit_needs},
        }


def _most_common(kinds: Counter) -> str:
    return ", ".join(f"{count:,} {kind[:60]}" for kind, count in kinds.most_common(8))


def _sizes(sequence, edges: np.ndarray) -> dict[str, int]:
    """Maximum number of tokens ("tokens"), and of patches of each modality, between two of the split points `edges`."""
    starts = edges[:-1]
    # a target takes the token before it along
    repeated = (starts > 0) & sequence.loss_mask[starts]
    media = np.diff(sequence.media_totals()[edges], axis=0).max(axis=0, initial=0)
    most_tokens = int((np.diff(edges) + repeated).max(initial=0))
    return {"tokens": most_tokens} | dict(zip(MODALITIES, media.tolist(), strict=True))


def find_excluded(
    corpus, *, seq_len: int, media_budget: dict[str, int], documents: np.ndarray | None = None
) -> ExclusionStats:
    """Which documents of the train split, and of the mask `documents` (n,) if given, do not fit."""
    found = ExclusionStats(seq_len, media_budget)
    chosen = _train(corpus, documents)
    over = corpus.num_tokens > seq_len
    for name in MODALITIES:
        over |= corpus.num_media[name] > found.media_budget[name]
    for number in np.flatnonzero(chosen & over).tolist():
        # reading a document for each id would cost more than the counting
        name = corpus.document(number).id if len(found.first) < MAX_EXAMPLE_IDS else ""
        found.count(name, corpus.kinds[corpus.kind[number]], corpus.tokens(number))
    fitting = chosen & ~over
    found.total_documents += int(fitting.sum())
    found.total_tokens += int(corpus.num_tokens[fitting].sum())
    return found


def require_targets(
    corpus, excluded: ExclusionStats, *, documents: np.ndarray | None = None, most: float = 1.0
) -> None:
    """Raise ValueError unless a target of the train split (mask (n,) `documents`) fits. most: fraction to exclude."""
    train, chosen = _train(corpus, None), _train(corpus, documents)
    if train.any() and not chosen.any():
        raise ValueError(
            f"no document of the train split is left by the filters (0 of {int(train.sum()):,}): use fewer "
            "corpus.filters; of a built corpus, undo filters by `brine data filter FOLDER --undo 1` to train"
        )
    # the first token has none before it to be predicted from
    sequences = (corpus.tokens(number) for number in map(int, np.flatnonzero(chosen)))
    has_targets = any(each.loss_mask[1:].any() and not excluded.exceeded_limits(each) for each in sequences)
    excluded.num_with_targets = max(excluded.num_with_targets, int(has_targets))
    counts = ((split, int((corpus.split == number).sum())) for number, split in enumerate(SPLITS))
    others = ", ".join(f"{count:,} {split}" for split, count in counts if count)
    if reason := excluded.refused(most=most, where=f" (0 of {len(corpus):,} documents: {others})"):
        details = f"; {excluded.text()}" if excluded.documents else ""
        raise ValueError(f"{reason}{details}")


def _train(corpus, documents: np.ndarray | None) -> np.ndarray:
    chosen = corpus.split == SPLITS.index("train")
    return chosen if documents is None else chosen & documents
