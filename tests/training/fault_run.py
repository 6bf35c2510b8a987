"""Training runs in which something goes wrong on purpose; run as a script under torchrun, or by `ranks`.

torchrun --nproc-per-node 2 --max-restarts 1 fault_run.py killed FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.training.tiny_run import tiny_config, tiny_source, tiny_train


def killed(folder: Path, world) -> None:
    """Rank 1 is killed in step 8 of the first attempt."""

    def die(step: int) -> None:
        if step == 7 and world.rank == 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            # what is written in the background has arrived
            while not (folder / "checkpoints" / "step_00000004").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    tiny_train(folder, world=world, on_step=die)


def poisoned(folder: Path, world) -> None:
    """Rows 28 to 31 make the loss of one rank NaN."""
    tiny_train(folder, world=world, poisoned=(28, 29, 30, 31))


def hung(folder: Path, world) -> None:
    """Rank 1 never comes back from the rows of step 6; what the others say of it is written down."""
    from brine.training.parallel.distributed import RankFailedError

    config = tiny_config()
    opened = tiny_source(config, rank=world.rank, world_size=world.size)

    def slow(start: int):
        for number, batch in enumerate(opened.open(start)):
            if world.rank == 1 and number == 5:
                time.sleep(60)
            yield batch

    try:
        sequences = type(opened)(open=slow, num_sequences=opened.num_sequences)
        tiny_train(folder, config=config, world=world, sequences=sequences)
    except RankFailedError as error:
        (folder / f"rank_{world.rank}.txt").write_text(str(error))


def ranks(rank: int, port: int, folder: str, timeout_s: float) -> None:
    """One of two ranks that go through a run without fault, a NaN, and a hang."""
    from brine.training.parallel.distributed import init_distributed

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # equal bits need equal threads
    torch.set_num_threads(1)
    world = init_distributed(timeout_s=timeout_s)
    tiny_train(Path(folder) / "straight", world=world)
    poisoned(Path(folder) / "poisoned", world)
    hung(Path(folder) / "hung", world)
    # a rank that hangs is not waited for
    os._exit(0)


if __name__ == "__main__":
    from brine.training.parallel.distributed import init_distributed

    torch.set_num_threads(1)
    {"killed": killed}[sys.argv[1]](Path(sys.argv[2]), init_distributed())
