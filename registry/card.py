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

from brine.common.files import digest, file_digest, finite, read_json, to_plain
from brine.common.renamed import current_file
from brine.evals.run_files import stage_costs
from brine.inference.load import TOKENIZER
from brine.registry.history import History
from brine.registry.lineage import Lineage, read_stage, seeds_in, trace

DERIVED = ("measured", "forced", "revoked")
"""Sections of a card that follow from the log."""
UNSTATED = "unstated"
"""Consent class of sources that do not state one."""
KNOWN_STAGES = ("small", "select", "large_salt", "large_baseline")


def make_card(run: Path, stage: str) -> tuple[dict[str, Any], Lineage]:
    """(base of the card, lineage) of a trained stage of a run folder.

    Raises ValueError for a stage that is not finished. What cannot be found is listed under `missing`.
    """
    lineage = trace(run, stage)
    top = read_stage(run / stage)
    assert top is not None and top.weights is not None
    recipe, environment = read_json(run / "recipe.json"), read_json(run / "environment.json")
    missing = list(lineage.missing)
    if not isinstance(recipe, dict):
        missing.append(f"the recipe ({run / 'recipe.json'})")
    if not isinstance(environment, dict):
        missing.append(f"the environment ({run / 'environment.json'})")
    code = lineage.code.get(top.name) or {}
    names = {entry["name"] for entry in lineage.stages.values()}
    card = {
        "weights": file_digest(run / stage / "model" / "model.safetensors"),
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
        "tokenizer": file_digest(run / stage / "model" / TOKENIZER),
        "compute_cost": stage_costs(run, names & set(KNOWN_STAGES)),
        "consent": consent_counts(recipe, lineage, run),
        "kept_stale": read_json(current_file(run / "kept_stale.json")) or {},
        "result": {key: value for key, value in top.result.items() if key != "kept"},
        "missing": missing,
    }  # fmt: skip
    return finite(to_plain(card)), lineage


def consent_counts(recipe: Any, lineage: Lineage, run: Path) -> dict[str, int | None]:
    """{consent class: documents} over the recipe's sources; None where a stage does not say how many."""
    corpus = (recipe.get("corpus") if isinstance(recipe, dict) else None) or {}
    encoded = _result_of(lineage, run, "encoded")
    sources = corpus.get("sources") or ()
    if not sources:
        return {UNSTATED: encoded.get("documents")}
    by_source = encoded.get("sources") if isinstance(encoded.get("sources"), dict) else {}
    counts: Counter[str] = Counter()
    unknown = set()
    for number, source in enumerate(sources):
        source = source if isinstance(source, dict) else {}
        name, consent = str(source.get("name", number)), str(source.get("consent") or UNSTATED)
        found = by_source.get(name)
        found = found.get("documents") if isinstance(found, dict) else found
        counts[consent] += found or 0
        unknown |= set() if isinstance(found, int) else {consent}
    return {name: None if name in unknown else count for name, count in sorted(counts.items())}


def _result_of(lineage: Lineage, run: Path, name: str) -> dict[str, Any]:
    if not any(entry["name"] == name for entry in lineage.stages.values()):
        return {}
    stage = read_stage(run / name)
    return stage.result if stage is not None else {}


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
