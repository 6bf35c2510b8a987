"""Greedy transcriptions of held-out media: what the model reads, hears and sees, in its own words.

The prompt of a document is everything before its first target after the medium; the truth is the targets from there
to the next medium or the end. Only documents whose words follow a single medium are transcribed (screenshots,
narrations, recordings, captioned media); pages, where several media take turns, are measured by loss alone.

Decoding takes the most probable token each time, so a transcription is a property of the weights. It stops at the end
token, at a token that would open a medium, or after `max_new_tokens`; the truth is cut at the same number of tokens,
so a long truth is not counted as missing. Rates are sums over documents (see `text.py`), with paired intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.sequence import CONTEXT, Sequence
from data.tokenizer import CLOSE_ID, END_ID, OPEN_ID, SLOT_ID
from evals.bootstrap import ratio_interval
from evals.config import EvalConfig
from evals.text import edit_distance, names_recovered

Decode = Callable[[list[Sequence], int], list[list[int]]]
"""(prompts, most new tokens) -> the new token ids of each, greedily."""

_NOT_TEXT = frozenset({END_ID, *OPEN_ID.values(), *SLOT_ID.values(), *CLOSE_ID.values()})


@dataclass(frozen=True)
class Transcript:
    """One transcription beside the truth."""

    document: int
    """Index in the corpus."""
    kind: str
    """The document's kind."""
    level: int
    """The document's level."""
    modality: str
    """The medium that was transcribed."""
    reference: str
    """The truth."""
    hypothesis: str
    """The model's words."""
    edits: int
    """Edit distance of the two, in characters."""
    names_found: int
    """Names of the truth that the model gave, in order."""
    names: int
    """Names of the truth."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A prompt and the truth that should follow it."""

    prompt: Sequence
    reference: list[int]
    modality: str


def task_of(sequence: Sequence, *, max_new_tokens: int) -> Task | None:
    """The transcription that a document asks for; None where no words follow a medium, or several media take turns."""
    targets = np.flatnonzero(sequence.learn & (sequence.context > 0))
    if not len(targets):
        return None
    first = int(targets[0])
    after = sequence.token_ids[first:]
    stops = np.flatnonzero(np.isin(after, list(_NOT_TEXT)) | ~sequence.learn[first:])
    stop = int(stops[0]) if len(stops) else len(after)
    if np.isin(after[stop:], list(OPEN_ID.values())).any() or not stop:
        return None
    modality = CONTEXT[int(sequence.context[first])]
    # the sound track of a film may be opened and closed inside it: count media that stand alone
    ids = sequence.token_ids[:first]
    opens, closes = np.isin(ids, list(OPEN_ID.values())), np.isin(ids, list(CLOSE_ID.values()))
    if (opens & (np.cumsum(opens) - np.cumsum(closes) == 1)).sum() != 1:
        return None
    return Task(sequence.slice(0, first), after[: min(stop, max_new_tokens)].tolist(), modality)


def text_before_stop(ids: Iterable[int]) -> list[int]:
    """Token ids up to the first that is no text."""
    kept: list[int] = []
    for token in ids:
        if int(token) in _NOT_TEXT:
            break
        kept.append(int(token))
    return kept


def transcribe(
    corpus: Any,
    documents: Iterable[int],
    *,
    decode: Decode,
    tokenizer: Any,
    config: EvalConfig,
    progress: Callable[[int], None] | None = None,
) -> list[Transcript]:
    """Transcribe those documents that ask for it, in the order given.

    decode: see `Decode`. Prompts of about equal length are decoded together, `decode_batch` at a time.
    progress(documents newly finished) is called after each batch.
    """
    tasks: dict[int, Task] = {}
    for document in documents:
        task = task_of(corpus.sequence(int(document)), max_new_tokens=config.max_new_tokens)
        if task is not None:
            tasks[int(document)] = task
        elif progress is not None:
            progress(1)
    order = sorted(tasks, key=lambda document: (len(tasks[document].reference), len(tasks[document].prompt), document))
    done: dict[int, Transcript] = {}
    for first in range(0, len(order), config.decode_batch):
        chosen = order[first : first + config.decode_batch]
        # a transcription twice as long as its truth is wrong already; what follows would only cost time
        limit = min(config.max_new_tokens, 16 + 2 * max(len(tasks[document].reference) for document in chosen))
        answers = decode([tasks[document].prompt for document in chosen], limit)
        for document, answer in zip(chosen, answers, strict=True):
            own_limit = min(limit, 16 + 2 * len(tasks[document].reference))
            hypothesis = tokenizer.decode(text_before_stop(answer[:own_limit]))
            reference = tokenizer.decode(tasks[document].reference)
            found, names = names_recovered(reference, hypothesis)
            done[document] = Transcript(
                document,
                corpus.kinds[int(corpus.kind[document])],
                int(corpus.level[document]),
                tasks[document].modality,
                reference,
                hypothesis,
                edit_distance(reference, hypothesis),
                found,
                names,
            )
        if progress is not None:
            progress(len(chosen))
    return [done[int(document)] for document in documents if int(document) in done]


def rates(transcripts: list[Transcript], config: EvalConfig) -> dict[str, Any]:
    """Character error rate, share of exact transcriptions and names recovered, with intervals, as JSON."""

    def interval(above: list[int], below: list[int]) -> Any:
        return ratio_interval(
            np.array(above),
            np.array(below),
            num_resamples=config.bootstrap_resamples,
            confidence=config.confidence,
            seed=config.seed,
        )

    edits, lengths = [t.edits for t in transcripts], [len(t.reference) for t in transcripts]
    error = interval(edits, lengths)
    names = interval([t.names_found for t in transcripts], [t.names for t in transcripts])
    return {
        "cer": error.value,
        "cer_low": error.low,
        "cer_high": error.high,
        "exact": sum(not edit for edit in edits) / len(edits) if edits else None,
        "names_recovered": names.value,
        "names_low": names.low,
        "names_high": names.high,
        "num_names": sum(t.names for t in transcripts),
        "documents": len(transcripts),
    }


def rate_table(transcripts: list[Transcript], config: EvalConfig) -> list[dict[str, Any]]:
    """`rates` of every kind and level: one JSON object a cell."""
    cells = sorted({(t.modality, t.kind, t.level) for t in transcripts})
    return [
        {
            "modality": modality,
            "kind": kind,
            "level": level,
            **rates([t for t in transcripts if (t.modality, t.kind, t.level) == (modality, kind, level)], config),
        }
        for modality, kind, level in cells
    ]


def easiest(transcripts: list[Transcript], modality: str, config: EvalConfig) -> dict[str, Any] | None:
    """`rates` of a modality at level 1, or at the lowest level there is, all kinds together; None without any."""
    own = [t for t in transcripts if t.modality == modality]
    if not own:
        return None
    level = 1 if any(t.level == 1 for t in own) else min(t.level for t in own)
    return rates([t for t in own if t.level == level], config) | {"level": level}
