"""Stages in a content store: made once for all runs, linked, waited for, explained, and never deleted unasked."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from brine.common.config_fields import operational
from brine.common.content_store import ContentStore
from brine.pipeline.stages.shared_stages import delete, explain, list_stages, unneeded
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.pipeline.stages.stage_store import StageStore
from brine.pipeline.stages.store_command import main
from tests.paths import ROOT


@dataclass(frozen=True)
class Settings:
    """A stage's settings; where it reads from and with how many workers does not change what it makes."""

    rate: float = 0.1
    source: Path | None = field(default=None, metadata=operational(None).metadata)
    workers: int = operational(1)


def run(runs: Path, name: str, calls: list, first=Settings(), second=Settings(), *, revision=1, **options):
    with StageStore(runs / name, content=ContentStore(runs / ".store"), **options) as stages:

        def build(stage, names):
            def make(folder: Path):
                calls.append(stage)
                for each in names:
                    (folder / each).parent.mkdir(exist_ok=True)
                    (folder / each).write_text(stage)
                return {"fingerprint": stage}

            return make

        stages.stage("first", build("first", ["out.txt"]), config=first, revision=revision, output_names=["out.txt"])
        return stages.stage(
            "second", build("second", ["model/model.safetensors"]), config=second, inputs=["first"], protected=True,
            output_names=["model"],
        )  # fmt: skip


def test_a_second_run_links_and_builds_nothing(tmp_path):
    calls: list = []
    ours, theirs = run(tmp_path, "a", calls), run(tmp_path, "b", calls)
    assert calls == ["first", "second"] and (ours.skipped, theirs.skipped) == (False, True)
    assert ours.digest == theirs.digest
    for name in ("a", "b"):
        link = tmp_path / name / "second"
        assert (
            link.is_symlink() and not os.path.isabs(os.readlink(link)) and (link / "model/model.safetensors").exists()
        )
    assert (tmp_path / "a" / "first").resolve() == (tmp_path / "b" / "first").resolve()


def test_paths_and_workers_are_not_in_the_key_and_revisions_are(tmp_path):
    calls: list = []
    run(tmp_path, "a", calls, Settings(source=Path("/here"), workers=1))
    run(tmp_path, "b", calls, Settings(source=Path("/there"), workers=8))
    assert calls == ["first", "second"]
    run(tmp_path, "c", calls, revision=2)
    assert calls == ["first", "second", "first", "second"][: len(calls)] and calls.count("first") == 2


def test_a_changed_stage_is_a_new_one_and_the_old_one_stays(tmp_path):
    calls: list = []
    run(tmp_path, "a", calls)
    before = (tmp_path / "a" / "first").resolve()
    (tmp_path / "a" / "second").unlink()
    run(tmp_path, "a", calls, Settings(rate=0.3))
    assert (tmp_path / "a" / "first.old-1").resolve() == before
    assert (tmp_path / "a" / "first").resolve() != before and (before / "out.txt").read_text() == "first"
    # and a run with the former settings finds it again
    run(tmp_path, "b", calls)
    (tmp_path / "a" / "second").unlink()
    for rate in (0.1, 0.3, 0.1):
        run(tmp_path, "a", calls, Settings(rate=rate))
        (tmp_path / "a" / "second").unlink()
    # each former stage has one name, however often a run goes to and fro
    assert sorted(path.name for path in (tmp_path / "a").glob("first*")) == ["first", "first.old-1", "first.old-2"]
    assert calls.count("first") == 2 and (tmp_path / "b" / "first").resolve() == before


def test_a_trained_stage_is_refused_and_rerun_keeps_the_old_one(tmp_path):
    calls: list = []
    run(tmp_path, "a", calls)
    stored = (tmp_path / "a" / "second").resolve()
    with pytest.raises(ProtectedStageError, match="second is trained already"):
        run(tmp_path, "a", calls, second=Settings(rate=0.3))
    assert (tmp_path / "a" / "second").resolve() == stored and calls == ["first", "second"]
    run(tmp_path, "a", calls, rerun=["second"])
    assert calls == ["first", "second", "second"]
    assert (tmp_path / "a" / "second.old-1").resolve() == stored
    again = (tmp_path / "a" / "second").resolve()
    assert again.name == f"{stored.name}-2" and again.parent == stored.parent and (again / "done").exists()
    assert (stored / "model/model.safetensors").exists()
    run(tmp_path, "a", calls)
    assert calls == ["first", "second", "second"]


def test_a_run_that_was_begun_without_a_store_stays_as_it_is(tmp_path):
    calls: list = []
    with StageStore(tmp_path / "a") as stages:
        stages.stage("first", lambda folder: {"fingerprint": "first"}, config=Settings())
    run(tmp_path, "a", calls)
    assert calls == ["second"] and not (tmp_path / "a" / "first").is_symlink()


