"""train(): resumes to the bit, sums what it says it sums, takes back bad steps, and leaves politely."""

import json
import os
import signal

import pytest
import torch
from torch.nn import functional as F

from brine.common.files import read_jsonl
from brine.common.processes import StopSignal, TrainingInterrupted
from brine.data.sequence import MODALITY_CONTEXTS
from brine.salt.distill import Distillation
from brine.training.checkpoint.checkpoint import list_checkpoints
from brine.training.guard import TrainingDivergedError
from brine.training.micro_batch import MicroBatchStream
from brine.training.runtime import Runtime
from tests.training.tiny_run import (
    KINDS,
    TinyModel,
    events,
    final_bytes,
    final_tensors,
    timeless,
    tiny_config,
    tiny_rows,
    tiny_source,
    tiny_step_flops,
    tiny_train,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_with_stops(folder, stops, **options):
    """Stop after each of these steps, and start again each time with a fresh model."""
    for at in stops:
        stop = StopSignal()
        with pytest.raises(TrainingInterrupted, match=f"step {at + 1} of"):
            tiny_train(folder, stop=stop, on_step=lambda n, at=at, s=stop: n == at and s.request("SIGTERM"), **options)
    return tiny_train(folder, stop=StopSignal(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stops", [(1,), (3,), (4, 6), (7, 9), (2, 4, 8, 10)], ids=lambda s: "-".join(map(str, s)))
def test_resume_equals_never_stopped(tmp_path, stops, optimizer):
    """Weights, optimiser and metrics; stopped at and between checkpoints, more than once."""
    config = tiny_config(optimizer=optimizer, validate_every=5)
    options = {"config": config, "validate": lambda model, step, stopping: {"sum": float(model.head.weight.sum())}}
    straight = tiny_train(tmp_path / "straight", **options)
    stopped = train_with_stops(tmp_path / "stopped", stops, **options)
    assert final_bytes(tmp_path / "straight") == final_bytes(tmp_path / "stopped")
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "stopped")
    assert straight.compute_cost.flops == stopped.compute_cost.flops
    assert straight.loss == stopped.loss
    assert len(events(tmp_path / "stopped", "resumed")) == len(stops)


def test_losing_steps_after_a_checkpoint_equals_never_stopped(tmp_path):
    """What a kill does: the run goes on from an older checkpoint, and later lines of metrics are dropped."""

    class Killed(Exception):
        pass

    def kill(step):
        if step == 7:
            raise Killed

    tiny_train(tmp_path / "straight")
    with pytest.raises(Killed):
        tiny_train(tmp_path / "killed", on_step=kill)
    assert timeless(tmp_path / "killed")[-1]["step"] == 6
    tiny_train(tmp_path / "killed")
    assert events(tmp_path / "killed", "resumed")[0]["dropped_lines"] == 1
    assert final_bytes(tmp_path / "straight") == final_bytes(tmp_path / "killed")
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "killed")


def test_finished_run_is_not_trained_further(tmp_path):
    tiny_train(tmp_path)
    seen = []
    result = tiny_train(tmp_path, seen=seen)
    assert (result.step, seen) == (12, [])


def test_micro_batches_do_not_matter_in_float64(tmp_path):
    """The loss is a mean over all targets of a step, however its rows are cut."""
    weights = []
    for micro in (1, 2, 4):
        config = tiny_config(micro_batch_size=micro)
        tiny_train(tmp_path / str(micro), config=config, runtime=Runtime(dtype="float64"))
        weights.append(final_tensors(tmp_path / str(micro)))
    for name, value in weights[0].items():
        # Adam divides by the root of its second moment, which turns rounding of 1e-16 into 1e-13 or so
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-11)
        torch.testing.assert_close(weights[2][name], value, rtol=0, atol=1e-11)


def test_metrics_are_sums_over_targets(tmp_path):
    """Loss by context and kind equals a brute-force sum over the rows of the first step."""
    tiny_train(tmp_path, config=tiny_config(num_steps=1, warmup_steps=0, log_every=1))
    line = read_jsonl(tmp_path / "metrics.jsonl")[0]
    batch, model = tiny_rows(0, 4), TinyModel()
    logits = model(batch.inputs) @ model.head_weight.T
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").detach()
    target = batch.labels.flatten() >= 0
    assert line["targets"] == target.sum()
    assert line["loss"] == pytest.approx(float(loss[target].mean()), rel=1e-6)
    for names, key, ids in (
        (MODALITY_CONTEXTS, "modality_context", batch.modality_context),
        (KINDS, "kind", batch.kind),
    ):
        for i, name in enumerate(names):
            member = target & (ids.flatten() == i)
            assert line[key][name]["targets"] == member.sum()
            assert line[key][name]["loss"] == pytest.approx(float(loss[member].mean()), rel=1e-6)
    assert line["flops"]["student"] == 3 * tiny_step_flops(model)
    assert line["flops"]["total"] == line["flops"]["student"]


