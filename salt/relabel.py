"""A round's pseudo-labels: answers above the audited threshold of their kind, added to those of earlier rounds.

    FOLDER/pool.jsonl           all entries so far (`brine.salt.pseudo_pool`), a manifest with its media below media/
    FOLDER/predictions.jsonl    every answer of this round, kept or not
    FOLDER/relabel.json         thresholds, digest of the weights, round, counts; written last

Nothing in a held-out split is asked, nor what shares its content, prompt or media with a held-out case. The cap on the
share of pseudo targets applies where a round's sources are put together (`brine.salt.round_data`), so that a pool keeps
what a later round, with more words of people, has room for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from brine.common.files import file_digest, replacing, write_json
from brine.data.document import Document
from brine.inference.load import WEIGHTS, LoadedModel
from brine.salt.audit import AuditResult
from brine.salt.content import MAX_FILE_MIB, ContentHasher
from brine.salt.pseudo_label import PseudoLabelConfig, answer_prompts, prompts_of, without_targets
from brine.salt.pseudo_pool import PseudoEntry, accumulate, adopt_entries, read_pool, write_pool
from brine.salt.selection import CostRecorder

RELABEL_FILE = "relabel.json"


def relabel(
    loaded: LoadedModel,
    manifest: str | Path,
    folder: str | Path,
    *,
    audit: AuditResult,
    round_number: int,
    earlier: str | Path | None = None,
    held_out: Set[str] = frozenset(),
    config: PseudoLabelConfig | None = None,
    num_workers: int = 1,
    compute_cost: CostRecorder | None = None,
    max_file_mib: float = MAX_FILE_MIB,
) -> dict[str, Any]:
    """Label a manifest's documents by the thresholds of an audit of the same weights; returns what `relabel.json` says.

    earlier: the folder of the round before, whose entries stay unless an answer of this round is surer. held_out:
    digests (`ContentHasher.identities`) of held-out cases. max_file_mib: largest media file of the
    manifest. Raises DocumentError for a larger one, ValueError for an audit of other weights.
    """
    manifest, folder, config = Path(manifest), Path(folder), config or PseudoLabelConfig()
    origin = file_digest(loaded.folder / WEIGHTS)
    if audit.origin != origin:
        raise ValueError(
            f"the audit is of the weights {audit.origin[:12]}, the model in {loaded.folder} has {origin[:12]}: audit it"
        )
    hasher, counts = ContentHasher(manifest.parent, max_file_mib=max_file_mib), Counter(read=0, prompted=0, kept=0)
    thresholds = audit.min_confidence
    folder.mkdir(parents=True, exist_ok=True)

    def prompts() -> Iterator[Document]:
        for document in prompts_of(manifest, config, counts, thresholds):
            if hasher.is_held_out(document, held_out):
                counts["prompted"] -= 1
                counts["shares_held_out"] += 1
            else:
                yield document

    new = []
    with replacing(folder / "predictions.jsonl") as file:
        for label in answer_prompts(
            loaded, prompts(), manifest.parent, config=config, min_confidence=thresholds, num_workers=num_workers,
            compute_cost=compute_cost,
        ):  # fmt: skip
            file.write(json.dumps(label.to_json(), ensure_ascii=False) + "\n")
            counts[label.reason or "kept"] += 1
            if not label.reason:
                key = hasher.prompt(without_targets(label.document))
                # rounding may lift a sure answer above 0
                confidence = min(0.0, label.confidence)
                named = dataclasses.replace(label.document, split="train")
                new.append(PseudoEntry(named, key, label.num_tokens, confidence, origin, round_number))
    before = [] if earlier is None else read_pool(earlier)
    if earlier is not None:
        earlier_hasher = ContentHasher(Path(earlier), max_file_mib=math.inf)
        known = [entry for entry in before if not earlier_hasher.is_held_out(entry.document, held_out)]
        counts["earlier_shares_held_out"] = len(before) - len(known)
        before = list(adopt_entries(known, Path(earlier), folder))
    # a kind that is refused now may have been accepted before; what was earned then stays
    entries = accumulate(before, adopt_entries(new, manifest.parent, folder))
    write_pool(folder, entries)
    by_round = Counter(entry.round for entry in entries)
    found = {
        "round": round_number, "origin": origin, "config": config, "min_confidence": thresholds,
        "refused": {kind: found.reason for kind, found in audit.kinds.items() if found.min_confidence is None},
        "counts": dict(sorted(counts.items())), "entries": len(entries),
        "num_targets": sum(entry.num_targets for entry in entries),
        "entries_of_round": {str(number): count for number, count in sorted(by_round.items())},
    }  # fmt: skip
    write_json(folder / RELABEL_FILE, found)
    return found
