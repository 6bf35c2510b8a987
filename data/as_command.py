"""Says that a module is no command where somebody runs it as one: `python -m evals.charts` did nothing, and well.

Python imports a package before it runs a module of it, and while it looks for that module `sys.argv[0]` is "-m". There
the rooms ask here, in their `__init__.py`: once for a whole room, so that modules which hold functions need not know of
it, and at no other import. Which modules are commands is not listed anywhere: those that have an `if __name__ ==
"__main__"`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_RUNS = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
# flags without a value of their own may stand in front of m, as in -um
_OPTION = re.compile(r"-[bBdEhiIOPqsSuvx]*m(.*)", re.DOTALL)


def only_commands(room: str, commands: str) -> None:
    """End the process, with code 2 and a line, where it was started to run a module of this room that is no command.

    commands: what there is instead, for the line.
    """
    if reason := refusal(room, sys.orig_argv, commands):
        print(f"error: {reason}", file=sys.stderr)
        raise SystemExit(2)


def refusal(room: str, argv: list[str], commands: str) -> str | None:
    """What is wrong with running the module that `argv`, a whole command line, names; None where nothing is."""
    asked = asked_module(argv)
    if asked is None or asked.split(".")[0] != room:
        return None
    place = _ROOT.joinpath(*asked.split("."))
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    # of what is not there Python itself says so
    if not file.is_file() or _RUNS.search(file.read_text(encoding="utf-8")):
        return None
    return f"{asked} is no command; commands: {commands}"


def asked_module(argv: list[str]) -> str | None:
    """The module that a command line has Python run, or None."""
    for place, word in enumerate(argv[1:], start=1):
        if found := _OPTION.fullmatch(word):
            return found[1] or (argv[place + 1] if place + 1 < len(argv) else None)
        if not word.startswith("-") and argv[place - 1] not in ("-X", "-W"):
            return None
    return None
