"""Stages of a run at a URL: looked up before they are built, uploaded afterwards, and a store that fails costs nothing
that was made."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from brine.common.content_store import ContentStore, file_lock, lock_path
from brine.common.remote.folder_store import THREADS, FolderStore
from brine.common.remote.object_store import ObjectStore, RemoteError, UnavailableError
from brine.common.remote.stage_transfer import pull, push
from brine.pipeline.run import run_pipeline
from brine.pipeline.stages.remote_stages import RemoteStages, check_remote
from brine.pipeline.stages.run_lock import on_main_rank
from brine.pipeline.stages.shared_stages import left_downloads
from brine.pipeline.stages.stage_store import StageStore
from brine.pipeline.stages.store_command import main as store_command
from brine.recipes.demo import demo
from brine.training.parallel.distributed import init_distributed
from tests.common.remote.fixtures import memory, s3, s3_process

__all__ = ["memory", "s3", "s3_process"]

WEIGHTS = "model/model.safetensors"


def run(
    runs: Path, url: str, calls: list | None = None, *, name: str = "a", weights: str = "w", fails=False, **options
):
    """A corpus and a model trained on it, made in a folder of runs; returns the digests of the two."""
    content, calls = ContentStore(runs / ".store"), [] if calls is None else calls
    remote = RemoteStages(url, content, runs / name)
    with StageStore(runs / name, content=content, remote=remote, **options) as stages:

        def build(stage: str, file: str, text: str):
            def make(folder: Path) -> dict:
                calls.append(stage)
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_text(text)
                if fails and stage == "small":
                    raise ValueError("the training fails")
                if fails:
                    # more than are sent at once
                    for number in range(3 * THREADS):
                        (folder / f"{number}.txt").write_text(str(number))
                return {"fingerprint": text}

            return make

        first = stages.stage("encoded", build("encoded", "out.txt", "text"), output_names=["out.txt"])
        second = stages.stage(
            "small", build("small", WEIGHTS, weights), inputs=["encoded"], protected=True, output_names=["model"]
        )
        remote.finish()
    return first.digest, second.digest


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_another_machine_downloads_every_stage_and_builds_none(kind, memory, tmp_path, caplog):
    url = memory if kind == "memory" else f"file://{tmp_path}/bucket"
    caplog.set_level(logging.INFO, "brine.pipeline")
    calls: list = []
    made = run(tmp_path / "here", url, calls)
    assert calls == ["encoded", "small"] and "a: its 2 stages are at" in caplog.text
    assert "small: uploaded to" in caplog.text and "downloaded" not in caplog.text
    caplog.clear()
    assert run(tmp_path / "there", url, calls, name="b") == made and calls == ["encoded", "small"]
    for stage in ("encoded", "small"):
        assert f"{stage}: downloaded from {url}" in caplog.messages and f"{stage}: uploaded" not in caplog.text
    link = tmp_path / "there/b/small"
    assert link.is_symlink() and (link / WEIGHTS).read_text() == "w"
    assert not (link / WEIGHTS).stat().st_mode & 0o222
    # both runs are there by name, and a run that is done asks for nothing
    for name in ("a", "b"):
        assert pull(name, tmp_path / "third", tmp_path / "third/.store", url).sent == (2 if name == "a" else 0)
    assert run(tmp_path / "there", url, calls, name="b") == made and calls == ["encoded", "small"]


def test_an_upload_that_fails_loses_nothing(memory, tmp_path, monkeypatch, caplog):
    """The warning names the command that sends the run, the run goes on, and its end tries again."""
    upload, down = ObjectStore.upload, threading.Event()

    def fail(self, path, name):
        if down.is_set():
            raise UnavailableError("the store is down")
        upload(self, path, name)

    monkeypatch.setattr(ObjectStore, "upload", fail)
    down.set()
    run(tmp_path / "here", memory)
    command = f"`brine store push {tmp_path}/here/a {memory} --store {tmp_path}/here/.store`"
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 3 and all(command in each and "the store is down" in each for each in warned)
    assert (tmp_path / "here/a/small" / WEIGHTS).read_text() == "w" and FolderStore(memory).names() == []
    down.clear()
    caplog.clear()
    calls: list = []
    run(tmp_path / "here", memory, calls)
    assert calls == [] and not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert pull("a", tmp_path / "there", tmp_path / "there/.store", memory).sent == 2


def test_a_store_that_is_gone_when_a_stage_is_looked_up_is_a_warning(memory, tmp_path, monkeypatch, caplog):
    run(tmp_path / "here", memory)
    read = ObjectStore.read

    def fail(self, name, **options):
        if "small" in name:
            raise UnavailableError("the store is down")
        return read(self, name, **options)

    monkeypatch.setattr(ObjectStore, "read", fail)
    calls: list = []
    run(tmp_path / "there", memory, calls)
    assert calls == ["small"] and "small: could not be looked up at" in caplog.text


def test_a_store_that_fails_in_the_middle_of_a_download_is_a_warning(memory, tmp_path, monkeypatch, caplog, capsys):
    """The stage is built here, and what came of it is listed and deleted by gc, unless somebody is at work on it."""
    caplog.set_level(logging.INFO, "brine.pipeline")
    made = run(tmp_path / "here", memory)
    download = ObjectStore.download

    def fail(self, name, path, **options):
        if FolderStore(memory).find(stage).files[WEIGHTS][1] in name:
            raise UnavailableError("the store is down")
        download(self, name, path, **options)

    (stage,) = FolderStore(memory).names("stages/small")
    calls: list = []
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "download", fail)
        assert run(tmp_path / "there", memory, calls) == made
    assert calls == ["small"] and (tmp_path / "there/a/small" / WEIGHTS).read_text() == "w"
    (warned,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "small:" in warned and "is built here (the store is down)" in warned
    store = tmp_path / "there/.store"
    folder = (tmp_path / "there/a/small").resolve()
    left = folder.with_name(f".{folder.name}.downloading")
    assert (left / "done").is_file()
    command = ["gc", "--runs", str(tmp_path / "there")]
    with file_lock(lock_path(folder), what="a test"):
        assert left_downloads(store) == [] and store_command([*command, "--delete"]) == 0 and left.exists()
    capsys.readouterr()
    assert store_command(command) == 0 and left.exists()
    shown = capsys.readouterr().out
    assert left.name[:20] in shown and "1 left download, " in shown and '"left_downloads": 1' in shown
    assert store_command([*command, "--delete"]) == 0 and not left.exists() and (folder / WEIGHTS).exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["deleted"] == 1
    assert left_downloads(store) == []


def test_one_stage_is_one_stage(memory, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO, "brine.pipeline")
    content = ContentStore(tmp_path / ".store")
    remote = RemoteStages(memory, content, tmp_path / "a")
    with StageStore(tmp_path / "a", content=content, remote=remote) as stages:
        stages.stage("encoded", lambda folder: {"fingerprint": "x"})
        remote.finish()
    assert "a: its 1 stage is at" in caplog.text
    (tmp_path / "a/encoded").unlink()
    assert store_command(["gc", "--runs", str(tmp_path)]) == 0
    assert "1 stage, " in capsys.readouterr().out


def test_a_damaged_stage_is_an_error_and_never_used(memory, tmp_path):
    run(tmp_path / "here", memory)
    store = FolderStore(memory)
    (name,) = store.names("stages/small")
    sha256 = store.find(name).files[WEIGHTS][1]
    store.objects.write(f"objects/{sha256[:2]}/{sha256}", b"W")
    calls: list = []
    with pytest.raises(RemoteError, match=rf"{sha256} \({WEIGHTS} of stages/small/.*\) is damaged"):
        run(tmp_path / "there", memory, calls)
    assert calls == [] and not (tmp_path / "there/a/small").exists()
    assert not list((tmp_path / "there/.store/small").glob("[0-9a-f]*/done"))
    store.objects.write(f"objects/{sha256[:2]}/{sha256}", b"w")
    run(tmp_path / "there", memory, calls)
    assert calls == [] and (tmp_path / "there/a/small" / WEIGHTS).read_text() == "w"


def test_what_was_begun_here_is_continued_and_rerun_trains(memory, tmp_path, caplog):
    with pytest.raises(ValueError, match="the training fails"):
        run(tmp_path / "there", memory, fails=True)
    run(tmp_path / "here", memory)
    calls: list = []
    run(tmp_path / "there", memory, calls)
    run(tmp_path / "there", memory, calls, rerun=["small"])
    assert calls == ["small", "small"] and (tmp_path / "there/a/small").resolve().name.endswith("-2")
    # a repeated training has a number, by which the URL knows that of the other machine
    assert "with another result" not in caplog.text
    run(tmp_path / "here", memory, calls, rerun=["small"], weights="other")
    assert (tmp_path / "here/a/small" / WEIGHTS).read_text() == "other" and "with another result" in caplog.text


def test_a_stage_that_has_another_result_there_is_not_taken_for_this_one(memory, tmp_path, caplog):
    """Two machines trained it at once: a list of the run would have led to weights that its evaluation is not of."""
    run(tmp_path / "there", f"{memory}/other", weights="theirs")
    run(tmp_path / "here", memory)
    with pytest.raises(RemoteError, match=r"has small/\w+ with another result, made elsewhere"):
        push(tmp_path / "there/a", tmp_path / "there/.store", memory)
    run(tmp_path / "there", memory, name="c")
    assert "with another result" in caplog.text and FolderStore(memory).find("runs/c") is None


def test_a_run_that_fails_ends_its_uploads(memory, tmp_path, monkeypatch, caplog):
    """An upload on its way must not hold up the end of the process."""
    upload, began, go = ObjectStore.upload, threading.Event(), threading.Event()

    def slow(self, path, name):
        began.set()
        assert go.wait(20)
        upload(self, path, name)

    monkeypatch.setattr(ObjectStore, "upload", slow)
    with pytest.raises(ValueError, match="the training fails"):
        run(tmp_path / "here", memory, fails=True)
    assert began.wait(20) and "may not be whole at" in caplog.text
    threads = [each for each in threading.enumerate() if each.name == "upload-stages"]
    go.set()
    for each in threads:
        each.join(20)
        assert not each.is_alive()
    assert FolderStore(memory).names() == []


@pytest.mark.slow
def test_a_bucket_that_throttles_and_cuts_and_one_that_is_not_there(s3, tmp_path):
    url, calls = f"{s3.url}/p", []
    check_remote(url)
    with pytest.raises(ValueError, match=r"there-is-no-such-bucket/b/stages/store\.json is not there"):
        check_remote("s3://there-is-no-such-bucket/b")
    s3.faults.throttle, s3.faults.cut_uploads = 2, 2
    made = run(tmp_path / "here", url, calls)
    s3.faults.throttle, s3.faults.cut_downloads = 2, 2
    assert run(tmp_path / "there", url, calls) == made and calls == ["encoded", "small"]
    assert (tmp_path / "there/a/small" / WEIGHTS).read_text() == "w"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://x", "nosuch://x"), ("stages", "remote_store = 'stages' must be a URL"),
        ("file:///proc/x", "file:///proc/x"), ("gs://x/y", r"pip install brine-lm\[remote\]"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_one_sentence_and_nothing_is_made(memory, tmp_path, url, said):
    with pytest.raises(ValueError, match=said) as error:
        run_pipeline(demo(), runs=tmp_path / "runs", remote_store=url)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_an_unreachable_store_is_found_out_before_anything_else(memory, tmp_path, monkeypatch):
    def refuse(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(ObjectStore, "_open", refuse)
    monkeypatch.setenv("BRINE_REMOTE_BACKOFF_S", "0.001")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"failed 3 times \(ConnectionError: no route to host\)"):
        run_pipeline(demo(), runs=tmp_path / "runs", remote_store=memory)
    assert not (tmp_path / "runs").exists() and time.monotonic() - start < 5
    monkeypatch.undo()
    check_remote(memory)


@pytest.mark.parametrize("field", ["runs", "store"])
def test_a_url_as_a_folder_is_refused(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{field} = s3://b/x must be a folder .* as --remote-store"):
        run_pipeline(demo(), **{field: Path("s3://b/x")})
    assert not list(tmp_path.iterdir())


COLLECTIVE_S = 3.0


def rank(number: int, port: int, runs: str, url: str) -> None:
    """One of two ranks, whose collectives end after COLLECTIVE_S; each file takes longer to come."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
    world, copy = init_distributed(device="cpu", timeout_s=COLLECTIVE_S), ObjectStore.download

    def slow(self, *arguments, **options):
        time.sleep(COLLECTIVE_S + 1)
        copy(self, *arguments, **options)

    ObjectStore.download = slow
    content = ContentStore(Path(runs) / ".store")
    remote = RemoteStages(url, content, Path(runs) / "a", world=world)
    remote.poll_s = 0.5
    with StageStore(Path(runs) / "a", world=world, content=content, remote=remote) as stages:

        def build(folder: Path) -> dict:
            (folder / f"by-rank-{number}").write_text("made")
            dist.barrier()
            return {"fingerprint": "of two ranks"}

        found = [
            stages.stage("large", build, config={"n": 1}, on_all_ranks=True, protected=True),
            stages.stage("other", build, config={"n": 2}, on_all_ranks=True, protected=True),
        ]
        on_main_rank(world, remote.finish, poll_s=remote.poll_s)
    told = [[each.result, each.skipped] for each in found]
    (Path(runs) / f"told-{number}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_wait_for_a_long_download_and_build_what_is_not_there(tmp_path):
    pytest.importorskip("fsspec", reason="the extra [remote]")
    url, content = f"file://{tmp_path}/bucket", ContentStore(tmp_path / "here/.store")
    remote = RemoteStages(url, content, tmp_path / "here/a")
    with StageStore(tmp_path / "here/a", content=content, remote=remote) as stages:
        stages.stage("large", lambda folder: {"fingerprint": "of one"}, config={"n": 1}, protected=True)
        remote.finish()
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, str(tmp_path / "there"), url)
    ranks = [mp.get_context("spawn").Process(target=rank, args=(number, *arguments)) for number in (0, 1)]
    try:
        for each in ranks:
            each.start()
        for each in ranks:
            each.join(90)
        assert [each.exitcode for each in ranks] == [0, 0]
    finally:
        for each in ranks:
            each.kill()
            each.join()
    told = [json.loads((tmp_path / "there" / f"told-{number}.json").read_text()) for number in (0, 1)]
    assert told[0] == told[1] == [[{"fingerprint": "of one"}, True], [{"fingerprint": "of two ranks"}, False]]
    assert {path.name for path in (tmp_path / "there/a/other").glob("by-*")} == {"by-rank-0", "by-rank-1"}
    assert not list((tmp_path / "there/a/large").glob("by-*"))
    assert pull("a", tmp_path / "third", tmp_path / "third/.store", url).sent == 2
