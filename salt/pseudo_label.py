"""Self-training: a model transcribes media that have no text, and only answers of high confidence are kept.

For each training document that holds media and no text (or any with media, when `replace_text`), the model answers
greedily, and the answer becomes its text and target; "-pseudo" is added to its kind. Written side by side:

    pseudo.jsonl                a native manifest of the documents kept
    pseudo.predictions.jsonl    every answer, kept or not: id, text, tokens, confidence, reason
    pseudo.summary.json         configuration, digest of the weights, counts

Confidence is the mean log-probability of an answer's tokens, end token included, in nats (Kahn et al. 2020,
1909.09116). How much is enough is measured for each kind by `brine.salt.audit`; without an audit it is one constant. An
answer costs two passes over its prompt, in the cost category `labelling`. No beam search.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from brine.common.files import file_digest, replacing, write_json
from brine.data.batch import IGNORE_INDEX
from brine.data.corpus.readers import read_manifest
from brine.data.document import Document, DocumentError, Quarantined, Text, parse_document, write_manifest
from brine.data.media.pool import DecodePool, EncodeResult
from brine.data.sequence import FIELDS, TOKEN_FIELDS, EncodedDocument
from brine.data.tokenizer import EOS_ID
from brine.inference.decode import generate_batch
from brine.inference.load import WEIGHTS, LoadedModel
from brine.inference.prompt import batch_prompts
from brine.salt.cost import batch_flops
from brine.salt.selection import CostRecorder, token_losses

BATCHES_IN_FLIGHT = 4  # batches of prompts held at once, so that prompts of like length can share one
PSEUDO_LABEL_SUFFIX = "-pseudo"

MinConfidence = Mapping[str, float | None]
"""Kind of document -> minimum confidence; None for a kind whose answers are not to be trusted."""


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Which answers become text. Raises ValueError for a setting out of range."""

    min_confidence: float = -0.5
    """Minimum mean log-probability of an answer's tokens, in nats per token; -0.5 is a probability of 0.61 each."""
    max_tokens: int = 256
    """Longest answer; one that has not ended by then is not kept."""
    batch_size: int = 16
    """Prompts answered together."""
    replace_text: bool = False
    """Also label documents that have text: targets are removed, text without loss stays as the prompt."""

    def __post_init__(self):
        if not self.min_confidence <= 0:
            raise ValueError(
                f"PseudoLabelConfig.min_confidence = {self.min_confidence}: a log-probability is at most 0"
            )
        if self.max_tokens < 1 or self.batch_size < 1:
            raise ValueError("PseudoLabelConfig.max_tokens and batch_size must be at least 1")


@dataclass(frozen=True)
class PseudoLabel:
    """The model's answer to one document, with its new text.

    confidence: NaN without answer; reason: why it is not kept, "empty", "unfinished", "unsure", "broken", or the
    decoder's; "" when it is kept. "unsure" is the last of them: the answer could be kept with a lower threshold.
    """

    document: Document
    text: str = ""
    num_tokens: int = 0
    confidence: float = float("nan")
    reason: str = ""

    def to_json(self) -> dict:
        """One line of the file of all answers."""
        return {
            "id": self.document.id,
            "kind": self.document.kind,
            "kept": not self.reason,
            "reason": self.reason,
            "confidence": None if np.isnan(self.confidence) else round(self.confidence, 6),
            "tokens": self.num_tokens,
            "text": self.text,
        }


