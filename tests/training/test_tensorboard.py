"""What TensorBoard shows after a resume or a roll-back is what `metrics.jsonl` says: no step that was taken back.

TensorBoard itself is an extra. Where it is absent its writer and its reader's rule are stood in for by a few lines: a
file that begins with a step makes void what files before it hold of that step and later ones.
"""

import json
import sys
import types

import pytest
from tiny_run import tiny_config, tiny_train

from training.metrics import Record, TensorBoardSink, flat_numbers, read_lines


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """The points that a reader shows, {tag: [(step, value)]}; all kept in a list of (step, tag, value) and purges."""
    written = []

    class Writer:
        def __init__(self, *, log_dir, purge_step=None):
            if purge_step is not None:
                written.append((purge_step, None, None))

        def add_scalar(self, tag, value, *, global_step):
            written.append((global_step, tag, value))

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))

    def read(folder):
        points = []
        for step, tag, value in written:
            if tag is None:
                points = [point for point in points if point[0] < step]
            else:
                points.append((step, tag, value))
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
        (line["step"], tag, value) for line in read_lines(folder / "metrics.jsonl") for tag, value in flat_numbers(line)
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
    config = tiny_config(log_every=1, clean_steps=3, skip_steps=2)
    tiny_train(tmp_path, config=config, poisoned=(33,), sinks=(TensorBoardSink(tmp_path / "tensorboard"),))
    assert any('"rolled_back"' in line for line in (tmp_path / "events.jsonl").read_text().splitlines())
    found = reader(tmp_path / "tensorboard")
    assert found == recorded(tmp_path) and [step for step, _ in found["loss"]] == list(range(1, 13))


@pytest.mark.parametrize("again", [True, False], ids=["validation-stays", "validation-is-done-again"])
def test_what_stays_of_the_step_itself_stays(reader, tmp_path, again):
    record = Record(tmp_path, sinks=(TensorBoardSink(tmp_path / "tensorboard"),))
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
