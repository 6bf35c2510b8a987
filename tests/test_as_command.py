"""A module that is no command says so where it is run as one, and every command can be run."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.as_command import asked_module, only_commands, refusal

ROOT = Path(__file__).parent.parent
ROOMS = ("benchmarks", "data", "evals", "model", "recipes", "salt", "training")


@functools.cache
def modules(room: str) -> dict[str, bool]:
    """Every module of a room by its dotted name: is it a command?"""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "__init__.py" and path.name != "__main__.py":
            # read otherwise than the code does
            tests = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
            found[name] = any("__main__" in ast.unparse(test) for test in tests)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_of_every_module_it_is_known_whether_it_is_a_command(room):
    """They did nothing and ended with 0, such as `python -m evals.gain`."""
    for name, is_command in modules(room).items():
        said = refusal(room, [sys.executable, "-m", name, "runs/demo"], "COMMANDS")
        assert said == (None if is_command else f"{name} is no command; commands: COMMANDS")


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_named_instead_is_there(room):
    text = (ROOT / room / "__init__.py").read_text()
    assert "only_commands(\n        __name__" in text
    words = text[text.index("only_commands(\n") :]
    for name in re.findall(rf"\b{room}\.\w+", words):
        assert modules(room)[name], name
    if f"python -m {room} " in words:
        assert (ROOT / room / "__main__.py").is_file()


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("python -m evals.gain runs/demo", "evals.gain"),
        ("python -mevals.gain", "evals.gain"),
        ("python -um evals.gain", "evals.gain"),
        ("python -u -I -m evals.gain -m other", "evals.gain"),
        ("python -X importtime -m evals.gain", "evals.gain"),
        ("python -Wignore -m evals.gain", "evals.gain"),
        ("python -W error -m evals.gain", "evals.gain"),
        ("python train.py -m evals.gain", None),
        ("python -c code -m evals.gain", None),
        ("python", None),
        ("python -m", None),
    ],
)
def test_the_module_that_a_line_runs(line, module):
    assert asked_module(line.split()) == module


@pytest.mark.parametrize(
    "name", ["evals", "evals.needle", "evals.not_there", "data.check", "evaluation.gain", "evals.x.y"]
)
def test_nothing_is_said_of_commands_other_rooms_and_what_is_not_there(name):
    assert refusal("evals", ["python", "-m", name], "COMMANDS") is None


def test_the_line_and_the_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "data.check", "folder"])
    with pytest.raises(SystemExit) as ended:
        only_commands("data", "python -m data check")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: data.check is no command; commands: python -m data check\n"


@pytest.mark.parametrize("name", ["evals.charts", "data.show", "training.extend"])
def test_python_asks_when_it_is_run(name):
    done = subprocess.run([sys.executable, "-m", name], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {name} is no command; commands: ") and done.stderr.count("\n") == 1
