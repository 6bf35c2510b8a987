"""The rooms import one way, the names on the registry do not shadow ours, and the README's map is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# a room may import the rooms named here (and itself), and nothing else of the project
MAY_IMPORT = {
    "kernels": set(),
    "data": set(),
    "model": {"kernels", "data"},
    "salt": {"model", "kernels", "data"},
    "training": {"salt", "model", "kernels", "data"},
    "evals": {"salt", "model", "kernels", "data"},
    "recipes": {"training", "evals", "salt", "model", "data"},
}
ROOMS = set(MAY_IMPORT)
# a command, run by `python -m`, plans a recipe by its name; no module of its room imports it
COMMANDS = {"training/planner.py": {"recipes"}, "data/__main__.py": {"recipes"}}
# GPL-3 speech and its neighbours make corpora; nothing that trains or answers may need them
CORPUS_ONLY = {"espeakng_loader", "pygments"}


def imports_of(path: Path) -> set[str]:
    """Top-level names of every module that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_one_way(room):
    for path in sources(room):
        allowed = MAY_IMPORT[room] | {room} | COMMANDS.get(path.relative_to(ROOT).as_posix(), set())
        wrong = imports_of(path) & (ROOMS | {"train"}) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_corpus_packages_stay_in_the_workbench(room):
    for path in sources(room):
        if (ROOT / "data" / "workbench") not in path.parents:
            assert not imports_of(path) & CORPUS_ONLY, path


def test_kernels_is_ours_and_has_no_version():
    """An unrelated registry package has this name; transformers looks for its `__version__`."""
    import kernels

    assert Path(kernels.__file__).parent == ROOT / "kernels"
    assert not hasattr(kernels, "__version__")


def test_imports_work_from_another_folder(tmp_path):
    """A notebook's working folder is not the repository's root."""
    code = "import kernels, data, model, salt, training, evals, recipes, train; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "kernels"


def test_readme_map_names_every_room_and_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Map\n.*?```\n(.*?)```", text, re.S).group(1)
    named = {line.split()[0].rstrip("/") for line in block.splitlines() if line.strip()}
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"the README's map names what is not there: {missing}"
    tracked = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    unnamed = tracked - {name.split("/")[0] for name in named} - {"runs", "brine.egg-info", "build", "__pycache__"}
    assert not unnamed, f"the README's map leaves out {sorted(unnamed)}"
