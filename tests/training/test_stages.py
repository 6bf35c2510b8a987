"""Stages are skipped, continued or done again for the right reason, and a run folder has one owner."""

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from training.distributed import lock_is_held
from training.files import differences, digest
from training.stages import Line, RunLockedError, acquire_lock

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Config:
    """A stage's settings."""

    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


def count_builds(calls, name, result=None):
    def build(folder: Path):
        calls.append(name)
        (folder / "out.txt").write_text(name)
        return result

    return build


def run(folder, calls, config=None, fingerprint="f"):
    with Line(folder) as line:
        line.stage("first", count_builds(calls, "first", {"fingerprint": fingerprint}), config=config or Config())
        return line.stage("second", count_builds(calls, "second", {"n": 3}), inputs=["first"])


def test_unchanged_stages_are_skipped(tmp_path):
    calls = []
    first = run(tmp_path, calls)
    second = run(tmp_path, calls)
    assert calls == ["first", "second"]
    assert (first.skipped, second.skipped) == (False, True)
    assert second.result == {"n": 3} and second.digest == first.digest


def test_changed_setting_is_done_again_down_the_line_and_named(tmp_path, caplog):
    calls = []
    run(tmp_path, calls)
    (tmp_path / "first" / "stale.txt").write_text("old")
    with caplog.at_level(logging.INFO, logger="brine.line"):
        run(tmp_path, calls, Config(rate=0.3))
    assert calls == ["first", "second"] * 2
    assert "first: done again, because it changed: config.rate: 0.1 -> 0.3" in caplog.text
    assert "second: done again, because it changed: inputs.first" in caplog.text
    assert not (tmp_path / "first" / "stale.txt").exists()


def test_fingerprint_of_what_was_made_travels_down_the_line(tmp_path):
    """The second stage depends on what the first made, not only on how it was told to."""
    calls = []
    run(tmp_path, calls, fingerprint="a")
    (tmp_path / "first" / "done").unlink()
    run(tmp_path, calls, fingerprint="b")
    assert calls == ["first", "second"] * 2


@pytest.mark.parametrize("half_mark", [None, "", '{"key": {"con'], ids=["no-mark", "empty-mark", "half-mark"])
def test_cut_off_stage_goes_on_in_its_folder(tmp_path, half_mark):
    class Death(BaseException):
        pass

    def die(folder: Path):
        (folder / "half.txt").write_text("kept")
        raise Death

    with pytest.raises(Death), Line(tmp_path) as line:
        line.stage("first", die, config=Config())
    if half_mark is not None:
        (tmp_path / "first" / "done").write_text(half_mark)
    with Line(tmp_path) as line:
        stage = line.stage("first", lambda folder: {"found": (folder / "half.txt").read_text()}, config=Config())
    assert stage.result == {"found": "kept"}


def test_strange_folder_is_not_deleted(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.txt").write_text("mine")
    with Line(tmp_path) as line, pytest.raises(ValueError, match="was not made by this line; move it away"):
        line.stage("first", lambda folder: None)
    assert (tmp_path / "first" / "thesis.txt").exists()


def test_unknown_input_is_refused(tmp_path):
    with Line(tmp_path) as line, pytest.raises(ValueError, match="input 'corpus' is no earlier stage"):
        line.stage("first", lambda folder: None, inputs=["corpus"])


def test_second_process_is_told_who_holds_the_folder(tmp_path):
    code = (
        "import sys; from training.stages import Line, RunLockedError\n"
        "try:\n    Line(sys.argv[1]).__enter__()\n"
        "except RunLockedError as error:\n    print(error)"
    )
    with Line(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    assert f"is in use by process {os.getpid()} on" in done.stdout, done.stderr
    assert "wait for it, end it, or choose another run folder" in done.stdout
    # and free again afterwards
    with Line(tmp_path):
        pass


def test_same_process_cannot_lock_twice(tmp_path):
    with Line(tmp_path), pytest.raises(RunLockedError):
        Line(tmp_path).__enter__()


def test_lock_waits_for_the_workers_of_a_dead_run(tmp_path):
    """A killed run's forked workers hold its lock for a moment longer; that is no other run."""
    runner = os.fork()
    if runner == 0:
        acquire_lock(tmp_path)
        if os.fork() == 0:
            time.sleep(0.5)
        os._exit(0)
    os.waitpid(runner, 0)
    assert lock_is_held(tmp_path)
    with Line(tmp_path):
        assert lock_is_held(tmp_path)
    assert not lock_is_held(tmp_path)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made or written .*choose another"):
        Line(tmp_path / "file" / "run").__enter__()


def test_digest_names_content():
    assert digest(Config()) == digest({"sizes": [1, 2], "rate": 0.1})
    assert digest(Config()) != digest(Config(sizes=(2, 1)))
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": 4}) == [
        "a: gone, was 1",
        "b.c: 2 -> 3",
        "d: new, 4",
    ]
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        digest(object())
