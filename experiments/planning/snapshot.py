"""The code of an experiment, kept beside its plan: what every trial imports, whatever is edited meanwhile.

In a git checkout these are the files of the commit with all changes, untracked files that git does not ignore included;
elsewhere the sources of the installed package. Tests, documents and benchmarks are left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import brine
from brine.common.processes import IMPORT_FOLDER
from brine.training.logging.environment import commit

CODE_FOLDER, COMMIT_FILE = "code", "COMMIT"
LEFT_OUT = ("tests", "docs", "benchmarks", "notebooks", "runs", "site", "build")
"""Folders at the top of a checkout that no trial imports."""
MAX_FILE_BYTES = 8 * 2**20
"""Larger files are data, not code."""
GIT_TIMEOUT_S = 60.0


def take_snapshot(folder: Path) -> dict[str, Any]:
    """Copy the running code to `folder`/code, whole or not at all; returns {"commit", "digest", "files"}.

    A snapshot that is there is kept. Raises ValueError where the code cannot be copied."""
    target = folder / CODE_FOLDER
    if not target.is_dir():
        fresh = folder / f".{CODE_FOLDER}.{os.getpid()}"
        try:
            for source, name in _files():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, fresh / name)
            (fresh / COMMIT_FILE).write_text(f"{commit() or 'unknown'}\n", encoding="utf-8")
            os.rename(fresh, target)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ValueError(f"the code cannot be copied to {target} ({error}): free some space") from error
    return {"commit": (target / COMMIT_FILE).read_text(encoding="utf-8").strip(), **snapshot_digest(target)}


def snapshot_digest(target: Path) -> dict[str, Any]:
    """{"digest": of all names and bytes, "files": their number} of a snapshot; compiled files do not count."""
    found, count = hashlib.sha256(), 0
    for path in sorted(target.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(target).as_posix()
            found.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
            count += 1
    return {"digest": found.hexdigest()[:16], "files": count}


def imported_from() -> Path:
    """The folder from which this process imports `brine`."""
    return Path(brine.__file__).resolve().parents[1]


def _files() -> list[tuple[Path, str]]:
    """(file, its name in the snapshot) of the running code."""
    root = Path(IMPORT_FOLDER)
    if (root / "train.py").is_file() and (root / "pyproject.toml").is_file():
        listed = _git_files(root)
        if listed is not None:
            return [(root / name, name) for name in listed if _is_code(root / name, name)]
        # a copy without git may hold an environment and runs
        tops = [path for path in sorted(root.iterdir()) if path.name not in LEFT_OUT and path.name[0] != "."]
    else:
        tops = [root / "brine"]
    inside = [path for top in tops for path in [top, *sorted(top.rglob("*"))] if "__pycache__" not in path.parts]
    named = [(path, path.relative_to(root).as_posix()) for path in inside]
    return [(path, name) for path, name in named if _is_code(path, name)]


def _is_code(path: Path, name: str) -> bool:
    inside = name.split("/")[0] not in LEFT_OUT and not os.path.islink(path)
    return inside and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES


def _git_files(root: Path) -> list[str] | None:
    """Tracked files and untracked ones that are not ignored; None outside of git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        if not (root / ".git").exists():
            return None
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return sorted({name for name in done.stdout.split("\0") if name})
