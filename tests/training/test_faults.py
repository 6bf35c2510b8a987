"""What goes wrong in long runs, done on purpose: each ends as it should, and nothing hangs."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brine.training.checkpoint.checkpoint import CheckpointError, best_checkpoint, list_checkpoints
from tests.forked import Command, forks
from tests.paths import ROOT
from tests.training.fault_run import ranks
from tests.training.tiny_run import (
    SHARD,
    TinyModel,
    events,
    final_bytes,
    final_tensors,
    tiny_config,
    tiny_train,
    until_written,
)

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread():
    """Runs of this process are held against those of others, and equal bits need equal threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """A NaN on one of two ranks, and then a rank that hangs."""
    folder = tmp_path_factory.mktemp("two")
    context = forks()
    port = free_port()
    processes = [context.Process(target=ranks, args=(rank, port, str(folder), 15.0)) for rank in range(2)]
    for process in processes:
        process.start()
    processes[0].join(120)
    for process in processes:
        process.kill()
        process.join()
    return folder


def test_nan_on_one_rank_is_taken_back_on_all(two_ranks, tmp_path):
    (event,) = events(two_ranks / "poisoned", "rolled_back")
    assert (event["step"], event["to_step"], event["skipped_sequences"]) == (7, 4, [16, 32])
    assert "nan" in event["reason"]
    tiny_train(tmp_path, poisoned=(28, 29, 30, 31))
    one, two = final_tensors(tmp_path), final_tensors(two_ranks / "poisoned")
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4, name


def test_hung_rank_is_named(two_ranks):
    told = (two_ranks / "hung" / "rank_0.txt").read_text()
    assert re.search(r"rank 1 last seen \d+ s ago: waiting for sequences of step 6", told)
    assert re.search(r"rank 0 last seen \d+ s ago: in the all-reduce of step 6", told)
    assert "resumes from the last checkpoint" in told


def test_rank_that_is_killed_is_started_again(two_ranks, tmp_path):
    """torchrun starts all ranks again, and they end with the bits of a run that nothing happened to.

    They used to fail to find one another: the addresses of the first attempt were still in torchrun's store.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1",
               "--master-port", str(free_port()), HERE / "fault_run.py"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "killed", tmp_path / "killed"], env=environment, capture_output=True, text=True, timeout=120,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [event["step"] for event in events(tmp_path / "killed", "resumed")] == [4]
    assert final_bytes(tmp_path / "killed") == final_bytes(two_ranks / "straight")


FULL = """
import resource, signal, sys
from tests.forked import forks
from tests.paths import ROOT
from tests.training.tiny_run import tiny_train, until_written
from brine.training.checkpoint.checkpoint import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(step):
    if step == 5:
        until_written(sys.argv[1])
        # from here on no file may grow past 4 KiB: the write of the next checkpoint fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    tiny_train(sys.argv[1], on_step=fill)
except CheckpointError as error:
    print(error)
    sys.exit(2)
