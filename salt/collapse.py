"""A watch over texts that a model wrote and will be trained on: it stops a line of rounds that feeds on itself.

A model trained on its own output loses the rare first (model collapse: 2305.17493, 2404.01413). What is watched, over
words (runs of letters, digits and underscores, and single other characters):

    distinct_1 ... distinct_4    different n-grams of words over all n-grams
    entropy                      of single words, bits
    mean_words                   words of a text
    repetition                   4-grams that came before in the same text, over all 4-grams

Two sets of texts are compared at an equal number of words, cut in the order of a hash, since a longer text has fewer
distinct n-grams for each word. The texts of a round are compared with those of the first round and with true ones. The
rule (`CollapseConfig`) fires when a distinct ratio falls below 0.75 of that of the first round, or below 0.6 of that of
true texts (the surer answers of any model have less variety than the truth, in the first round already), when entropy
falls below 0.85 of its reference, when the mean length leaves a half to twice it, or the repetition is above it by 0.2.
Of 100 pairs of samples of the same lines of code, the worst distinct ratio was 0.78 of the other's at 440 words and
0.87 at 1,100, the worst entropy 0.89 and 0.96, the greatest difference of repetition 0.15 and 0.11: the limits are
beyond chance. With fewer than 400 words nothing is decided, and the result says so.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

_WORD = re.compile(r"\w+|[^\w\s]")
ORDERS = (1, 2, 3, 4)
FIRST_ROUND, TRUE = "first round", "true"
"""Names of the two references."""


@dataclass(frozen=True)
class CollapseConfig:
    """How far the texts of a round may be from their references. Raises ValueError for a setting out of range."""

    min_distinct_ratio: float = 0.75
    """Least distinct ratio of each order, over that of the first round, or of another reference."""
    min_true_distinct_ratio: float = 0.6
    """The same over that of true texts."""
    min_entropy_ratio: float = 0.85
    """Least entropy of words, over the reference's."""
    min_length_ratio: float = 0.5
    """Least mean length, over the reference's."""
    max_length_ratio: float = 2.0
    """Greatest mean length, over the reference's."""
    max_more_repetition: float = 0.2
    """Greatest repetition above the reference's."""
    min_words: int = 400
    """Words on either side below which nothing is decided."""

    def __post_init__(self):
        for name in ("min_distinct_ratio", "min_true_distinct_ratio", "min_entropy_ratio", "min_length_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"CollapseConfig.{name} = {getattr(self, name)} must lie in [0, 1)")
        if not (self.max_length_ratio > 1 and self.max_more_repetition > 0 and self.min_words >= 1):
            raise ValueError(
                "CollapseConfig: max_length_ratio must be above 1, max_more_repetition above 0, min_words at least 1"
            )


@dataclass(frozen=True)
class TextStatistics:
    """What is watched of a set of texts; ratios of no n-gram are 0."""

    num_texts: int
    num_words: int
    distinct: tuple[float, ...]
    """Of orders 1 to 4."""
    entropy: float
    mean_words: float
    repetition: float


@dataclass(frozen=True)
class CollapseResult:
    """outcome: "collapse" with the breaches that say why, "ok", or "too few" words to decide. compared: reference ->
    statistics of both sides at an equal number of words."""

    outcome: Literal["ok", "collapse", "too few"]
    breaches: tuple[str, ...]
    compared: dict[str, dict[str, TextStatistics]]

    @property
    def stops(self) -> bool:
        """Whether the line should stop: these texts must not be trained on."""
        return self.outcome == "collapse"

    def to_dict(self) -> dict:
        """Plain JSON."""
        return asdict(self)


def words_of_text(text: str) -> list[str]:
    """Words as they are counted here."""
    return _WORD.findall(text)


def text_statistics(texts: Iterable[Sequence[str]]) -> TextStatistics:
    """Statistics of texts, each a sequence of words. n-grams do not reach over the end of a text."""
    texts = [tuple(text) for text in texts]
    counts: dict[int, Counter] = {order: Counter() for order in ORDERS}
    repeated = 0
    for words in texts:
        for order in ORDERS:
            grams = [words[at : at + order] for at in range(len(words) - order + 1)]
            counts[order].update(grams)
            if order == ORDERS[-1]:
                repeated += len(grams) - len(set(grams))
    totals = {order: counts[order].total() for order in ORDERS}
    num_words = totals[1]
    entropy = -math.fsum(n / num_words * math.log2(n / num_words) for n in counts[1].values())
    distinct = tuple(len(counts[order]) / max(1, totals[order]) for order in ORDERS)
    return TextStatistics(
        len(texts), num_words, distinct, max(0.0, entropy), num_words / max(1, len(texts)),
        repeated / max(1, totals[ORDERS[-1]]),
    )  # fmt: skip


def watch_collapse(
    texts: Iterable[str], references: Mapping[str, Iterable[str]], config: CollapseConfig | None = None
) -> CollapseResult:
    """Compare the texts of a round with each reference (FIRST_ROUND, TRUE). Give each kind of document its own
    call: a change of the mixture is no collapse."""
    config = config or CollapseConfig()
    own = _in_hash_order(texts)
    breaches: list[str] = []
    compared, decided = {}, False
    for name, reference in references.items():
        other = _in_hash_order(reference)
        num_words = min(sum(map(len, own)), sum(map(len, other)))
        # mean lengths are of whole texts, the rest of as many words
        ours, theirs = (text_statistics(_cut(side, num_words)) for side in (own, other))
        compared[name] = {"round": text_statistics(own), "round_cut": ours, "reference": theirs}
        if num_words < config.min_words:
            # a model that says nothing where it once said much is no lack of data
            long = sum(map(len, other)) >= config.min_words
            if long and own and _mean(own) < config.min_length_ratio * _mean(other):
                breaches.append(f"mean length {_mean(own):.2f} words against {_mean(other):.2f} of the {name}")
            continue
        decided = True
        breaches += _breaches(ours, theirs, (_mean(own), _mean(other)), name, config)
    outcome: Literal["ok", "collapse", "too few"] = "collapse" if breaches else "ok" if decided else "too few"
    return CollapseResult(outcome, tuple(breaches), compared)


def watch_kinds(
    texts: Mapping[str, Sequence[str]],
    references: Mapping[str, Mapping[str, Sequence[str]]],
    config: CollapseConfig | None = None,
) -> dict[str, CollapseResult]:
    """The watch for each kind. references: name -> kind -> texts; a kind that a reference lacks is not compared."""
    return {
        kind: watch_collapse(said, {name: known[kind] for name, known in references.items() if kind in known}, config)
        for kind, said in sorted(texts.items())
    }


def _breaches(
    ours: TextStatistics, theirs: TextStatistics, lengths: tuple[float, float], name: str, config: CollapseConfig
) -> list[str]:
    found = []
    least = config.min_true_distinct_ratio if name == TRUE else config.min_distinct_ratio
    for order, own, other in zip(ORDERS, ours.distinct, theirs.distinct, strict=True):
        if own < least * other:
            found.append(f"distinct {order}-grams {own:.3f} against {other:.3f} of the {name}")
    if ours.entropy < config.min_entropy_ratio * theirs.entropy:
        found.append(f"entropy of words {ours.entropy:.2f} bits against {theirs.entropy:.2f} of the {name}")
    low, high = config.min_length_ratio * lengths[1], config.max_length_ratio * lengths[1]
    if not low <= lengths[0] <= high:
        found.append(f"mean length {lengths[0]:.2f} words against {lengths[1]:.2f} of the {name}")
    if ours.repetition > theirs.repetition + config.max_more_repetition:
        found.append(f"repetition {ours.repetition:.3f} against {theirs.repetition:.3f} of the {name}")
    return found


def _mean(texts: Sequence[Sequence[str]]) -> float:
    return sum(map(len, texts)) / max(1, len(texts))


def _in_hash_order(texts: Iterable[str]) -> list[list[str]]:
    ordered = sorted(texts, key=lambda text: (hashlib.sha256(text.encode("utf-8", "replace")).digest(), text))
    return [words for words in map(words_of_text, ordered) if words]


def _cut(texts: Sequence[Sequence[str]], num_words: int) -> list[Sequence[str]]:
    """The first texts, `num_words` words in sum; the last one is cut."""
    found, left = [], num_words
    for words in texts:
        if left <= 0:
            break
        found.append(words[:left])
        left -= len(words)
    return found
