"""The training loop on the stand-in: every option, one device, the numbers of the CPU, and hardly a wait.

The tiny model of the loop's tests has no attention, so there the bits must be the CPU's; the transformer's attention is
another backend's, so there the losses must be close.
"""

import json

import numpy as np
import pytest
import torch

from brine.common.processes import StopSignal, TrainingInterrupted
from brine.evals.loss import measure_losses, token_byte_lengths
from brine.evals.validation import Validator
from brine.salt.distill import Distillation
from brine.salt.selection import score_documents
from brine.training.logging.compute_cost import CostAccounting
from brine.training.runtime import Runtime
from brine.training.trainer import Trainer
from tests.standin.media_rows import EVALS, KINDS, MemoryCorpus, MemoryPlan, model_of, train_config_of
from tests.standin.stand_in import NAME, StandIn, Waits, count_waits
from tests.training.tiny_run import TinyModel, events, final_bytes, timeless, tiny_config, tiny_train

CARD = Runtime(device=NAME)


@pytest.fixture(scope="module")
def corpus():
    return MemoryCorpus()


def lies_there(module) -> bool:
    return all(isinstance(one, StandIn) for one in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_bits_are_those_of_the_cpu(optimizer, tmp_path):
    config = tiny_config(optimizer=optimizer, modality_context_weights=(("image", 0.5), ("audio", 2.0)))
    model = TinyModel()
    for place, runtime in (("cpu", Runtime()), ("card", CARD)):
        tiny_train(tmp_path / place, config=config, runtime=runtime, model=model if place == "card" else None)
    assert lies_there(model)
    assert final_bytes(tmp_path / "card") == final_bytes(tmp_path / "cpu")
    assert timeless(tmp_path / "card") == timeless(tmp_path / "cpu")


def test_a_bad_step_is_taken_back_from_the_device(tmp_path):
    """Loss and norm are read one step late there; what is kept must not hold a step that failed."""
    for place, runtime in (("cpu", Runtime()), ("card", CARD)):
        tiny_train(tmp_path / place, runtime=runtime, poisoned=(25,))
    (rolled,) = events(tmp_path / "card", "rolled_back")
    (truth,) = events(tmp_path / "cpu", "rolled_back")
    assert {**rolled, "unix_time": 0} == {**truth, "unix_time": 0} and rolled["step"] == 6
    assert final_bytes(tmp_path / "card") == final_bytes(tmp_path / "cpu")


@pytest.mark.parametrize("at", [3, 4, 7])
def test_a_run_that_was_stopped_goes_on_in_the_same_bits(at, tmp_path):
    tiny_train(tmp_path / "whole", runtime=CARD)
    with pytest.raises(TrainingInterrupted), StopSignal() as stop:
        tiny_train(tmp_path / "cut", runtime=CARD, stop=stop,
                   on_step=lambda step: step == at and stop.request("a test"))  # fmt: skip
    tiny_train(tmp_path / "cut", runtime=CARD)
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")


OPTIONS = {
    "plain": ({}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
    "float64": ({"dtype": "float64"}, {}),
    "muon": ({}, {"optimizer": "muon"}),
    "weights_and_z": ({}, {"modality_context_weights": (("image", 0.5),), "z_loss": 1e-3}),
    "selective": ({"activation_checkpointing": "selective", "ac_group_size": 2}, {}),
    "full": ({"activation_checkpointing": "full", "mlp_tile_tokens": 16}, {}),
    "offload": ({"activation_checkpointing": "offload"}, {}),
}


def run(folder, corpus, runtime, config, *, kd_steps=2, **options):
    """Train the transformer with a teacher and validation; returns the model and the lines of metrics."""
    model = model_of(seed=1)
    Trainer(
        config, model=model, sequences=MemoryPlan(corpus).source(config), folder=folder, runtime=runtime, kinds=KINDS,
        distillation=Distillation(model_of(seed=2, dim=16, num_layers=2), kd_steps=kd_steps, distill_weight=0.5),
        validate=Validator(corpus, corpus.tokenizer, EVALS, compute_dtype=runtime.compute_dtype),
        quiet=True, **options,
    ).run()  # fmt: skip
    return model, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_transformer_trains_listens_and_is_validated_there(name, corpus, tmp_path):
    of_runtime, of_config = OPTIONS[name]
    config = train_config_of(**of_config, validate_every=2, checkpoint_every=4)
    found = []
    for place in ("cpu", NAME):
        model, lines = run(tmp_path / place, corpus, Runtime(device=place, **of_runtime), config)
        found.append([line.get("validation", line)["loss"] for line in lines])
        assert lies_there(model) == (place == NAME)
    tolerance = {"float64": 1e-9, "bfloat16": 3e-2}.get(of_runtime.get("dtype"), 1e-4)
    assert len(found[0]) == 4 and found[1] == pytest.approx(found[0], rel=tolerance)


def test_what_is_measured_and_chosen_there_is_what_the_cpu_finds(corpus):
    """Validation, evaluation and selection share these two; rows go to where the weights are, without being told."""
    found = []
    for place in ("cpu", NAME):
        model, compute_cost = model_of(seed=4).double().eval().to(place), CostAccounting()
        with torch.no_grad():
            model.head_weight.mul_(12.0)
            plan = MemoryPlan(corpus, num_sequences=12)
            scores = score_documents(
                model,
                plan=plan,
                batches=[plan.batch((row, row + 1)) for row in range(0, 12, 2)],
                top_k=60,
                compute_cost=compute_cost,
            )
        losses = measure_losses(
            model, corpus, np.arange(10), token_bytes=token_byte_lengths(corpus.tokenizer), config=EVALS
        )
        found.append((losses.loss, scores.score, compute_cost.total_flops()))
    np.testing.assert_allclose(found[1][0], found[0][0])
    np.testing.assert_allclose(found[1][1], found[0][1])
    assert np.isfinite(found[0][1]).any() and found[1][2] == found[0][2] > 0


class Counted:
    """Counts the waits of each step of a run, from one `on_step` to the next."""

    def __init__(self, waits):
        self.waits, self.steps = waits, []

    def __call__(self, step: int) -> None:
        self.steps.append(Waits(self.waits.asked[:]))
        self.waits.asked.clear()


@pytest.mark.parametrize(
    ("name", "kd_steps"),
    [("plain", 0), *((name, 6) for name in ("plain", "bfloat16", "muon", "weights_and_z", "selective", "offload"))],
)
def test_a_step_waits_for_nothing_but_the_numbers_of_the_one_before(name, kd_steps, corpus, tmp_path):
    """Once a micro-batch is the most that a card can bear; nothing at all is what there is. No line, validation or
    checkpoint is due in steps 2 to 5, and constants have been brought there in the first."""
    of_runtime, of_config = OPTIONS[name]
    config = train_config_of(**of_config, num_steps=6, log_every=6, checkpoint_every=6)
    with count_waits() as waits:
        counted = Counted(waits)
        run(tmp_path, corpus, Runtime(device=NAME, **of_runtime), config, kd_steps=kd_steps, on_step=counted)
    for step in counted.steps[1:5]:
        assert [line.partition(":")[0] for line, *_ in step.asked] == ["training/step.py"], f"a step waits:\n{step}"
