"""The command `brine`, and `python -m brine.X` for each of its commands."""

import runpy
import sys
from importlib.util import find_spec

import pytest

from brine.cli import COMMANDS, main


def test_brine_lists_its_commands_and_names_a_wrong_one(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert main(["trian"]) == 2 and "has no command 'trian': it has train, data, plan" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_module_too(name):
    assert (
        find_spec(f"brine.{name.replace('check-cluster', 'training.parallel.check_cluster').replace('-', '_')}")
        is not None
    )


def test_a_module_runs_its_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["brine.compare", "nowhere", "elsewhere"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("brine.compare", run_name="__main__")
    assert ended.value.code == 2 and "nowhere" in capsys.readouterr().err
