"""What TensorBoard shows after a resume or a roll-back is what `metrics.jsonl` says: no step that was taken back.

TensorBoard itself is an extra. Where it is absent its writer and its reader's rule are stood in for by a few lines: a
file that begins with a step makes void what files before it hold of that step and later ones.
"""

import contextlib
import json
import sys
import types
from functools import partial
from pathlib import Path

import pytest

from brine.common.files import read_jsonl
from brine.pipeline import run as train
from brine.pipeline.recipe import Recipe
from brine.pipeline.stages.stage_store import StageStore
from brine.training.checkpoint.extend import checkpoint_to_extend, link_checkpoints
from brine.training.logging.metrics import RunLog, TensorBoardSink, flat_numbers, make_sinks
from tests.training.tiny_run import tiny_config, tiny_train


@pytest.fixture
def shown(monkeypatch):
    """What a reader of a folder shows, {tag: [(step, value)]}, from files of [step, tag, value] and purges."""

    class Writer:
        def __init__(self, *, log_dir, purge_step=None):
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"events.{len(list(folder.iterdir())):04d}"
            self.write(purge_step, None, None)

        def write(self, *point):
            with open(self.path, "a") as file:
                file.write(json.dumps(point) + "\n")

        def add_scalar(self, tag, value, *, global_step):
            self.write(global_step, tag, value)

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))

    def read(folder):
        points = []
        for path in sorted(folder.iterdir()):
            for step, tag, value in map(json.loads, path.read_text().splitlines()):
                if tag is not None:
                    points.append((step, tag, value))
                elif step is not None:
                    points = [point for point in points if point[0] < step]
        return by_tag(points)

    return read


