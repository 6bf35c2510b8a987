"""`brine convert PATH`: rewrite what a version before 0.2 wrote, in place, with the names of today.

PATH is a run folder, a training stage of one, a saved model, an encoded corpus, or a packing plan; what it holds
decides. Each JSON file is replaced in one rename, and its previous text is kept beside it as `NAME.before-0.2`; a file
that has today's names is left alone, so the same command finishes a conversion that was cut off. Tensors are not
touched; the columns of a corpus are renamed. The evaluation of a run is renamed to `evaluate.old-1`: the next `brine
train` makes it again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from brine.common import renamed
from brine.common.command_line import command, parse
from brine.common.content_store import unlock
from brine.common.files import read_json, replacing, write_text
from brine.data.corpus.store import FORMAT
from brine.pipeline.stages.run_lock import acquire_lock
from brine.pipeline.stages.stage_backup import DONE_FILE, STAGE_FILE, move_to_backup

BACKUP = ".before-0.2"
CORPUS = ("", "encoded/store/")  # where a corpus may lie below PATH


def convert(path: Path) -> list[Path]:
    """Rewrite older versions' files below `path`; returns them. ValueError for nothing of Brine's; RunLockedError."""
    path = Path(path)
    if path.suffix == ".npz":
        return [path] if _rewrite_plan(path) else []
    is_run = any(path.glob(f"*/{STAGE_FILE}"))
    known = [(file, change) for pattern, change in FILES.items() for file in sorted(path.glob(pattern))]
    if not known:
        raise ValueError(f"{path} is not a run folder, training stage, saved model, encoded corpus or plan")
    lock = acquire_lock(path) if is_run else None
    try:
        changed = [file for file, change in known if _rewrite(file, change)]
        for corpus in (path, path / "encoded" / "store"):
            changed += _rename_columns(corpus)
            changed += [plan for plan in sorted(corpus.glob("plans/*.npz")) if _rewrite_plan(plan)]
        if is_run and changed and (path / "evaluate" / DONE_FILE).exists():
            move_to_backup(path / "evaluate")
    finally:
        if lock is not None:
            unlock(lock)
    return changed


def _settings(value: Any) -> Any:
    value = renamed.rename(value, renamed.SETTINGS)
    packing = value.get("packing") if isinstance(value, dict) else None
    if isinstance(packing, dict) and "kind_weights" in packing:
        weights = [f"kind:{kind}={weight:g}" for kind, weight in packing.pop("kind_weights")]
        packing["mixture"] = [*weights, *packing.get("mixture", ())]
    return value


def _stage(value: dict) -> dict:
    """stage.json, or the same under `key` in done; what a stage's function returned stays as it is."""
    if "key" in value:
        return {**value, "key": _stage(value["key"])}
    return {"config": _settings(value.get("config")), "inputs": renamed.rename(value.get("inputs"), renamed.INPUTS)}


def _state(value: dict) -> dict:
    # only at the top: the guard and the cost have other fields
    return {renamed.STATE.get(key, key): item for key, item in value.items()} | {"format": renamed.FORMAT}


def _event(value: dict) -> dict:
    value = renamed.rename(value, renamed.EVENTS)
    if "runtime" in value:
        value["runtime"] = _settings(value["runtime"])
    return value | {"event": renamed.EVENT_NAMES.get(value.get("event"), value.get("event"))}


def _corpus(value: dict) -> dict:
    """meta.json, or building.json, which holds the identity alone."""
    if "identity" in value:
        return {**value, "identity": _corpus(value["identity"])}
    return renamed.rename(value, renamed.CORPUS) | ({"format": FORMAT} if "format" in value else {})


def _with(names: dict[str, str]) -> Callable[[dict], dict]:
    return lambda value: renamed.rename(value, names)


FILES: dict[str, Callable[[Any], Any]] = {
    "recipe.json": _settings,
    "runtime.json": _settings,
    "left_out.json": _with(renamed.EXCLUDED),
    **{f"{at}{STAGE_FILE}": _stage for at in ("", "*/")},
    **{f"{at}{DONE_FILE}": _stage for at in ("", "*/")},
    **{f"{at}checkpoints/step_*/state.json": _state for at in ("", "*/")},
    **{f"{at}metrics.jsonl": _with(renamed.METRICS) for at in ("", "*/")},
    **{f"{at}events.jsonl": _event for at in ("", "*/")},
    **{f"{at}config.json": _with(renamed.MODEL) for at in ("", "model/", "*/model/")},
    "select/selection.jsonl": _with(renamed.SELECTION),
    **{f"{at}{name}": _corpus for at in CORPUS for name in ("meta.json", "building.json")},
}
"""Files of a run, a stage, a model or a corpus, and how each is converted; plans have `_rewrite_plan`."""


def _rename_columns(corpus: Path) -> list[Path]:
    changed = []
    for old, new in renamed.CORPUS_COLUMNS.items():
        for pattern in (f"index/start_{old}.npy", f"shards/*/{old}.npy", f"shards/*/index/start_{old}.npy"):
            for file in sorted(corpus.glob(pattern)):
                changed.append(file.with_name(file.name.replace(old, new)))
                os.rename(file, changed[-1])
    return changed


def _rewrite_plan(file: Path) -> bool:
    """Rename the fields of a packing plan; its arrays stay."""
    with np.load(file, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    meta = json.loads(arrays["meta"].tobytes())
    fresh = {renamed.PLAN.get(key, key): value for key, value in meta.items()}
    if fresh == meta:
        return False
    _keep(file)
    arrays["meta"] = np.frombuffer(json.dumps(fresh).encode(), dtype=np.uint8)
    with replacing(file, "wb") as out:
        np.savez(out, **arrays)
    return True


def _keep(file: Path) -> None:
    backup = file.with_name(file.name + BACKUP)
    if not backup.exists():
        os.link(file, backup)


def _rewrite(file: Path, change: Callable[[Any], Any]) -> bool:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        # a last line that is not whole is left out, as readers do
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        values, new = lines, [change(line) for line in lines]
        fresh = "".join(json.dumps(line) + "\n" for line in new)
    else:
        values = read_json(file)
        new = change(values) if isinstance(values, dict) else values
        fresh = json.dumps(new, indent=1, sort_keys=file.name != "config.json") + "\n"
    if new == values:
        return False
    _keep(file)
    write_text(file, fresh)
    return True


@dataclass(frozen=True)
class ConvertOlderRequest:
    """Rewrite files of versions before 0.2, in place, with the names of today."""

    path: Annotated[Path, tyro.conf.Positional]
    """A run folder, training stage, saved model, encoded corpus or plan."""

    def run(self) -> None:
        """Convert, and print how much was. Raises ValueError where `path` is nothing that can be."""
        changed = convert(self.path)
        if not changed:
            print("nothing to convert")
            return
        print(f"{len(changed)} files converted; each one that was rewritten is kept as NAME{BACKUP}")
        if (self.path / "evaluate.old-1").is_dir():
            print("the evaluation is kept in evaluate.old-1; the `train.py` command of this run makes it again")


main = command(lambda argv: parse("convert", ConvertOlderRequest, argv))

if __name__ == "__main__":
    sys.exit(main())
