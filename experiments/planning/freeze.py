"""Makes the plan of an experiment: every trial as a whole recipe, the anchor, resources; then freezes it once."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from brine.common.content_store import file_lock
from brine.common.files import read_json, to_plain
from brine.data.document import MODALITIES
from brine.experiments.experiment import LAST, Experiment, Search
from brine.experiments.planning.frozen_inputs import frozen_entry
from brine.experiments.planning.plan import (
    ANCHOR_SETTING,
    CONFIRM,
    FORMER_SETTING,
    LOCK_FILE,
    PLAN_FILE,
    SCREEN,
    TABLE_FILE,
    TRIAL_FILE,
    TRIALS_FILE,
    ExperimentPlan,
    TrialSpec,
    load_plan,
    plan_changes,
    setting_label,
    write_plan,
)
from brine.experiments.planning.settings import (
    budget_note,
    check_experiment,
    parse_recipe,
    recipe_digest,
    whole_recipe,
    with_seed,
)
from brine.experiments.planning.snapshot import CODE_FOLDER, COMMIT_FILE, take_snapshot
from brine.experiments.trials.ending import FINISHED
from brine.experiments.trials.measure import suite_facts
from brine.pipeline.model_stages import model_stages_of, train_config_of
from brine.pipeline.recipe import Recipe
from brine.planner.memory import memory
from brine.planner.out_of_memory import current_settings
from brine.recipes.registry import make_by_name
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime

GROUP = "brine.experiments"
"""Entry points of experiments."""
PROCESS_GIB = 0.75
"""Memory of a trial's process beside what the planner counts: the interpreter, libraries, batches."""
GIB = 2**30
KEPT_PLAN_LINES = 8
OWN_MEASURE = re.compile(rf"bits_per_byte(\..+)?|gain\.({'|'.join(MODALITIES)})")
"""Measures of a run's own evaluation, without a suite."""


def find_experiment(name: str) -> tuple[str, Experiment]:
    """(name, experiment) of an entry point `brine.experiments` or of a Python file. Raises ValueError for none, and
    with its message for one that fails."""
    return make_by_name(name, Experiment, group=GROUP, what="experiment")


def freeze(name: str, experiment: Experiment, *, runs: Path, threads: int, gpus: int | None = None) -> ExperimentPlan:
    """Freeze the plan of an experiment in `runs`/<name>, with a snapshot of the code; an equal plan is kept.

    threads: of every trial. gpus: of every trial; None: as its recipe's device says. Raises ValueError for a wrong
    request, before anything is written, for a plan that differs from the one that lies there, and for a folder that
    holds something else."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
        raise ValueError(f"{name!r} is no name for an experiment: use letters, digits, '_', '-' and '.'")
    folder = runs.absolute() / name
    old = load_plan(folder) if (folder / PLAN_FILE).is_file() else None
    if old is None:
        _leftovers(folder)
    head, trials = draft_plan(name, experiment, folder=folder, threads=threads, gpus=gpus, old=old)
    if old is not None:
        if changes := plan_changes(old, head, trials):
            more = f" and {len(changes) - KEPT_PLAN_LINES} more" if len(changes) > KEPT_PLAN_LINES else ""
            raise ValueError(
                f"{folder / PLAN_FILE} is frozen and this plan differs ({'; '.join(changes[:KEPT_PLAN_LINES])}{more}): "
                "give it a new name with --name; `brine experiments run NAME` continues the plan as it is"
            )
        return old
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(folder / LOCK_FILE, what=name, timeout_s=0):
            if not (folder / PLAN_FILE).is_file():
                # of a `plan` that was killed: the code may be older than this plan
                for path in _leftovers(folder):
                    shutil.rmtree(path)
                head["code"] = take_snapshot(folder)
                return write_plan(folder, head, trials)
    except TimeoutError:
        raise ValueError(f"{name} is being planned or run by another process: wait for it, or end it") from None
    # another process was faster: is its plan the same?
    return freeze(name, experiment, runs=runs, threads=threads, gpus=gpus)


def _leftovers(folder: Path) -> list[Path]:
    """Snapshots in the folder of a plan that was never finished. Raises ValueError where anything else lies there."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_whole = path.name == CODE_FOLDER and (path / COMMIT_FILE).is_file()
        if is_whole or (path.name.startswith(f".{CODE_FOLDER}.") and path.is_dir()):
            found.append(path)
        elif path.name not in (LOCK_FILE, TRIALS_FILE) and not path.name.startswith(f".{PLAN_FILE}."):
            what = "is a run, not an experiment" if (folder / "recipe.json").exists() else (
                f"holds {path.name} and no plan, so that it is no experiment"
            )  # fmt: skip
            raise ValueError(f"{folder} {what}: choose another name with --name")
    return found


