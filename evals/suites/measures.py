"""What a suite measures: names, directions and units, by what its cases hold.

bits_per_byte, bits_per_byte.KIND    cross-entropy of the target text in bits over its UTF-8 bytes
gain.MODALITY                        1 - L(matched) / L(blank) over targets after the modality's media
cer.MODALITY                         edits over characters of greedy transcriptions, of the easiest level
needle.LENGTH.MODALITY               exact answers over questions, a case for each context
latency                              seconds to read a prompt and answer, over tokens of the answer
memory                               MiB above an idle process at the peak of that
"""

from collections.abc import Collection, Sequence

from brine.data.document import MODALITIES, Text, modality_of
from brine.evals.measurement import MeasureSpec
from brine.evals.suites.case import SuiteCase

BITS_PER_BYTE = "bits_per_byte"
TIMED = (
    MeasureSpec("latency", unit="s/token"),
    MeasureSpec("memory", unit="MiB"),
)
"""Measures that depend on the machine and what else runs there."""
TIMED_NAMES = tuple(spec.name for spec in TIMED)


def bits_spec(kind: str | None = None) -> MeasureSpec:
    """Bits per byte of all cases, or of one kind."""
    return MeasureSpec(BITS_PER_BYTE if kind is None else f"{BITS_PER_BYTE}.{kind}", unit="bit/B")


def gain_spec(modality: str) -> MeasureSpec:
    """The media gain of a modality."""
    return MeasureSpec(f"gain.{modality}", lower_is_better=False, one_minus=True)


def cer_spec(modality: str) -> MeasureSpec:
    """The character error rate of a modality."""
    return MeasureSpec(f"cer.{modality}", unit="edits/character")


def needle_spec(length: int, modality: str) -> MeasureSpec:
    """Exact answers at a length and modality."""
    return MeasureSpec(f"needle.{length}.{modality}", lower_is_better=False)


def measures_of(cases: Sequence[SuiteCase], *, timing: bool) -> tuple[MeasureSpec, ...]:
    """All measures of some cases, in a fixed order."""
    documents = [case for case in cases if case.needles is None]
    found = [bits_spec(), *(bits_spec(kind) for kind in sorted({case.kind for case in documents}))] if documents else []
    before_text = {name for case in documents for name in modalities_before_targets(case)}
    found += [gain_spec(modality) for modality in MODALITIES if modality in before_text]
    transcribed = {case.transcription.modality for case in cases if case.transcription is not None}
    found += [cer_spec(modality) for modality in MODALITIES if modality in transcribed]
    needles = {(case.needles.length, case.needles.modality) for case in cases if case.needles is not None}
    found += [needle_spec(length, modality) for length, modality in sorted(needles)]
    return (*found, *TIMED) if timing else tuple(found)


def modalities_before_targets(case: SuiteCase) -> set[str]:
    """Modalities of media that a target text follows, with no other media between."""
    found, last = set(), None
    for part in case.parts:
        if not isinstance(part, Text):
            last = modality_of(part)
        elif part.loss_mask and part.text and last is not None:
            found.add(last)
    return found


def primary_and_guards(
    measures: Sequence[MeasureSpec], primary: str, guards: Sequence[str] | None, *, in_all_parts: Collection[str]
) -> tuple[str, tuple[str, ...]]:
    """The primary measure and the guards; if None, all but bits per byte that have a case in every part.

    A guard without a case in some part would never be measured there, and refuse every model. Raises ValueError for
    one, and for an unknown name."""
    names = [measure.name for measure in measures]
    if guards is None:
        possible = [name for name in names if name != primary and not name.startswith(BITS_PER_BYTE)]
        guards = [name for name in possible if name in in_all_parts]
    for name in (primary, *guards):
        if name not in names:
            raise ValueError(f"the suite has no measure {name!r}: it has {', '.join(names)}")
    if absent := [name for name in guards if name not in in_all_parts]:
        raise ValueError(f"{absent[0]} has no case in some part and cannot be a guard: give more documents of its kind")
    if primary in guards:
        raise ValueError(f"{primary} is the primary measure and cannot be a guard too: leave it out of the guards")
    return primary, tuple(dict.fromkeys(guards))
