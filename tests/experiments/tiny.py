"""The smallest experiment that goes through every stage: the recipe `quick` with a handful of documents and steps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from brine.experiments.experiment import Budget, Experiment, Grid, Seeds
from brine.model.config import ModelConfig
from brine.recipes.quick import quick
from brine.synth import SynthCounts
from brine.training.config import RuntimeConfig

MODULES = ("argparse", "calendar", "configparser", "csv", "dataclasses", "difflib", "shlex", "string", "textwrap",
           "tokenize", "zipfile")  # fmt: skip


def make_source(folder: Path) -> Path:
    """A source tree of a few standard modules, so that the corpus takes a second."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        found = Path(__import__(name).__file__)
        (folder / f"{name}.py").write_bytes((found.parent / found.name).read_bytes())
    return folder


def tiny_recipe(source: Path, *, steps: int = 6):
    """One arm of a tiny model on a tiny corpus, uncompiled."""
    base = quick()
    counts = {
        "train": SynthCounts(text=6, screenshot=(40, 0, 0, 0), narration=(12, 0, 0, 0), recording=(0, 0, 0, 0),
                             page=(0, 0, 0, 0)),
        "validation": SynthCounts(text=1, screenshot=(2, 0, 0, 0), narration=(0, 0, 0, 0), recording=(0, 0, 0, 0),
                                  page=(0, 0, 0, 0)),
        "test": SynthCounts(text=2, screenshot=(8, 0, 0, 0), narration=(4, 0, 0, 0), recording=(0, 0, 0, 0),
                            page=(0, 0, 0, 0)),
    }  # fmt: skip
    model = ModelConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64, window=64)
    large = replace(
        base.large, model=model, num_steps=steps, global_batch_size=2, micro_batch_size=2, warmup_steps=1,
        checkpoint_every=2, log_every=2,
    )  # fmt: skip
    return replace(
        base, large=large, arms=("baseline",),
        corpus=replace(base.corpus, source=source, synth=replace(base.corpus.synth, max_files=None, **counts)),
        evals=replace(base.evals, documents_per_cell=8, transcripts_per_cell=0, samples_per_cell=0,
                      validation_per_cell=2, bootstrap_resamples=100),
        runtime=RuntimeConfig(compile=False, dtype="float32", device="cpu"),
    )  # fmt: skip


def tiny_experiment(source: Path, **changes) -> Experiment:
    """Two learning rates, one seed."""
    options = {
        "question": "Is a higher rate better?", "expects": "bits per byte fall a little", "base": tiny_recipe(source),
        "axes": Grid({"large.learning_rate": [3e-3, 6e-3]}), "seeds": Seeds(screen=(0,)), "budget": Budget(),
    }  # fmt: skip
    return Experiment(**options | changes)


def write_experiment(path: Path, source: Path, *, more: str = "") -> Path:
    """A file with the tiny experiment, as a user would write it. more: arguments of `tiny_experiment`."""
    text = (
        "from pathlib import Path\nfrom brine.experiments.experiment import *\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "from tests.experiments.tiny import tiny_experiment\n\n\n"
        f"def {path.stem}():\n    return tiny_experiment(Path({str(source)!r}){', ' + more if more else ''})\n"
    )
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    make_source(Path(sys.argv[1]))
