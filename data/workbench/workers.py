"""Starts the rendering processes, deals tasks to them, and sees that they end.

One thread per process hands it a task and waits for the answer; answers come back with the index of their
task, so the caller's result does not depend on who was faster. No process survives its Workers: leaving the
`with` block closes their input, and if this process is killed the operating system does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Workers:
    """`count` rendering processes that write below `folder`."""

    def __init__(self, count: int, *, folder: Path, utterance_timeout_s: float) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            # parallel by processes: threads of a numeric library would only get in each other's way
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "data.workbench.worker", str(folder.resolve()), str(utterance_timeout_s)]
        self.processes = [
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
            )
            for _ in range(count)
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        for process in self.processes:
            if kind is not None:
                # an error or Ctrl-C: what is half done is done again next time
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

    def run(self, tasks: Sequence[dict]) -> Iterator[tuple[int, list]]:
        """(index of the task, answer) as answers come. Raises RuntimeError when a process dies."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[int, list | str]] = queue.SimpleQueue()
        for index in range(len(tasks)):
            waiting.put(index)

        def serve(process: subprocess.Popen) -> None:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    process.stdin.write(json.dumps(tasks[index]) + "\n")
                    process.stdin.flush()
                    line = process.stdout.readline()
                except (OSError, ValueError):
                    line = ""
                if not line:
                    answers.put((index, f"a rendering process ended (exit code {process.wait()})"))
                    return
                answers.put((index, json.loads(line)))

        for process in self.processes:
            threading.Thread(target=serve, args=(process,), daemon=True).start()
        for _ in range(len(tasks)):
            index, answer = answers.get()
            if isinstance(answer, str):
                raise RuntimeError(f"{answer}: see its message above, then run again; finished files are kept")
            yield index, answer
