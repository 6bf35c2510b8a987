"""Rendering processes: each is given tasks in turn, and none outlives the one that started it.

A `concurrent.futures.ProcessPoolExecutor` lacks that (its workers survive a killed parent), and its spawned processes
import the main program again, and with it torch. A thread for each process hands it a task and waits for the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brine.common.processes import IMPORT_FOLDER

ITEMS_PER_TASK = 16


class JsonProcess(subprocess.Popen):
    """A child process that answers lines of JSON with lines of JSON, in turn."""

    def __init__(self, command: list[str], *, env: dict[str, str] | None = None) -> None:
        super().__init__(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    def ask(self, message: Any, *, timeout_s: float | None = None) -> Any:
        """The answer to a message. Raises EOFError when the process has ended, or has not answered after timeout_s."""
        line = ""
        with contextlib.suppress(OSError, ValueError):
            self.stdin.write(json.dumps(message) + "\n")
            self.stdin.flush()
            line = self.stdout.readline() if select.select([self.stdout], [], [], timeout_s)[0] else ""
        if not line.endswith("\n"):
            raise EOFError
        return json.loads(line)

    def close(self) -> None:
        """Ends the process, which leaves by itself when its input is closed."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        try:
            self.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
        self.stdout.close()


class RenderPool:
    """`count` rendering processes that write below `folder`; leaving the `with` block ends them."""

    def __init__(self, count: int, *, folder: Path, utterance_timeout_s: float) -> None:
        paths = filter(None, [IMPORT_FOLDER, os.environ.get("PYTHONPATH")])
        # parallel by processes: the threads of a numeric library would compete with them
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "brine.synth.render_worker", str(folder.resolve())]
        self.processes = [JsonProcess([*command, str(utterance_timeout_s)], env=environment) for _ in range(count)]

    def __enter__(self) -> RenderPool:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        for process in self.processes:
            if kind is not None:
                # an error or Ctrl-C: unfinished files are made again by the next build
                process.kill()
        for process in self.processes:
            process.close()

    def run(self, op: str, items: Sequence) -> Iterator:
        """The answer to each item, in their order. Raises RuntimeError when a process ends."""
        free: queue.SimpleQueue[JsonProcess] = queue.SimpleQueue()
        for process in self.processes:
            free.put(process)

        def ask(start: int) -> list:
            process = free.get()
            try:
                return process.ask({"op": op, "items": items[start : start + ITEMS_PER_TASK]})
            except EOFError:
                raise RuntimeError(
                    f"a rendering process ended (exit code {process.wait()}): see its message above, then run again; "
                    "finished files are kept"
                ) from None
            finally:
                free.put(process)

        threads = ThreadPoolExecutor(len(self.processes))
        try:
            for answers in threads.map(ask, range(0, len(items), ITEMS_PER_TASK)):
                yield from answers
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
