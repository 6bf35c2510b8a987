"""The wheel as a user has it: built from the tracked files, installed outside the tree, and trained with."""

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from brine.cli import COMMANDS
from tests.paths import ROOT

# `uv run` names its own program
UV = os.environ.get("UV") or shutil.which("uv")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="needs uv to build and install the wheel")]

TINY = (
    "real --runs runs --corpus.manifest docs.jsonl --corpus.vocab-size 300 --arms baseline --runtime.compile False "
    "--packing.seq-len 64 --packing.image-budget 16 --packing.audio-budget 16 --packing.video-budget 16 "
    "--large.num-steps 2 --large.global-batch-size 2 --large.micro-batch-size 1 --large.warmup-steps 1 "
    "--large.model.num-layers 2 --large.model.dim 32 --large.model.mlp-dim 32 --evals.seq-len 64 "
    "--evals.documents-per-cell 2 --evals.transcripts-per-cell 1"
)
"""A run of two steps, from a manifest of text to the report."""


def run(*words: str | Path, folder: Path) -> str:
    """Output of a command that ends well, without this checkout on its path."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what git tracks: setuptools leaves `build/` beside its sources."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("needs a git checkout, which says what belongs to the project")
    for name in listing.stdout.split("\0"):
        # a submodule is a folder; a file may be deleted and not yet committed
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools, as nothing is downloaded")
    build = ("build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(out))
    run(UV, *build, folder=copy)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment: the wheel, a foreign package `kernels`, and this one's libraries."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), folder=folder.parent)
    python = folder / "bin" / "python"
    run(UV, "pip", "install", "--offline", "--no-deps", "--python", str(python), str(wheel), folder=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    # .pth files in these folders are not read, so that an editable brine among them stays out
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    # Hugging Face publishes a package of this name, which transformers imports
    (packages / "kernels").mkdir()
    (packages / "kernels" / "__init__.py").write_text("FOREIGN = True\n")
    return python


def test_the_wheel_holds_every_module_and_no_test(wheel):
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name for name in names if name.endswith(".py")} == expected
    # what is no program but read by one
    others = {Path(name).suffix or Path(name).name for name in names if not name.endswith(".py")}
    assert others >= {".json", ".ttf", ".html"}, others


def test_it_imports_from_its_environment_beside_a_foreign_kernels(python, tmp_path):
    code = (
        "import kernels, brine, brine.train, brine.kernels.attention as attention, json;"
        "print(json.dumps([kernels.FOREIGN, brine.__file__, attention.__file__]))"
    )
    foreign, *files = json.loads(run(str(python), "-c", code, folder=tmp_path).splitlines()[-1])
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    assert foreign and all(Path(file).is_relative_to(packages) for file in files), files


def test_the_command_lists_what_it_has(python, tmp_path):
    listed = run(str(python.with_name("brine")), folder=tmp_path)
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_it_trains(python, tmp_path):
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "and",
        "runs",
        "away",
        "from",
        "lists",
    ]
    with open(tmp_path / "docs.jsonl", "w") as file:
        for number in range(60):
            split = {8: "validation", 9: "test"}.get(number % 10, "train")
            text = " ".join(words[(number * 7 + at * at) % len(words)] for at in range(40))
            record = {"id": f"d{number}", "split": split, "content": [{"type": "text", "text": text}]}
            file.write(json.dumps(record) + "\n")
    run(str(python.with_name("brine")), "train", *TINY.split(), folder=tmp_path)
    stage = tmp_path / "runs" / "real" / "large_baseline"
    steps = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line][-1] == 2
    assert (stage / "model" / "model.safetensors").exists() and (tmp_path / "runs" / "real" / "report.html").exists()
