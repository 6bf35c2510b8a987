"""Loss and norm read one step late, as on a card: the same weights, and nothing kept that was not looked at."""

import pytest
import torch

from brine.common.processes import StopSignal, TrainingInterrupted
from brine.salt.distill import Distillation
from brine.training import trainer as loop
from brine.training.checkpoint.checkpoint import load_weights
from brine.training.runtime import Runtime
from tests.training.tiny_run import (
    TinyModel,
    events,
    final_bytes,
    final_tensors,
    timeless,
    tiny_config,
    tiny_step_flops,
    tiny_train,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def late(monkeypatch):
    """Every run from here on reads late, on the CPU."""
    return lambda: monkeypatch.setattr(Runtime, "reads_metrics_late", True)


@pytest.fixture
def order(monkeypatch):
    """What happened, in order: ("computed" | "read", number of the step from 0)."""
    happened = []
    compute, add_cost = loop.Trainer._accumulate, loop.Trainer._record_step_cost

    def computed(self, stop):
        happened.append(("computed", self.step))
        return compute(self, stop)

    def read(self, step):
        happened.append(("read", step.number))
        return add_cost(self, step)

    monkeypatch.setattr(loop.Trainer, "_accumulate", computed)
    monkeypatch.setattr(loop.Trainer, "_record_step_cost", read)
    return happened


def test_the_next_step_is_begun_before_a_step_is_read(tmp_path, late, order):
    late()
    tiny_train(tmp_path, config=tiny_config(num_steps=6, log_every=4, checkpoint_every=100))
    at = {what: order.index(what) for what in order}
    for step in range(6):
        # a line of metrics after step 4 and the end wait for the step before
        waits = step in (3, 5)
        assert waits or at["read", step] > at["computed", step + 1]
    assert at["read", 3] < at["computed", 4]


def test_late_reading_changes_no_bit(tmp_path, late):
    options = {"config": tiny_config(validate_every=5, grad_clip=0.1), "validate": lambda *_: {"loss": 1.0}}
    at_once = tiny_train(tmp_path / "at_once", **options)
    late()
    afterwards = tiny_train(tmp_path / "late", **options)
    assert final_bytes(tmp_path / "at_once") == final_bytes(tmp_path / "late")
    assert timeless(tmp_path / "at_once") == timeless(tmp_path / "late")
    assert at_once.compute_cost.flops == afterwards.compute_cost.flops and at_once.loss == afterwards.loss
    assert afterwards.compute_cost.seconds["student"] > 0


def test_a_bad_step_is_taken_back_one_step_later(tmp_path, late):
    """Rows 28 to 31 give NaN in step 7, which is seen when step 8 has been computed; the weights end the same."""
    config = tiny_config(rollback_skip_steps=2, checkpoint_every=5, log_every=100)
    tiny_train(tmp_path / "at_once", config=config, poisoned=(30,))
    late()
    result = tiny_train(tmp_path / "late", config=config, poisoned=(30,))
    (event,) = events(tmp_path / "late", "rolled_back")
    assert (event["step"], event["to_step"], event["skipped_sequences"]) == (7, 5, [24, 32])
    assert final_bytes(tmp_path / "at_once") == final_bytes(tmp_path / "late")
    assert timeless(tmp_path / "at_once")[-1]["loss"] == timeless(tmp_path / "late")[-1]["loss"]
    # 12 good steps, 3 thrown away, and one that was computed with diverged weights
    assert result.compute_cost.flops["student"] == 16 * 3 * tiny_step_flops(TinyModel())


@pytest.mark.parametrize("bad_row", [14, 17, 20, 23], ids=lambda row: f"step{row // 4}")
def test_no_checkpoint_holds_a_step_that_went_wrong(tmp_path, late, bad_row):
    """The failing step just before, at and after a checkpoint: every one that was ever written is finite."""
    late()
    seen = []

    def look(step):
        for folder in sorted((tmp_path / "checkpoints").glob("step_*[0-9]")):
            if folder.name not in seen:
                model = TinyModel()
                load_weights(folder, model=model)
                assert all(torch.isfinite(value).all() for value in model.parameters()), folder.name
                seen.append(folder.name)

    tiny_train(tmp_path, config=tiny_config(rollback_skip_steps=1), poisoned=(bad_row,), on_step=look)
    assert len(events(tmp_path, "rolled_back")) == 1
    assert all(torch.isfinite(value).all() for value in final_tensors(tmp_path).values())


def test_a_stop_is_seen_one_step_later_and_resumes_to_the_bit(tmp_path, late):
    tiny_train(tmp_path / "straight")
    late()
    stop = StopSignal()
    with pytest.raises(TrainingInterrupted, match="step 11 of"):
        tiny_train(tmp_path / "stopped", stop=stop, on_step=lambda n: n == 9 and stop.request("SIGTERM"))
    tiny_train(tmp_path / "stopped")
    assert final_bytes(tmp_path / "straight") == final_bytes(tmp_path / "stopped")
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "stopped")


def test_teacher_is_billed_alike(tmp_path, late):
    def run(folder):
        teacher = Distillation(TinyModel(seed=9, width=8), kd_steps=6, distill_weight=0.5)
        return tiny_train(folder, distillation=teacher)

    at_once = run(tmp_path / "at_once")
    late()
    afterwards = run(tmp_path / "late")
    assert at_once.compute_cost.flops == afterwards.compute_cost.flops
    assert afterwards.compute_cost.flops["teacher_forward"] > 0
    assert final_bytes(tmp_path / "at_once") == final_bytes(tmp_path / "late")
