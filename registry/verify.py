"""Everything in a registry compared with its log: every file hashed again, every line with the next one.

It opens nothing that damage could stop, changes nothing, and names the file or the line. Files of others in a model's
folder are no damage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from brine.common.files import parse_object
from brine.inference.registered import CARD_FILE, CHAMPION, MODELS, WEIGHTS
from brine.registry.card import base_digest, card_base, card_text
from brine.registry.chained_log import ChainedLog
from brine.registry.history import History
from brine.registry.model_files import damaged_files

_DIGEST = re.compile(r"[0-9a-f]{64}")


def verify(root: Path) -> list[str]:
    """A sentence for each thing that does not fit, [] where everything does. Raises ValueError without a registry."""
    log = ChainedLog(root)
    if not log.path.exists() and not (root / MODELS).exists():
        raise ValueError(f"there is no registry at {root}: `brine registry add RUN` begins one")
    scan = log.scan()
    found = list(scan.damage)
    if scan.torn and not scan.damage:
        found.append(f"{log.path}: its last line is cut off; opening the registry moves it away")
    if not scan.damage and scan.num_applied < len(scan.entries):
        found.append(f"{log.path}: its last lines are not applied; opening the registry does")
    history = History()
    for number, entry in enumerate(scan.entries, start=1):
        try:
            history.apply(entry)
        except (ValueError, KeyError, TypeError) as error:
            if not scan.damage:
                found.append(f"{log.path} line {number} cannot be read ({error})")
    found += _pointer_damage(root, history.champion, damaged_log=bool(scan.damage))
    for model in history.added:
        found += _model_damage(root / MODELS / model, history, damaged_log=bool(scan.damage))
    if (root / MODELS).is_dir():
        for name in sorted(os.listdir(root / MODELS)):
            if _DIGEST.fullmatch(name) and name not in history.added:
                way = "put the damaged log back from a copy first" if scan.damage else "add the model again"
                found.append(f"{root / MODELS / name} is in no line of the log: {way}")
    return found


def _pointer_damage(root: Path, champion: str | None, *, damaged_log: bool) -> Iterator[str]:
    pointer = root / CHAMPION
    try:
        target = os.readlink(pointer)
    except OSError:
        target = None
    wanted = None if champion is None else os.path.join(MODELS, champion)
    if target != wanted and not damaged_log:
        yield f"{pointer} leads to {target}, and the champion by the log is {champion}; opening the registry repairs it"


def _model_damage(folder: Path, history: History, *, damaged_log: bool) -> Iterator[str]:
    entry = history.added[folder.name]
    files: dict[str, str] = entry.get("files") or {}
    yield from damaged_files(folder, files)
    weights = files.get(f"model/{WEIGHTS}")
    if weights != folder.name and not damaged_log:
        yield f"{folder}: the log says that its weights are {str(weights)[:12]}..."
    for record in history.measured.get(folder.name, ()):
        yield from damaged_files(folder / "measured" / str(record.get("folder")), record.get("files") or {})
    path = folder / CARD_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield f"{path} cannot be read ({error})"
        return
    card = parse_object(text)
    if card is None or base_digest(card) != entry.get("card"):
        yield f"{path} is damaged: it is not the card that was added"
    elif text != card_text(card_base(card), history) and not damaged_log:
        yield f"{path} is damaged: its last sections are not those that follow from the log"
