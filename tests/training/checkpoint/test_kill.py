"""A line that is killed with SIGKILL, process group and all, goes on and ends with the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.training.tiny_run import events, final_bytes, timeless

pytestmark = pytest.mark.slow

# where to die: between checkpoints, after one, with a checkpoint's files written but not yet renamed
DEATHS = ("step 2", "rename 4", "step 9")


def test_line_killed_at_several_points_ends_with_the_same_weights(tmp_path):
    nursery = subprocess.Popen(
        [sys.executable, "-m", "tests.training.tiny_run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def run(name: str, hang_at: str) -> None:
        """Run a line; where it is to hang, kill its process group there."""
        nursery.stdin.write(f"{tmp_path / name}\t{hang_at}\n")
        nursery.stdin.flush()
        child = int(nursery.stdout.readline())
        assert nursery.stdout.readline() == ("FINISHED\n" if hang_at == "never" else "HERE\n")
        if hang_at != "never":
            os.killpg(child, signal.SIGKILL)

    run("straight", "never")
    for death in DEATHS:
        run("killed", death)
    run("killed", "never")
    nursery.communicate(timeout=30)

    old, new = tmp_path / "straight" / "small", tmp_path / "killed" / "small"
    assert final_bytes(old) == final_bytes(new)
    assert timeless(old) == timeless(new)
    # killed at step 2 and at the rename of 4: back to 0 twice; at 9: back to 8
    assert [event["step"] for event in events(new, "resumed")] == [0, 0, 8]
    assert not list((new / "checkpoints").glob(".*")), "half a checkpoint was left behind"
    for stage in ("small", "after"):
        assert (tmp_path / "killed" / stage / "done").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_helper_process_ends_with_its_parent():
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import os, time;"
        "from brine.common.processes import die_with_parent; die_with_parent(); print(os.getpid(), flush=True);"
        " time.sleep(60)'])\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        state = Path(f"/proc/{child}/stat")
        # a zombie that nobody has collected has ended too
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


STOPPING = """
import time
from brine.common.processes import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("noticed", flush=True)
    time.sleep(60)
"""


def test_second_ctrl_c_leaves_at_once_and_an_echo_does_not():
    """A terminal and a launcher may both pass one Ctrl-C on; only a later one means it."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "noticed\n"
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert "press Ctrl-C again" in process.stderr.read()
    process.stdout.close()
    process.stderr.close()
