"""Self-training: a model writes the words of media that have none, and only words it is sure of are kept.

    loaded = model.load("runs/demo/small")
    counts = pseudo_label(loaded, "recordings/manifest.jsonl", "recordings/pseudo.jsonl", config=PseudoConfig())

For each training document that holds media and no text (or any with media, when `replace_text`), the model is given
what stands there, answers greedily, and the answer becomes the document's text and target, its kind with "-pseudo"
behind it, so that what was learnt from them is reported apart. Three files are written beside each other:

    pseudo.jsonl            a native manifest of the documents kept, to be built and trained on like any other
    pseudo.judged.jsonl     every document asked, kept or not: id, words, tokens, confidence, why
    pseudo.summary.json     configuration, digest of the weights, counts

The confidence of an answer is the mean log-probability of its tokens, end token included, in nats a token, from one
forward pass over prompt and answer, against the whole vocabulary. It is what self-training filters by in speech and
translation (Kahn et al. 2020, 1909.09116). It can be read again by id (`confidences`), as a column for
a stricter round later. Answers that are empty, do not end within `max_tokens` or hold broken characters are never
kept.

Held-out documents are passed over: a model must not be measured on its own words. Media are decoded in processes
that can be killed, and prompts are answered a few batches at a time, so memory does not grow with the manifest. An
answer costs two passes over its prompt, billed to `labelling`. What this does not do: beam search, calibrate, or
label anything but text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from data.batch import IGNORE
from data.decode_pool import DecodePool, Encoded
from data.document import Document, DocumentError, Quarantined, Text, parse_document, write_manifest
from data.readers import read_manifest
from data.sequence import FIELDS, TOKEN_FIELDS, Sequence
from data.tokenizer import END_ID
from model.generate import transcribe
from model.load import WEIGHTS, LoadedModel
from model.prompt import batch_prompts
from salt.cost import batch_flops
from salt.select import Bill, token_losses

WINDOW_BATCHES = 4
"""Batches of prompts held at once, so that prompts of like length can share one."""
SUFFIX = "-pseudo"


@dataclass(frozen=True)
class PseudoConfig:
    """Which answers become text. Raises ValueError for a field that cannot be."""

    min_confidence: float = -0.5
    """Least mean log-probability of an answer's tokens, in nats a token; -0.5 is a probability of 0.61 each."""
    max_tokens: int = 256
    """Longest answer; one that has not ended by then is not kept."""
    batch_size: int = 16
    """Prompts answered together."""
    replace_text: bool = False
    """Also label documents that have text: what is a target is taken away, what is not stays as the prompt."""

    def __post_init__(self):
        if not self.min_confidence <= 0:
            raise ValueError(f"PseudoConfig.min_confidence = {self.min_confidence}: a log-probability is at most 0")
        if self.max_tokens < 1 or self.batch_size < 1:
            raise ValueError("PseudoConfig.max_tokens and batch_size must be at least 1")


@dataclass(frozen=True)
class Answer:
    """What the model said to one document."""

    document: Document
    """The document with its new text, kept or not."""
    words: str
    """The text."""
    num_tokens: int
    """Generated tokens, the end token included."""
    confidence: float
    """Mean log-probability of those tokens, nats a token; NaN where there is no answer."""
    why: str
    """Why it is not kept: "empty", "unfinished", "unsure", "broken", or the decoder's reason; "" when it is kept."""

    def to_json(self) -> dict:
        """One line of the judged file."""
        return {
            "id": self.document.id,
            "kind": self.document.kind,
            "kept": not self.why,
            "why": self.why,
            "confidence": None if np.isnan(self.confidence) else round(self.confidence, 6),
            "tokens": self.num_tokens,
            "words": self.words,
        }


