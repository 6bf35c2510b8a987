"""How often a model's words are right, by kind and confidence, measured where the words are known.

A tenth of the documents with known words, chosen by a hash of their content, are labelled as if nobody knew them. An
answer that passes every other test of pseudo-labels is *right* when it equals the known words (`exact`, which decides
by default) or when its character accuracy, 1 - edits / characters, reaches a minimum (`characters`); both are reported.
The minimum confidence of a kind is then the lowest one at which precision is at least the aim with 95 % confidence: the
one-sided lower bound of Clopper and Pearson (1934) over the accepted answers. A kind without one gets no pseudo-labels.

The lowest of many thresholds is a lucky one: so ten are tried for each kind, at fixed fractions of its answers, and
each bound is at 1 - 0.05 / 10 (Bonferroni over the grid, as in Learn then Test, 2110.01052). At an aim of 0.9 a kind
needs 51 right answers out of 51, or 193 out of 200.

A model that was trained on the audited documents would be audited on its memory: `audited_split` moves them into the
validation split before it is trained, and the choice is the same in every round. The result says how many were not
held out.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brine.common.files import file_digest, finite, read_json, to_plain, write_json
from brine.data.corpus.readers import read_manifest
from brine.data.document import Document, Text
from brine.inference.load import WEIGHTS, LoadedModel
from brine.salt.content import MAX_FILE_MIB, ContentHasher, hash_fraction
from brine.salt.pseudo_label import (
    PSEUDO_LABEL_SUFFIX,
    PseudoLabelConfig,
    answer_prompts,
    target_text,
    without_targets,
)
from brine.salt.selection import CostRecorder

AUDIT_FILE = "audit.json"


@dataclass(frozen=True)
class AuditConfig:
    """What is audited, and how sure it must be. Raises ValueError for a setting out of range."""

    fraction: float = 0.1
    """Of the documents with known words, those that are audited."""
    aim: float = 0.9
    """Precision that a kind's pseudo-labels must have."""
    confidence_level: float = 0.95
    """Probability that a kind whose threshold was found has that precision."""
    num_thresholds: int = 10
    """Thresholds tried for each kind, at equal fractions of its answers; more are finer and need more documents."""
    decides: Literal["exact", "characters"] = "exact"
    """What makes an answer right: equality, or character accuracy of at least `min_character_accuracy`."""
    min_character_accuracy: float = 0.95
    """1 - edits / characters of the known words, for `characters`."""

    def __post_init__(self):
        for name in ("aim", "confidence_level"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"AuditConfig.{name} = {getattr(self, name)} must lie in (0, 1)")
        if not 0 < self.fraction <= 1 or not 0 < self.min_character_accuracy <= 1:
            raise ValueError("AuditConfig.fraction and min_character_accuracy must lie in (0, 1]")
        if self.num_thresholds < 1:
            raise ValueError(f"AuditConfig.num_thresholds = {self.num_thresholds}: give at least 1")
        if self.decides not in ("exact", "characters"):
            raise ValueError(f"AuditConfig.decides = {self.decides!r}: give exact or characters")

    @property
    def error(self) -> float:
        """Probability of error allowed to each threshold."""
        return (1 - self.confidence_level) / self.num_thresholds

    @property
    def min_documents(self) -> int:
        """The fewest accepted answers, all of them right, with which a bound can reach the aim."""
        return math.ceil(math.log(self.error) / math.log(self.aim) - 1e-9)


@dataclass(frozen=True)
class AuditedAnswer:
    """One answer to a document whose words are known. confidence: NaN without answer; reason: why it could not be kept
    whatever its confidence, or ""; accuracy: 1 - edits / characters, at least 0."""

    kind: str
    confidence: float
    exact: bool
    accuracy: float
    reason: str = ""


@dataclass(frozen=True)
class PrecisionPoint:
    """The answers of one kind from one confidence on: how many, how many of them right, and the lower bound."""

    min_confidence: float
    accepted: int
    right: int
    precision: float
    lower: float


@dataclass(frozen=True)
class KindAudit:
    """What was found of one kind; min_confidence: None where it is refused, with the reason."""

    kind: str
    documents: int
    unusable: dict[str, int]
    """Answers that could not be kept whatever their confidence, by reason."""
    exact: float | None
    """Of the usable answers, those that equal the known words."""
    character_accuracy: float | None
    """Mean over the usable answers."""
    min_confidence: float | None
    reason: str
    curve: tuple[PrecisionPoint, ...] = ()
    """By falling confidence: more and more answers are accepted."""


