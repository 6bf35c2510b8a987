"""An action in a forked process that kills itself at its k-th file-system step, or in the middle of a write."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brine.registry.registry import Registry
from tests.registry.fakes import FAKE_GATE, SUITE

STEPS = ("open", "close", "write", "pwrite", "ftruncate", "fsync", "symlink", "link", "rename", "replace", "unlink",
         "chmod", "mkdir")  # fmt: skip
"""Functions of `os` that are counted."""


@contextmanager
def counted_steps(act: Callable[[int, str, Callable, tuple], None]) -> Iterator[list[str]]:
    """Calls `act(number, name, function, arguments)` before each step; yields the names of those that were made."""
    made: list[str] = []
    originals = {name: getattr(os, name) for name in STEPS}

    def wrap(name):
        def step(*args, **options):
            act(len(made), name, originals[name], args)
            made.append(name)
            return originals[name](*args, **options)

        return step

    for name in STEPS:
        setattr(os, name, wrap(name))
    try:
        yield made
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(point: int, fraction: float | None) -> Callable:
    """Dies before step `point`; with `fraction`, in the first write after that many bytes."""

    def act(number, name, function, args):
        if fraction is None and number == point:
            kill_self()
        if fraction is not None and name == "write":
            function(args[0], args[1][: int(len(args[1]) * fraction)])
            kill_self()

    return act


def promote(root: Path, models: list[str]):
    return Registry(root).promote(models, SUITE, gate=FAKE_GATE)


def count_steps(action: Callable[[], object]) -> int:
    """Steps of a whole action."""
    with counted_steps(lambda *_: None) as made:
        action()
    return len(made)


def run_and_die(action: Callable[[], object], point: int, fraction: float | None = None) -> bool:
    """Run an action in a child that dies there; returns whether it was killed (else it had ended before)."""
    child = os.fork()
    if child == 0:
        try:
            with counted_steps(kill_at(point, fraction)):
                action()
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed otherwise"
    return os.WIFSIGNALED(status)