def pseudo_label(
    loaded: LoadedModel,
    manifest: str | Path,
    out: str | Path,
    *,
    config: PseudoConfig | None = None,
    num_workers: int = 1,
    ledger: Bill | None = None,
) -> dict[str, int]:
    """Label a manifest's media with a model's words; returns counts: read, asked, kept, and of each reason.

    out: the manifest to write, in the folder of `manifest` or one above it, since media paths are relative to it.
    num_workers: decoding servers. The manifest appears last, so it is complete or absent. Raises ValueError for an
    `out` elsewhere, or a manifest that cannot be read.
    """
    manifest, out, config = Path(manifest), Path(out), config or PseudoConfig()
    prefix = _prefix(manifest, out)
    judged = out.with_name(f"{out.stem}.judged.jsonl")
    counts: Counter = Counter(read=0, asked=0, kept=0)

    def kept_documents() -> Iterator[Document]:
        partial = judged.with_name(judged.name + ".partial")
        with open(partial, "w", encoding="utf-8") as file:
            for answer in _answers(loaded, manifest, prefix, config, num_workers, counts, ledger):
                file.write(json.dumps(answer.to_json(), ensure_ascii=False) + "\n")
                counts[answer.why or "kept"] += 1
                if not answer.why:
                    yield answer.document
        os.replace(partial, judged)
        summary = {
            "config": dataclasses.asdict(config),
            "weights_sha256": hashlib.sha256((loaded.folder / WEIGHTS).read_bytes()).hexdigest(),
            "counts": dict(counts),
        }
        out.with_name(f"{out.stem}.summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    write_manifest(out, kept_documents())
    return dict(counts)


def confidences(judged: str | Path, ids: Iterable[str]) -> np.ndarray:
    """(n,) float64 confidence of each document id from a judged file, NaN where it was not asked.

    The ids are those of the corpus built from the labelled manifest; `data.filters.scores.Threshold` takes the result.
    """
    with open(judged, encoding="utf-8") as file:
        known = {line["id"]: line["confidence"] for line in map(json.loads, file)}
    return np.array([np.nan if known.get(name) is None else known[name] for name in ids], dtype=np.float64)


def _prefix(manifest: Path, out: Path) -> str:
    """What stands before a media path of `manifest` to make it relative to the folder of `out`."""
    root, above = manifest.resolve().parent, out.resolve().parent
    if out.resolve() == manifest.resolve():
        raise ValueError(f"{out} is the manifest to be labelled: give another name")
    if not root.is_relative_to(above):
        raise ValueError(f"{out} must lie in {root} or a folder above it, since media paths are relative to a manifest")
    prefix = root.relative_to(above).as_posix()
    return "" if prefix == "." else f"{prefix}/"


def _answers(
    loaded: LoadedModel,
    manifest: Path,
    prefix: str,
    config: PseudoConfig,
    num_workers: int,
    counts: Counter,
    ledger: Bill | None,
) -> Iterator[Answer]:
    """Answers in manifest order; what is passed over is counted."""
    pool = DecodePool(
        root=manifest.parent,
        tokenizer=loaded.tokenizer,
        config=loaded.encode_config,
        num_servers=num_workers,
        batch_documents=config.batch_size,
    )
    with pool:
        encoded = pool.encode(_prompts(manifest, config, counts))
        while window := list(itertools.islice(encoded, WINDOW_BATCHES * config.batch_size)):
            began = time.perf_counter()
            answers, flops = _label(loaded, window, prefix, config)
            if ledger is not None:
                ledger.bill("labelling", flops=flops, seconds=time.perf_counter() - began)
            yield from answers


def _prompts(manifest: Path, config: PseudoConfig, counts: Counter) -> Iterator[Document]:
    """The documents to be asked, without what they are to be asked for."""
    for item in read_manifest(manifest):
        counts["read"] += 1
        if isinstance(item, Quarantined):
            counts["quarantined"] += 1
            continue
        prompt = tuple(part for part in item.parts if not (isinstance(part, Text) and part.learn))
        has_text = any(isinstance(part, Text) and part.learn and part.text.strip() for part in item.parts)
        if item.split != "train":
            counts["held_out"] += 1
        elif all(isinstance(part, Text) for part in item.parts):
            counts["no_media"] += 1
        elif has_text and not config.replace_text:
            counts["has_text"] += 1
        else:
            counts["asked"] += 1
            yield dataclasses.replace(item, parts=prompt)


def _label(loaded: LoadedModel, window: list[Encoded], prefix: str, config: PseudoConfig) -> tuple[list[Answer], int]:
    """Answers to a window of prompts in order, and the FLOPs that they took."""
    usable = [number for number, entry in enumerate(window) if entry.sequence is not None]
    # the end token that closes an encoded document is what the model is to decide on
    prompts = [window[number].sequence.slice(0, len(window[number].sequence) - 1) for number in usable]
    vocab_size = loaded.tokenizer.vocab_size
    ids = transcribe(loaded.model, prompts, config.max_tokens, batch_size=config.batch_size, vocab_size=vocab_size)
    scores, flops = mean_log_probabilities(
        loaded, prompts, [_ended(answer, config.max_tokens) for answer in ids], batch_size=config.batch_size
    )
    said = dict(zip(usable, zip(ids, scores.tolist(), strict=True), strict=True))
    answers = []
    for number, entry in enumerate(window):
        if number in said:
            answers.append(_answer(entry.document, *said[number], loaded, prefix, config))
        else:
            named = dataclasses.replace(entry.document, id=entry.document.id + SUFFIX)
            answers.append(Answer(named, "", 0, float("nan"), entry.quarantined.reason))
    return answers, 2 * flops


def _ended(answer: list[int], max_tokens: int) -> list[int]:
    """The tokens that were really chosen: the end token too, unless the answer was cut."""
    return [*answer, END_ID] if len(answer) < max_tokens else answer


def _answer(
    document: Document, ids: list[int], confidence: float, loaded: LoadedModel, prefix: str, config: PseudoConfig
) -> Answer:
    words = loaded.tokenizer.decode(ids)
    parts = [part if isinstance(part, Text) else dataclasses.replace(part, path=prefix + part.path)
             for part in document.parts]  # fmt: skip
    labelled = dataclasses.replace(
        document, id=document.id + SUFFIX, kind=document.kind + SUFFIX, parts=(*parts, Text(words))
    )
    if len(ids) >= config.max_tokens:
        why = "unfinished"
    elif not words.strip():
        why = "empty"
    elif "\ufffd" in words:
        why = "broken"
    else:
        why = "" if confidence >= config.min_confidence else "unsure"
    try:
        # a manifest that was written must be one that can be read
        parse_document(labelled.to_json())
    except DocumentError as error:
        why = str(error)
    return Answer(labelled, words, len(_ended(ids, config.max_tokens)), confidence, why)


@torch.no_grad()
def mean_log_probabilities(
    loaded: LoadedModel, prompts: list[Sequence], answers: list[list[int]], *, batch_size: int
) -> tuple[np.ndarray, int]:
    """Mean log-probability (n,) float64 of each answer's tokens after its prompt, and the FLOPs of finding it.

    Answers hold at least one id each. The model reads prompt and answer in one forward pass, as in training.
    """
    model = loaded.model
    scores, flops = np.full(len(prompts), np.nan), 0
    order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]) + len(answers[number]), number))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        inputs = batch_prompts(
            [_continued(prompts[number], answers[number]) for number in rows], device=model.head_weight.device
        )
        labels = torch.full_like(inputs["token_ids"], IGNORE)
        for row, number in enumerate(rows):
            # rows are padded on the left: an answer ends with its row, and each token is predicted one place before
            count = len(answers[number])
            labels[row, -count - 1 : -1] = inputs["token_ids"][row, -count:]
        hidden = model(**inputs)
        loss, _ = token_losses(hidden.flatten(0, 1), model.head_weight, labels.flatten(), top_k=1)
        sums = loss.double().view(labels.shape).sum(1).tolist()
        for number, total in zip(rows, sums, strict=True):
            scores[number] = -total / len(answers[number])
        flops += batch_flops(model, SimpleNamespace(**inputs, segment=inputs["document"]))
    return scores, flops


def _continued(prompt: Sequence, ids: list[int]) -> Sequence:
    """The prompt with text tokens behind it, placed as the encoder places them."""
    place = prompt.position[-1].max() + 1 + np.arange(len(ids))
    more = {
        "token_ids": ids,
        "position": np.repeat(place[:, None], 3, axis=1),
        "block": np.zeros(len(ids)),
        "learn": np.ones(len(ids)),
        "context": np.full(len(ids), prompt.context[-1]),
    }
    joined = {
        name: np.concatenate([getattr(prompt, name), np.asarray(more[name], FIELDS[name])]) for name in TOKEN_FIELDS
    }
    return dataclasses.replace(prompt, **joined)