@dataclass(frozen=True)
class AuditResult:
    """Thresholds of one model by kind."""

    config: AuditConfig
    origin: str
    """SHA-256 of the weights that were audited."""
    kinds: dict[str, KindAudit]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def min_confidence(self) -> dict[str, float | None]:
        """Kind -> minimum confidence, None where it is refused: for `pseudo_label` and `relabel`."""
        return {kind: found.min_confidence for kind, found in self.kinds.items()}

    def save(self, folder: str | Path) -> None:
        """Writes `audit.json`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / AUDIT_FILE, finite(to_plain(self)))

    @classmethod
    def load(cls, folder: str | Path) -> AuditResult:
        """Reads what `save` wrote. Raises ValueError for anything else."""
        path = Path(folder) / AUDIT_FILE
        fields: Any = read_json(path)
        try:
            kinds = {
                kind: KindAudit(**found | {"curve": tuple(PrecisionPoint(**point) for point in found["curve"])})
                for kind, found in fields["kinds"].items()
            }
            return cls(AuditConfig(**fields["config"]), fields["origin"], kinds, fields["counts"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not the result of an audit ({error!r}): audit the model again") from None

    def table(self) -> str:
        """A line for each kind."""
        lines = [f"{'kind':<20} {'documents':>9} {'exact':>6} {'min. confidence':>15}  reason"]
        for kind, found in sorted(self.kinds.items()):
            exact = "-" if found.exact is None else f"{found.exact:.3f}"
            least = "-" if found.min_confidence is None else f"{found.min_confidence:.4f}"
            lines.append(f"{kind:<20} {found.documents:>9} {exact:>6} {least:>15}  {found.reason}")
        return "\n".join(lines)


def precision_lower_bound(right: np.ndarray, accepted: np.ndarray, *, error: float) -> np.ndarray:
    """One-sided lower bound of Clopper and Pearson at confidence 1 - error; 0 where nothing is right."""
    from scipy.stats import beta  # type: ignore[import-untyped]

    right, accepted = np.asarray(right, np.float64), np.asarray(accepted, np.float64)
    bound = beta.ppf(error, np.maximum(right, 1), accepted - np.maximum(right, 1) + 1)
    return np.where(right > 0, bound, 0.0)


def audit_answers(answers: Iterable[AuditedAnswer], config: AuditConfig) -> dict[str, KindAudit]:
    """The audit of each kind from its answers, in any order."""
    by_kind: dict[str, list[AuditedAnswer]] = {}
    for answer in answers:
        by_kind.setdefault(answer.kind, []).append(answer)
    return {kind: _audit_kind(kind, by_kind[kind], config) for kind in sorted(by_kind)}


def _audit_kind(kind: str, answers: list[AuditedAnswer], config: AuditConfig) -> KindAudit:
    usable = [answer for answer in answers if _is_usable(answer)]
    unusable = Counter(answer.reason or "unsure" for answer in answers if not _is_usable(answer))
    exact = float(np.mean([answer.exact for answer in usable])) if usable else None
    accuracy = float(np.mean([answer.accuracy for answer in usable])) if usable else None
    curve = _curve(usable, config)
    reaching = [point for point in curve if point.lower >= config.aim]
    reason = ""
    if len(usable) < config.min_documents:
        reason = (
            f"too few documents: {len(usable)} usable answers of {len(answers)}, and fewer than {config.min_documents} "
            f"cannot show a precision of {config.aim:g}"
        )
    elif not reaching:
        best = max(curve, key=lambda point: point.lower)
        reason = (
            f"below the aim of {config.aim:g}: at best {best.right} right of {best.accepted} accepted, at least "
            f"{best.lower:.3f}"
        )
    least = None if reason else min(point.min_confidence for point in reaching)
    return KindAudit(kind, len(answers), dict(sorted(unusable.items())), exact, accuracy, least, reason, tuple(curve))


def _curve(usable: list[AuditedAnswer], config: AuditConfig) -> list[PrecisionPoint]:
    """Points at equal fractions of the answers; equal confidences are accepted together."""
    if not usable:
        return []
    ordered = sorted(usable, key=lambda answer: -answer.confidence)
    confidence = np.array([answer.confidence for answer in ordered])
    right = np.cumsum([_is_right(answer, config) for answer in ordered])
    ends = [math.ceil(len(ordered) * step / config.num_thresholds) for step in range(1, config.num_thresholds + 1)]
    accepted = np.unique(np.searchsorted(-confidence, -confidence[np.array(ends) - 1], side="right"))
    lower = precision_lower_bound(right[accepted - 1], accepted, error=config.error)
    return [
        PrecisionPoint(float(confidence[n - 1]), int(n), int(right[n - 1]), float(right[n - 1] / n), float(bound))
        for n, bound in zip(accepted, lower, strict=True)
    ]


def _is_usable(answer: AuditedAnswer) -> bool:
    return not answer.reason and math.isfinite(answer.confidence)


def _is_right(answer: AuditedAnswer, config: AuditConfig) -> bool:
    return answer.exact if config.decides == "exact" else answer.accuracy >= config.min_character_accuracy


def compare_words(words: str, known: str) -> tuple[bool, float]:
    """(equal, character accuracy) of an answer and the known words, both in NFC, line ends as "\\n", white space at the
    ends of lines and of the whole removed. Case, digits and white space inside of lines count."""
    from rapidfuzz.distance import Levenshtein

    words, known = _normalised(words), _normalised(known)
    accuracy = 1 - Levenshtein.distance(words, known) / len(known) if known else float(not words)
    return words == known, max(0.0, accuracy)


def _normalised(text: str) -> str:
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def is_auditable(document: Document) -> bool:
    """Whether a document holds media and all its words are known to follow them, as an answer would."""
    media = [number for number, part in enumerate(document.parts) if not isinstance(part, Text)]
    targets = [number for number, part in enumerate(document.parts) if isinstance(part, Text) and part.loss_mask]
    return bool(media and targets) and min(targets) > max(media) and bool(target_text(document).strip())


def is_audited(document: Document, hasher: ContentHasher, config: AuditConfig) -> bool:
    """Whether a document with known words is one of the tenth; depends on its content alone."""
    return is_auditable(document) and hash_fraction(hasher.content(document), "audit") < config.fraction


def audited_split(documents: Iterable[Document], hasher: ContentHasher, config: AuditConfig) -> Iterator[Document]:
    """The same documents, those to be audited moved from the training into the validation split."""
    for document in documents:
        held = document.split == "train" and is_audited(document, hasher, config)
        yield document.with_split("validation") if held else document


def audit_pseudo_labels(
    loaded: LoadedModel,
    manifest: str | Path,
    *,
    config: AuditConfig | None = None,
    label_config: PseudoLabelConfig | None = None,
    num_workers: int = 1,
    compute_cost: CostRecorder | None = None,
    max_file_mib: float = MAX_FILE_MIB,
) -> AuditResult:
    """Audit a model on the chosen documents of a manifest, whose test split is not touched.

    label_config: how answers are made (`max_tokens`, `batch_size`); its `min_confidence` has no effect.
    max_file_mib: largest media file. Raises ValueError for a manifest that cannot be read.
    """
    manifest, config = Path(manifest), config or AuditConfig()
    label_config = label_config or PseudoLabelConfig()
    hasher, counts = (
        ContentHasher(manifest.parent, max_file_mib=max_file_mib),
        Counter(read=0, audited=0, in_training=0),
    )
    known: list[Document] = []

    def prompts() -> Iterator[Document]:
        for item in read_manifest(manifest):
            counts["read"] += 1
            if isinstance(item, Document) and item.split != "test" and is_audited(item, hasher, config):
                counts["audited"] += 1
                counts["in_training"] += item.split == "train"
                known.append(item)
                yield without_targets(item)

    anything = dataclasses.replace(label_config, min_confidence=-math.inf)
    labels = answer_prompts(
        loaded, prompts(), manifest.parent, config=anything, num_workers=num_workers, compute_cost=compute_cost
    )
    answers = []
    for number, label in enumerate(labels):
        document = known[number]
        if label.document.id != document.id + PSEUDO_LABEL_SUFFIX:
            raise RuntimeError(f"answers came out of order: {label.document.id} after the prompt {document.id}")
        exact, accuracy = compare_words(label.text, target_text(document))
        answers.append(AuditedAnswer(document.kind, label.confidence, exact, accuracy, label.reason))
    origin = file_digest(loaded.folder / WEIGHTS)
    return AuditResult(config, origin, audit_answers(answers, config), dict(counts))