@pytest.fixture
def truly_shown(monkeypatch):
    """The same by TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # files of one second are read in the order of their names, in which 10 comes before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))

    def read(folder):
        found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        found.Reload()
        return {
            tag: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]
        }

    return read


@pytest.fixture(params=["shown", "truly_shown"])
def reader(request):
    return request.getfixturevalue(request.param)


def by_tag(points):
    found = {}
    for step, tag, value in points:
        found.setdefault(tag, []).append((step, value))
    return found


def recorded(folder):
    """What the metrics say, in the same form; a clock's numbers included."""
    return by_tag(
        (line["step"], tag, value) for line in read_jsonl(folder / "metrics.jsonl") for tag, value in flat_numbers(line)
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("deaths", [(7,), (6, 11), (2,)], ids=lambda deaths: "-".join(map(str, deaths)))
def test_a_resumed_run_shows_each_step_once(reader, tmp_path, deaths):
    def die(step, at):
        if step == at:
            raise Killed

    for at in (*deaths, None):
        sinks = (TensorBoardSink(tmp_path / "tensorboard"),)
        try:
            tiny_train(
                tmp_path, config=tiny_config(log_every=1), sinks=sinks, on_step=lambda step, at=at: die(step, at)
            )
        except Killed:
            assert at
    found = reader(tmp_path / "tensorboard")
    assert found == recorded(tmp_path)
    assert [step for step, _ in found["loss"]] == list(range(1, 13))


def test_a_roll_back_takes_its_steps_off_the_curve(reader, tmp_path):
    """Row 33 makes the loss NaN in step 9; the run goes back to step 4, past rows, and tells steps 5 to 8 anew."""
    config = tiny_config(log_every=1, rollback_margin_steps=3, rollback_skip_steps=2)
    tiny_train(tmp_path, config=config, poisoned=(33,), sinks=(TensorBoardSink(tmp_path / "tensorboard"),))
    assert any('"rolled_back"' in line for line in (tmp_path / "events.jsonl").read_text().splitlines())
    found = reader(tmp_path / "tensorboard")
    assert found == recorded(tmp_path) and [step for step, _ in found["loss"]] == list(range(1, 13))


@pytest.mark.parametrize("again", [True, False], ids=["validation-stays", "validation-is-done-again"])
def test_what_stays_of_the_step_itself_stays(reader, tmp_path, again):
    record = RunLog(tmp_path, sinks=(TensorBoardSink(tmp_path / "tensorboard"),))
    record.truncate(-1)
    for step in (1, 2, 3):
        record.metrics({"step": step, "loss": 1.0 / step})
        record.metrics({"step": step, "validation": {"loss": 2.0 / step}})
    record.truncate(2, validation=again)
    record.finish()
    found = reader(tmp_path / "tensorboard")
    assert found == recorded(tmp_path)
    assert len(found["loss"]) == 2 and len(found["validation/loss"]) == 1 + again
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {"step": 1, "loss": 1.0}


def tracked(folder, *, until=None, **changes):
    """Train with `--tracker tensorboard`, or where it was tracked before."""

    def die(step):
        if step == until:
            raise Killed

    asked = changes.pop("tracker", True)
    with contextlib.suppress(Killed):
        tiny_train(
            folder,
            config=tiny_config(log_every=1, **changes),
            sinks=make_sinks(folder, "tensorboard" if asked else None),
            on_step=die,
        )


@pytest.mark.parametrize("asked", [(False, True), (True, False, True)], ids=str)
def test_it_does_not_matter_when_it_was_asked_for(reader, tmp_path, asked):
    """A run that was tracked and went on without the option kept the steps that it took back; one that was tracked from
    the middle on has its beginning too."""
    for number, tracker in enumerate(asked):
        tracked(tmp_path, until=None if number == len(asked) - 1 else 6 + 3 * number, tracker=tracker)
    found = reader(tmp_path / "tensorboard")
    assert found == recorded(tmp_path) and [step for step, _ in found["loss"]] == list(range(1, 13))


def test_an_extended_run_shows_its_own_steps_and_the_old_one_keeps_its(reader, tmp_path):
    short = {"schedule": "wsd", "decay_steps": 4, "num_steps": 12}
    tracked(tmp_path / "old", **short)
    before = reader(tmp_path / "old" / "tensorboard")
    old = tiny_config(log_every=1, **short)
    (tmp_path / "new").mkdir()
    link_checkpoints(
        tmp_path / "old", tmp_path / "new", checkpoint=checkpoint_to_extend(tmp_path / "old", config=old), num_steps=16
    )
    tracked(tmp_path / "new", **short | {"num_steps": 16}, tracker=False)
    found = reader(tmp_path / "new" / "tensorboard")
    assert found == recorded(tmp_path / "new") and [step for step, _ in found["loss"]] == list(range(1, 17))
    assert reader(tmp_path / "old" / "tensorboard") == before == recorded(tmp_path / "old")


def test_a_stage_that_is_done_again_begins_with_nothing(reader, tmp_path):
    for rate, steps in ((1e-2, 12), (2e-2, 6)):
        build = partial(tracked, num_steps=steps, learning_rate=rate)
        with StageStore(tmp_path, rerun=["small"]) as line:
            line.stage("small", build, config=rate, protected=True)
    for stage, steps in (("small.old-1", 12), ("small", 6)):
        found = reader(tmp_path / stage / "tensorboard")
        assert found == recorded(tmp_path / stage) and [step for step, _ in found["loss"]] == list(range(1, steps + 1))


def test_without_the_package_a_run_that_was_tracked_goes_on(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert make_sinks(tmp_path, None) == () == make_sinks(tmp_path / "none", None)
    with pytest.raises(ValueError, match="uv sync --extra tensorboard"):
        make_sinks(tmp_path, "tensorboard")


def test_tensorboard_that_is_missing_is_told_before_anything_is_done(tmp_path, monkeypatch):
    """`--extend --tracker tensorboard` had renamed the finished stage by then."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard is not installed: run `uv sync --extra tensorboard`"):
        train.run_pipeline(Recipe(), runs=tmp_path / "runs", tracker="tensorboard", extend=True)
    assert not (tmp_path / "runs").exists()
