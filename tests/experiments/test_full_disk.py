"""A trial whose disk is full where it writes most: at a checkpoint, and at the final weights."""

import pytest

from brine.common.files import read_json
from brine.experiments.experiment import Seeds
from brine.experiments.trials.ending import DISK_FULL, DONE
from tests.forked import Command

pytest.importorskip("brine.evals.seed_interval")
pytestmark = pytest.mark.slow

TRIAL = """
import resource, signal, sys
from brine.experiments.trials import trial
from brine.inference import load
from brine.training.checkpoint.async_checkpoint import AsyncCheckpointer
trial.check_surroundings = lambda plan: None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def from_here_on_full(function):
    def call(*args, **options):
        # no file may grow past 4 KiB: a write fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return function(*args, **options)
    return call
if sys.argv[3] == "checkpoint":
    AsyncCheckpointer._finish = from_here_on_full(AsyncCheckpointer._finish)
if sys.argv[3] == "weights":
    load.save_tensors = from_here_on_full(load.save_tensors)
sys.exit(trial.main(sys.argv[1:3]))
"""


@pytest.mark.parametrize("full_at", ["checkpoint", "weights"])
def test_a_full_disk_is_told_and_the_trial_continues_later(make_plan, full_at):
    plan = make_plan(seeds=Seeds((0,)))
    folder = plan.trial_folder("01-seed0")

    def run(full_at):
        process = Command(["-c", TRIAL, str(plan.folder), "01-seed0", full_at])
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    code, said = run(full_at)
    assert code == DISK_FULL, said[-3000:]
    assert "error: the disk is full (" in said and "Traceback" not in said
    assert not (folder / "trial.json").exists() and not (folder / "large_baseline" / "done").exists()
    code, said = run("nowhere")
    assert code == DONE, said[-3000:]
    assert read_json(folder / "trial.json")["outcome"] == "done"
