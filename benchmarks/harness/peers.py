"""Processes that take turns with this one: transformers' Llama where it does not see the project, and our side.

Brine does not depend on transformers. Its side (`llama_peer.py`) is copied to another folder and run by an isolated
interpreter, in an environment of its own that is made with uv when there is none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TRANSFORMERS = "5.23.0"
LLAMA_FILE = Path(__file__).parent / "llama_peer.py"


@dataclass(frozen=True)
class ModelShape:
    """What both models share; fields as in `model.ModelConfig`."""

    vocab_size: int = 8192
    dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 64
    mlp_dim: int = 1408


class WorkerError(RuntimeError):
    """A child failed; the message says how."""


class WorkerProcess:
    """One side of the comparison, in its own process, that works when asked."""

    def __init__(self, command: list[str], *, cwd: Path, log: Path):
        self.log = log
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Send a request and wait for the answer. Raises WorkerError when it fails or the child has ended."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise WorkerError(f"ended with {self.process.wait()}: {(said or ['no message'])[-1][:300]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def peer_python(*, more: tuple[str, ...] = ()) -> Path:
    """An interpreter with this torch and transformers, and `more` packages, that does not see the project.

    Made with uv, and kept under a name that tells what is in it. Raises WorkerError where that fails.
    """
    packages = [f"torch=={torch.__version__.partition('+')[0]}", f"transformers=={TRANSFORMERS}", *more]
    folder = Path(tempfile.gettempdir()) / ("peers-" + "-".join(packages).replace("==", ""))
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        uv = shutil.which("uv")
        if uv is None:
            raise WorkerError("uv is not installed, so the peers' environment cannot be made; or give --peer-python")
        print(f"making the peers' environment in {folder}", file=sys.stderr, flush=True)
        create = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *packages]
        for command in (create, install):
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())
            if done.returncode:
                raise WorkerError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
        (folder / "done").touch()
    return python


def start_peer(python: Path, file: Path, *words: str, folder: Path) -> WorkerProcess:
    """Copy a peer's file into a folder and start it there. Raises OSError."""
    away = folder / "peer"
    away.mkdir()
    shutil.copy(file, away)
    # isolated: neither the working folder nor PYTHONPATH may lead to the project
    return WorkerProcess([str(python), "-I", str(away / file.name), *words], cwd=away, log=folder / "peer.log")
