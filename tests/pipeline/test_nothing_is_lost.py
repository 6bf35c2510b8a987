"""Whatever a command does, what is finished in a store stays as it is; only the memory of media's hashes forgets."""

import os
from pathlib import Path

import pytest

from brine.common.content_store import ContentStore
from brine.data.corpus.media_digest import MOST_REMEMBERED, media_digest
from brine.data.formats.open import open_source
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.pipeline.stages.stage_store import StageStore
from brine.pipeline.stages.store_command import main as store_command
from tests.common.remote.fixtures import memory
from tests.data.media_files import line, manifest, picture

__all__ = ["memory"]


class Fails(Exception):
    pass


def run(runs: Path, name: str, *, rate=1, steps=4, revision=1, fails=False, extends=False, rerun=()) -> None:
    """A cheap stage and a trained one."""

    def encode(folder: Path) -> dict:
        (folder / "out.txt").write_text(f"{rate} {revision}")
        if fails:
            raise Fails
        return {"fingerprint": str(rate)}

    def train(folder: Path) -> None:
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model/model.safetensors").write_text(f"{steps} {rate}")

    def extend(old: Path, fresh: Path) -> None:
        (fresh / "metrics.jsonl").write_text("")

    with StageStore(runs / name, content=ContentStore(runs / ".store"), rerun=rerun) as stages:
        stages.stage("encoded", encode, config=rate, revision=revision, output_names=["out.txt"])
        stages.stage(
            "large", train, config=steps, inputs=["encoded"], protected=True, revision=revision,
            output_names=["model", "metrics.jsonl"], extend=extend if extends else None,
        )  # fmt: skip


def finished(store: Path) -> dict[Path, bytes]:
    """Every file of the store's finished stages."""
    folders = [mark.parent for mark in store.glob("*/*/done")]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def refused(*arguments, **options) -> None:
    with pytest.raises(ProtectedStageError):
        run(*arguments, **options)


def broken(*arguments, **options) -> None:
    with pytest.raises(Fails):
        run(*arguments, fails=True, **options)


def test_no_command_but_gc_takes_anything_from_a_store(tmp_path, memory):
    runs, store = tmp_path / "runs", tmp_path / "runs/.store"
    commands = {
        "first": lambda: run(runs, "a"),
        "again": lambda: run(runs, "a"),
        "another run": lambda: run(runs, "b"),
        "changed": lambda: run(runs, "b", rate=2, rerun=["large"]),
        "and back": lambda: run(runs, "b", rerun=["large"]),
        "refused": lambda: refused(runs, "a", steps=5),
        "trained again": lambda: run(runs, "a", rerun=["large"]),
        "extended": lambda: run(runs, "a", steps=6, extends=True),
        "another revision": lambda: run(runs, "c", revision=2),
        "fails": lambda: broken(runs, "d", rate=3),
        "resumes": lambda: run(runs, "d", rate=3),
        "fails under a trained name": lambda: refused(runs, "d", rate=4),
        "list": lambda: store_command(["list", "--runs", str(runs)]),
        "explain": lambda: store_command(["explain", str(runs / "a"), str(runs / "d")]),
        "gc shows": lambda: store_command(["gc", "--runs", str(runs)]),
        "gc deletes what nothing needs": lambda: store_command(["gc", "--runs", str(runs), "--delete"]),
        "push": lambda: store_command(["push", str(runs / "a"), memory, "--runs", str(runs)]),
        "pull": lambda: store_command(["pull", "a", memory, "--runs", str(runs)]),
    }
    before: dict[Path, bytes] = {}
    for name, call in commands.items():
        assert call() in (None, 0), name
        after = finished(store)
        assert before.items() <= after.items(), name
        before = after
    # every one of them has a name in some run
    linked = {link.resolve() for link in runs.glob("*/*") if link.is_symlink()}
    assert {mark.parent.resolve() for mark in store.glob("*/*/done")} <= linked and len(linked) >= 8
    assert {path.name for path in (runs / "a").glob("large*")} == {"large", "large.old-1", "large.old-2"}


def test_only_the_memory_of_hashes_forgets(tmp_path):
    """The sources used longest ago; who needs them hashes again, to the same digest."""
    memory_folder = tmp_path / ".store/.media"
    stage = ContentStore(tmp_path / ".store").get_or_build("encoded", {"n": 1}, lambda folder: None)
    picture(tmp_path / "docs/p.png", 8, 8)
    source = open_source(manifest(tmp_path / "docs", [line("a", {"image": "p.png"}, "words")]))

    def digest_of(words: str) -> str:
        return media_digest(source, memory_folder, manifest=words, max_file_mib=1)

    first = digest_of("0")
    (folder,) = (path for path in memory_folder.iterdir() if path.is_dir())
    os.utime(folder, (1, 1))
    for number in range(MOST_REMEMBERED):
        digest_of(str(number + 1))
    assert not folder.exists() and sum(path.is_dir() for path in memory_folder.iterdir()) == MOST_REMEMBERED
    assert digest_of("0") == first and (stage / "done").exists()
