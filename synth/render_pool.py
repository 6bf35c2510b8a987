"""Rendering processes: each is given tasks in turn, and none outlives the one that started it.

A `concurrent.futures.ProcessPoolExecutor` lacks that (its workers survive a killed parent), and its spawned processes
import the main program again, and with it torch. A thread for each process hands it a task and waits for the answer.
"""

import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from brine.common.processes import IMPORT_FOLDER

ITEMS_PER_TASK = 16


class HelperProcess:
    """A process that answers messages in turn, through a pipe whose number is its last argument."""

    def __init__(self, command: list[str], *, env: dict[str, str] | None = None) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            words, kept = [*command, str(theirs.fileno())], [theirs.fileno()]
            self.process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, pass_fds=kept)

    def ask(self, message: Any, *, timeout_s: float | None = None) -> Any:
        """The answer. Raises EOFError when the process has ended, or has not answered after timeout_s."""
        try:
            self._pipe.send(message)
            if self._pipe.poll(timeout_s):
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        raise EOFError

    def close(self, *, kill: bool = False) -> None:
        """Ends the process, which leaves by itself when its pipe is closed."""
        if kill:
            self.process.kill()
        self._pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class RenderPool(AbstractContextManager):
    """`count` rendering processes that write below `folder`; leaving the `with` block ends them."""

    def __init__(self, count: int, *, folder: Path, utterance_timeout_s: float) -> None:
        paths = filter(None, [IMPORT_FOLDER, os.environ.get("PYTHONPATH")])
        # parallel by processes: the threads of a numeric library would compete with them
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "brine.synth.render_worker", str(folder), str(utterance_timeout_s)]
        self.helpers = [HelperProcess(command, env=environment) for _ in range(count)]

    def __exit__(self, kind: object, *_exc: object) -> None:
        for helper in self.helpers:
            # after an error or Ctrl-C, unfinished files are made again by the next build
            helper.close(kill=kind is not None)

    def run(self, op: str, items: Sequence) -> Iterator:
        """The answer to each item, in their order. Raises RuntimeError when a process ends."""
        free: queue.SimpleQueue[HelperProcess] = queue.SimpleQueue()
        for helper in self.helpers:
            free.put(helper)

        def ask(start: int) -> list:
            helper = free.get()
            try:
                return helper.ask((op, items[start : start + ITEMS_PER_TASK]))
            except EOFError:
                code = helper.process.wait()
                raise RuntimeError(
                    f"a rendering process ended (exit code {code}): see its message above, then run again; finished "
                    "files are kept"
                ) from None
            finally:
                free.put(helper)

        threads = ThreadPoolExecutor(len(self.helpers))
        try:
            for answers in threads.map(ask, range(0, len(items), ITEMS_PER_TASK)):
                yield from answers
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
