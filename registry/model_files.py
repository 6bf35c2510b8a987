"""Files of registered models: linked or copied into place, read-only, known by their SHA-256.

    models/<SHA-256 of the weights>/model/    config.json, model.safetensors, tokenizer.json
                                    recipe.json, card.json
                                    measured/<digest>/measurements.jsonl, record.json

A model's folder is made under another name and renamed. A hard link shares its file with the run folder, whose copy
becomes read-only with it; neither takes space twice, and removing one leaves the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from brine.common.files import file_digest, link_or_copy, sync_folder
from brine.inference.registered import CONFIG, TOKENIZER, WEIGHTS

MODEL_FILES = (CONFIG, WEIGHTS, TOKENIZER)
RECIPE_FILE, RECORD_FILE = "recipe.json", "record.json"


def link_read_only(source: Path, target: Path) -> None:
    """A read-only hard link to a file, or a copy where its file system cannot link."""
    link_or_copy(source, target)
    take_write_bits(target)


def take_write_bits(path: Path) -> None:
    """Make a file read-only; of somebody else's file, where it is linked, as far as that is allowed."""
    with contextlib.suppress(PermissionError):
        os.chmod(path, os.stat(path).st_mode & ~0o222)


def place_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all: `fill` is called with a new one, which is flushed and renamed."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for folder, _, _ in os.walk(partial):
        sync_folder(Path(folder))
    os.rename(partial, target)
    sync_folder(target.parent)


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """{name: SHA-256} of some files of a folder. Raises ValueError for one that is missing."""
    try:
        return {name: file_digest(folder / name) for name in names}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing: give a finished model folder") from None


def damaged_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """A sentence for each file that is missing or is not the one that was recorded."""
    found = []
    for name, recorded in sorted(files.items()):
        path = folder / name
        try:
            actual = file_digest(path)
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror})")
            continue
        if actual != recorded:
            found.append(f"{path} is damaged: its SHA-256 is {actual[:12]}..., not {recorded[:12]}...")
    return found
