"""Starts rendering processes, gives them tasks, and sees that they end.

One thread for each process hands it a task and waits for the answer; answers come in the order of the items. No process
outlives its pool: leaving the `with` block closes their input, and if this process is killed the system does.
`concurrent.futures.ProcessPoolExecutor` lacks that (its workers survive a killed parent), and its spawned processes
import the main program again, and with it torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brine.common.processes import IMPORT_FOLDER

ITEMS_PER_TASK = 16


class RenderPool:
    """`count` rendering processes that write below `folder`; leaving the `with` block ends them."""

    def __init__(self, count: int, *, folder: Path, utterance_timeout_s: float) -> None:
        paths = filter(None, [IMPORT_FOLDER, os.environ.get("PYTHONPATH")])
        # parallel by processes: the threads of a numeric library would compete with them
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-P",
            "-m",
            "brine.synth.render_worker",
            str(folder.resolve()),
            str(utterance_timeout_s),
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        self.processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]

    def __enter__(self) -> RenderPool:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        for process in self.processes:
            if kind is not None:
                # an error or Ctrl-C: unfinished files are made again by the next build
                process.kill()
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def run(self, op: str, items: Sequence) -> Iterator:
        """The answer to each item, in their order. Raises RuntimeError when a process ends."""
        free: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        for process in self.processes:
            free.put(process)

        def ask(start: int) -> list:
            process = free.get()
            try:
                task = {"op": op, "items": items[start : start + ITEMS_PER_TASK]}
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except (OSError, ValueError):
                answer = ""
            finally:
                free.put(process)
            if not answer:
                raise RuntimeError(
                    f"a rendering process ended (exit code {process.wait()}): see its message above, then run again; "
                    "finished files are kept"
                )
            return json.loads(answer)

        threads = ThreadPoolExecutor(len(self.processes))
        try:
            for answers in threads.map(ask, range(0, len(items), ITEMS_PER_TASK)):
                yield from answers
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