def pseudo_label(
    loaded: LoadedModel,
    manifest: str | Path,
    out: str | Path,
    *,
    config: PseudoLabelConfig | None = None,
    min_confidence: MinConfidence | None = None,
    num_workers: int = 1,
    compute_cost: CostRecorder | None = None,
) -> dict[str, int]:
    """Label a manifest's media with a model's answers; returns counts: read, prompted, kept, and of each reason.

    out: the manifest to write, in the folder of `manifest` or one above it, since media paths are relative to it.
    min_confidence: by kind, in place of the configuration's constant (`AuditResult.min_confidence`); documents of
    another kind, or of one without a threshold, are not asked. num_workers: decoding servers. The manifest appears
    last, so it is complete or absent. Raises ValueError for an `out` elsewhere, or a manifest that cannot be read.
    """
    manifest, out, config = Path(manifest), Path(out), config or PseudoLabelConfig()
    root, above = manifest.resolve().parent, out.resolve().parent
    if out.resolve() == manifest.resolve():
        raise ValueError(f"{out} is the manifest to be labelled: give another name")
    if not root.is_relative_to(above):
        raise ValueError(f"{out} must lie in {root} or a folder above it, since media paths are relative to a manifest")
    prefix = "" if root == above else f"{root.relative_to(above).as_posix()}/"
    predictions = out.with_name(f"{out.stem}.predictions.jsonl")
    counts: Counter = Counter(read=0, prompted=0, kept=0)

    def kept_documents() -> Iterator[Document]:
        prompts = prompts_of(manifest, config, counts, min_confidence)
        with replacing(predictions) as file:
            for answer in answer_prompts(
                loaded, prompts, manifest.parent, config=config, min_confidence=min_confidence, prefix=prefix,
                num_workers=num_workers, compute_cost=compute_cost,
            ):  # fmt: skip
                file.write(json.dumps(answer.to_json(), ensure_ascii=False) + "\n")
                counts[answer.reason or "kept"] += 1
                if not answer.reason:
                    yield answer.document
        summary = {"config": config, "weights_sha256": file_digest(loaded.folder / WEIGHTS), "counts": dict(counts)}
        if min_confidence is not None:
            summary["min_confidence"] = dict(min_confidence)
        write_json(out.with_name(f"{out.stem}.summary.json"), summary)

    write_manifest(out, kept_documents())
    return dict(counts)


def answer_prompts(
    loaded: LoadedModel,
    prompts: Iterable[Document],
    root: Path,
    *,
    config: PseudoLabelConfig,
    min_confidence: MinConfidence | None = None,
    prefix: str = "",
    num_workers: int = 1,
    compute_cost: CostRecorder | None = None,
) -> Iterator[PseudoLabel]:
    """The model's answer to each prompt, in order. root: the folder of media paths; prefix: put before them."""
    pool = DecodePool(
        root=root,
        tokenizer=loaded.tokenizer,
        config=loaded.encode_config,
        num_servers=num_workers,
        batch_documents=config.batch_size,
    )
    with pool:
        # no quarantine record goes in, so none comes out
        encoded = (result for result in pool.encode(prompts) if isinstance(result, EncodeResult))
        while window := list(itertools.islice(encoded, BATCHES_IN_FLIGHT * config.batch_size)):
            start_s = time.perf_counter()
            answers, flops = _label(loaded, window, prefix, config, min_confidence)
            if compute_cost is not None:
                compute_cost.add_cost("labelling", flops=flops, seconds=time.perf_counter() - start_s)
            yield from answers


def read_confidences(predictions: str | Path, ids: Iterable[str]) -> np.ndarray:
    """(n,) float64 confidence of each document id, NaN where it has none. predictions: the file of all answers."""
    with open(predictions, encoding="utf-8") as file:
        known = {line["id"]: line["confidence"] for line in map(json.loads, file)}
    return np.array([known.get(name) for name in ids], dtype=np.float64)


def prompts_of(
    manifest: Path, config: PseudoLabelConfig, counts: Counter, min_confidence: MinConfidence | None = None
) -> Iterator[Document]:
    """The documents to be labelled, without their targets; those that are skipped are counted."""
    for item in read_manifest(manifest):
        counts["read"] += 1
        if isinstance(item, Quarantined):
            counts["quarantined"] += 1
            continue
        if item.split != "train":
            counts["held_out"] += 1
        elif all(isinstance(part, Text) for part in item.parts):
            counts["no_media"] += 1
        elif target_text(item).strip() and not config.replace_text:
            counts["has_text"] += 1
        elif min_confidence is not None and min_confidence.get(item.kind) is None:
            counts["kind_refused" if item.kind in min_confidence else "kind_not_audited"] += 1
        else:
            counts["prompted"] += 1
            yield without_targets(item)


def target_text(document: Document) -> str:
    """The text of a document's targets, joined."""
    return "".join(part.text for part in document.parts if isinstance(part, Text) and part.loss_mask)


def without_targets(document: Document) -> Document:
    """A document as if its words were not known: media, and text that is no target."""
    parts = tuple(part for part in document.parts if not isinstance(part, Text) or not part.loss_mask)
    return dataclasses.replace(document, parts=parts)


