"""What a trained model was made from, digest by digest, from its stage in a run folder down to the sources.

Each stage's `done` names its inputs by digest. An input is another stage of the run or of its store, a source
(documents, known by their content), or weights of another model; whatever cannot be found is *missing*, and a lineage
in which something is missing is incomplete. A teacher in the same run is a stage like any other, and a parent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brine.common.files import digest, file_digest, read_json
from brine.inference.registered import WEIGHTS
from brine.pipeline.stages.stage_backup import DONE_FILE

STORE_FOLDER = ".store"
SOURCE_INPUTS = ("source", "sources", "manifest", "media", "corpus", "filter_log", "tokenizer", "pool")
"""Inputs that are known by the digest of their content; a name may go on, as in `source wiki`."""
WEIGHT_INPUTS = ("init_from", "teacher")
"""Inputs that are weights of a model of another run, by their SHA-256; a training's settings name them too."""
SELECTION_STAGES = ("select",)
"""Stages without weights whose seeds move with those of training."""
OF_NOTHING = hashlib.sha256().hexdigest()
"""The digest of the media of a corpus without any: all such corpora have it, so that it says nothing of where a model
is from."""
_CONTENT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StageRecord:
    """A finished stage. digest: as later stages name it. aliases: every digest it is known by. result: what its
    function returned. weights: SHA-256 of its model, None without one."""

    name: str
    folder: Path
    digest: str
    aliases: frozenset[str]
    inputs: dict[str, str]
    config: Any
    revision: int
    result: dict[str, Any]
    weights: str | None


