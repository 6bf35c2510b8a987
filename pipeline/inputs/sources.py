"""The documents of a recipe with several sources (`corpus.sources`), joined into one.

Each source is an input of the stage `encoded` under its own name, so that a change names it. Names, classes of consent
and formats are configuration; paths are neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brine.common.files import read_json
from brine.data.formats.corpus_source import CorpusSource
from brine.data.formats.joined import open_sources
from brine.data.formats.open import check_path_exists
from brine.data.formats.source import DocumentSource
from brine.data.packing.mixture import Mixture
from brine.pipeline.inputs.locations import location_of, locations_before, recorded_corpus
from brine.pipeline.model_stages import STORE
from brine.pipeline.stages.stage_backup import DONE_FILE, STAGE_FILE, ProtectedStageError, refusal_message
from brine.pipeline.stages.stage_store import StageStore, logger

if TYPE_CHECKING:
    from brine.data.corpus.store import EncodedCorpus
    from brine.pipeline.recipe import CorpusConfig
    from brine.pipeline.run import Pipeline

PREFIX = "source "
"""Before the name of a source, as an input of the stage `encoded`."""


def check_paths(config: CorpusConfig) -> None:
    """Raise ValueError for documents that are not there, before anything slow."""
    for path in (config.manifest, *(source.path for source in config.sources)):
        if path is not None:
            check_path_exists(path)


def join_sources_of(run: Pipeline, synth: Path | None) -> tuple[DocumentSource, dict[str, str]]:
    """The joined documents of a run, and a digest of each source. synth: manifest of the synthetic corpus, made
    already. Raises ValueError that names a source, ProtectedStageError where a trained run had others."""
    config = run.recipe.corpus
    options = {"synth": synth, "max_file_mib": config.encode.max_file_mib}
    joined = open_sources(config.sources, **options)
    inputs = {PREFIX + each["name"]: each["sha256"] for each in joined.described}
    check_same_sources(run.store, config.sources, inputs)
    return joined, inputs


def check_same_sources(store: StageStore, sources: tuple[CorpusSource, ...], inputs: Mapping[str, str]) -> None:
    """Refuse to train on other sources under the name of a run: on others' names, or, of one name, on other words at
    another path. All ranks call it; raises ProtectedStageError."""
    folder, trouble = store.folder / "encoded", None
    begun = (read_json(folder / STAGE_FILE) or {}).get("inputs") or {}
    described = (read_json(folder / STORE / "meta.json") or {}).get("corpus_sources") or []
    stored = {each["name"]: each["path"] for each in described}
    recorded = {each.get("name"): each.get("path") for each in recorded_corpus(store.folder).get("sources") or ()}
    changes = []
    for source in sources:
        key = PREFIX + source.name
        former = locations_before(recorded.get(source.name), stored.get(source.name))
        if key not in begun:
            changes.append(f"corpus.sources: {source.name} is new")
        elif (
            begun[key] != inputs[key] and source.path is not None and former and location_of(source.path) not in former
        ):
            changes.append(f"source {source.name}: {former[0]} -> {location_of(source.path)}")
    gone = [key for key in begun if key.startswith(PREFIX) and key not in inputs]
    changes += [f"corpus.sources: {key.removeprefix(PREFIX)} is gone" for key in gone]
    if store.world.is_main and begun and changes and (folder / DONE_FILE).exists():
        kept = [name for name in store.dependents_of("encoded") if name not in store.rerun]
        if kept:
            trouble = refusal_message(store, kept, changes)
    if trouble := store.world.broadcast(trouble):
        raise ProtectedStageError(trouble)


def encoded_settings(config: CorpusConfig, tokenizer_digest: str | None) -> dict[str, Any]:
    """The settings of the stage `encoded`: those of one source and its own tokenizer are what they have always been."""
    settings: dict[str, Any] = {"encode": config.encode, "vocab_size": config.vocab_size}
    if config.sources:
        settings["sources"] = [
            {"name": source.name, "consent": source.consent, "format": source.format} for source in config.sources
        ]
    if tokenizer_digest is not None:
        settings["tokenizer"] = tokenizer_digest
    return settings


def mixture_of(config: CorpusConfig, entries: tuple[str, ...], data: EncodedCorpus) -> Mixture:
    """`packing.mixture` with the weights of the sources; kinds and sources without documents are left out and
    logged."""
    asked = Mixture.parse(entries)
    mixture = asked.for_kinds(data.kinds)
    if unknown := sorted(dict(asked.weights).keys() - dict(mixture.weights).keys()):
        logger.info("packing.mixture names kinds that are not in the corpus: %s", ", ".join(unknown))
    return Mixture(mixture.weights, config.source_weights)
