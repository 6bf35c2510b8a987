"""The whole line on the stand-in: corpus, small model, selection, large models with its help and without, evaluation
and report, as one command does it on a machine with a card. Every forward pass of every stage must run there, with the
backends that the run asked for, and what is left behind must be of use on a machine without a card.

A stage that runs on the host from end to end mixes nothing and would go unseen, so each forward pass is noted.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from brine.inference.load import load
from brine.kernels.selection.choice_log import reset_backend_choices
from brine.model import transformer
from brine.model.transformer import Transformer
from brine.pipeline import run as train
from brine.recipes.launch import parse
from brine.training import step as training_step
from tests.pipeline.test_pipeline import arguments
from tests.standin.machine import auto_is_the_card
from tests.standin.stand_in import NAME

MODULES = ("calendar", "csv", "shlex", "string", "textwrap")
TRAINING = ("small", "large_salt", "large_baseline")
COMPUTING = (*TRAINING, "select", "evaluate")
# neither is what "auto" takes on the stand-in or on a CPU for both, so what was asked for shows
ATTENTION, LOSS = "reference", "reference"


@dataclass
class Seen:
    """What happened in each stage of a line."""

    folder: Path = None
    devices: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Kinds of device of ids and weights, over all forward passes."""
    attention: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Backends that attention was asked for."""
    loss: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Backends that the loss of training was asked for."""
    stage: str = ""

    def watch(self, monkeypatch) -> None:
        """Note stages, forward passes and backends from here on."""
        stage, forward, prefill = train.Pipeline.stage, Transformer.forward, Transformer.prefill
        attention, loss = transformer.attention, training_step.linear_cross_entropy

        def at_stage(run, name, *args, **options):
            self.stage = name
            return stage(run, name, *args, **options)

        def noted(function):
            def call(module, inputs, *args, **options):
                self.devices[self.stage] |= {inputs.token_ids.device.type, module.head_weight.device.type}
                return function(module, inputs, *args, **options)

            return call

        def attended(*args, **options):
            self.attention[self.stage].add(options.get("backend", "auto"))
            return attention(*args, **options)

        def lost(*args, **options):
            self.loss[self.stage].add(options.get("backend", "auto"))
            return loss(*args, **options)

        monkeypatch.setattr(train.Pipeline, "stage", at_stage)
        monkeypatch.setattr(Transformer, "forward", noted(forward))
        monkeypatch.setattr(Transformer, "prefill", noted(prefill))
        monkeypatch.setattr(transformer, "attention", attended)
        monkeypatch.setattr(training_step, "linear_cross_entropy", lost)


def command(runs: Path, source: Path, *words: str) -> list[str]:
    """A line of a few rows in every kind of material."""
    few = ["--runtime.num-loader-workers", "0", "--runtime.dtype", "float32",
           "--small.num-steps", "2", "--large.num-steps", "3", "--salt.selection", "--evals.max-new-tokens", "3",
           "--runtime.attention-backend", ATTENTION, "--runtime.loss-backend", LOSS]  # fmt: skip
    for split, count in (("train", "8"), ("validation", "1"), ("test", "1")):
        few += [f"--corpus.synth.{split}.text", "1", f"--corpus.synth.{split}.page", "0", "0", "0", "0"]
        for kind in ("screenshot", "narration", "recording"):
            few += [f"--corpus.synth.{split}.{kind}", count, "0", "0", "0"]
    return arguments(runs, source, *few, *words)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in MODULES:
        (folder / f"{name}.py").write_bytes(Path(__import__(name).__file__).read_bytes())
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory, source) -> Seen:
    """One run of the line, watched."""
    runs, found = tmp_path_factory.mktemp("runs"), Seen()
    with pytest.MonkeyPatch.context() as monkeypatch:
        auto_is_the_card(monkeypatch)
        # of what ran in this process before nothing is to be told
        reset_backend_choices()
        found.watch(monkeypatch)
        found.folder = train.run_pipeline(parse(command(runs, source)).recipe, runs=runs)
    return found


def read(path: Path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("stage", COMPUTING)
def test_every_forward_pass_of_a_stage_runs_on_the_device(seen, stage):
    assert seen.devices[stage] == {NAME}


def test_the_line_ends_with_a_report_and_says_where_it_ran(seen):
    assert set(seen.devices) == set(COMPUTING) and (seen.folder / "report.html").exists()
    assert read(seen.folder / "runtime.json")["resolved"]["device"] == NAME
    assert read(seen.folder / "environment.json")["device"] == NAME


@pytest.mark.parametrize("stage", COMPUTING)
def test_the_backends_that_were_asked_for_compute(seen, stage):
    assert seen.attention[stage] == {ATTENTION}
    if stage in TRAINING:
        assert seen.loss[stage] == {LOSS}


@pytest.mark.parametrize("stage", TRAINING)
def test_what_was_chosen_stands_in_the_record(seen, stage):
    last = [json.loads(line) for line in (seen.folder / stage / "events.jsonl").read_text().splitlines()][-1]
    assert last["event"] == "finished"
    taken = {what: backend for what, backend in last["backends"].items() if NAME in what}
    assert {"attention", "linear"} <= {what.split()[0] for what in taken}
    assert all("reference (asked for)" in backend for what, backend in taken.items() if what.startswith("attention"))


@pytest.mark.parametrize("stage", TRAINING)
def test_a_model_trained_on_a_card_is_of_use_without_one(seen, stage):
    """The backend belongs to the run: written into the model's config it would make the model one for cards alone."""
    saved = seen.folder / stage / "model"
    assert ATTENTION not in json.dumps(read(saved / "config.json")["model"])
    loaded = load(saved, device="cpu")
    assert loaded.model.attention_backend == "auto" and loaded.model.head_weight.device.type == "cpu"
    hidden = loaded.model(loaded.inputs(["def "]))
    assert torch.isfinite(hidden).all()


def test_the_same_command_has_nothing_left_to_do(seen, source, card, monkeypatch):
    again = Seen()
    again.watch(monkeypatch)
    train.run_pipeline(parse(command(seen.folder.parent, source)).recipe, runs=seen.folder.parent)
    assert not again.devices
