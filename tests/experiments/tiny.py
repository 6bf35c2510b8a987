"""The smallest experiment that goes through every stage: the recipe `quick` with a few texts and steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from brine.common.files import read_json, write_json
from brine.evals.measurement import Measurement, save_measurements
from brine.experiments.batch import BatchRun
from brine.experiments.experiment import Budget, Experiment, Grid, Seeds
from brine.experiments.planning.plan import TABLE_FILE, TRIAL_FILE, load_plan
from brine.experiments.trials.ending import DONE, INTERRUPTED, Ending
from brine.experiments.trials.measure import measurements_path, own_spec
from brine.experiments.trials.trial import run_trial
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig
from brine.recipes.quick import quick
from brine.synth import SynthConfig, SynthCounts
from brine.training.config import RuntimeConfig

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon", "sea", "road", "tree", "bird")


def make_source(folder: Path, *, documents: int = 48) -> Path:
    """Short texts of few words, so that a model of nothing learns something in six steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        words = [WORDS[(number * 7 + index * (1 + number % 5)) % len(WORDS)] for index in range(40)]
        (folder / f"{number:03d}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    return folder


def tiny_recipe(source: Path, *, steps: int = 6):
    """One arm of a tiny model, uncompiled."""
    base = quick()
    model = ModelConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64, window=64)
    large = replace(
        base.large, model=model, num_steps=steps, global_batch_size=2, micro_batch_size=2, warmup_steps=1,
        checkpoint_every=2, log_every=2,
    )  # fmt: skip
    return replace(
        base, large=large, arms=("baseline",),
        corpus=CorpusConfig(manifest=source, vocab_size=280),
        packing=PackingConfig(seq_len=128, image_budget=0, audio_budget=0, video_budget=0),
        evals=replace(base.evals, documents_per_cell=8, transcripts_per_cell=0, samples_per_cell=0,
                      validation_per_cell=2, bootstrap_resamples=100),
        runtime=RuntimeConfig(compile=False, dtype="float32", device="cpu"),
    )  # fmt: skip


def shared_recipe(source: Path):
    """The arm with a teacher, on a synthetic corpus of short texts from the source."""
    base = tiny_recipe(source)
    held_out, small = SynthCounts(text=6), replace(base.large, num_steps=4, seed=base.small.seed)
    synth = SynthConfig(train=SynthCounts(text=24), validation=held_out, test=held_out, max_files=40)
    corpus = replace(base.corpus, manifest=None, source=source, synth=synth)
    return replace(base, arms=("salt",), corpus=corpus, small=small)


def tiny_experiment(source: Path, **changes) -> Experiment:
    """Two learning rates, one seed."""
    options = {
        "question": "Is a higher rate better?", "expects": "bits per byte fall a little", "base": tiny_recipe(source),
        "axes": Grid({"large.learning_rate": [3e-3, 6e-3]}), "seeds": Seeds(screen=(0,)), "budget": Budget(),
    }  # fmt: skip
    return Experiment(**options | changes)


def write_experiment(path: Path, source: Path, *, more: str = "", root: Path | None = None) -> Path:
    """A file with the tiny experiment, as a user would write it. more: arguments of `tiny_experiment`. root: of the
    checkout whose tests it imports."""
    root = root or Path(__file__).resolve().parents[2]
    text = (
        "from pathlib import Path\nfrom brine.experiments.experiment import *\n"
        f"import sys\nsys.path.insert(0, {str(root)!r})\n"
        "from tests.experiments.tiny import tiny_experiment\n\n\n"
        f"def {path.stem}():\n    return tiny_experiment(Path({str(source)!r}){', ' + more if more else ''})\n"
    )
    path.write_text(text, encoding="utf-8")
    return path


def finish_trial(plan, trial, values, *, outcome: str = "done", weights: str = "w") -> None:
    """Write what a trial leaves behind. values: {measure: numerator of each of the cases}; denominators are 1."""
    folder = plan.trial_folder(trial)
    measured = {
        name: Measurement(own_spec(name), tuple(f"case-{n}" for n in range(len(found))), np.asarray(found, float),
                          np.ones(len(found)))
        for name, found in values.items()
    }  # fmt: skip
    if outcome == "done":
        path = measurements_path(folder, plan.head["suite"])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_measurements(path, {"test": measured})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TRIAL_FILE, {"outcome": outcome, "weights": weights, "wall_s": 1.0, "flops": {"student": 5}})


class FakeEngine:
    """Ends a job at the second poll, of `slow` ones at the thousandth, with the exit code that `outcome(job)` gives;
    one that was cancelled with `cancelled_code`, None as where SLURM took it out of its queue."""

    def __init__(self, outcome, *, max_jobs: int = 2, slow=(), cancelled_code: int | None = INTERRUPTED):
        self.outcome, self.max_jobs, self.slow, self.cancelled_code = outcome, max_jobs, slow, cancelled_code
        self.jobs: dict = {}
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.most = 0
        self.closed = False

    def submit(self, job):
        self.submitted.append(job.name)
        self.jobs[job.name] = (job, 0)
        self.most = max(self.most, len(self.jobs))
        return f"handle-{len(self.submitted)}"

    def poll(self, name):
        job, polls = self.jobs[name]
        self.jobs[name] = (job, polls + 1)
        if polls < (1000 if name in self.slow else 1) and name not in self.cancelled:
            return None
        del self.jobs[name]
        return Ending(self.cancelled_code if name in self.cancelled else self.outcome(job), f"{name} said this")

    def cancel(self, name):
        self.cancelled.append(name)

    def close(self):
        self.closed = True


class EngineHere:
    """Runs each trial at once in this process, as its own process would."""

    max_jobs = 1

    def submit(self, job):
        folder, name = job.command[-2:]
        plan = load_plan(Path(folder))
        run_trial(plan, plan.trial(name))
        return "here"

    def poll(self, name):
        return Ending(DONE)

    def cancel(self, name):
        raise AssertionError(f"{name} has ended")

    def close(self):
        pass


def run_here(plan):
    """Train and measure all trials of a plan in this process; returns the table."""
    run = BatchRun(plan, EngineHere(), engine_name="here")
    run.run()
    return read_json(plan.folder / TABLE_FILE)
