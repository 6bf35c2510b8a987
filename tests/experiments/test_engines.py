"""The local pool and submitit run processes that end as they should: whole groups, with time to save, and requeued."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brine.experiments.engines import local
from brine.experiments.engines.engine import open_engine
from brine.experiments.engines.local import LocalPool
from brine.experiments.engines.process import TrialJob, run_job
from brine.experiments.engines.slurm import SlurmEngine
from brine.experiments.trials.ending import Ending, last_line
from tests.paths import ROOT

COUNTER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    (folder / "saved").write_text("yes")
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, save)
(folder / "begun").open("a").write(f"{os.getpid()} {sys.executable} {os.getcwd()}\\n")
if (folder / "saved").exists():
    print("continued", flush=True)
    sys.exit(0)
time.sleep(60)
"""


def job(tmp_path, code, *arguments, name="one", **options):
    words = (sys.executable, "-c", code, *map(str, arguments))
    environment = {"PYTHONPATH": str(ROOT)}
    return TrialJob(name, words, environment, tmp_path / "experiment" / "logs" / f"{name}.log", **options)


def wait_for(engine, name, timeout_s=60):
    end = time.monotonic() + timeout_s
    while (ending := engine.poll(name)) is None:
        assert time.monotonic() < end, "it never ended"
        time.sleep(0.02)
    return ending


def wait_until(there, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("pass", "done", ""),
        ("import sys; print('error: no documents', file=sys.stderr); sys.exit(2)", "refused", "no documents"),
        ("1 / 0", "crashed", "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "killed by SIGKILL"),
        ("import sys; sys.exit(130)", "interrupted", ""),
        ("import sys; sys.exit(73)", "disk full", ""),
    ],
)
def test_the_pool_says_how_a_process_ended(tmp_path, code, kind, text):
    pool = LocalPool(1)
    assert pool.submit(job(tmp_path, code)).isdigit()
    ending = wait_for(pool, "one")
    assert ending.kind == kind and text in ending.text()


def test_what_a_process_left_behind_is_killed_with_it(tmp_path):
    """A data worker that outlives its trainer would hold the lock of the run folder."""
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    pool = LocalPool(1)
    pool.submit(job(tmp_path, code))
    assert wait_for(pool, "one").kind == "done"
    child = int((tmp_path / "experiment/logs/one.log").read_text())
    wait_until(lambda: not is_alive(child), 10)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_cancelled_process_saves_and_one_that_does_not_is_killed(tmp_path):
    pool = LocalPool(2)
    pool.submit(job(tmp_path, COUNTER, tmp_path, grace_s=30))
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
    pool.submit(job(tmp_path, stubborn, name="two", grace_s=0.3))
    wait_until((tmp_path / "begun").exists)
    wait_until(lambda: last_line(tmp_path / "experiment/logs/two.log") == "here")
    for name in ("one", "two"):
        assert pool.poll(name) is None
        pool.cancel(name)
    assert wait_for(pool, "two", 10) == Ending(-9, "here")
    assert wait_for(pool, "one", 10) == Ending(130, "saved") and (tmp_path / "saved").exists()


def test_trials_that_would_not_fit_into_memory_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "free_memory_gib", lambda: 10.0)
    pool, big = LocalPool(3), job(tmp_path, "import time; time.sleep(60)", memory_gib=6.0)
    # the first always may try
    assert pool.has_room(job(tmp_path, "", memory_gib=99.0))
    pool.submit(big)
    assert not pool.has_room(big) and pool.has_room(job(tmp_path, "", memory_gib=2.0))
    pool.close()
    assert pool.has_room(big)


