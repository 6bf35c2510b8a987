"""Two ranks on gloo equal one in float64, leave together, and notice when rank 0 is gone."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from brine.common.processes import StopSignal, TrainingInterrupted
from brine.pipeline.stages.run_lock import wait_for
from brine.pipeline.stages.stage_store import StageStore
from brine.training.gradients import FlatGradients, ShardedGradients
from brine.training.parallel.distributed import RankFailedError, World, init_distributed
from brine.training.parallel.parallelize import init_parallel_groups
from brine.training.runtime import Runtime
from tests.forked import run_ranks
from tests.training.tiny_run import events, final_tensors, timeless, tiny_config, tiny_train

HERE = Path(__file__).parent


def rank_main(rank: int, port: int, folder: str) -> None:
    """One rank: a stage that rank 0 builds, then training with a stop on rank 1 at step 5, then to the end."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = init_distributed()
    base = Path(folder)
    config = tiny_config(validate_every=4)
    outcome = {}
    with StageStore(base, world=world) as line:
        built = line.stage("built", lambda path: {"by": world.rank}, config={"a": 1})

        def stage(path: Path) -> dict:
            stop = StopSignal()
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
            except TrainingInterrupted as stopped:
                outcome["stopped"] = str(stopped)
            tiny_train(path, stop=StopSignal(), **options)
            return {}

        line.stage("small", stage, inputs=["built"], on_all_ranks=True)
        again = line.stage("small", lambda path: {"wrong": 1}, inputs=["built"], on_all_ranks=True)
        outcome |= {"built_by": built.result["by"], "skipped": again.skipped}
    (base / f"rank{world.rank}.json").write_text(json.dumps(outcome))


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tiny_train(tmp_path / "one", config=tiny_config(), runtime=Runtime(dtype="float64"))
    run_ranks(rank_main, port, str(tmp_path), count=2, timeout_s=90)

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
        assert (mine["targets"], mine["flops"], mine["sequence_index"]) == (
            theirs["targets"],
            theirs["flops"],
            theirs["sequence_index"],
        )
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
    with pytest.raises(ValueError, match="global_batch_size = 4 cannot be shared by 3 ranks"):
        tiny_config().micro_batch_size_on(3)
    assert tiny_config(micro_batch_size=4).micro_batch_size_on(4) == 1


def test_waiting_rank_notices_that_rank_0_is_gone(tmp_path):
    with pytest.raises(RankFailedError, match="rank 0 ended before the corpus was done"):
        wait_for(lambda: False, run_folder=tmp_path, what="the corpus", timeout_s=30)


def test_waiting_rank_has_a_time_out(tmp_path):
    with StageStore(tmp_path), pytest.raises(TimeoutError, match="waited 0 s for rank 0 to finish the corpus"):
        wait_for(lambda: False, run_folder=tmp_path, what="the corpus", timeout_s=0.1, poll_s=0.02)


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK, MASTER_ADDR, MASTER_PORT is not: start with torchrun"):
        init_distributed()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert init_distributed() == World()


@pytest.fixture
def alone_of_four():
    """Rank 1 of a world of four whose others answer nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield World(rank=1, size=4, local_size=4)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("context_parallel", "dp_shard", "groups"),
    [(1, 1, []), (4, 1, [4]), (2, 1, [2]), (1, 4, [1, 4]), (2, 2, [2, 2, 2])],
)
def test_ranks_meet_in_each_group_where_it_is_made(context_parallel, dp_shard, groups, alone_of_four, monkeypatch):
    """NCCL connects a group in its first collective, for which all must be there; a ring's ranks may not be."""
    met = []

    def all_reduce(tensor, group=None):
        met.append((dist.get_world_size(group), tensor.numel()))
        tensor *= dist.get_world_size(group)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    init_parallel_groups(alone_of_four, context_parallel=context_parallel, dp_shard=dp_shard)
    assert met == [(size, 1) for size in groups]


def test_a_group_that_not_all_came_to_is_told(alone_of_four, monkeypatch):
    """The fake group's sum is this rank's own one."""
    with pytest.raises(RankFailedError, match="1 of 4 ranks of a group met"):
        init_parallel_groups(alone_of_four, context_parallel=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_on_the_device_scales_to_the_same_bits(dtype):
    """Clipped by a tensor that nobody has looked at: each gradient is what a number of the host would make it."""
    parameter = torch.nn.Parameter(torch.zeros(999, dtype=dtype))
    given = torch.randn(999, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = []
    for host in (False, True):
        gradients = FlatGradients({"weight": parameter})
        parameter.grad.copy_(given)
        factor = 1.0 / gradients.norm()
        gradients.scale(float(factor) if host else factor)
        found.append(parameter.grad.clone())
    assert torch.equal(*found)


def test_a_rank_without_gradients_sums_on_the_device_of_the_others():
    parameter = torch.nn.Parameter(torch.zeros(3, device="meta"))
    asked = []
    world = SimpleNamespace(size=1, dp_shard=1, sum=asked.extend)
    assert ShardedGradients(torch.nn.Module(), {"weight": parameter}).norm(world).dtype == torch.float64
    assert asked[0].device.type == "meta"