@dataclass
class Lineage:
    """Everything that a model was made from. stages: {digest: {name, inputs, revision, fingerprint}}. sources: {stage's
    input: digest}, media only where there are some. parents: {teacher or init_from: weights}. code: {training stage:
    {commit, diff}}. missing: what could not be followed, a sentence each. setting: digest of all settings but the seeds
    of training."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    code: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    setting: str = ""

    @property
    def unknown_parents(self) -> list[str]:
        """Weights that no stage of the run made."""
        own = {stage["fingerprint"] for stage in self.stages.values()}
        return sorted({weights for weights in self.parents.values() if weights not in own})

    @property
    def digests(self) -> list[str]:
        """Every digest in it, sorted."""
        fingerprints = {stage["fingerprint"] for stage in self.stages.values() if stage["fingerprint"]}
        return sorted({*self.stages, *fingerprints, *self.sources.values(), *self.parents.values()})


def read_stage(folder: Path) -> StageRecord | None:
    """The finished stage in a folder, which may be a link into a store; None where there is none."""
    mark = read_json(folder / DONE_FILE)
    if not isinstance(mark, dict) or not isinstance(key := mark.get("key"), dict):
        return None
    result, real = mark.get("result"), folder.resolve()
    result = result if isinstance(result, dict) else {}
    fingerprint, inputs = result.get("fingerprint"), key.get("inputs")
    stored = real.name if real.parent.parent.name == STORE_FOLDER else None
    name = mark.get("digest") or stored or digest(key)
    aliases = {name, stored, fingerprint, digest(key)} - {None}
    weights = fingerprint if (folder / "model" / WEIGHTS).is_file() else None
    return StageRecord(
        real.parent.name if stored else folder.name, folder, str(name), frozenset(map(str, aliases)),
        {str(each): str(value) for each, value in (inputs if isinstance(inputs, Mapping) else {}).items()},
        key.get("config"), key.get("revision", 1), result, weights,
    )  # fmt: skip


class StageIndex:
    """The finished stages of a run, and those of its store by digest."""

    def __init__(self, run: Path):
        folders = [folder for folder in sorted(run.iterdir()) if (folder / DONE_FILE).is_file()]
        self._stages = [stage for stage in map(read_stage, folders) if stage is not None]
        self._stored: list[StageRecord] | None = None
        self._stores = {run.parent / STORE_FOLDER}
        self._stores |= {
            real.parents[1] for folder in folders if (real := folder.resolve()).parents[1].name == STORE_FOLDER
        }

    def find(self, name: str) -> StageRecord | None:
        """The stage with this digest; None where neither run nor store has it."""
        for stage in self._stages:
            if name in stage.aliases:
                return stage
        if self._stored is None:
            folders = [mark.parent for store in sorted(self._stores) for mark in sorted(store.glob(f"*/*/{DONE_FILE}"))]
            self._stored = [stage for stage in map(read_stage, folders) if stage is not None]
        return next((stage for stage in self._stored if name in stage.aliases), None)


def trace(run: Path, stage: str) -> Lineage:
    """The lineage of a trained stage of a run. Raises ValueError for a stage that is not finished or has no model."""
    top = read_stage(run / stage)
    if top is None:
        raise ValueError(f"{run / stage} is not a finished stage: train it to the end first")
    if top.weights is None:
        raise ValueError(f"{run / stage} has no model: give a stage that trains one")
    lineage, index = Lineage(), StageIndex(run)
    lineage.setting = _follow(top, index, lineage, settings={})
    if (found := file_digest(top.folder / "model" / WEIGHTS)) != top.weights:
        lineage.missing.append(f"the weights of {stage} are {found[:12]}, not {top.weights[:12]}, which it had made")
    for name, code in _codes(lineage, read_json(run / "environment.json")):
        lineage.code[name] = code
        commit = code.get("commit")
        if not commit:
            lineage.missing.append(f"the commit of the code that made {name}: run from a checkout")
        elif str(commit).endswith("+"):
            lineage.missing.append(f"the code that made {name}: files differed from commit {str(commit)[:-1]}")
    return lineage


def _follow(stage: StageRecord, index: StageIndex, lineage: Lineage, *, settings: dict[str, str]) -> str:
    """Add a stage and all that it is made from; returns the digest of its settings without the seeds of training."""
    if stage.digest in settings:
        return settings[stage.digest]
    if stage.digest in lineage.stages:
        raise ValueError(f"{stage.folder / DONE_FILE} names itself among its inputs: it was not made by this pipeline")
    fingerprint = stage.result.get("fingerprint")
    record: dict[str, Any] = {"name": stage.name, "inputs": stage.inputs, "revision": stage.revision}
    record |= {"fingerprint": fingerprint, "weights": stage.weights, "code": stage.result.get("code")}
    lineage.stages[stage.digest] = record
    inputs = {}
    for name, value in sorted(stage.inputs.items()):
        word, found = re.split(r"[ ./]", name)[0], index.find(value)
        inputs[name] = value
        if word == "media" and value == OF_NOTHING:
            continue
        if word in WEIGHT_INPUTS:
            lineage.parents[name] = found.weights or value if found else value
        elif found is None and word in SOURCE_INPUTS and _CONTENT.fullmatch(value):
            lineage.sources[f"{stage.name}.{name}"] = value
        elif found is None:
            lineage.missing.append(
                f"the input {name} of the stage {stage.name} ({value[:16]}), neither in run nor store"
            )
        if found is not None:
            if found.weights and word not in WEIGHT_INPUTS:
                lineage.parents["teacher" if found.name == "small" else found.name] = found.weights
            inputs[name] = _follow(found, index, lineage, settings=settings)
    train = stage.config.get("train") if isinstance(stage.config, Mapping) else None
    if isinstance(train, Mapping) and train.get("init_digest"):
        lineage.parents["init_from"] = str(train["init_digest"])
    moves = stage.weights is not None or stage.name in SELECTION_STAGES
    config = _without_seeds(stage.config) if moves else stage.config
    settings[stage.digest] = digest([stage.name, config, stage.revision, inputs])
    return settings[stage.digest]


def _without_seeds(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {name: _without_seeds(value) for name, value in config.items() if name != "seed"}
    return config


def seeds_in(config: Any, name: str = "") -> dict[str, int]:
    """{field: seed} of the seeds of training in a recipe: not those of evaluation and of the documents."""
    if not isinstance(config, Mapping):
        return {}
    found = {}
    for key, value in config.items():
        inner = f"{name}.{key}" if name else str(key)
        if key == "seed" and isinstance(value, int):
            found[inner] = value
        elif inner not in ("evals", "corpus"):
            found |= seeds_in(value, inner)
    return found


def _codes(lineage: Lineage, environment: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, {commit, diff}) of the stages that have weights: as recorded with them, else that of the run's last
    command."""
    environment = environment if isinstance(environment, dict) else {}
    last = {"commit": environment.get("commit"), "diff": environment.get("diff")}
    for stage in lineage.stages.values():
        if stage["weights"]:
            yield stage["name"], stage["code"] if isinstance(stage["code"], dict) else last
