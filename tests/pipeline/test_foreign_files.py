"""Files that a stage did not make are kept when it is done again, and nothing of its own is left behind."""

import contextlib
import shutil
from pathlib import Path

import pytest

from brine.pipeline.stages.stage_store import StageStore
from tests.pipeline.test_stages import Config, contents


def own_stage(folder: Path, *, rate=0.1, dies=False, output_names=("results.json", "media"), leaves=("results.json",)):
    """A cheap stage of a folder of files, which may be cut off."""

    def build(stage: Path):
        (stage / "media" / "deep").mkdir(parents=True, exist_ok=True)
        for name in (*leaves, "media/1_0.png", "media/deep/2_0.png"):
            (stage / name).write_text(str(rate))
        if dies:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), StageStore(folder) as line:
        line.stage("evaluate", build, config=Config(rate=rate), output_names=output_names)


THEIRS = {
    "beside": "mynotes.txt",
    "hidden": ".notes",
    "folder": "my/own/notes.txt",
    "among-its-files": "media/mine.png",
    "deep-among-them": "media/deep/mine.png",
    "its-own-name-elsewhere": "my/results.json",
    "spaces-and-lines": "my notes\n.txt",
}


@pytest.mark.parametrize("name", THEIRS.values(), ids=list(THEIRS))
def test_what_the_line_did_not_make_is_kept(tmp_path, caplog, name):
    """Notes in evaluate/ were deleted with it when it was done again."""
    own_stage(tmp_path)
    for number in (1, 2):
        theirs = tmp_path / "evaluate" / name
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.write_text(f"mine {number}")
        own_stage(tmp_path, rate=number)
        kept = tmp_path / f"evaluate.old-{number}"
        # and nothing else, since what the stage made can be made again
        assert contents(kept) == {name: f"mine {number}".encode()}
        assert str(kept) in caplog.text
    assert sorted(contents(tmp_path / "evaluate")) == [
        "done", "media/1_0.png", "media/deep/2_0.png", "outputs.json", "results.json", "stage.json"
    ]  # fmt: skip


def test_the_list_of_files_is_read_under_its_former_name(tmp_path):
    own_stage(tmp_path)
    (tmp_path / "evaluate" / "outputs.json").rename(tmp_path / "evaluate" / "made.json")
    (tmp_path / "evaluate" / "media" / "mine.png").write_text("mine")
    own_stage(tmp_path, rate=2)
    assert contents(tmp_path / "evaluate.old-1") == {"media/mine.png": b"mine"}
    assert not (tmp_path / "evaluate" / "made.json").exists()


def test_what_the_line_made_leaves_nothing_behind(tmp_path):
    for rate in (1, 2, 3):
        own_stage(tmp_path, rate=rate, dies=rate == 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluate", "lock"]


@pytest.mark.parametrize("name", ["mynotes.txt", "my/notes.txt", "results.json.bak"])
def test_notes_beside_a_stage_that_was_cut_off_are_kept(tmp_path, name):
    own_stage(tmp_path, dies=True)
    (tmp_path / "evaluate" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "evaluate" / name).write_text("mine")
    # going on does not make them the line's
    own_stage(tmp_path)
    own_stage(tmp_path, rate=2)
    assert contents(tmp_path / "evaluate.old-1") == {name: b"mine"}


def test_a_link_to_another_disk_is_cut_and_not_followed(tmp_path):
    own_stage(tmp_path / "run")
    shutil.move(tmp_path / "run" / "evaluate" / "media", tmp_path / "elsewhere")
    (tmp_path / "run" / "evaluate" / "media").symlink_to(tmp_path / "elsewhere")
    own_stage(tmp_path / "run", rate=2)
    assert (tmp_path / "elsewhere" / "1_0.png").read_text() == "0.1"


@pytest.mark.parametrize("point", range(8))
def test_death_while_a_folder_is_cleared_loses_nothing(tmp_path, monkeypatch, point):
    own_stage(tmp_path)
    (tmp_path / "evaluate" / "media" / "mine.png").write_text("mine")
    calls, unlink = iter(range(100)), Path.unlink

    def dies(path, **options):
        if next(calls) == point:
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", dies)
    own_stage(tmp_path, rate=2)
    monkeypatch.setattr(Path, "unlink", unlink)
    own_stage(tmp_path, rate=3)
    kept = list(tmp_path.rglob("mine.png"))
    assert [path.read_text() for path in kept] == ["mine"] and ".old-" in str(kept[0])
    assert not list(tmp_path.glob(".old_*"))


@pytest.mark.parametrize("name", [".old_photos", ".old_evaluate", ".old_"])
def test_a_hidden_folder_of_somebodys_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.png").write_text("mine")
    own_stage(tmp_path)
    assert (tmp_path / name / "mine.png").read_text() == "mine"