def test_a_worker_refuses_another_interpreter_and_a_relative_log(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiment").mkdir()
    other = job(tmp_path, "pass")
    other = TrialJob("one", ("/usr/bin/other-python", "-c", ""), {}, other.log)
    assert run_job(other) == 2
    assert "not under /usr/bin/other-python" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    relative = TrialJob("one", (sys.executable, "-c", "pass"), {}, Path("experiment/logs/x.log"))
    assert run_job(relative) == 2 and "not an absolute path" in capsys.readouterr().err
    missing = job(tmp_path / "nowhere", "pass")
    assert run_job(missing) == 2 and "shared folder" in capsys.readouterr().err
    stopped = job(tmp_path, "pass")
    stopped.stop_file.parent.mkdir()
    stopped.stop_file.touch()
    assert run_job(stopped) == 130


def test_missing_libraries_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install brine-lm\[slurm\]"):
        open_engine("slurm", folder=tmp_path, workers=None, options={})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install brine-lm\[ray\]"):
        open_engine("ray", folder=tmp_path, workers=None, options={})


def test_slurm_needs_slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no SLURM here"):
        SlurmEngine(tmp_path)


SHIM = """#!/bin/sh
echo "$0 $@" >> {record}
case "$(basename "$0")" in
  sbatch) cp "$1" {folder}/submitted.sh; echo "Submitted batch job 4711" ;;
  sacct) printf 'JobID|State|NodeList\\n4711|RUNNING|node1\\n' ;;
esac
"""


@pytest.fixture
def shims(tmp_path, monkeypatch):
    """sbatch, srun, sacct, scancel and scontrol that only take note."""
    folder, record = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        path = folder / name
        path.write_text(SHIM.format(record=record, folder=tmp_path))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return record


GOLDEN = """#!/bin/bash

# Parameters
#SBATCH --account=mine
#SBATCH --cpus-per-task=4
#SBATCH --error=FOLDER/slurm/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=one
#SBATCH --mem=7GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --signal=USR2@120
#SBATCH --time=720
#SBATCH --wckey=submitit

# setup
export PYTHONPATH=CODE

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/slurm/%j_%t_log.out --error FOLDER/slurm/%j_%t_log.err PYTHON -u -m \
submitit.core._submit FOLDER/slurm
"""


def test_what_sbatch_gets(tmp_path, shims):
    pytest.importorskip("submitit")
    folder = tmp_path / "experiment"
    options = {"partition": "gpu", "hours": 12.0, "more": {"account": "mine"}}
    engine = open_engine("slurm", folder=folder, workers=None, options=options)
    one = job(tmp_path, "pass", cores=4, gpus=2, memory_gib=6.2)
    assert engine.submit(one) == "4711" and engine.max_jobs == 256
    expected = GOLDEN.replace("FOLDER", str(folder)).replace("PYTHON -u", f"{shlex.quote(sys.executable)} -u")
    assert (tmp_path / "submitted.sh").read_text() == expected.replace("CODE", str(ROOT))
    assert engine.poll("one") is None
    # a later command takes the job up, and a cancelled one that runs is asked to save
    later = open_engine("slurm", folder=folder, workers=None, options=options)
    assert later.attach(one, "4711") and later.poll("one") is None and not later.attach(one, "local-1")
    later.cancel("one")
    assert one.stop_file.exists()
    calls = shims.read_text()
    assert "sbatch" in calls and "scancel" not in calls


@pytest.mark.parametrize(
    ("state", "is_taken_out"), [("4711|PENDING|", True), ("4711|RUNNING|node1", False), ("", False)]
)
def test_only_a_job_that_waits_is_taken_out_of_the_queue(tmp_path, shims, state, is_taken_out):
    """One that sacct does not show yet may run already, and then saves first."""
    # what it knows of the job of this number from other tests
    pytest.importorskip("submitit").SlurmJob.watcher.clear()
    (tmp_path / "bin" / "sacct").write_text(f"#!/bin/sh\nprintf 'JobID|State|NodeList\\n{state}\\n'\n")
    engine = open_engine("slurm", folder=tmp_path / "experiment", workers=None, options={})
    one = job(tmp_path, "pass")
    engine.submit(one)
    engine.cancel("one")
    assert one.stop_file.exists() and ("scancel" in shims.read_text()) == is_taken_out


def test_a_job_that_slurm_refuses_is_told(tmp_path, shims):
    pytest.importorskip("submitit")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    engine = SlurmEngine(tmp_path / "experiment", partition="nowhere")
    with pytest.raises(ValueError, match="SLURM did not take the job of one"):
        engine.submit(job(tmp_path, "pass"))


def interrupt(submitted):
    """What `LocalJob._interrupt` means to do; that signals the process which starts tasks, and kills it."""
    controller = submitted._process.pid
    for child in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
        os.kill(int(child), signal.SIGUSR2)


@pytest.mark.slow
def test_submitit_requeues_what_lost_its_time(tmp_path, monkeypatch):
    """Its local executor: SIGUSR2 as SLURM sends it to tasks; the process saves, and the same job continues."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    engine = SlurmEngine(tmp_path / "experiment", cluster="local", hours=0.1)
    (tmp_path / "experiment").mkdir(exist_ok=True)
    engine.submit(job(tmp_path, COUNTER, tmp_path, grace_s=20))
    wait_until((tmp_path / "begun").exists)
    assert engine.poll("one") is None
    interrupt(engine._jobs["one"][1])
    ending = wait_for(engine, "one")
    assert ending == Ending(0, "continued")
    begun = (tmp_path / "begun").read_text().splitlines()
    assert len(begun) == 2 and all(line.split()[1] == sys.executable for line in begun)
    # and one that is cancelled ends for good
    (tmp_path / "saved").unlink()
    engine.submit(job(tmp_path, COUNTER, tmp_path, name="two", grace_s=20))
    wait_until(lambda: len((tmp_path / "begun").read_text().splitlines()) == 3)
    engine.cancel("two")
    assert wait_for(engine, "two") == Ending(130, "saved")


@pytest.mark.slow
def test_a_process_ends_with_its_engine(tmp_path):
    """`run` is killed: its trials must not go on unseen."""
    trial = "import os, time\nfrom brine.common.processes import die_with_parent\n" \
            "die_with_parent(parent=int(os.environ['BRINE_TRIAL_PARENT']))\n" \
            "print(os.getpid(), flush=True)\ntime.sleep(60)\n"  # fmt: skip
    (tmp_path / "trial.py").write_text(trial)
    runner = (
        "import sys, time, pathlib\nfrom brine.experiments.engines.local import LocalPool\n"
        "from brine.experiments.engines.process import TrialJob\n"
        "log = pathlib.Path(sys.argv[1]) / 'logs' / 'one.log'\n"
        "LocalPool(1).submit(TrialJob('one', (sys.executable, sys.argv[2]), {}, log))\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", runner, str(tmp_path), str(tmp_path / "trial.py")], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    log = tmp_path / "logs" / "one.log"
    wait_until(lambda: last_line(log).isdigit())
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    wait_until(lambda: not is_alive(int(last_line(log))), 10)
