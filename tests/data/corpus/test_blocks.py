"""A corpus encoded by blocks elsewhere has the bytes of one encoded by one process, whatever dies meanwhile."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from brine.data.corpus import shards
from brine.data.corpus.blocks import build as block_build
from brine.data.corpus.blocks import ray_engine
from brine.data.corpus.blocks.encode_block import BlockError, block_path, encode_block, environment
from brine.data.corpus.blocks.engine import ATTEMPTS, LocalEngine
from brine.data.corpus.blocks.items import Block, read_items, write_blocks
from brine.data.corpus.file_records import StampedFile
from brine.data.corpus.store import build_corpus
from brine.data.document import Audio, Document, Image, Quarantined, Text, Video
from tests.data.media_files import line, manifest, picture

SHARDS = {"shard_documents": 7, "shard_mib": 0.005}


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of everything a build must repeat to the bit; of meta.json all but the time it took."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return found | {"meta.json": {**json.loads(found["meta.json"]), "build_s": None}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """34 items without audio (torch stays out, so servers start at once): some broken, some ids that come twice."""
    root, lines = tmp_path_factory.mktemp("material"), []
    for number in range(24):
        picture(root / f"{number}.png", 16 + number, 40, seed=number)
        name = f"{number % 22}"
        lines.append(line(name, {"image": f"{number}.png"}, f"picture {number}", kind=f"kind-{number % 3}"))
        lines[-1].pop("split", None)
        if number % 5 == 0:
            lines += [b"{broken", line(f"gone-{number}", {"image": "gone.png"}, "x")]
    path = manifest(root, lines)
    for picture_path in root.glob("*.png"):
        # older than a clock's tick, or a stamp would say that it may change again
        os.utime(picture_path, (1e9, 1e9))
    return path


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory, tokenizer) -> Path:
    """The corpus as one process builds it."""
    time.sleep(0.2)
    folder = tmp_path_factory.mktemp("alone") / "corpus"
    build_corpus(source, folder, tokenizer=tokenizer, num_workers=1, **SHARDS)
    return folder


class InlineEngine:
    """Encodes each block in this process, the latest first."""

    num_decoders = 2
    slots = 3

    def __init__(self, *, stop_after: int = 99):
        self.jobs, self.numbers, self.stop_after = [], [], stop_after

    def submit(self, job):
        self.jobs.append(job)

    def finished(self, timeout_s):
        if len(self.numbers) >= self.stop_after:
            raise KeyboardInterrupt
        job = self.jobs.pop()
        encode_block(job)
        self.numbers.append(job.number)
        return [job.number]

    def restart(self, number): ...

    def close(self): ...


class KillingEngine(LocalEngine):
    """Kills each block's first worker, once it has begun; every third block's second one too."""

    def __init__(self, num_workers, *, kills=lambda number: 1 + (number % 3 == 0)):
        super().__init__(num_workers)
        self.kills, self.killed = kills, []

    def finished(self, timeout_s):
        for number, running in list(self.running.items()):
            begun = list(Path(running.job.folder, "blocks").glob(f"{number:05d}.*.partial"))
            if len(begun) >= running.attempt and running.attempt <= self.kills(number):
                running.process.send_signal(signal.SIGKILL)
                running.process.wait()
                self.killed.append(number)
        return super().finished(0.02)


def test_items_survive_the_disk_as_they_are(tmp_path):
    """Documents that no parser would give, too: a lone surrogate is refused where it is encoded, not on the way."""
    items = [
        Document(
            "a\ud800", (Text("x\ud800"), Image("i.png", role="user"), Video("v.mp4", use_audio=False)), "k", 2, "test"
        ),
        Quarantined("q", "file", "why", 7),
        Document("b", (Audio("s.wav"), Text("t", loss_mask=False, role="user")), source="s"),
    ]
    files = [{"i.png": StampedFile((1, 2, 3, 4), (1, 2, 0, 4), False)}, {}, {}]
    paths = {number: tmp_path / f"{number}.jsonl" for number in range(2)}
    blocks = list(write_blocks(zip(items, files, strict=True), paths.get, first=0, block_items=2))
    assert [(block.number, block.num_items) for block in blocks] == [(0, 2), (1, 1)]
    assert [pair for number in range(2) for pair in read_items(paths[number])] == list(zip(items, files, strict=True))
    assert blocks[0].media["a\ud800"].parts == items[0].parts[1:]
    again = list(write_blocks(zip(items, [{}, {}, {}], strict=True), lambda _: None, first=0, block_items=2))
    assert [block.sha256 for block in again] == [block.sha256 for block in blocks] and isinstance(again[0], Block)


@pytest.mark.slow
def test_blocks_out_of_order_and_a_stop_after_each_give_the_same(source, alone, tmp_path, tokenizer, monkeypatch):
    """Stopped after each block, and continued each time; finished blocks are not encoded again."""
    whole = files_of(alone)
    assert len(list((alone / "shards").iterdir())) > 5 + 2
    encoded = []
    for _ in range(7):
        engine = InlineEngine(stop_after=1)
        try:
            build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=engine, **SHARDS)
        except KeyboardInterrupt:
            encoded += engine.numbers
            continue
        break
    encoded += engine.numbers
    assert sorted(encoded) == [0, 1, 2, 3, 4] and encoded != sorted(encoded)
    assert files_of(tmp_path / "c") == whole


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_local_engine_with_killed_workers_gives_the_same(source, alone, tmp_path, tokenizer, num_workers):
    engine = KillingEngine(num_workers) if num_workers > 1 else LocalEngine(1)
    corpus = build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=engine, **SHARDS)
    assert files_of(tmp_path / "c") == files_of(alone)
    assert corpus.num_documents == 22 and len(corpus.quarantine()) == 12
    if num_workers > 1:
        assert sorted(engine.killed) == [0, 0, 1, 2, 3, 3, 4]


@pytest.mark.slow
def test_engines_continue_what_another_began(source, alone, tmp_path, tokenizer, monkeypatch):
    """By blocks, then by one process; and the other way round, from the middle of a block."""
    whole = files_of(alone)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(source, tmp_path / "a", tokenizer=tokenizer, engine=InlineEngine(stop_after=4), **SHARDS)
    assert list((tmp_path / "a" / "blocks").glob("[0-9]" * 5))
    build_corpus(source, tmp_path / "a", tokenizer=tokenizer, num_workers=1, **SHARDS)
    assert files_of(tmp_path / "a") == whole
    add, seen = shards.ShardWriter.add, []

    def stopping(self, result):
        add(self, result)
        seen.append(1)
        if len(seen) == 13:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.ShardWriter, "add", stopping)
        build_corpus(source, tmp_path / "b", tokenizer=tokenizer, num_workers=1, **SHARDS)
    engine = InlineEngine()
    build_corpus(source, tmp_path / "b", tokenizer=tokenizer, engine=engine, **SHARDS)
    assert 0 not in engine.numbers and files_of(tmp_path / "b") == whole


@pytest.mark.slow
def test_kill_between_two_renames_of_a_merge(source, alone, tmp_path, tokenizer, monkeypatch):
    whole, rename, stop_at = files_of(alone), os.rename, [0]

    def stopping(source, target):
        if "/blocks/" in str(source) and "/shards/" in str(source):
            stop_at[0] -= 1
            if stop_at[0] == 0:
                raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("brine.data.corpus.blocks.finished.os.rename", stopping)
    for at in (2, 3, 2, 4):
        stop_at[0] = at
        with pytest.raises(KeyboardInterrupt):
            build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=InlineEngine(), **SHARDS)
    stop_at[0] = 0
    build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=InlineEngine(), **SHARDS)
    assert files_of(tmp_path / "c") == whole


@pytest.mark.slow
def test_kept_blocks_of_changed_files_or_damaged_bytes_are_encoded_again(source, tmp_path, tokenizer):
    root = tmp_path / "material"
    shutil.copytree(source.parent, root)
    for stop, change in ((4, "picture"), (4, "byte")):
        folder = tmp_path / change
        first = InlineEngine(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(root / source.name, folder, tokenizer=tokenizer, engine=first, **SHARDS)
        kept = sorted(int(path.name) for path in (folder / "blocks").glob("[0-9]" * 5))
        assert len(kept) >= 2
        if change == "picture":
            # of the last of 34 items
            picture(root / "23.png", 50, 41, seed=77)
        else:
            path = next(block_path(folder, kept[-1]).glob("shards/*/index/kind.npy"))
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        again = InlineEngine()
        build_corpus(root / source.name, folder, tokenizer=tokenizer, engine=again, **SHARDS)
        assert kept[-1] in again.numbers and kept[-2] not in again.numbers
        expected = tmp_path / f"{change}-alone"
        build_corpus(root / source.name, expected, tokenizer=tokenizer, num_workers=1, **SHARDS)
        left, right = files_of(folder), files_of(expected)
        for name in [name for name in left if not name.endswith("media.npy")]:
            assert left[name] == right[name], name


def test_a_block_that_kills_every_worker_ends_the_build(source, tmp_path, tokenizer):
    engine = KillingEngine(1, kills=lambda number: ATTEMPTS)
    with pytest.raises(BlockError, match=f"block 0 was begun {ATTEMPTS} times and its worker died each time"):
        build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=engine, **SHARDS)
    assert not engine.running and not (tmp_path / "c" / "meta.json").exists()


def test_workers_of_other_versions_or_without_the_disk_are_refused(source, tmp_path, tokenizer, monkeypatch):
    class Elsewhere(InlineEngine):
        change: ClassVar[dict] = {}

        def submit(self, job):
            super().submit(dataclasses.replace(job, **self.change))

    engine = Elsewhere()
    Elsewhere.change = {"environment": environment() | {"numpy": "1.0"}}
    with pytest.raises(BlockError, match=r"numpy .* instead of 1\.0 and could encode other bytes: install the same"):
        build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=engine, **SHARDS)
    Elsewhere.change = {"root": str(tmp_path / "nowhere")}
    with pytest.raises(BlockError, match=r"does not see .*nowhere: keep source and corpus on a disk that"):
        build_corpus(source, tmp_path / "d", tokenizer=tokenizer, engine=engine, **SHARDS)


@pytest.mark.slow
def test_a_worker_that_makes_no_progress_is_ended(source, alone, tmp_path, tokenizer, monkeypatch):
    """Stopped by SIGSTOP it would stay for ever."""

    class Stopping(LocalEngine):
        stopped = False

        def finished(self, timeout_s):
            for number, running in self.running.items():
                if not self.stopped and list(Path(running.job.folder, "blocks").glob(f"{number:05d}.progress")):
                    running.process.send_signal(signal.SIGSTOP)
                    self.stopped = True
            return super().finished(0.1)

    build = block_build.BlockBuild
    monkeypatch.setattr(block_build, "BlockBuild", lambda *a, **k: build(*a, **k, stall_s=-37.0))
    engine = Stopping(1)
    build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=engine, **SHARDS)
    assert engine.stopped and files_of(tmp_path / "c") == files_of(alone)


def test_nodes_that_come_a_little_later_are_waited_for(monkeypatch):
    """A command given right after `ray start` was told that no node had a CPU."""
    calls: list = []

    def nodes():
        calls.append(None)
        return [{"Alive": True, "Resources": {"CPU": 2.0} if len(calls) > 2 else {}}, {"Alive": False, "Resources": {}}]

    assert ray_engine._cpus_of_nodes(SimpleNamespace(nodes=nodes)) == [2.0] and len(calls) == 3
    monkeypatch.setattr(ray_engine, "NODES_TIMEOUT_S", 0.3)
    assert ray_engine._cpus_of_nodes(SimpleNamespace(nodes=list)) == []
