"""Every mesh, thousands of mutated files, and the rehearsal of a first hour on a GPU: the benchmarks' own commands."""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT


def last_line(*words: str, timeout_s: float) -> dict:
    """The record that a benchmark prints last."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mesh_ends_as_one_rank(tmp_path):
    """Four ranks in each of nine meshes, killed, and resumed on two."""
    options = ("--work", str(tmp_path / "work"), "--results", str(tmp_path), "--tests", "none")
    record = last_line("benchmarks.training.meshes", *options, timeout_s=5400)
    assert len(record["cases"]) == 9 and all(target["met"] for target in record["targets"]), record["targets"]


def test_thousands_of_mutated_files(tmp_path):
    """Another series than the one that the other tests run."""
    options = ("--cases", "5000", "--seed", "1", "--results", str(tmp_path))
    record = last_line("benchmarks.data.fuzz", *options, timeout_s=3600)
    assert not record["problems"] and not record["died"] and record["cases"] == 5000


def test_rehearsal_of_a_first_hour_on_a_gpu(tmp_path):
    """Every stage at toy sizes; what needs a GPU says so and nothing else goes wrong."""
    words = ("--stage", "all", "--toy", "--device", "cpu", "--minutes", "60")
    folders = ("--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words, *folders], cwd=ROOT, capture_output=True, text=True,
        timeout=3900,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    errors = [line for line in lines if "error" in line]
    assert not errors, errors


CASES = {
    "attention by interpreter": ("tests/kernels/attention/attention_triton_cases.py", {"TRITON_INTERPRET": "1"}),
    "decoding by interpreter": ("tests/kernels/attention/attention_triton_decode_cases.py", {"TRITON_INTERPRET": "1"}),
    "ranks": ("tests/training/parallel/test_parallel.py", {}),
}
"""Files of tests that leave combinations out, or are shorter, unless they are asked for all."""


@pytest.mark.parametrize("name", CASES)
def test_all_cases(name):
    file, more = CASES[name]
    command = [sys.executable, "-m", "pytest", file, "-n", "0", "-p", "no:cacheprovider"]
    environment = os.environ | {"ALL_CASES": "1"} | more
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