def test_finished_files_are_read_only_and_the_store_survives_the_run(tmp_path):
    run(tmp_path, "a", [])
    assert not (tmp_path / "a" / "first" / "out.txt").stat().st_mode & 0o222
    for path in sorted((tmp_path / "a").iterdir()):
        path.unlink()
    calls: list = []
    run(tmp_path, "b", calls)
    assert calls == []


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_link_whose_folder_is_gone_is_named_with_the_remedy(tmp_path, stage):
    """It was made again without a word, weights that take a week too."""
    calls: list = []
    run(tmp_path, "a", calls)
    (tmp_path / ".store" / stage).rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=rf"a/{stage} links to .*, which is gone: put it back .*cp -rL"):
        run(tmp_path, "a", calls)
    (tmp_path / "gone").rename(tmp_path / ".store" / stage)
    run(tmp_path, "a", calls)
    assert calls == ["first", "second"]
    # a run that was moved to another depth, which `cp -rL` would have copied whole
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").rename(tmp_path / "deep" / "a")
    with pytest.raises(ValueError, match="which is gone"):
        run(tmp_path / "deep", "a", calls)


@pytest.mark.slow
def test_another_run_waits_and_resumes_what_a_killed_one_left(tmp_path, caplog):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom brine.common.content_store import ContentStore\n"
        "from brine.pipeline.stages.stage_store import StageStore\n"
        "from tests.pipeline.test_shared_stages import Settings\n"
        "def build(folder):\n    (folder / 'half.txt').write_text('kept')\n"
        "    print('half', flush=True)\n    time.sleep(60)\n"
        "runs = Path(sys.argv[1])\n"
        "with StageStore(runs / 'a', content=ContentStore(runs / '.store')) as stages:\n"
        "    stages.stage('first', build, config=Settings())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert child.stdout.readline() == "half\n"
    found = []

    def second():
        with StageStore(tmp_path / "b", content=ContentStore(tmp_path / ".store")) as stages:
            build = lambda folder: {"found": (folder / "half.txt").read_text()}  # noqa: E731
            found.append(stages.stage("first", build, config=Settings()))

    with caplog.at_level(logging.INFO, logger="brine"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(1.0)
        assert not found and f"process {child.pid} on" in caplog.text
        child.send_signal(signal.SIGKILL)
        child.wait()
        waiting.join(timeout=20)
    assert found[0].result == {"found": "kept"} and "was begun by another run, resumes" in caplog.text
    # the killed run, resumed, finds it made
    with StageStore(tmp_path / "a", content=ContentStore(tmp_path / ".store")) as stages:
        assert stages.stage("first", pytest.fail, config=Settings()).result == {"found": "kept"}


def test_explain_names_the_first_cause(tmp_path, capsys):
    calls: list = []
    run(tmp_path, "a", calls)
    run(tmp_path, "b", calls, Settings(rate=0.3))
    found = {stage.stage: stage for stage in explain(tmp_path / "a", tmp_path / "b")}
    assert found["first"].changes == ("config.rate: 0.1 -> 0.3",)
    assert found["second"].state == "same" or found["second"].caused_by == ("first",)
    assert main(["explain", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "config.rate: 0.1 -> 0.3" in capsys.readouterr().out
    run(tmp_path, "c", calls, revision=2)
    assert "revision: 1 -> 2" in explain(tmp_path / "a", tmp_path / "c")[0].changes
    assert main(["explain", str(tmp_path / "a"), str(tmp_path / "nowhere")]) == 2
    assert "has no stages" in capsys.readouterr().err


def test_gc_shows_and_deletes_only_what_nothing_needs(tmp_path, capsys):
    calls: list = []
    run(tmp_path, "a", calls)
    run(tmp_path, "b", calls, Settings(rate=0.3), Settings(rate=0.5))
    store = tmp_path / ".store"
    assert unneeded(store, tmp_path) == []
    # b's model is linked, what it was made from is not any more
    (tmp_path / "b" / "first").unlink()
    assert unneeded(store, tmp_path) == []
    gone = (tmp_path / "b" / "second").resolve()
    (tmp_path / "b" / "second").unlink()
    found = {stage.folder for stage in unneeded(store, tmp_path)}
    assert gone in {path.resolve() for path in found} and len(found) == 2
    assert main(["gc", "--runs", str(tmp_path)]) == 0 and gone.exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["deleted"] == 0
    assert main(["gc", "--runs", str(tmp_path), "--delete"]) == 0 and not gone.exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["deleted"] == 2
    assert (tmp_path / "a" / "second" / "model/model.safetensors").exists()


def test_gc_leaves_what_is_held_or_was_just_begun(tmp_path):
    content = ContentStore(tmp_path / ".store")
    with content.locked("first", {"config": {}, "inputs": {}}) as folder:
        folder.mkdir()
        (folder / "stage.json").write_text("{}")
        assert [stage.finished for stage in list_stages(content.root, tmp_path)] == [False]
        # what is in a content store for another reason is not the pipeline's
        (folder / "outputs.json").write_text("[]")
        assert unneeded(content.root, tmp_path, now=time.time() + 1e6) == []
    assert unneeded(content.root, tmp_path) == []
    (stage,) = unneeded(content.root, tmp_path, now=time.time() + 1e6)
    assert delete(content.root, tmp_path, [stage]) == [stage] and not folder.exists()


BUILDER = """
import shutil, sys, time
from pathlib import Path
from brine.common.content_store import ContentStore
from brine.pipeline.stages.stage_store import StageStore
runs, ends, built = Path(sys.argv[1]), time.monotonic() + 4, 0
def build(folder):
    global built
    (folder / "half.txt").write_text("half")
    time.sleep(0.02)
    assert (folder / "half.txt").read_text() == "half", "deleted while it was built"
    (folder / "out.txt").write_text("made")
    built += 1
number = 0
while time.monotonic() < ends:
    run, config, number = runs / f"run-{number % 3}", number % 4, number + 1
    with StageStore(run, content=ContentStore(runs / ".store")) as stages:
        for name, inputs in (("first", []), ("second", ["first"])):
            made = stages.stage(name, build, config=config, inputs=inputs, output_names=["half.txt", "out.txt"])
            time.sleep(0.01)
            for _ in range(2):
                assert (made.folder / "out.txt").read_text() == "made", "deleted although a run links to it"
        # what the last stage was made from stays, also without a link to it
        stored = (run / "first").resolve()
        (run / "first").unlink()
        time.sleep(0.02)
        assert (stored / "out.txt").exists(), "deleted although a linked stage was made from it"
        (run / "second").unlink()
print(built, number)
"""


@pytest.mark.slow
def test_gc_beside_a_process_that_builds(tmp_path):
    """Nothing that is being built, is linked, or was made into what is linked, is deleted; all else is, and made again
    when it is asked for."""
    store, gone = tmp_path / ".store", 0
    with subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as child:  # fmt: skip
        try:
            while child.poll() is None:
                # without the day of grace only locks and links protect
                gone += len(delete(store, tmp_path, unneeded(store, tmp_path, now=time.time() + 1e9)))
            said = child.stdout.read()
        finally:
            child.kill()
    assert child.returncode == 0, said
    built, turns = map(int, said.split())
    assert gone > 5 and built > 8 and turns > 10, (gone, built, turns)


def test_the_list_survives_what_vanishes_meanwhile(tmp_path, monkeypatch):
    """A checkpoint's temporary folder, or one that another `gc` deletes, is gone between two looks."""
    run(tmp_path, "a", [])
    (tmp_path / "b/large/checkpoints/.step_1").mkdir(parents=True)
    real = os.walk

    def walk(top, **options):
        for parent, folders, files in real(top, **options):
            if parent.endswith(".step_1"):
                os.rmdir(parent)
            yield parent, folders, files

    monkeypatch.setattr(os, "walk", walk)
    assert len(list_stages(tmp_path / ".store", tmp_path)) == 2


def test_gc_leaves_what_was_linked_meanwhile(tmp_path):
    calls: list = []
    run(tmp_path, "a", calls)
    for name in ("first", "second"):
        (tmp_path / "a" / name).unlink()
    stages = unneeded(tmp_path / ".store", tmp_path)
    assert len(stages) == 2
    run(tmp_path, "b", calls)
    assert delete(tmp_path / ".store", tmp_path, stages) == [] and calls == ["first", "second"]
    assert (tmp_path / "b" / "second" / "model/model.safetensors").exists()


def test_gc_knows_runs_elsewhere(tmp_path):
    """A store may serve run folders that do not lie beside it; a disk that is not mounted is no deleted run."""
    calls: list = []
    store, away = tmp_path / "runs" / ".store", tmp_path / "disk" / "work"
    (tmp_path / "runs").mkdir()
    with StageStore(away / "a", content=ContentStore(store)) as stages:
        stages.stage("first", count(calls), config=Settings(), output_names=["out.txt"])
    assert unneeded(store, tmp_path / "runs") == []
    assert list_stages(store, tmp_path / "runs")[0].runs == (str(away / "a" / "first"),)
    away.rename(tmp_path / "unmounted")
    with pytest.raises(ValueError, match="cannot be reached from here: mount its disk"):
        unneeded(store, tmp_path / "runs")
    # a run that was deleted is needed no more
    away.mkdir()
    assert len(unneeded(store, tmp_path / "runs")) == 1


def test_gc_keeps_what_somebody_put_into_a_stage(tmp_path, capsys):
    calls: list = []
    run(tmp_path, "a", calls)
    (tmp_path / "a" / "second" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "second").unlink()
    assert main(["gc", "--runs", str(tmp_path), "--delete"]) == 0
    said = capsys.readouterr().out
    assert "files that no stage made (notes.txt)" in said and json.loads(said.splitlines()[-1])["deleted"] == 0
    assert [path.read_text() for path in tmp_path.rglob("notes.txt")] == ["mine"]


def count(calls: list, name: str = "out.txt"):
    def build(folder: Path):
        calls.append(folder.name)
        (folder / name).write_text("made")
        return {"fingerprint": "made"}

    return build
