"""A run folder, a store, or a part of it that may not be used to is one sentence that names it."""

import errno
import json
from pathlib import Path

import pytest

from brine import train as command
from brine.common.content_store import ContentStore
from brine.data.cli.main import main as data
from brine.pipeline.run import run_pipeline
from brine.pipeline.stages.run_lock import refusals_named
from brine.pipeline.stages.stage_store import StageStore
from brine.pipeline.stages.store_command import main as store_command
from tests.data.media_files import line, manifest
from tests.pipeline.test_shared_stages import Settings, count, run
from tests.pipeline.test_sources import asked
from tests.read_only import read_only


def train(manifest: Path, runs: Path, *more: str) -> int:
    return command.main([
        "quick", "--name", "mine", "--corpus.manifest", str(manifest), "--runs", str(runs), "--arms", "baseline", *more
    ])  # fmt: skip


@pytest.fixture
def documents(tmp_path) -> Path:
    lines = [
        line(f"d{number}", f"page {number}", split="validation" if number == 1 else "train") for number in range(8)
    ]
    return manifest(tmp_path / "docs", lines)


def test_a_run_folder_that_cannot_be_made(tmp_path, documents, capsys):
    (tmp_path / "runs").mkdir()
    with read_only(tmp_path / "runs"):
        assert train(documents, tmp_path / "runs") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the run folder" in said and "runs/mine cannot be made or written" in said


def test_a_store_that_cannot_be_made_or_written(tmp_path, documents, capsys):
    (tmp_path / "disk/store").mkdir(parents=True)
    with read_only(tmp_path / "disk", tmp_path / "disk/store"):
        for store in ("new", "store"):
            assert train(documents, tmp_path / "runs", "--store", str(tmp_path / "disk" / store)) == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"error: the store {tmp_path}/disk/{store} cannot be made or written" in said and "--store" in said


@pytest.mark.parametrize("part", [".media", "encoded", ".runs"])
def test_a_part_of_the_store_of_somebody_else(tmp_path, documents, part):
    folder = tmp_path / "runs/.store" / part
    folder.mkdir(parents=True)
    with read_only(folder), pytest.raises(ValueError, match=f": {folder}/.* may not be used .*--store") as error:
        run_pipeline(asked(manifest=documents), runs=tmp_path / "runs")
    assert "\n" not in str(error.value)


def test_any_other_refusal_is_one_sentence():
    said = r"^mine: /disk/x may not be used \(Read-only file system\): change"
    with pytest.raises(ValueError, match=said), refusals_named("mine"):
        raise OSError(errno.EROFS, "Read-only file system", "/disk/x")
    with pytest.raises(OSError, match="broken"), refusals_named("mine"):
        raise OSError(errno.EIO, "broken")


def test_a_stored_stage_of_somebody_else(tmp_path):
    """Its lock file, and an unfinished folder."""
    calls: list = []
    run(tmp_path, "a", calls)
    (lock,) = (tmp_path / ".store/first").glob("*.lock")
    folder = (tmp_path / "a/first").resolve()
    lock.chmod(0o444)
    with read_only(tmp_path / ".store/first"), pytest.raises(ValueError, match=rf"first: {lock} may not be used"):
        run(tmp_path, "b", calls)
    lock.chmod(0o644)
    (folder / "done").unlink()
    with (
        read_only(folder),
        StageStore(tmp_path / "c", content=ContentStore(tmp_path / ".store")) as stages,
        pytest.raises(PermissionError, match=r"Permission denied: .*c/first/"),
    ):
        stages.stage("first", count(calls), config=Settings(), output_names=["out.txt"])
    assert calls.pop() == "first"
    assert calls == ["first", "second"]
    # what failed left no lock behind, and can be resumed
    lock.chmod(0o644)
    run(tmp_path, "c", calls)


def test_listing_works_and_gc_says_what_it_cannot_delete(tmp_path, capsys):
    run(tmp_path, "a", [])
    (tmp_path / "a/second").unlink()
    with read_only(tmp_path / ".store", tmp_path / ".store/first", tmp_path / ".store/second"):
        assert store_command(["list", "--runs", str(tmp_path)]) == 0
        assert store_command(["gc", "--runs", str(tmp_path)]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["unneeded"] == 1
        assert store_command(["gc", "--runs", str(tmp_path), "--delete"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "second" in said
    assert len(list((tmp_path / ".store/second").glob("*/done"))) == 1


def test_a_corpus_folder_that_cannot_be_made(tmp_path, documents, capsys):
    (tmp_path / "out").mkdir()
    with read_only(tmp_path / "out"):
        assert data(["build", str(documents), str(tmp_path / "out/corpus"), "--workers", "1"]) == 2
        assert data(["build", str(documents), str(tmp_path / "out"), "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "out/corpus cannot be made or written" in said and "Traceback" not in said