def draft_plan(
    name: str, experiment: Experiment, *, folder: Path, threads: int, gpus: int | None, old: ExperimentPlan | None
) -> tuple[dict[str, Any], list[TrialSpec]]:
    """(what plan.json holds, screening trials). Raises ValueError for a wrong request; writes nothing."""
    if threads < 1:
        raise ValueError(f"--threads {threads}: give 1 or more")
    settings = check_experiment(experiment)
    suite = suite_facts(experiment.suite)
    primary, guards = _measures(experiment, suite)
    options = {"threads": threads, "gpus": gpus}
    listed, trials = [], []
    searches = isinstance(experiment.axes, Search)
    for number, (changes, recipe) in enumerate(settings, start=1):
        setting = "base" if searches else f"{number:02d}"
        note = budget_note(recipe, experiment.budget)
        plain = to_plain(changes)
        listed.append({"name": setting, "label": setting_label(plain), "changes": plain, "budget": note})
        trials += [
            make_trial(recipe, setting=setting, seed=seed, changes=plain, budget=note, **options)
            for seed in experiment.seeds.screen
        ]
    asked = experiment.anchor
    if asked == LAST and old is not None and old.head["anchor"]:
        # the last batch when it was planned
        asked = old.head["anchor"]["source"]
    anchor, more = _anchor(asked, experiment, folder=folder, name=name, options=options) if asked else (None, [])
    head = {
        "name": name, "question": experiment.question, "expects": experiment.expects, "suite": suite,
        "primary": primary, "guards": guards, "threads": threads, "gpus": gpus,
        "seeds": to_plain(experiment.seeds), "budget": to_plain(experiment.budget), "settings": listed,
        "base": to_plain(whole_recipe(experiment.base, {}, experiment.budget)),
        "search": _search(experiment.axes) if searches else None, "anchor": anchor, "python": sys.executable,
        "planned_trials": len(trials) + len(more),
    }  # fmt: skip
    return head, [*trials, *more]


def make_trial(
    recipe: Recipe, *, setting: str, seed: int, threads: int, gpus: int | None, phase: str = SCREEN, rung: int = 0,
    changes: dict[str, Any] | None = None, budget: dict[str, Any] | None = None, measured_run: str = "",
) -> TrialSpec:  # fmt: skip
    """A trial of a setting's recipe with a seed. Rungs are in the name, so that each has a folder of its own."""
    name = f"{setting}-r{rung}-seed{seed}" if phase == "rung" else f"{setting}-seed{seed}"
    seeded = with_seed(recipe, seed)
    seeded = dataclasses.replace(seeded, name=name, runtime=dataclasses.replace(seeded.runtime, num_threads=threads))
    return TrialSpec(
        name, setting, seed, phase, to_plain(seeded), recipe_digest(seeded), resources_of(seeded, gpus=gpus),
        budget or {}, rung, changes or {}, measured_run,
    )  # fmt: skip


def again_with_seed(trial: TrialSpec, seed: int, *, phase: str = CONFIRM, gpus: int | None = None) -> TrialSpec:
    """The setting of a trial with another seed."""
    recipe = parse_recipe(trial.recipe)
    return make_trial(
        with_seed(recipe, -trial.seed), setting=trial.setting, seed=seed, threads=recipe.runtime.num_threads,
        gpus=gpus, phase=phase, changes=trial.changes, budget=trial.budget,
    )  # fmt: skip