"""


def test_full_disk_costs_no_checkpoint(tmp_path):
    process = Command(["-c", FULL, str(tmp_path / "run")], errors_apart=True)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors[-3000:]
    assert "the checkpoint of step 8 could not be written" in said and "free some space" in said
    assert [one.step for one in list_checkpoints(tmp_path / "run" / "checkpoints")] == [0, 4]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    tiny_train(tmp_path / "run")
    tiny_train(tmp_path / "straight")
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "straight")


@pytest.mark.parametrize(("clean", "back_to"), [(0, 8), (1, 8), (2, 8), (3, 4), (6, 4), (7, 0), (20, 0)])
def test_roll_back_trusts_checkpoints_that_clean_steps_followed(tmp_path, clean, back_to):
    """The step that fails is number 10, counted from 0: two clean steps lie after the checkpoint of step 8."""
    config = tiny_config(rollback_margin_steps=clean, keep_checkpoints=1, num_steps=16)
    tiny_train(tmp_path, config=config, poisoned=(40, 41, 42, 43))
    (event,) = events(tmp_path, "rolled_back")
    assert (event["step"], event["to_step"]) == (10, back_to)


def test_poisoned_window_is_passed_over_whole(tmp_path):
    """All rows of three steps are bad: one roll-back for each, and the run ends with what it may learn from."""
    seen = []
    config = tiny_config(rollback_skip_steps=1, rollback_margin_steps=2)
    tiny_train(tmp_path, config=config, poisoned=tuple(range(20, 32)), seen=seen)
    assert [event["skipped_sequences"] for event in events(tmp_path, "rolled_back")] == [[20, 24], [24, 28], [28, 32]]
    assert seen[-1] == 12 * 4 + 12 - 1


def test_flipped_bit_is_not_rolled_back_to(tmp_path):
    """The checkpoint that a roll-back wants was altered on the disk: the one before it serves."""

    def flip(step: int) -> None:
        if step == 9:
            path = tmp_path / "checkpoints" / "step_00000008" / SHARD
            until_written(tmp_path)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))

    tiny_train(tmp_path, poisoned=(40, 41, 42, 43), on_step=flip)
    (event,) = events(tmp_path, "rolled_back")
    assert (event["step"], event["to_step"]) == (10, 4)
    (damaged,) = events(tmp_path, "checkpoint_damaged")
    assert "SHA-256 differs" in damaged["message"] and "step_00000008" in damaged["path"]


def test_nothing_good_to_go_back_to_is_said(tmp_path):
    def remove(step: int) -> None:
        if step == 2:
            until_written(tmp_path)
            (tmp_path / "checkpoints" / "step_00000000" / SHARD).unlink()

    with pytest.raises(CheckpointError, match="no undamaged checkpoint up to step 3"):
        tiny_train(tmp_path, poisoned=(12, 13, 14, 15), on_step=remove)


def test_exploding_gradient_is_taken_back_when_asked(tmp_path):
    config = tiny_config(grad_norm_spike_factor=20.0, spike_window=4, rollback_skip_steps=1, num_steps=10)
    losses = []

    def once(model):
        forward = model.forward

        def jump(token_ids, *rest, **named):
            hidden = forward(token_ids, *rest, **named)
            if model.training and len(losses) == 14:
                # the same value with a gradient a thousand times as long
                hidden = hidden * 1000 - (hidden * 999).detach()
            losses.append(None)
            return hidden

        model.forward = jump
        return model

    tiny_train(tmp_path, config=config, model=once(TinyModel()))
    (event,) = events(tmp_path, "rolled_back")
    assert event["step"] == 7 and "gradient norm spike" in event["reason"]


def test_best_checkpoint_is_kept(tmp_path):
    """Held-out loss is lowest at step 3, which no interval asks for."""
    scores = {3: 1.0, 6: 2.0, 9: 1.5, 12: 1.2}
    config = tiny_config(validate_every=3, keep_checkpoints=1)
    tiny_train(tmp_path, config=config, validate=lambda model, step, stop: {"loss": scores[step]})
    found = list_checkpoints(tmp_path / "checkpoints")
    assert [one.step for one in found] == [3, 12]
    assert best_checkpoint(found).step == 3


def test_sigterm_during_evaluation_saves_and_goes_on(tmp_path):
    """The signal comes while documents are measured: the measurement breaks off, and is done when the run goes on."""
    from brine.common.processes import TrainingInterrupted

    asked = []

    def validate(model, step, should_stop):
        if not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return None if should_stop() else {"loss": 1.0}

    config = tiny_config(validate_every=6)
    with pytest.raises(TrainingInterrupted, match="stopped after step 6"):
        tiny_train(tmp_path / "run", config=config, validate=validate)
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 6
    tiny_train(tmp_path / "run", config=config, validate=validate)
    asked.append("never")
    tiny_train(tmp_path / "straight", config=config, validate=validate)
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "straight")
