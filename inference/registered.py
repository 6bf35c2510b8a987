"""Names of models: files of a model folder, stages of a run, and registered models as the folders that they mean.

    champion, or a digest of weights, or its beginning      (in runs/registry, or the folder that BRINE_REGISTRY names)
    runs/registry/champion -> models/<SHA-256 of the weights>/

This imports no torch. It reads names of folders, and in a model's card what revoked it; the rest is `brine.registry`'s.
"""

import os
import re
from pathlib import Path

from brine.common.files import read_json

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
"""Files of a model folder."""
STAGE_PREFERENCE = ("large_salt", "large_baseline", "small")
"""Stages of a run, best first: `load(run)` takes the first that has finished."""
CHAMPION, MODELS, CARD_FILE = "champion", "models", "card.json"
REGISTRY_VARIABLE = "BRINE_REGISTRY"
_DIGEST, _PREFIX = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{6,64}")


def registry_root() -> Path:
    """The registry that names are looked up in."""
    return Path(os.environ.get(REGISTRY_VARIABLE) or Path("runs") / "registry")


def resolve_registered(name: str | Path, *, root: Path | None = None) -> Path:
    """The folder of a registered model. A path that exists, and anything that is no such name, is returned as it is.

    name: "champion", or at least six hexadecimal digits of a weights' digest. Raises ValueError for digits that fit
    several models, for a pointer that leads to none, and for a model that is revoked.
    """
    path, text = Path(name), str(name)
    root = registry_root() if root is None else root
    if path.exists():
        return path
    if text == CHAMPION and (pointer := root / CHAMPION).is_symlink():
        folder = root / MODELS / Path(os.readlink(pointer)).name
        if not _DIGEST.fullmatch(folder.name) or not folder.is_dir():
            raise ValueError(f"{pointer} does not lead to a model of {root}: `brine registry verify` says why")
        return _usable(folder)
    if _PREFIX.fullmatch(text) and (root / MODELS).is_dir():
        found = sorted(
            entry for entry in os.listdir(root / MODELS) if entry.startswith(text) and _DIGEST.fullmatch(entry)
        )
        if len(found) > 1:
            raise ValueError(f"{text} is the beginning of {len(found)} models of {root}: give more digits")
        return _usable(root / MODELS / found[0]) if found else path
    return path


def _usable(folder: Path) -> Path:
    card = read_json(folder / CARD_FILE)
    if isinstance(card, dict) and (why := card.get("revoked")):
        raise ValueError(
            f"{folder.name[:12]} may not be used: {why[0]}; its folder {folder} is still there to look into"
        )
    return folder
