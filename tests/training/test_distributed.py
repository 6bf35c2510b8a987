"""Two ranks on gloo equal one in float64, leave together, and notice when rank 0 is gone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import events, final_tensors, timeless, tiny_config, tiny_train

from training.distributed import RankLostError, World, start_world, wait_for
from training.processes import Interrupted, Stop
from training.runtime import Runtime
from training.stages import Line

HERE = Path(__file__).parent


def rank_main(folder: str) -> None:
    """One rank: a stage that rank 0 builds, then training with a stop on rank 1 at step 5, then to the end."""
    torch.set_num_threads(1)
    world = start_world()
    base = Path(folder)
    config = tiny_config(validate_every=4)
    outcome = {}
    with Line(base, world=world) as line:
        built = line.stage("built", lambda path: {"by": world.rank}, config={"a": 1})

        def stage(path: Path) -> dict:
            stop = Stop()
            options = {
                "config": config,
                "runtime": Runtime(dtype="float64"),
                "world": world,
                "validate": lambda model, step, stopping: {"rank": world.rank},
            }
            try:
                tiny_train(
                    path, stop=stop, on_step=lambda n: n == 5 and world.rank == 1 and stop.request("SIGTERM"), **options
                )
            except Interrupted as stopped:
                outcome["stopped"] = str(stopped)
            tiny_train(path, stop=Stop(), **options)
            return {}

        line.stage("small", stage, inputs=["built"], everywhere=True)
        again = line.stage("small", lambda path: {"wrong": 1}, inputs=["built"], everywhere=True)
        outcome |= {"built_by": built.result["by"], "skipped": again.skipped}
    (base / f"rank{world.rank}.json").write_text(json.dumps(outcome))


def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        ranks.append(
            subprocess.Popen([sys.executable, __file__, tmp_path], env=environment, stderr=subprocess.PIPE, text=True)
        )
    tiny_train(tmp_path / "one", config=tiny_config(), runtime=Runtime(dtype="float64"))
    for process in ranks:
        err = process.communicate(timeout=90)[1]
        assert process.returncode == 0, err

    one, two = (
        {name: value for name, value in final_tensors(tmp_path / run).items() if name.startswith("model/")}
        for run in ("one", "small")
    )
    for name, value in one.items():
        assert value.dtype == torch.float64
        # Adam divides by the root of its second moment, which turns rounding of 1e-16 into 1e-13 or so
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-11)
    numbers = [line for line in timeless(tmp_path / "small") if "loss" in line]
    for mine, theirs in zip(timeless(tmp_path / "one"), numbers, strict=True):
        assert (mine["targets"], mine["flops"], mine["row"]) == (theirs["targets"], theirs["flops"], theirs["row"])
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-11)
    validations = [line for line in timeless(tmp_path / "small") if "validation" in line]
    assert [line["validation"]["rank"] for line in validations] == [0, 0, 0]
    # a signal to one rank is enough, and both leave after the same step
    for rank in range(2):
        outcome = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert outcome == {"stopped": outcome["stopped"], "built_by": 0, "skipped": True}
        assert "after step 6 of 12" in outcome["stopped"]
    assert len(events(tmp_path / "small", "interrupted")) == 1


def test_rows_that_ranks_cannot_share_are_refused():
    with pytest.raises(ValueError, match="rows_per_step = 4 cannot be shared by 3 ranks"):
        tiny_config().micro_rows_on(3)
    assert tiny_config(micro_rows=4).micro_rows_on(4) == 1


def test_waiting_rank_notices_that_rank_0_is_gone(tmp_path):
    with pytest.raises(RankLostError, match="rank 0 ended before the corpus was done"):
        wait_for(lambda: False, run_folder=tmp_path, what="the corpus", timeout_s=30)


def test_waiting_rank_has_a_time_out(tmp_path):
    with Line(tmp_path), pytest.raises(TimeoutError, match="waited 0 s for rank 0 to finish the corpus"):
        wait_for(lambda: False, run_folder=tmp_path, what="the corpus", timeout_s=0.1, poll_s=0.02)


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK, MASTER_ADDR, MASTER_PORT is not: start with torchrun"):
        start_world()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert start_world() == World()


if __name__ == "__main__":
    rank_main(sys.argv[1])
