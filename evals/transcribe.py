"""Greedy transcriptions of held-out media, and how far they are from their references.

The prompt of a document is everything before its first target after the media; the reference is the targets from there
to the next media or the end. Only documents whose text follows a single image, audio or video are transcribed. The
character error rate is the sum of edit distances over the sum of reference lengths, so a rate above 1 is possible;
identifier recall is the longest common subsequence of identifiers over those in the reference.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from brine.common.formatting import progress_bar
from brine.data.sequence import MODALITY_CONTEXTS, EncodedDocument
from brine.data.tokenizer import EOS_ID, MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID
from brine.evals.config import EvalConfig, Interval

DecodeFn = Callable[[list[EncodedDocument], int], list[list[int]]]
"""(prompts, maximum new tokens) -> the new token ids of each, greedily."""

_STARTS, _ENDS = list(MEDIA_START_ID.values()), list(MEDIA_END_ID.values())
_NOT_TEXT = frozenset({EOS_ID, *_STARTS, *_ENDS, *MEDIA_TOKEN_ID.values()})
_IDENTIFIER = re.compile(r"\b[^\W\d]\w*")
_OPERATIONS = {"equal": "same", "delete": "missing", "insert": "extra", "replace": "wrong"}


@dataclass(frozen=True)
class Transcript:
    """A transcription and its reference. `document` is an index in the corpus, `edits` the edit distance of the texts
    in characters, `names` counts the identifiers of the reference and `num_names_found` those recovered in order."""

    document: int
    kind: str
    level: int
    modality: str
    reference: str
    hypothesis: str
    edits: int
    num_names_found: int
    names: int


@dataclass(frozen=True)
class TranscriptionTask:
    """A prompt and the reference that should follow it."""

    prompt: EncodedDocument
    reference: list[int]
    modality: str


def transcription_task_of(sequence: EncodedDocument, *, max_new_tokens: int) -> TranscriptionTask | None:
    """The transcription task of a document; None where no text follows media, or more than one are before or after."""
    targets = np.flatnonzero(sequence.loss_mask & (sequence.modality_context > 0))
    if not len(targets):
        return None
    first = int(targets[0])
    after = sequence.token_ids[first:]
    stops = np.flatnonzero(np.isin(after, list(_NOT_TEXT)) | ~sequence.loss_mask[first:])
    stop = int(stops[0]) if len(stops) else len(after)
    if np.isin(after[stop:], _STARTS).any() or not stop:
        return None
    # the audio track of a video may be opened and closed inside it: count outermost media
    ids = sequence.token_ids[:first]
    opens, closes = np.isin(ids, _STARTS), np.isin(ids, _ENDS)
    if (opens & (np.cumsum(opens) - np.cumsum(closes) == 1)).sum() != 1:
        return None
    modality = MODALITY_CONTEXTS[int(sequence.modality_context[first])]
    return TranscriptionTask(sequence.slice(0, first), after[: min(stop, max_new_tokens)].tolist(), modality)


def transcribe(
    corpus: Any, documents: Iterable[int], *, decode: DecodeFn, tokenizer: Any, config: EvalConfig
) -> list[Transcript]:
    """Transcribe those documents that have a task, in the order given; prompts of similar length are decoded together,
    `decode_batch_size` at a time."""
    found = {
        number: transcription_task_of(corpus.encoded_document(number), max_new_tokens=config.max_new_tokens)
        for number in map(int, documents)
    }
    tasks = {document: task for document, task in found.items() if task is not None}
    order = sorted(tasks, key=lambda document: (len(tasks[document].reference), len(tasks[document].prompt), document))
    done: dict[int, Transcript] = {}
    starts = range(0, len(order), config.decode_batch_size)
    for first in progress_bar(starts, desc="transcriptions", unit="batch", leave=False):
        chosen = order[first : first + config.decode_batch_size]
        # beyond twice the reference a transcription is wrong already, and more decoding only costs time
        limits = [min(config.max_new_tokens, 16 + 2 * len(tasks[document].reference)) for document in chosen]
        outputs = decode([tasks[document].prompt for document in chosen], max(limits))
        for document, ids, limit in zip(chosen, outputs, limits, strict=True):
            text = itertools.takewhile(lambda token: token not in _NOT_TEXT, map(int, ids[:limit]))
            hypothesis, reference = tokenizer.decode(list(text)), tokenizer.decode(tasks[document].reference)
            done[document] = Transcript(
                document, corpus.kinds[int(corpus.kind[document])], int(corpus.level[document]),
                tasks[document].modality, reference, hypothesis, edit_distance(reference, hypothesis),
                *identifier_recall(reference, hypothesis),
            )  # fmt: skip
    return [done[document] for document in tasks]


def transcription_rates(transcripts: list[Transcript], config: EvalConfig) -> dict[str, Any]:
    """Character error rate, fraction of exact transcriptions and identifier recall, with intervals, as JSON."""

    def interval(numerator: list[int], denominator: list[int]) -> Interval:
        return config.interval(np.array(numerator), np.array(denominator))

    edits = [found.edits for found in transcripts]
    error = interval(edits, [len(found.reference) for found in transcripts])
    names = interval([found.num_names_found for found in transcripts], [found.names for found in transcripts])
    return {
        "cer": error.value, "cer_low": error.low, "cer_high": error.high,
        "exact": edits.count(0) / len(edits) if edits else None,
        "identifier_recall": names.value, "names_low": names.low, "names_high": names.high,
        "num_names": sum(found.names for found in transcripts), "documents": len(transcripts),
    }  # fmt: skip


def rate_table(transcripts: list[Transcript], config: EvalConfig) -> list[dict[str, Any]]:
    """`transcription_rates` of every modality, kind and level: one JSON object a cell."""
    cells: dict[tuple[str, str, int], list[Transcript]] = {}
    for found in transcripts:
        cells.setdefault((found.modality, found.kind, found.level), []).append(found)
    return [
        dict(zip(("modality", "kind", "level"), cell, strict=True)) | transcription_rates(cells[cell], config)
        for cell in sorted(cells)
    ]


def easiest_level_rates(transcripts: list[Transcript], modality: str, config: EvalConfig) -> dict[str, Any] | None:
    """`transcription_rates` of a modality at level 1, or at its lowest level, all kinds together; None without any."""
    inside = [found for found in transcripts if found.modality == modality]
    levels = {found.level for found in inside}
    if not levels:
        return None
    level = 1 if 1 in levels else min(levels)
    return transcription_rates([found for found in inside if found.level == level], config) | {"level": level}


def edit_distance(reference: str, hypothesis: str) -> int:
    """Levenshtein distance in characters."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(reference, hypothesis)


def identifiers_in(text: str) -> list[str]:
    """Words of letters, digits and underscores that do not begin with a digit, in order."""
    return _IDENTIFIER.findall(text)


def identifier_recall(reference: str, hypothesis: str) -> tuple[int, int]:
    """(identifiers of the reference that occur in the hypothesis in order, identifiers in the reference)."""
    from rapidfuzz.distance import LCSseq

    truth = identifiers_in(reference)
    return LCSseq.similarity(truth, identifiers_in(hypothesis)), len(truth)


def align(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Where two texts agree and differ: (operation, part of the reference, part of the hypothesis), in order.

    operation is "same", "missing" (only in the reference), "extra" (only in the hypothesis) or "wrong". The parts of
    either text, joined, are that text.
    """
    from rapidfuzz.distance import Levenshtein

    return [
        (_OPERATIONS[code.tag], reference[code.src_start : code.src_end], hypothesis[code.dest_start : code.dest_end])
        for code in Levenshtein.opcodes(reference, hypothesis)
    ]
