"""Packages import one way and without circles, wherever they are imported from they are the same, and README's map is
true."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT

BELOW = {
    "common": "",
    "kernels": "common",
    "model": "kernels common",
    "data": "model kernels common",
    "synth": "data common",
    "inference": "data model kernels common",
    "salt": "synth inference data model kernels common",
    "evals": "synth inference data model kernels common",
    "training": "salt evals synth inference data model kernels common",
    "pipeline": "training salt evals synth inference data model kernels common",
    "recipes": "pipeline training salt evals synth inference data model kernels common",
    "planner": "recipes pipeline training salt evals synth inference data model kernels common",
    "registry": "planner recipes pipeline training salt evals synth inference data model kernels common",
    "experiments": "registry planner recipes pipeline training salt evals synth inference data model kernels common",
}
"""Package -> those that it may import, beside itself. `brine/`, the commands, stands above all."""
MODEL_FOR_DATA = {"brine.model.inputs"}
"""What of the model `data` may import: the record that batches hold."""
CORPUS_ONLY = {"espeakng_loader", "pygments"}
"""GPL-3 speech and its neighbours make corpora; nothing that trains or answers may need them."""
SOURCES = [path for name in BELOW for path in sorted((ROOT / name).rglob("*.py"))]


@cache
def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("brine", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path) for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path, *, typing: bool = True) -> frozenset[str]:
    """Every module that a file imports, wherever in the file; those for type checkers alone only with `typing`."""
    nodes, names = list(ast.walk(tree_of(path))), set()
    if not typing:
        guarded = [node for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
        left_out = {inner for node in guarded for line in node.body for inner in ast.walk(line)}
        nodes = [node for node in nodes if node not in left_out]
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively: write brine.X"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES or {node.module}
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            names |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    return frozenset(names)


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_one_way(package):
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == package:
            for name in imports_of(path):
                first, *rest = name.split(".")
                assert first not in BELOW, f"{path.relative_to(ROOT)} imports {name}: write brine.{name}"
                if first == "brine" and rest and rest[0] != package:
                    allowed = rest[0] in BELOW[package].split() and (
                        (package, rest[0]) != ("data", "model") or name in MODEL_FOR_DATA
                    )
                    assert allowed, f"{path.relative_to(ROOT)} imports {name}, which it may not"


def test_no_import_circles():
    """Imports inside of functions count."""
    graph = {module_of(path): imports_of(path, typing=False) & MODULES for path in SOURCES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in sorted(graph):
        visit(name)


def test_corpus_packages_stay_in_synth():
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "synth":
            assert not {name.split(".")[0] for name in imports_of(path)} & CORPUS_ONLY, path


def test_every_package_is_in_the_wheel_and_says_what_it_is():
    """setuptools cannot find packages under a prefix, so that they are listed."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    # a folder `kernels` that is a regular package would hide Hugging Face's, which transformers imports
    assert not (ROOT / "kernels" / "__init__.py").exists()
    folders = {path.parent for path in SOURCES}
    assert listed == {"brine", *(module_of(folder / "__init__.py") for folder in folders)}
    for folder in folders:
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{folder.relative_to(ROOT)}/__init__.py does not say what the folder is"
        kinds = {type(node) for node in tree.body[1:]}
        assert kinds <= {ast.ImportFrom, ast.Assign}, f"{folder.relative_to(ROOT)}/__init__.py defines something"


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [False, True], ids=["", "-P"])
def test_one_module_from_anywhere(tmp_path, isolated):
    """A notebook's working folder is not the repository's root, and a data.py may lie in it."""
    for name in ("data", "model", "evals"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not ours')\n")
    code = (
        "import brine.train, brine.kernels.attention as attention, brine.model.transformer, sys\n"
        "print(attention.__file__);"
        "print(sorted({'kernels', 'data', 'model', 'evals', 'training'} & set(sys.modules)))"
    )
    command = [sys.executable, *["-P"] * isolated, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    file, others = done.stdout.split("\n")[:2]
    assert Path(file).parent == ROOT / "kernels" / "attention" and others == "[]"


def test_readme_map_names_every_folder_and_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Map\n.*?```\n(.*?)```", text, re.S).group(1)
    named = {line.split()[0].rstrip("/") for line in block.splitlines() if line.strip()}
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"the README's map names what is not there: {missing}"
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {line.split("/")[0] for line in listing if "/" in line and not line.startswith(".")}
    unnamed = folders - {name.split("/")[0] for name in named}
    assert not unnamed, f"the README's map leaves out {sorted(unnamed)}"


def test_files_and_folders_stay_small():
    """A file has at most 400 lines, the one behind `train.py` 80, a folder of the product about ten modules."""
    files = [*SOURCES, *(ROOT / "brine").glob("*.py"), ROOT / "train.py"]
    most = {ROOT / "brine" / "train.py": 80, ROOT / "train.py": 80}
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = [str(path.relative_to(ROOT)) for path in files if lines[path] > most.get(path, 400)]
    assert not long, f"too many lines: {long}"
    folders = Counter(path.parent for path in SOURCES if path.name != "__init__.py" and path.parent != ROOT)
    full = [str(folder.relative_to(ROOT)) for folder, count in folders.items() if count > 11]
    assert not full, f"over eleven modules: {full}"


def test_words_that_went_stay_away():
    """Identifiers and phrases that the field's words have replaced; those who read former files may name them."""
    retired = (ROOT / "tests" / "retired_words.txt").read_text(encoding="utf-8").splitlines()
    reading_former_files = {ROOT / "common" / "renamed.py", ROOT / "brine" / "convert.py"}
    listing = subprocess.run(
        ["git", "ls-files", "*README.md", "*.html", "*.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    documents = [ROOT / name for name in listing.stdout.split() if not name.startswith("tests/")]
    for path in [*SOURCES, *(ROOT / "brine").glob("*.py"), *documents, ROOT / "docs" / "architecture.md"]:
        if path not in reading_former_files:
            text = " ".join(path.read_text(encoding="utf-8").split())
            words = set(re.findall(r"\w+", text))
            found = [one for one in retired if (one in text if " " in one else one in words)]
            assert not found, f"{path.relative_to(ROOT)} says {found}"


def marked_slow(decorated: list[ast.expr]) -> bool:
    return any(mark in ast.unparse(each) for each in decorated for mark in ("mark.slow", "mark.acceptance"))


def has_fast_test(path: Path) -> bool:
    """Whether a file has a test without a mark, and without one for the whole file."""
    body = tree_of(path).body
    file_marks = [
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return not marked_slow(file_marks) and any(not marked_slow(test.decorator_list) for test in tests)


@pytest.mark.slow
def test_fast_tests_reach_every_package():
    """`-m "not slow and not acceptance"` is a minute and a half, and no part of the project goes without."""
    reached = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if has_fast_test(path):
            reached |= {".".join(name.split(".")[:2]) for name in imports_of(path) if name.startswith("brine.")}
    assert {f"brine.{package}" for package in BELOW} - reached == set()
    for folder in ("benchmarks", *(package for package in BELOW if package != "common")):
        assert any(has_fast_test(path) for path in (ROOT / "tests" / folder).rglob("test_*.py")), folder
