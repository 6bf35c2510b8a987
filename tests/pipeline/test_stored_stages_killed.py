"""Death at any change of the disk while a stored stage is begun, changed, trained again or extended: the same command
ends where an undisturbed one does, and nothing that was made is lost."""

import os
from pathlib import Path

import pytest

from brine.common.content_store import ContentStore
from brine.pipeline.stages.stage_store import StageStore

CHANGES = ((os, "replace"), (os, "symlink"), (os, "rename"), (os, "chmod"), (Path, "mkdir"), (Path, "rename"),
           (Path, "unlink"))  # fmt: skip
"""What changes the disk, beside the content of files."""


class Death(BaseException):
    pass


def command(runs: Path, *, steps=4, rate=1, rerun=(), extends=False):
    """A cheap stage, and a precious one that continues from what is in its folder."""

    def encode(folder: Path):
        (folder / "out.txt").write_text(str(rate))
        return {"fingerprint": str(rate)}

    def train(folder: Path):
        (folder / "checkpoints").mkdir(exist_ok=True)
        for step in range(1, steps + 1):
            if not (path := folder / "checkpoints" / f"step_{step}").exists():
                path.write_text(str(step))
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "model.safetensors").write_text(f"{steps} {rate}")
        return {"fingerprint": f"{steps} {rate}"}

    def extend(old: Path, fresh: Path):
        (fresh / "checkpoints").mkdir()
        for path in (old / "checkpoints").iterdir():
            os.link(path, fresh / "checkpoints" / path.name)

    with StageStore(runs / "run", content=ContentStore(runs / ".store"), rerun=rerun) as stages:
        stages.stage("encoded", encode, config=rate, output_names=["out.txt"])
        stages.stage(
            "large", train, config=steps, inputs=["encoded"], protected=True, output_names=["checkpoints", "model"],
            extend=extend if extends else None,
        )  # fmt: skip


def outcome(runs: Path) -> dict[str, bytes]:
    """{file of the run through its links: content} of the stages and their former ones, without marks and keys."""
    found = {}
    for folder in sorted((runs / "run").iterdir()):
        if folder.is_dir():
            for path in sorted(folder.resolve().rglob("*")):
                if path.is_file() and path.name not in ("done", "stage.json", "outputs.json"):
                    found[f"{folder.name}/{path.relative_to(folder.resolve())}"] = path.read_bytes()
    return found


SECOND = {
    "begun": None,
    "trained-again": {"rerun": ["large"]},
    "changed": {"rate": 2, "rerun": ["large"]},
    "extended": {"steps": 6, "extends": True},
}


@pytest.mark.parametrize("options", SECOND.values(), ids=SECOND)
def test_death_at_any_point(tmp_path, monkeypatch, options):
    # what a disk has not written yet is not what this is about
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    runs = tmp_path / "straight"
    command(runs)
    first = outcome(runs)
    if options is not None:
        command(runs, **options)
    straight, point, died = outcome(runs), 0, True
    while died:
        runs, died, calls = tmp_path / str(point), False, 0
        if options is not None:
            command(runs)
        with monkeypatch.context() as patch:
            for owner, name in CHANGES:
                real = getattr(owner, name)

                def dies(*args, real=real, point=point, **more):
                    nonlocal calls
                    calls += 1
                    if calls - 1 == point:
                        raise Death
                    return real(*args, **more)

                patch.setattr(owner, name, dies)
            try:
                command(runs, **(options or {}))
            except Death:
                died = True
        if options is not None:
            # what was made stays under one of its names
            kept = set(outcome(runs).values()) | {
                path.read_bytes() for path in (runs / ".store").rglob("*") if path.is_file()
            }
            assert set(first.values()) <= kept, point
        command(runs, **(options or {}))
        again = outcome(runs)
        assert {name: again.get(name) for name in straight if ".old-" not in name} == {
            name: value for name, value in straight.items() if ".old-" not in name
        }, point
        former = {value for name, value in straight.items() if ".old-" in name}
        assert former <= {value for name, value in again.items() if ".old-" in name}, point
        assert not [path for path in (runs / "run").iterdir() if path.is_symlink() and not path.exists()]
        point += 1
    assert point > 6


def test_a_finished_stage_is_not_written_to_when_it_is_extended(tmp_path):
    command(tmp_path)
    old = (tmp_path / "run" / "large").resolve()
    command(tmp_path, steps=6, extends=True)
    new = (tmp_path / "run" / "large").resolve()
    assert old != new and (tmp_path / "run" / "large.old-1").resolve() == old
    assert os.path.samefile(old / "checkpoints" / "step_1", new / "checkpoints" / "step_1")
    assert all(not path.stat().st_mode & 0o222 for folder in (old, new) for path in folder.rglob("*") if path.is_file())
    assert (old / "model" / "model.safetensors").read_text() == "4 1"


def test_what_a_former_revision_trained_is_kept_and_told(tmp_path, caplog):
    def run(revision: int, calls: list, **options):
        with StageStore(tmp_path / "run", content=ContentStore(tmp_path / ".store"), **options) as stages:

            def build(folder: Path):
                calls.append(revision)
                (folder / "model").mkdir(exist_ok=True)
                (folder / "model" / "model.safetensors").write_text("weights")

            stages.stage("encoded", lambda folder: calls.append(-revision), revision=revision)
            stages.stage("large", build, inputs=["encoded"], protected=True, revision=revision)
            return set(stages.kept_stale)

    calls: list = []
    assert run(1, calls) == set() and run(1, calls) == set() and calls == [-1, 1]
    assert run(2, calls) == {"encoded", "large"} and calls == [-1, 1]
    assert "changed since (revision), and kept as it was, because large was trained on it" in caplog.text
    assert "large: is trained already by a former revision of the code" in caplog.text
    assert run(2, calls, rerun=["large"]) == set() and calls == [-1, 1, -2, 2]
