"""Everything on one device, shown without a card: starts the tests of `tests/standin` in a process of their own."""

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.standin.undo import REPAIRS

pytestmark = pytest.mark.slow


def test_no_stage_mixes_host_and_device():
    command = [sys.executable, "-m", "pytest", "tests/standin", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_repairs_that_can_be_taken_back_are_listed():
    """`--help` and an unknown name ended in a KeyError."""
    for word, code, said in (("--help", 0, "[NAME ...]"), ("nothing", 2, "no repair nothing: there are validator,")):
        command = [sys.executable, "-m", "tests.standin.undo", word]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        told = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == code and said in told and "validator, evaluate" in told


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_are_found_in_the_code(name):
    """Half of them had moved to other files, and the command that takes them back found nothing there."""
    file, now, _, tests = REPAIRS[name]
    assert (ROOT / file).read_text(encoding="utf-8").count(now) == 1 and (ROOT / tests.split()[0]).is_file()
