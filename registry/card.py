"""The card of a registered model: everything that is needed to say what it is and to make it again.

Its base is written when the model is added and never changes; `measured`, `forced` and `revoked` follow from the log
and are written again whenever a line of the log concerns them (`brine.registry.registry`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brine.common.files import digest, file_digest, finite, read_json, to_plain
from brine.common.renamed import current_file
from brine.inference.registered import TOKENIZER, WEIGHTS
from brine.registry.history import History
from brine.registry.lineage import Lineage, read_stage, seeds_in, trace

DERIVED = ("measured", "forced", "revoked")
"""Sections of a card that follow from the log."""
UNKNOWN = "unknown"
"""Class of consent of sources that do not state one."""
PSEUDO = "pseudo"
"""Class of consent of words that a model gave."""
KNOWN_STAGES = ("small", "select", "large_salt", "large_baseline")


def make_card(run: Path, stage: str) -> tuple[dict[str, Any], Lineage]:
    """(base of the card, lineage) of a trained stage of a run folder.

    Raises ValueError for a stage that is not finished. What cannot be found is listed under `missing`.
    """
    # imported late: what only reads cards needs no torch
    from brine.evals.run_files import stage_costs

    lineage = trace(run, stage)
    lineage.sources |= labelling_models(run, lineage)
    top = read_stage(run / stage)
    assert top is not None and top.weights is not None
    recipe, environment = read_json(run / "recipe.json"), read_json(run / "environment.json")
    missing = [*lineage.missing, *unknown_labellers(run, lineage)]
    if not isinstance(recipe, dict):
        missing.append(f"the recipe ({run / 'recipe.json'})")
    if not isinstance(environment, dict):
        missing.append(f"the environment ({run / 'environment.json'})")
    code = lineage.code.get(top.name) or {}
    names = {entry["name"] for entry in lineage.stages.values()}
    card = {
        "weights": file_digest(run / stage / "model" / WEIGHTS),
        "run": run.resolve().name,
        "stage": stage,
        "commit": code.get("commit"),
        "diff": code.get("diff"),
        "code": lineage.code,
        "recipe": recipe,
        "environment": environment,
        "seeds": seeds_in(recipe),
        "setting": lineage.setting,
        "stages": {name: {key: entry[key] for key in ("name", "inputs", "revision", "fingerprint")}
                   for name, entry in lineage.stages.items()},
        "sources": lineage.sources,
        "parents": lineage.parents,
        "unknown_parents": lineage.unknown_parents,
        "tokenizer": file_digest(run / stage / "model" / TOKENIZER),
        "compute_cost": stage_costs(run, names & set(KNOWN_STAGES)),
        "consent": consent_counts(run, lineage),
        "kept_stale": read_json(current_file(run / "kept_stale.json")) or {},
        "result": {key: value for key, value in top.result.items() if key != "kept"},
        "missing": missing,
    }  # fmt: skip
    return finite(to_plain(card)), lineage


def labelling_models(run: Path, lineage: Lineage) -> dict[str, str]:
    """{source and number: SHA-256 of weights} of the models whose words the corpus of a run has as pseudo-labels."""
    return {
        f"labels.{source['name']}.{number}": str(model)
        for source in _corpus_sources(run, lineage)
        for number, model in enumerate(source.get("labelled_by") or (), start=1)
    }


def unknown_labellers(run: Path, lineage: Lineage) -> list[str]:
    """What is missing of a lineage, a sentence for each source of pseudo-labels whose lines name no model, and for each
    of a corpus that was encoded before they were kept."""
    return [
        f"the models that gave the pseudo-labels of the source {source['name']}: "
        + (
            "give the pool itself, whose lines name them"
            if "labelled_by" in source
            else "its corpus is older than their record, encode it again"
        )
        for source in _corpus_sources(run, lineage)
        if source.get("consent") == PSEUDO and not source.get("labelled_by")
    ]


def _corpus_sources(run: Path, lineage: Lineage) -> list[dict[str, Any]]:
    if "encoded" not in {entry["name"] for entry in lineage.stages.values()}:
        return []
    return list((read_json(run / "encoded" / "store" / "meta.json") or {}).get("corpus_sources") or ())


def consent_counts(run: Path, lineage: Lineage) -> dict[str, int | None]:
    """{class of consent: documents} of the corpus; one source without a class counts as "unknown"."""
    names = {entry["name"]: entry for entry in lineage.stages.values()}
    encoded = read_stage(run / "encoded") if "encoded" in names else None
    documents = None if encoded is None else encoded.result.get("documents")
    store = run / "encoded" / "store"
    classes = {str(source["name"]): str(source.get("consent", UNKNOWN)) for source in _corpus_sources(run, lineage)}
    if not classes:
        return {UNKNOWN: documents}
    from brine.data.corpus.store import EncodedCorpus

    corpus = EncodedCorpus.open(store)
    counts = Counter(dict.fromkeys(classes.values(), 0))
    for name, count in zip(corpus.sources, np.bincount(corpus.source, minlength=len(corpus.sources)), strict=True):
        # a source's documents are named after it
        counts[classes.get(name.partition(":")[0], UNKNOWN)] += int(count)
    return dict(sorted(counts.items()))


def card_base(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card without what follows from the log."""
    return {name: value for name, value in card.items() if name not in DERIVED}


def base_digest(card: Mapping[str, Any]) -> str:
    """The digest that the log keeps of a card's base."""
    return digest(card_base(card))


def card_text(base: Mapping[str, Any], history: History) -> str:
    """The whole card as it stands in `card.json`: the base, and what follows from the log."""
    model = base["weights"]
    derived = {
        "measured": [_without_chain(entry) for entry in history.measured.get(model, ())],
        "forced": [_without_chain(entry) for entry in history.forced.get(model, ())],
        "revoked": history.why_revoked(model),
    }
    return json.dumps({**card_base(base), **derived}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _without_chain(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("line", "previous", "event", "model")}
