"""The files of a run folder, as evaluation reads and writes them.

Reading is lenient: a file that is missing or cut off gives nothing, since a report is also made of a run that was
interrupted. Writing is atomic, and replaces what JSON and UTF-8 cannot hold (NaN, infinity, lone surrogates).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from brine.common.files import finite, parse_object, read_json, write_text
from brine.common.renamed import rename
from brine.evals.config import EvalConfig, EvalTargets
from brine.inference.load import STAGE_PREFERENCE

STAGES = ("small", "select", "large_salt", "large_baseline")
"""Stages whose costs are counted."""
FORMER_CONDITIONS = {"own": "matched", "other": "mismatched"}


def main_model(names: Iterable[str]) -> str:
    """The name of the main model among some: the best stage, or the first name."""
    names = list(names)
    return next((name for name in STAGE_PREFERENCE if name in names), names[0])


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; other lines are skipped, a missing file gives none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [value for value in map(parse_object, lines) if value is not None]


def read_results(run: Path) -> dict[str, Any]:
    """`evaluate/results.json` of a run folder, {} where there is none."""
    return upgrade_results(read_object(run / "evaluate" / "results.json"))


def upgrade_results(value: dict[str, Any]) -> dict[str, Any]:
    """Results or a record of `documents.jsonl` with the present names of the conditions."""
    if isinstance(value.get("media_gain"), dict):
        value = value | {"media_gain": rename(value["media_gain"], FORMER_CONDITIONS)}
    if isinstance(condition := value.get("condition"), str):
        first, _, modality = condition.partition(" ")
        value = value | {"condition": f"{FORMER_CONDITIONS.get(first, first)} {modality}".strip()}
    return value


def eval_config_of(run: Path, **changes: Any) -> EvalConfig:
    """The evaluation settings of a run's recipe, without targets, with the changes that are not None.
    Raises ValueError for settings that cannot work."""
    saved = read_object(run / "recipe.json").get("evals")
    known = {field.name for field in fields(EvalConfig)} - {"targets"}
    settings = {name: value for name, value in saved.items() if name in known} if isinstance(saved, dict) else {}
    settings |= {name: value for name, value in changes.items() if value is not None}
    try:
        return EvalConfig(**settings, targets=EvalTargets(None, None, None, None, None))
    except TypeError as error:
        raise ValueError(f"{run / 'recipe.json'}: evals cannot be read ({error})") from None


def format_interval(entry: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """A value with its interval, for a console."""
    if entry.get(name) is None:
        return "·"
    return f"{entry[name]:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def write_page(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_text(path, text.encode("utf-8", errors="replace").decode("utf-8"))


def write_results(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_page(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSON lines, atomically."""
    write_page(path, "".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))
