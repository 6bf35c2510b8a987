"""A hundred kills of training and twenty of the whole pipeline, at random moments: the same weights come out."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from brine.training.checkpoint.checkpoint import list_checkpoints
from tests.paths import ROOT
from tests.pipeline.test_pipeline import arguments, finish, source, start
from tests.training.tiny_run import events, final_bytes, timeless

__all__ = ["source"]

KILLS_OF_TRAINING, KILLS_OF_A_PIPELINE = 100, 20
DEATHS_OF_A_RUN = 5
LONGEST_S = 20.0
"""Within which the pipeline is killed: it takes about as long."""


def test_training_killed_a_hundred_times(tmp_path):
    """In any of its 12 steps, or with a checkpoint's files written and not yet renamed; five times a run."""
    draw = random.Random(0)
    trainer = subprocess.Popen(
        [sys.executable, "-m", "tests.training.tiny_run"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def ran_to_the_end(folder: Path, hang_at: str) -> bool:
        """Train until the moment, if it comes, and kill there."""
        trainer.stdin.write(f"{folder}\t{hang_at}\n")
        trainer.stdin.flush()
        child = int(trainer.stdout.readline())
        said = trainer.stdout.readline()
        if said == "FINISHED\n":
            return True
        assert said == "HERE\n", said
        os.killpg(child, signal.SIGKILL)
        return False

    assert ran_to_the_end(tmp_path / "straight", "never")
    straight, kills, runs = tmp_path / "straight" / "small", 0, 0
    while kills < KILLS_OF_TRAINING:
        folder, before, runs = tmp_path / f"run-{runs}", kills, runs + 1
        for _ in range(DEATHS_OF_A_RUN):
            moments = [f"rename {step}" for step in (4, 8, 12)]
            # a death in a step waits until checkpoints are written, and what a killed write left is never finished
            if not list(folder.glob("small/checkpoints/.writing_*")):
                moments += [f"step {step}" for step in range(12)]
            if ran_to_the_end(folder, draw.choice(moments)):
                break
            kills += 1
        assert ran_to_the_end(folder, "never")
        assert final_bytes(folder / "small") == final_bytes(straight), f"run {runs} after {kills - before} kills"
        assert timeless(folder / "small") == timeless(straight)
        assert len(events(folder / "small", "resumed")) <= kills - before
        assert not list((folder / "small" / "checkpoints").glob(".*")) and list_checkpoints(
            folder / "small/checkpoints"
        )
    trainer.communicate(timeout=60)
    assert trainer.returncode == 0


def test_pipeline_killed_twenty_times(source, tmp_path):
    """After any time, whichever stage runs then; the process group dies as a whole."""
    draw, kills, runs = random.Random(1), 0, 0
    finish(start(arguments(tmp_path / "straight", source)))
    stages = ("small", "large_salt", "large_baseline")
    straight = {stage: load_file(tmp_path / "straight/demo" / stage / "model/model.safetensors") for stage in stages}
    while kills < KILLS_OF_A_PIPELINE:
        runs, process = runs + 1, None
        words = arguments(tmp_path / f"run-{runs}", source)
        for _ in range(DEATHS_OF_A_RUN):
            process = start(words)
            time.sleep(draw.uniform(0.0, LONGEST_S))
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        finish(start(words))
        for stage, whole in straight.items():
            mine = load_file(tmp_path / f"run-{runs}/demo" / stage / "model/model.safetensors")
            assert mine.keys() == whole.keys() and all((mine[name] == whole[name]).all() for name in whole), stage