def test_bad_rows_are_rolled_back_and_passed_over(tmp_path):
    """A NaN at rows 28 to 31 (step 7): back to step 4, past the rows of two steps, and the budget is kept."""
    seen = []
    config = tiny_config(rollback_skip_steps=2)
    result = tiny_train(tmp_path / "run", config=config, poisoned=(30,), seen=seen)
    assert result.step == 12
    assert all(torch.isfinite(value).all() for value in final_tensors(tmp_path / "run").values())
    (event,) = events(tmp_path / "run", "rolled_back")
    assert (event["step"], event["to_step"], event["skipped_sequences"]) == (7, 4, [24, 32])
    assert "nan" in event["reason"]
    # rows 16 to 23 are learned from again, 24 to 31 are not
    assert seen[32:48] == [*range(16, 24), *range(32, 40)]
    # 12 good steps, and the 4 that were begun and thrown away stay on the bill
    per_step = 3 * tiny_step_flops(TinyModel())
    assert result.compute_cost.flops["student"] == (12 + 4) * per_step
    steps = [line["step"] for line in timeless(tmp_path / "run")]
    assert steps == sorted(set(steps))

    # a stop at step 6 leaves a checkpoint between 4 and 7, but the roll-back must not land there
    stopped = train_with_stops(tmp_path / "stopped", (5, 8), config=config, poisoned=(30,))
    assert final_bytes(tmp_path / "stopped") == final_bytes(tmp_path / "run")
    assert timeless(tmp_path / "stopped") == timeless(tmp_path / "run")
    assert stopped.compute_cost.flops == result.compute_cost.flops


def test_killed_after_a_roll_back_ends_with_the_same_weights(tmp_path):
    """The roll-back is gone through again on resume: it lies between two checkpoints."""

    class Killed(Exception):
        pass

    count = []

    def kill(step):
        count.append(step)
        # steps 1 to 7, back to 4, then 5
        if len(count) == 8:
            raise Killed

    tiny_train(tmp_path / "straight", poisoned=(30,))
    with pytest.raises(Killed):
        tiny_train(tmp_path / "killed", poisoned=(30,), on_step=kill)
    assert count[-1] == 5
    tiny_train(tmp_path / "killed", poisoned=(30,))
    assert final_bytes(tmp_path / "straight") == final_bytes(tmp_path / "killed")
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "killed")


def test_roll_backs_are_bounded(tmp_path):
    with pytest.raises(
        TrainingDivergedError,
        match=r"already rolled back 2 times .*skipping sequences 20 to 24, 24 to 28: lower the learning rate",
    ):
        tiny_train(tmp_path, config=tiny_config(max_rollbacks=2, rollback_skip_steps=1), poisoned=tuple(range(20, 200)))


def test_spike_is_rolled_back_when_asked(tmp_path):
    config = tiny_config(loss_spike_sigma=4.0, spike_window=4, rollback_skip_steps=1, num_steps=10)
    model, spiked = TinyModel(), []
    forward = model.forward

    def jump_once(token_ids, *rest, **named):
        hidden = forward(token_ids, *rest, **named)
        if spiked == [7]:
            spiked.append("done")
            return hidden * 50
        return hidden

    model.forward = jump_once
    tiny_train(tmp_path, config=config, model=model, on_step=lambda step: step == 7 and spiked.append(7))
    (event,) = events(tmp_path, "rolled_back")
    assert event["step"] == 7 and "is a spike" in event["reason"] and event["skipped_sequences"] == [28, 32]


def test_teacher_of_weight_zero_changes_nothing(tmp_path):
    teacher = Distillation(TinyModel(seed=9, width=8), kd_steps=6, distill_weight=0.0)
    tiny_train(tmp_path / "baseline")
    result = tiny_train(tmp_path / "salt", distillation=teacher)
    assert final_bytes(tmp_path / "baseline") == final_bytes(tmp_path / "salt")
    assert result.compute_cost.flops["teacher_forward"] == 0


def test_switch_is_hard(tmp_path):
    """Stage 1 differs from the baseline; from its last checkpoint on, a run without teacher gives the same bits."""

    class Halt(Exception):
        pass

    def halt(step):
        if step == 4:
            raise Halt

    def teacher():
        return Distillation(TinyModel(seed=9, width=8), kd_steps=4, distill_weight=0.7, temperature=2.0)

    tiny_train(tmp_path / "baseline")
    result = tiny_train(tmp_path / "salt", distillation=teacher())
    assert final_bytes(tmp_path / "baseline") != final_bytes(tmp_path / "salt")
    with pytest.raises(Halt):
        tiny_train(tmp_path / "alone", distillation=teacher(), on_step=halt)
    tiny_train(tmp_path / "alone")
    assert final_bytes(tmp_path / "alone") == final_bytes(tmp_path / "salt")
    # four steps of the teacher's forward pass, and not one more
    assert result.compute_cost.flops["teacher_forward"] == 4 * tiny_step_flops(TinyModel(width=8))
    assert {line["distill_weight"] for line in timeless(tmp_path / "salt")} == {0.7, 0.0}


