"""Two ranks of a run wait for a stage that another run is making, longer than a collective may take, and go on."""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from brine.common.content_store import ContentStore
from brine.pipeline.stages.run_lock import on_main_rank
from brine.pipeline.stages.stage_store import StageStore
from brine.training.parallel.distributed import init_distributed

pytestmark = pytest.mark.slow

COLLECTIVE_S = 3.0
HELD_S = 5.0


def build(folder: Path) -> dict:
    (folder / f"by-rank-{os.environ['RANK']}").write_text("made")
    if dist.is_initialized():
        dist.barrier()
    return {"by": "two ranks", "files": len(list(folder.glob("by-rank-*")))}


def slow() -> str:
    time.sleep(COLLECTIVE_S + 1)
    return f"of rank {os.environ['RANK']}"


def fail() -> None:
    raise ValueError("one sentence")


def rank(number: int, port: int, runs: str) -> None:
    """One of the two: the stage, and how long it took."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
    world = init_distributed(device="cpu", timeout_s=COLLECTIVE_S)
    content, start = ContentStore(Path(runs) / ".store"), time.monotonic()
    with StageStore(Path(runs) / "ours", world=world, content=content) as stages:
        world.barrier()
        # as the hashing of many media, which rank 0 does alone
        assert on_main_rank(world, slow, poll_s=0.5) == "of rank 0"
        with pytest.raises(ValueError, match="one sentence"):
            on_main_rank(world, fail, poll_s=0.5)
        (Path(runs) / f"ready-{number}").write_text("")
        found = stages.stage("large", build, config={"n": 1}, on_all_ranks=True, protected=True)
        told = {"result": found.result, "skipped": found.skipped, "seconds": time.monotonic() - start}
        (Path(runs) / f"told-{number}.json").write_text(json.dumps(told))
        world.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("finishes", [False, True], ids=["leaves-it", "finishes-it"])
def test_ranks_wait_for_another_run_and_go_on(tmp_path, finishes):
    """The other run finishes the stage, which is linked; or gives it up, and the ranks make it together."""
    with contextlib.ExitStack() as stack:
        free = stack.enter_context(socket.socket())
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def wait_and(act):
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"ready-{number}").exists() for number in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(HELD_S)
        assert not list(tmp_path.glob("told-*")) and all(each.is_alive() for each in ranks)
        return act()

    class GivenUp(Exception):
        pass

    def other(folder: Path) -> dict:
        def act():
            if not finishes:
                raise GivenUp
            return {"by": "the other run"}

        return wait_and(act)

    ranks = [mp.get_context("spawn").Process(target=rank, args=(number, port, str(tmp_path))) for number in (0, 1)]
    try:
        content = ContentStore(tmp_path / ".store")
        with StageStore(tmp_path / "theirs", content=content) as stages, contextlib.suppress(GivenUp):

            def begin(folder: Path) -> dict:
                for each in ranks:
                    each.start()
                return other(folder)

            stages.stage("large", begin, config={"n": 1}, protected=True)
        for each in ranks:
            each.join(60)
        assert [each.exitcode for each in ranks] == [0, 0]
    finally:
        for each in ranks:
            if each.pid is not None:
                each.kill()
                each.join()
    told = [json.loads((tmp_path / f"told-{number}.json").read_text()) for number in (0, 1)]
    assert told[0]["result"] == told[1]["result"] and min(each["seconds"] for each in told) > HELD_S
    if finishes:
        assert told[0]["result"] == {"by": "the other run"} and all(each["skipped"] for each in told)
    else:
        assert told[0]["result"] == {"by": "two ranks", "files": 2} and not any(each["skipped"] for each in told)
    assert (tmp_path / "ours/large").resolve() == (tmp_path / "theirs/large").resolve()
