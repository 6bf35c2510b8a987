"""A run that owns nothing but an object store: documents, corpus, stages and checkpoints on S3, its machine lost in
mid-training, another one goes on; the weights are those of a run on local disks.

About two minutes on two idle cores.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brine.common.files import read_jsonl
from brine.common.remote.folder_store import FolderStore
from brine.data.cli.main import main as data
from brine.pipeline.stages.store_command import main as store
from tests.common.remote.fixtures import s3, s3_process
from tests.data.media_files import line, manifest, picture
from tests.paths import ROOT
from tests.training.tiny_run import final_bytes

__all__ = ["s3", "s3_process"]

STAGE, STEPS, EVERY = "large_baseline", 40, 5
MACHINE = f"""
import sys, time
from dataclasses import replace
from pathlib import Path
from brine.pipeline.run import run_pipeline
from brine.training.trainer import Trainer
from tests.pipeline.test_protected_stages import at, recipe
runs, documents, checkpoints, pause = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] or None, float(sys.argv[4])
apply = Trainer._apply
Trainer._apply = lambda self, step: (time.sleep(pause), apply(self, step))[1]
value = at(recipe(), documents)
large = replace(value.large, num_steps={STEPS}, checkpoint_every={EVERY})
run_pipeline(replace(value, large=large, runtime=replace(value.runtime, remote_checkpoints=checkpoints)), runs=runs)
"""


def machine(folder: Path, documents: str | Path, checkpoints: str = "", *, pause: float = 0.0) -> subprocess.Popen:
    """A training in a process with its own disk."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BRINE_CACHE": str(folder / "cache")}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE, str(folder / "runs"), str(documents), checkpoints, str(pause)], cwd=ROOT,
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> None:
    said = process.communicate(timeout=500)[0]
    assert process.returncode == 0, said[-3000:]


def upload_files(s3, folder: Path, url: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.fs.put_file(str(path), f"{url.removeprefix('s3://')}/{path.relative_to(folder).as_posix()}")


@pytest.mark.parametrize("given", ["documents", "corpus"])
def test_a_lost_machine_costs_no_bit(s3, tmp_path, capsys, given):
    lines = []
    for number in range(24):
        picture(tmp_path / f"docs/m/{number}.png", 32, 16, seed=number)
        split = ("validation", "test", *["train"] * 6)[number % 8]
        lines.append(line(f"d{number}", {"image": f"m/{number}.png"}, f"page {number} of a book", split=split))
    documents = manifest(tmp_path / "docs", lines)
    upload_files(s3, tmp_path / "docs", f"{s3.url}/docs")
    here, there = documents, f"{s3.url}/docs"
    if given == "corpus":
        options = ["--vocab-size", "267", "--workers", "1"]
        assert data(["build", str(documents), str(tmp_path / "corpus"), *options]) == 0
        # built from the documents at S3, on a disk that is lost as well
        built = tmp_path / "lost-corpus"
        assert data(["build", there, str(built), *options, "--out", f"{s3.url}/corpus"]) == 0
        shutil.rmtree(built)
        here, there = tmp_path / "corpus", f"{s3.url}/corpus"
        found = [json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith('{"')]
        assert found[0]["fingerprint"] == found[-1]["fingerprint"]
    local, first, second = (tmp_path / name for name in ("local", "first", "second"))
    finished(machine(local, here))

    lost = machine(first, there, f"{s3.url}/checkpoints", pause=0.3)
    try:
        deadline = time.monotonic() + 300
        while len(FolderStore(f"{s3.url}/checkpoints").names()) < 2 and lost.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lost.send_signal(signal.SIGKILL)
        lost.wait()
    finally:
        lost.kill()
    assert lost.returncode == -signal.SIGKILL, lost.stdout.read()[-3000:]
    assert not (first / "runs/run" / STAGE / "done").exists()
    assert store(["push", str(first / "runs/run"), f"{s3.url}/stages", "--runs", str(first / "runs")]) == 0
    shutil.rmtree(first)

    assert store(["pull", "run", f"{s3.url}/stages", "--runs", str(second / "runs")]) == 0
    encoded = (second / "runs/run/encoded").resolve()
    before = {path: path.stat().st_mtime_ns for path in encoded.rglob("*") if path.is_file()}
    finished(machine(second, there, f"{s3.url}/checkpoints"))
    # what came was taken, not made again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (second / "runs/run/encoded").resolve() == encoded
    events = {each["event"]: each for each in read_jsonl(second / "runs/run" / STAGE / "events.jsonl")}
    assert EVERY <= events["checkpoint_downloaded"]["step"] == events["resumed"]["step"] < STEPS
    assert final_bytes(second / "runs/run" / STAGE) == final_bytes(local / "runs/run" / STAGE)

    # and what was trained comes back to whoever wants it
    assert store(["push", str(second / "runs/run"), f"{s3.url}/stages", "--runs", str(second / "runs")]) == 0
    assert store(["pull", "run", f"{s3.url}/stages", "--runs", str(tmp_path / "third")]) == 0
    weights = [path for path in (tmp_path / "third/run" / STAGE / "model").iterdir() if path.suffix == ".safetensors"]
    assert weights and all(
        path.read_bytes() == (local / "runs/run" / STAGE / "model" / path.name).read_bytes() for path in weights
    )