def test_teacher_with_another_vocabulary_is_refused(tmp_path):
    teacher = TinyModel(seed=9)
    teacher.head = torch.nn.Linear(16, 40, bias=False)
    with pytest.raises(ValueError, match="vocabulary has 40 tokens and the student's 32"):
        tiny_train(tmp_path, distillation=Distillation(teacher, kd_steps=4, distill_weight=0.5))


def test_ctrl_c_saves_and_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    tiny_train(tmp_path / "straight")
    with pytest.raises(TrainingInterrupted, match="after step 6 of 12, saved"):
        tiny_train(tmp_path / "run", on_step=lambda step: step == 5 and os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert events(tmp_path / "run", "interrupted")[0]["signal"] == "SIGINT"
    tiny_train(tmp_path / "run")
    assert final_bytes(tmp_path / "straight") == final_bytes(tmp_path / "run")


def test_stop_during_validation_is_made_up_for(tmp_path):
    """Validation is interrupted at step 6, whose loss is the lowest; the resumed run does it first, so that no line is
    missing or double, and the checkpoint is kept."""
    calls, losses = [], {3: 3.0, 6: 2.0, 9: 2.5, 12: 2.6}

    def validate(model, step, stopping):
        calls.append(step)
        if len(calls) == 2:
            stop.request("SIGTERM")
        return None if stopping() else {"loss": losses[step]}

    config = tiny_config(validate_every=3, checkpoint_every=5, keep_checkpoints=1)
    stop = StopSignal()
    with pytest.raises(TrainingInterrupted, match="after step 6"):
        tiny_train(tmp_path, config=config, validate=validate, stop=stop)
    tiny_train(tmp_path, config=config, validate=validate)
    assert calls == [3, 6, 6, 9, 12]
    assert [line["step"] for line in timeless(tmp_path) if "validation" in line] == [3, 6, 9, 12]
    kept = list_checkpoints(tmp_path / "checkpoints")
    assert [(one.step, one.scheduled, one.val_loss, one.state["best"]) for one in kept] == [
        (6, True, 2.0, 2.0), (12, True, 2.6, 2.0),
    ]  # fmt: skip


def test_early_checkpoint_is_kept(tmp_path):
    tiny_train(tmp_path, config=tiny_config(keep_checkpoint_steps=(3,), checkpoint_every=2, keep_checkpoints=2))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000003", "step_00000010", "step_00000012"]


def test_plan_shorter_than_the_run_begins_again_at_a_step(tmp_path):
    seen = []
    tiny_train(tmp_path, num_sequences=11, seen=seen, config=tiny_config(num_steps=5))
    assert seen[:8] == seen[8:16] == list(range(8))


def test_row_stream_refuses_what_is_too_short():
    config = tiny_config()
    with pytest.raises(ValueError, match="has 3 sequences and one step takes 4"):
        MicroBatchStream(tiny_source(config, num_sequences=3), global_batch_size=4, batches_per_step=2, ready=iter)


def test_disk_that_is_full_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.HuggingFaceStorageWriter.write_data", full)
    with pytest.raises(ValueError, match=r"step 0 could not be written .*No space left.*free some space"):
        tiny_train(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_weights_by_medium_change_the_objective_and_not_what_is_reported(tmp_path):
    """Weight 2 for all is twice the objective; what is reported stays the plain loss."""
    everywhere = tuple((name, 2.0) for name in ("none", "image", "audio", "video"))
    config = {"num_steps": 1, "log_every": 1, "warmup_steps": 0, "z_loss": 0.0}
    lines = {}
    for name, weights in (("plain", ()), ("twice", everywhere), ("one", (("image", 0.0),))):
        tiny_train(tmp_path / name, config=tiny_config(**config, modality_context_weights=weights))
        (lines[name],) = timeless(tmp_path / name)
    assert lines["plain"]["loss"] == lines["twice"]["loss"] == lines["one"]["loss"]
    assert lines["twice"]["objective"] == pytest.approx(2 * lines["plain"]["objective"], rel=1e-6)
    image = lines["plain"]["modality_context"]["image"]
    without = lines["plain"]["objective"] - image["loss"] * image["targets"] / lines["plain"]["targets"]
    assert lines["one"]["objective"] == pytest.approx(without, rel=1e-5)
    with pytest.raises(ValueError, match="name one of none, image, audio, video"):
        tiny_config(modality_context_weights=(("picture", 1.0),))


def test_steps_asked_for_are_traced(tmp_path):
    tiny_train(tmp_path, runtime=Runtime(profile=(2, 3)))
    trace = json.loads((tmp_path / "trace" / "rank_0_steps_2_3.json").read_text())
    assert any(event.get("name", "").startswith("aten::") for event in trace["traceEvents"])