def resources_of(recipe: Recipe, *, gpus: int | None = None) -> dict[str, float]:
    """Cores, GPUs and memory that a trial needs, the memory as the planner estimates it."""
    asked = recipe.runtime.device
    device = "cuda" if gpus or asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"
    count = gpus if gpus is not None else int(device == "cuda")
    resolved = recipe.resolved(recipe.corpus.vocab_size)
    runtime = Runtime(
        device=device, dtype="float32", num_threads=recipe.runtime.num_threads,
        activation_checkpointing=recipe.runtime.activation_checkpointing, ac_group_size=recipe.runtime.ac_group_size,
        mlp_tile_tokens=recipe.runtime.mlp_tile_tokens,
    )  # fmt: skip
    patches = tuple((modality, most) for modality, most in recipe.packing.media_budget.items() if most)
    host = 0.0
    for name in model_stages_of(recipe):
        case = current_settings(
            train_config_of(resolved, name), runtime=runtime, world=World(), seq_len=recipe.packing.seq_len,
            patches=patches,
        )  # fmt: skip
        found = memory(case)
        host = max(host, sum(found.host.values()) + (found.peak_bytes if device == "cpu" else 0))
    memory_gib = round(host / GIB + PROCESS_GIB, 2)
    return {"cores": recipe.runtime.num_threads, "gpus": count, "memory_gib": memory_gib}


def _measures(experiment: Experiment, suite: dict[str, Any]) -> tuple[str, list[str]]:
    """The primary measure and the guards. Raises ValueError for one that the suite does not declare."""
    primary = experiment.primary or suite["primary"]
    guards = suite["guards"] if experiment.guards == "all" else list(experiment.guards)
    known = [each["name"] for each in suite["measures"]]
    if suite["path"] is None:
        # kinds are the corpus's own, which is not built yet
        if unknown := [name for name in (primary, *guards) if not OWN_MEASURE.fullmatch(name)]:
            raise ValueError(
                f"a run's own evaluation has no measure {unknown[0]!r}: it has bits_per_byte, bits_per_byte.KIND and "
                "gain.MODALITY; give a suite for others"
            )
    elif unknown := [name for name in (primary, *guards) if name not in known]:
        raise ValueError(f"the suite {suite['name']} has no measure {unknown[0]!r}: it has {', '.join(known)}")
    return primary, sorted(guards)


def _search(axes: Search) -> dict[str, Any]:
    space = {
        name: frozen_entry(name, {"kind": type(each).__name__, **to_plain(each)}) for name, each in axes.space.items()
    }
    return {"space": space, "trials": axes.trials, "rungs": list(axes.rungs), "generation": axes.generation,
            "seed": axes.seed}  # fmt: skip


def _anchor(
    asked: str, experiment: Experiment, *, folder: Path, name: str, options: dict[str, Any]
) -> tuple[dict[str, Any], list[TrialSpec]]:
    """The former setting to train again, and its former self to measure again. Raises ValueError where it is not
    there."""
    runs, former = folder.parent, None
    if asked == LAST:
        tables = [path for path in runs.glob(f"*/{TABLE_FILE}") if path.parent.name != name]
        tables = [path for path in tables if (read_json(path) or {}).get("winner")]
        if not tables:
            raise ValueError(f"anchor = 'last': no other experiment in {runs} has a winner: give anchor=None")
        # the one that was planned last, whoever looked at which since
        former = load_plan(max(tables, key=lambda path: path.with_name(PLAN_FILE).stat().st_mtime).parent)
        setting = ""
    else:
        experiment_name, _, setting = asked.partition("/")
        former = load_plan(runs / experiment_name)
    table = read_json(former.folder / TABLE_FILE) or {}
    setting = setting or (table.get("winner") or {}).get("setting") or ""
    before = [trial for trial in former.of_phase(SCREEN, CONFIRM) if trial.setting == setting]
    if not before:
        raise ValueError(f"anchor = {asked!r}: {former.name} has no setting {setting or 'that won'!r}")
    try:
        recipe = with_seed(parse_recipe(before[0].recipe), -before[0].seed)
    except ValueError as error:
        raise ValueError(f"anchor = {asked!r}: its recipe is none of this version ({error})") from None
    plain = {"changes": before[0].changes, "budget": before[0].budget}
    trials = [
        make_trial(recipe, setting=ANCHOR_SETTING, seed=seed, **plain, **options) for seed in experiment.seeds.screen
    ]
    for seed in (*experiment.seeds.screen, *experiment.seeds.confirm):
        for each in before:
            run = former.trial_folder(each)
            if each.seed == seed and (read_json(run / TRIAL_FILE) or {}).get("outcome") == FINISHED:
                phase = SCREEN if seed in experiment.seeds.screen else CONFIRM
                trials.append(make_trial(
                    recipe, setting=FORMER_SETTING, seed=seed, phase=phase, measured_run=str(run), **plain, **options
                ))  # fmt: skip
    return {"source": f"{former.name}/{setting}", "commit": former.head["code"]["commit"],
            "label": setting_label(before[0].changes)}, trials  # fmt: skip
