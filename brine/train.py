"""`brine train`, and `train.py` in a checkout: parses a recipe, runs its pipeline, turns errors into messages.

`train.py demo --large.learning-rate 1e-3` overrides a field of a recipe; `train.py my_recipe.py` reads one from a file.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

import torch

from brine.common.closed_pipe import exit_on_closed_pipe
from brine.common.files import FULL_DISK
from brine.common.processes import TrainingInterrupted
from brine.pipeline.inputs.pinned import pin
from brine.pipeline.inputs.sources import check_paths
from brine.pipeline.run import run_pipeline
from brine.planner.estimate_run import estimate_run
from brine.planner.out_of_memory import explain_out_of_memory
from brine.recipes.launch import LaunchConfig, parse
from brine.training.parallel.distributed import RankFailedError, destroy_distributed


@exit_on_closed_pipe
def main(argv: list[str] | None = None, *, prog: str = "brine train") -> int:
    """Run the command line; returns the exit code: 0 done, 2 an error that the user can fix, 130 interrupted."""
    launch = parse(sys.argv[1:] if argv is None else argv, prog=prog)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    is_main = os.environ.get("RANK", "0") == "0"
    level = logging.DEBUG if launch.debug else logging.INFO if is_main else logging.WARNING
    logging.getLogger("brine").setLevel(level)
    try:
        _run(launch)
        return 0
    except (TrainingInterrupted, KeyboardInterrupt) as stopped:
        print(str(stopped) or "interrupted; the same command resumes", file=sys.stderr)
        return 130
    except (ValueError, RankFailedError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        message = _message(error)
        if launch.debug:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return 2
    finally:
        destroy_distributed()


def _run(launch: LaunchConfig) -> None:
    # before anything slow: the trial compilation alone takes a minute
    check_paths(launch.recipe.corpus)
    if launch.dry_run:
        print(estimate_run(pin(launch.recipe)[0]), flush=True)
        return
    run_pipeline(
        launch.recipe, runs=launch.runs, store=launch.store, tracker=launch.tracker, extend=launch.extend,
        rerun=launch.rerun, explain_out_of_memory=explain_out_of_memory, remote_store=launch.remote_store,
    )  # fmt: skip


def _message(error: Exception) -> str:
    """The message of an error that the user can fix; others are raised again."""
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        if error.errno not in FULL_DISK:
            raise error
        return f"the disk is full ({error}): free some space; the same command resumes from the last checkpoint"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return (
            f"out of memory ({error}): finished stages are kept and the same command resumes; reduce "
            "--small.micro-batch-size or --large.micro-batch-size (or --evals.batch-size)"
        )
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
