"""Stages are skipped, continued or done again for the right reason, and a run folder has one owner."""

import contextlib
import errno
import fcntl
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from brine.common.files import differences, digest
from brine.pipeline.stages.run_lock import RunLockedError, acquire_lock, is_run_locked
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.pipeline.stages.stage_store import StageStore
from tests.paths import ROOT


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
    with StageStore(folder) as line:
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
    with caplog.at_level(logging.INFO, logger="brine.pipeline"):
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

    with pytest.raises(Death), StageStore(tmp_path) as line:
        line.stage("first", die, config=Config())
    if half_mark is not None:
        (tmp_path / "first" / "done").write_text(half_mark)
    with StageStore(tmp_path) as line:
        stage = line.stage("first", lambda folder: {"found": (folder / "half.txt").read_text()}, config=Config())
    assert stage.result == {"found": "kept"}


def test_strange_folder_is_not_deleted(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.txt").write_text("mine")
    with StageStore(tmp_path) as line, pytest.raises(ValueError, match="this pipeline did not make it: move it away"):
        line.stage("first", lambda folder: None)
    assert (tmp_path / "first" / "thesis.txt").exists()


def test_unknown_input_is_refused(tmp_path):
    with StageStore(tmp_path) as line, pytest.raises(ValueError, match="input 'corpus' is not an earlier stage"):
        line.stage("first", lambda folder: None, inputs=["corpus"])


@pytest.mark.slow
def test_second_process_is_told_who_holds_the_folder(tmp_path):
    code = (
        "import sys\nfrom brine.pipeline.stages.run_lock import RunLockedError\n"
        "from brine.pipeline.stages.stage_store import StageStore\n"
        "try:\n    StageStore(sys.argv[1]).__enter__()\n"
        "except RunLockedError as error:\n    print(error)"
    )
    with StageStore(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    assert f"is in use by process {os.getpid()} on" in done.stdout, done.stderr
    assert "wait for it, end it, or choose another run folder" in done.stdout
    # and free again afterwards
    with StageStore(tmp_path):
        pass


def test_same_process_cannot_lock_twice(tmp_path):
    with StageStore(tmp_path), pytest.raises(RunLockedError):
        StageStore(tmp_path).__enter__()


def test_lock_waits_for_the_workers_of_a_dead_run(tmp_path):
    """A killed run's forked workers hold its lock for a moment longer; that is no other run."""
    runner = os.fork()
    if runner == 0:
        acquire_lock(tmp_path)
        if os.fork() == 0:
            time.sleep(0.5)
        os._exit(0)
    os.waitpid(runner, 0)
    assert is_run_locked(tmp_path)
    with StageStore(tmp_path):
        assert is_run_locked(tmp_path)
    assert not is_run_locked(tmp_path)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with StageStore(tmp_path):
        assert not is_run_locked(tmp_path)
    assert "has no locks" in caplog.text and "let no other process use it" in caplog.text


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made or written .*choose another"):
        StageStore(tmp_path / "file" / "run").__enter__()


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


def made(folder: Path, *, config=None, inputs=("first",), rerun=(), done=True, rate=0.1, calls=None):
    """A line of a cheap stage and a precious one that stands on it; `done=False`: the latter is cut off."""

    class Death(BaseException):
        pass

    def train(stage: Path):
        if calls is not None:
            calls.append("model")
        (stage / "model").mkdir(exist_ok=True)
        (stage / "checkpoints" / "step_00000004").mkdir(parents=True, exist_ok=True)
        (stage / "model" / "model.safetensors").write_bytes(b"weights of an hour")
        (stage / "checkpoints" / "step_00000004" / "shard.safetensors").write_bytes(b"a checkpoint")
        (stage / "metrics.jsonl").write_text('{"step": 4}\n')
        if not done:
            raise Death

    with contextlib.suppress(Death), StageStore(folder, rerun=rerun) as line:
        line.stage("first", count_builds(calls if calls is not None else [], "first"), config=Config(rate=rate))
        line.stage("model", train, config=config or Config(), inputs=inputs, protected=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize("done", [True, False], ids=["finished", "half-finished"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": Config(sizes=(1,))}, "config.sizes: [1, 2] -> [1]"),
        ({"rate": 0.3}, "first: config.rate: 0.1 -> 0.3"),
        ({"inputs": {"other": "digest"}}, "inputs.first: gone"),
    ],
    ids=["own-setting", "what-it-stands-on", "other-inputs"],
)
def test_what_took_long_is_refused_and_stays(tmp_path, done, change, told):
    """It was taken away, with a line in the log that said so; and what it was trained on before that."""
    made(tmp_path, done=done)
    before = contents(tmp_path)
    calls = []
    with pytest.raises(ProtectedStageError) as refused:
        made(tmp_path, calls=calls, **change)
    assert calls == [] and contents(tmp_path) == before
    for words in (told, "model is trained already", "--name NEW", "--extend", "--rerun model", "model to model.old-1"):
        assert words in str(refused.value)
    # the name that the folder would really get
    (tmp_path / "model.old-1").mkdir()
    (tmp_path / "model.old-2").write_text("a file of somebody's")
    with pytest.raises(ProtectedStageError, match=r"model to model\.old-3"):
        made(tmp_path, **change)


def test_a_fabricated_mark_of_any_kind_is_enough(tmp_path):
    """A model without a done mark, or a done mark without a model: somebody's work all the same."""
    for number, name in enumerate(("done", "metrics.jsonl", "checkpoints/step_00000001", "model/model.safetensors")):
        stage = tmp_path / str(number) / "model"
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text("{}")
        (stage / "stage.json").write_text('{"config": 1, "inputs": {}}')
        with pytest.raises(ProtectedStageError), StageStore(stage.parent) as line:
            line.stage("model", lambda folder: None, protected=True)
        assert (stage / name).read_text() == "{}"


def test_redo_renames_and_never_deletes(tmp_path, caplog):
    made(tmp_path)
    first = contents(tmp_path / "model")
    with caplog.at_level(logging.INFO, logger="brine.pipeline"):
        made(tmp_path, config=Config(rate=0.5), rerun=["model"])
        # what it stands on changes too
        made(tmp_path, config=Config(rate=0.5), rate=0.2, rerun=["model"])
        # unchanged, and asked for again
        made(tmp_path, config=Config(rate=0.5), rate=0.2, rerun=["model"])
    assert contents(tmp_path / "model.old-1") == first
    assert (tmp_path / "model.old-2" / "done").exists() and (tmp_path / "model.old-3" / "done").exists()
    assert f"its old folder is kept as {tmp_path / 'model.old-1'}" in caplog.text
    # and another command leaves them alone
    made(tmp_path, config=Config(rate=0.5), rate=0.2)
    assert contents(tmp_path / "model.old-1") == first


def test_a_redo_that_was_cut_off_goes_on(tmp_path):
    made(tmp_path)
    for _ in range(2):
        made(tmp_path, config=Config(rate=0.5), rerun=["model"], done=False)
    assert (tmp_path / "model.old-1").exists() and not (tmp_path / "model.old-2").exists()


@pytest.mark.parametrize("config", [None, Config(rate=0.5)], ids=["unchanged", "changed"])
def test_redo_begins_a_half_finished_stage_anew(tmp_path, config):
    """It went on where it was cut off, so that a half-trained stage could not be begun anew under its own name."""
    made(tmp_path, done=False)
    (tmp_path / "model" / "notes.txt").write_text("diverges?")
    first = contents(tmp_path / "model")
    made(tmp_path, config=config, rerun=["model"], done=False)
    assert contents(tmp_path / "model.old-1") == first and "notes.txt" not in contents(tmp_path / "model")
    # the same command goes on with what it began, and another one takes it as it is
    made(tmp_path, config=config, rerun=["model"], done=False)
    assert not (tmp_path / "model.old-2").exists()
    made(tmp_path, config=config, done=False)
    # which may be begun anew once more
    made(tmp_path, config=config, rerun=["model"])
    assert (tmp_path / "model.old-2").exists() and (tmp_path / "model" / "done").exists()
    assert contents(tmp_path / "model.old-1") == first


def test_a_stage_of_an_earlier_command_is_adopted_as_long_as_it_is_the_same(tmp_path):
    made(tmp_path)
    with StageStore(tmp_path) as line:
        line.stage("first", lambda folder: None, config=Config())
        assert not line.reuse("model", config=Config(rate=9), inputs=["first"])
        assert not line.reuse("model", config=Config(), inputs=["first", "other"])
        assert not line.reuse("absent", config=Config(), inputs=["first"]) and "model" not in line.done
        assert line.reuse("model", config=Config(), inputs=["first"]) and line.done["model"].skipped


def test_a_precious_stage_that_made_nothing_is_done_again(tmp_path):
    """Ended before its first checkpoint: nothing is lost."""
    for rate in (0.1, 0.2):
        with contextlib.suppress(ZeroDivisionError), StageStore(tmp_path) as line:
            line.stage("model", lambda folder: 1 / 0, config=Config(rate=rate), protected=True)
    assert '"rate": 0.2' in (tmp_path / "model" / "stage.json").read_text()


def test_documents_that_changed_stay_as_a_model_saw_them(tmp_path, caplog):
    """Told with each command; encoded again where no model stands on it, or where it is trained again."""

    def run(documents: str, *, rate: int = 1, weights: bool = True, rerun=()) -> tuple[bool, str]:
        def train(folder: Path) -> None:
            (folder / "model").mkdir()
            if weights:
                (folder / "model" / "model.safetensors").write_text("")

        def encode(folder: Path) -> dict:
            return {"fingerprint": documents}

        with StageStore(tmp_path, rerun=rerun) as line:
            inputs = {"manifest": documents}
            first = line.stage("encoded", encode, config={"rate": rate}, inputs=inputs, keep_if_inputs_change=True)
            line.stage("model", train, inputs=["encoded"], protected=True)
            return first.skipped, line.kept_stale.get("encoded", "")

    assert run("a") == (False, "")
    skipped, told = run("b")
    assert skipped and told.startswith("changed since (manifest), and kept as it was, because model was trained on it")
    assert told in caplog.text and "--rerun model" in told
    assert run("a") == (True, "")
    with pytest.raises(ProtectedStageError, match=r"encoded: config\.rate: 1 -> 2"):
        run("b", rate=2)
    assert run("b", rerun=["model"], weights=False) == (False, "")
    # what has no weights is no reason to stay, but it is not trained again unasked
    with pytest.raises(ProtectedStageError, match=r"inputs\.encoded"):
        run("c")
