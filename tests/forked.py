"""Ranks and commands as processes that are forked from one that has imported torch and this project.

An interpreter that imports them takes two to five seconds of a core, a fork none. The parent imports and does nothing
else: no thread, group or tensor is made before a fork. What imports do is not what such a test is about.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.multiprocessing

from tests.paths import ROOT

IMPORTED = ("pytest", "torch.distributed.checkpoint", "torch.distributed.fsdp", "brine.train", "brine.pipeline.run",
            "brine.training.parallel.check_cluster")  # fmt: skip


def forks() -> multiprocessing.context.BaseContext:
    """What makes such processes; they have the environment that the first of them found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def run_ranks(function: Callable, *args, count: int, timeout_s: float = 300) -> None:
    """Call `function(rank, *args)` in `count` processes; raises what one of them raised, or TimeoutError."""
    forks()
    ranks = torch.multiprocessing.start_processes(function, args, nprocs=count, join=False, start_method="forkserver")
    end = time.monotonic() + timeout_s
    while not ranks.join(timeout=1.0):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"{count} ranks did not end in {timeout_s:.0f} s")


class Command:
    """A command line of Python in a forked process that leads a group of its own; used as `subprocess.Popen` is.

    words: `train.py ...`, `-m MODULE ...` or `-c CODE ...`, without the interpreter. Its output goes to files, with the
    errors among it unless `errors_apart`.
    """

    def __init__(self, words: Sequence[str], *, cwd: Path = ROOT, env: dict | None = None, errors_apart: bool = False):
        self._folder = tempfile.TemporaryDirectory()
        files = [Path(self._folder.name) / name for name in (("out", "err") if errors_apart else ("out",))]
        for file in files:
            file.touch()
        self._files, self.args = files, [str(word) for word in words]
        environment = dict(os.environ if env is None else env)
        self._process = forks().Process(target=_run, args=(self.args, str(cwd), environment, [*map(str, files)]))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        self.wait(timeout)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in self._files]
        return texts[0], texts[1] if len(texts) > 1 else None


def _run(words: list[str], cwd: str, environment: dict, files: list[str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= environment
    for target, file in ((1, files[0]), (2, files[-1])):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, target)
        os.close(opened)
    sys.path.insert(0, cwd)
    flag, *rest = words
    try:
        if flag == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif flag == "-m":
            sys.argv = list(rest)
            # that it has been imported is the point
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(flag, run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