def _label(
    loaded: LoadedModel,
    window: list[EncodeResult],
    prefix: str,
    config: PseudoLabelConfig,
    min_confidence: MinConfidence | None,
) -> tuple[list[PseudoLabel], int]:
    """Answers to a window of prompts in order, and their FLOPs. `prefix` is put before media paths."""
    # the end token that closes an encoded document is for the model to generate
    prompts = [entry.encoded.slice(0, len(entry.encoded) - 1) for entry in window if entry.encoded is not None]
    vocab_size = loaded.tokenizer.vocab_size
    ids = generate_batch(loaded.model, prompts, config.max_tokens, batch_size=config.batch_size, vocab_size=vocab_size)
    # the end token counts, unless the answer was cut
    answers = [[*answer, EOS_ID] if len(answer) < config.max_tokens else answer for answer in ids]
    scores, flops = mean_log_probabilities(loaded, prompts, answers, batch_size=config.batch_size)
    scored = iter(zip(ids, answers, scores.tolist(), strict=True))
    labels = []
    for entry in window:
        named = dataclasses.replace(entry.document, id=entry.document.id + PSEUDO_LABEL_SUFFIX)
        if entry.quarantined is not None:
            labels.append(PseudoLabel(named, reason=entry.quarantined.reason))
            continue
        text_ids, answer, confidence = next(scored)
        text = loaded.tokenizer.decode(text_ids)
        media = (
            part if isinstance(part, Text) else dataclasses.replace(part, path=prefix + part.path)
            for part in named.parts
        )
        labelled = dataclasses.replace(named, kind=named.kind + PSEUDO_LABEL_SUFFIX, parts=(*media, Text(text)))
        least = config.min_confidence if min_confidence is None else min_confidence.get(named.kind)
        reasons = {
            "unfinished": len(text_ids) >= config.max_tokens,
            "empty": not text.strip(),
            "broken": "\ufffd" in text,
            "unsure": least is None or not confidence >= least,
        }
        reason = next((name for name, applies in reasons.items() if applies), "")
        try:
            # a manifest that was written must be one that can be read
            parse_document(labelled.to_json())
        except DocumentError as error:
            reason = str(error)
        labels.append(PseudoLabel(labelled, text, len(answer), confidence, reason))
    return labels, 2 * flops


@torch.no_grad()
def mean_log_probabilities(
    loaded: LoadedModel, prompts: list[EncodedDocument], answers: list[list[int]], *, batch_size: int
) -> tuple[np.ndarray, int]:
    """(n,) float64 mean log-probability of each answer (not empty) after its prompt, in one pass, and FLOPs."""
    model = loaded.model
    scores, flops = np.full(len(prompts), np.nan), 0
    sequences = [_append_tokens(prompt, ids) for prompt, ids in zip(prompts, answers, strict=True)]
    order = sorted(range(len(sequences)), key=lambda number: (len(sequences[number]), number))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        inputs = batch_prompts([sequences[number] for number in chosen], device=model.head_weight.device)
        labels = torch.full_like(inputs.token_ids, IGNORE_INDEX)
        for b, number in enumerate(chosen):
            # sequences are padded on the left: answers end together, and each token is predicted one before
            count = len(answers[number])
            labels[b, -count - 1 : -1] = inputs.token_ids[b, -count:]
        hidden = model(inputs)
        loss, _ = token_losses(hidden.flatten(0, 1), model.head_weight, labels.flatten(), top_k=1)
        for number, total in zip(chosen, loss.double().view(labels.shape).sum(1).tolist(), strict=True):
            scores[number] = -total / len(answers[number])
        flops += batch_flops(model, inputs)
    return scores, flops


def _append_tokens(prompt: EncodedDocument, ids: list[int]) -> EncodedDocument:
    position = prompt.position[-1].max() + 1 + np.arange(len(ids))
    more = {
        "token_ids": ids,
        "position": np.repeat(position[:, None], 3, axis=1),
        "block": np.zeros(len(ids)),
        "loss_mask": np.ones(len(ids)),
        "modality_context": np.full(len(ids), prompt.modality_context[-1]),
    }
    joined = {
        name: np.concatenate([getattr(prompt, name), np.asarray(more[name], FIELDS[name])]) for name in TOKEN_FIELDS
    }
    return dataclasses.replace(prompt, **joined)
