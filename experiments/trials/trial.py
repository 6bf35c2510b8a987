"""`python -m brine.experiments.trials.trial EXPERIMENT_FOLDER TRIAL`: one trial in a process of its own.

An ordinary run in the trial's folder, resumed where it was interrupted; then it is measured, and `trial.json` is
written last. Every engine starts this same command. Exit codes: 0 done (divergence is a result), 2 refused, 130
interrupted, 71 out of memory, 73 disk full, 75 the folder is still in use.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

from brine.common.files import file_digest, full_disk_number, read_json, write_json
from brine.common.processes import TrainingInterrupted, die_with_parent
from brine.evals.run_files import main_model, stage_costs, total_costs
from brine.experiments.planning.plan import (
    ANCHOR_SETTING,
    FORMER_SETTING,
    TRIAL_FILE,
    ExperimentPlan,
    TrialSpec,
    load_plan,
)
from brine.experiments.planning.settings import parse_recipe
from brine.experiments.planning.snapshot import CODE_FOLDER, imported_from
from brine.experiments.trials import ending
from brine.experiments.trials.measure import measure_run
from brine.pipeline.model_stages import model_stages_of
from brine.pipeline.recipe import Recipe
from brine.pipeline.run import run_pipeline
from brine.pipeline.stages.run_lock import RunLockedError
from brine.planner.out_of_memory import InsufficientMemoryError, explain_out_of_memory, is_out_of_memory
from brine.training.guard import NoTargetsError, TrainingDivergedError
from brine.training.logging.environment import peak_rss_gib
from brine.training.parallel.distributed import destroy_distributed

LOCK_TIMEOUT_S = 120.0
"""How long to wait for the process of an attempt that was taken for dead."""
PYTHON_VARIABLE, PARENT_VARIABLE, TRACKER_VARIABLE = "BRINE_TRIAL_PYTHON", "BRINE_TRIAL_PARENT", "BRINE_TRIAL_TRACKER"
logger = logging.getLogger("brine.experiments")


def main(argv: list[str] | None = None) -> int:
    """Run one trial; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("brine").setLevel(logging.INFO)
    # SLURM's warning of a time-out goes to every process of a job; the parent answers it
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if parent := os.environ.get(PARENT_VARIABLE):
        die_with_parent(parent=int(parent))
    try:
        folder, name = argv
        plan = load_plan(Path(folder))
        check_surroundings(plan)
        run_trial(plan, plan.trial(name))
        return ending.DONE
    except (TrainingInterrupted, KeyboardInterrupt) as stopped:
        return _ended(str(stopped) or "interrupted", ending.INTERRUPTED)
    except RunLockedError as error:
        return _ended(error, ending.BUSY)
    except (MemoryError, InsufficientMemoryError, torch.OutOfMemoryError) as error:
        return _ended(error, ending.NO_MEMORY)
    except (ValueError, OSError, RuntimeError) as error:
        if full_disk_number(error) is not None:
            return _ended(f"the disk is full ({error})", ending.DISK_FULL)
        if isinstance(error, ValueError):
            return _ended(error, ending.REFUSED)
        if is_out_of_memory(error):
            return _ended(error, ending.NO_MEMORY)
        raise
    finally:
        destroy_distributed()


def check_surroundings(plan: ExperimentPlan) -> None:
    """Raise ValueError unless this process imports the plan's code and is the interpreter that was asked for."""
    code = (plan.folder / CODE_FOLDER).resolve()
    if imported_from() != code:
        raise ValueError(f"brine is imported from {imported_from()}, not from the experiment's code in {code}")
    wanted = os.environ.get(PYTHON_VARIABLE, sys.executable)
    if os.path.realpath(sys.executable) != os.path.realpath(wanted):
        raise ValueError(
            f"this trial runs under {sys.executable}, not under {wanted}: the engine made another environment"
        )
    if not plan.folder.is_absolute():
        raise ValueError(f"the experiment's folder {plan.folder} is not absolute")


def run_trial(plan: ExperimentPlan, trial: TrialSpec) -> None:
    """Train, measure, and write trial.json; nothing where that is there. Raises what `run_pipeline` raises."""
    folder, start = plan.trial_folder(trial), time.perf_counter()
    if (folder / TRIAL_FILE).exists():
        return
    recipe, before = parse_recipe(trial.recipe), read_json(folder / "attempts.json") or {}
    runs = plan.folder.parent
    record: dict[str, Any] = {"outcome": ending.FINISHED, "host": socket.gethostname()}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if trial.measured_run:
            run = Path(trial.measured_run)
        else:
            run = _train(recipe, folder, runs)
            record |= _trained(run, recipe)
        if record["outcome"] == ending.FINISHED:
            # what was measured before would hide what code and machine moved
            is_anchor = trial.setting in (ANCHOR_SETTING, FORMER_SETTING)
            measure_run(run, plan.head["suite"], recipe, out=folder, cache=None if is_anchor else runs / ".store")
    except NoTargetsError:
        raise
    except TrainingDivergedError as error:
        record |= {"outcome": ending.DIVERGED, "reason": str(error)}
    finally:
        wall_s = round(before.get("wall_s", 0.0) + time.perf_counter() - start, 2)
        write_json(folder / "attempts.json", {"wall_s": wall_s, "attempts": before.get("attempts", 0) + 1})
    costs = total_costs(stage_costs(folder))
    record["flops"] = {name: entry["flops"] for name, entry in costs.items()}
    record |= {"wall_s": wall_s, "peak_rss_gib": peak_rss_gib(folder)}
    write_json(folder / TRIAL_FILE, record)


def _train(recipe: Recipe, folder: Path, runs: Path) -> Path:
    """Run the pipeline, waiting a while for a process of an earlier attempt that still holds the folder."""
    options: dict[str, Any] = {"runs": folder.parent, "explain_out_of_memory": explain_out_of_memory}
    options["tracker"] = os.environ.get(TRACKER_VARIABLE) or None
    if "store" in inspect.signature(run_pipeline).parameters:
        options["store"] = runs / ".store"
    end = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return run_pipeline(recipe, **options)
        except RunLockedError as error:
            if time.monotonic() > end:
                raise
            logger.info("%s; waiting", error)
            time.sleep(2.0)


def _trained(run: Path, recipe: Recipe) -> dict[str, Any]:
    """The main model's name, weights' digest and final loss; the outcome is "diverged" where that is no number."""
    name = main_model(model_stages_of(recipe))
    result = (read_json(run / name / "done") or {}).get("result") or {}
    loss = result.get("loss")
    facts: dict[str, Any] = {"model": name, "loss": loss}
    facts["weights"] = file_digest(run / name / "model" / "model.safetensors")
    if loss is None or not math.isfinite(loss):
        facts |= {"outcome": ending.DIVERGED, "reason": f"the final loss of {name} is {loss}", "loss": None}
    return facts


def _ended(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
