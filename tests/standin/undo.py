"""Would the tests have caught it? Takes back one repair at a time, in a copy of the project, and runs them.

    python -m tests.standin.undo                 all, one after another: some minutes
    python -m tests.standin.undo validator loss  these

Each was once missing: validation ran on the CPU while the model was on the GPU; evaluation, selection and the commands
ran on the CPU from end to end; a model's config named a backend that other machines do not have; "auto" took T x S
memory on a GPU, without a message under the compiler; training could not choose a backend of the loss. A repair whose
absence no test notices can be lost again. The tests must pass with it first. Exit code 1 where they do not, where no
test notices, or where the code has changed and a repair is not found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.paths import ROOT

LINE, TRAINING, DEVICE, GENERATE = (
    f"tests/standin/test_standin_{name}.py" for name in ("line", "training", "device", "generate")
)
# file, what stands there, what stood there, the tests that must fail
REPAIRS = {
    "validator": (
        "evals/loss.py",
        "device = device_of(model)",
        'device = torch.device("cpu")',
        f"{TRAINING} -k validated and plain",
    ),
    "evaluate": (
        "pipeline/evaluate_stage.py",
        "folder, device=runtime.device, ",
        "folder, ",
        f"{LINE} -k device",
    ),
    "select": (
        "pipeline/train_stage.py",
        "model.to(run.runtime.device).attention_backend",
        "model.attention_backend",
        f"{LINE} -k device",
    ),
    "needle": (
        "evals/needle/run.py",
        "load(run, device=device)",
        "load(run)",
        f"{GENERATE} -k commands",
    ),
    "repository": (
        "evals/repository/run.py",
        "load(run, device=device)",
        "load(run)",
        f"{GENERATE} -k commands",
    ),
    "generate": (
        "inference/generate.py",
        "load(self.run_folder, device=device)",
        "load(self.run_folder)",
        f"{GENERATE} -k commands",
    ),
    "config": (
        "inference/load.py",
        '"model": model.config.to_dict()',
        '"model": {**model.config.to_dict(), "attention_backend": model.attention_backend}',
        f"{LINE} -k without_one",
    ),
    "dense": ("kernels/attention/select_backend.py", "PAIRS = 2048 * 2048", "PAIRS = 2**60", f"{DEVICE} -k refuses"),
    "unsaid": (
        "kernels/attention/select_backend.py",
        "    record_choice(\n",
        "    torch.compiler.is_compiling() or record_choice(\n",
        f"{DEVICE} -k said",
    ),
    "loss": ("training/step.py", "backend=runtime.loss_backend,", "", f"{LINE} -k asked_for"),
}
LEFT_OUT = (".git", ".venv*", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", "shared")


def undone(name: str) -> str:
    """What came of taking back one repair: "noticed", "NOT NOTICED", "NOT FOUND", or "NOT SOUND", where the tests fail
    with the repair in place."""
    file, now, before, tests = REPAIRS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        text = (copy / file).read_text(encoding="utf-8")
        if text.count(now) != 1:
            return "NOT FOUND"
        if (whole := run_tests(copy, tests)).returncode:
            return f"NOT SOUND: fails with the repair, too ({whole.stdout[-300:]})"
        (copy / file).write_text(text.replace(now, before), encoding="utf-8")
        done = run_tests(copy, tests)
    # 1: tests ran and failed; anything else is a mistake in the question
    last = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"noticed: {last[0][:150]}" if done.returncode == 1 and last else f"NOT NOTICED ({done.stdout[-300:]})"


def run_tests(project: Path, tests: str) -> subprocess.CompletedProcess:
    """Run what is written in `REPAIRS` in a copy of the project."""
    where, _, chosen = tests.partition(" -k ")
    return subprocess.run(
        [sys.executable, "-m", "pytest", where, "-k", chosen, "-x", "-n", "0", "-p", "no:cacheprovider"],
        cwd=project, capture_output=True, text=True, timeout=900,
        env=os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Take back what was named, or all; print a line each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.standin.undo",
        description=__doc__.partition("\n")[0],
        epilog="Status 1 where no test notices that a repair is gone, where one fails with the repair in place, or "
        "where a repair is not found in the code.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(REPAIRS)}; all unless some are named")
    asked, failed = parser.parse_args(argv).names, False
    if unknown := [name for name in asked if name not in REPAIRS]:
        parser.error(f"no repair {', '.join(unknown)}: there are {', '.join(REPAIRS)}")
    for name in asked or REPAIRS:
        found = undone(name)
        failed |= found.startswith("NOT")
        print(f"{name:12s} {found}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
