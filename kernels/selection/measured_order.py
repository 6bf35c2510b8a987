"""Which backend was measured to be fastest where: a small committed table that a benchmark writes and "auto" reads.

A table is a JSON list of rows, one for each (compute capability, dtype, kind, head dim) that was measured:

    {"capability": "9.0", "dtype": "bfloat16", "kind": "causal", "dim": 128,
     "ms": {"flash": 1.0, "triton": 2.0}, "from": {"gpu": ..., "commit": ..., "command": ...}}

ms: median times of forward and backward; from: GPU, commit and command. A row holds for exactly what it names.
"""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

KEY = ("capability", "dtype", "kind", "dim")


def row_of(
    *, capability: tuple[int, int], dtype: str, kind: str, dim: int | None, ms: dict[str, float], source: dict[str, Any]
) -> dict[str, Any]:
    """A table row.

    dim: head dim or None; ms: by backend; source: GPU, commit. ValueError for times <= 0 or no source.
    """
    if not ms or any(not time > 0.0 for time in ms.values()):
        raise ValueError(f"a measured row needs the time of at least one backend, above 0; got {ms}")
    if not source.get("gpu") or not source.get("commit"):
        raise ValueError(f'a measured row must name at least its "gpu" and "commit"; got {source}')
    name = f"{capability[0]}.{capability[1]}"
    return {"capability": name, "dtype": dtype, "kind": kind, "dim": dim, "ms": dict(ms), "from": dict(source)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into the table at `path`; backends that were not timed again keep time and source ("from")."""
    kept = {_key(row): row for row in read_rows(path)}
    for row in rows:
        kept[_key(row)] = _joined(kept.get(_key(row)), row)
    text = ",\n".join(json.dumps(kept[key]) for key in sorted(kept, key=str))
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(f"[\n{text}\n]\n" if text else "[]\n", encoding="utf-8")
    fresh.replace(path)
    _rows.cache_clear()


def _joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A row with the times of an older one for the same key that are not in it."""
    others = {name: time for name, time in old["ms"].items() if name not in new["ms"]} if old else {}
    if not old or not others:
        return new
    # one that is named in "from" was itself kept, or timed elsewhere
    whole = {name: value for name, value in old["from"].items() if name not in old["ms"]}
    sources = {name: old["from"].get(name, whole) for name in others}
    return new | {"ms": others | new["ms"], "from": new["from"] | sources}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of the table at `path`, [] without a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def measured(
    path: Path, *, capability: tuple[int, int], dtype: str, kind: str, dim: int | None
) -> tuple[list[str], str] | None:
    """-> (backends, fastest first; the source), or None where nothing was measured."""
    row = _rows(path).get((f"{capability[0]}.{capability[1]}", dtype, kind, dim))
    if row is None:
        return None
    return sorted(row["ms"], key=row["ms"].get), f"{row['from']['gpu']}, commit {row['from']['commit']}"


@lru_cache
def _rows(path: Path) -> dict[tuple, dict[str, Any]]:
    return {_key(row): row for row in read_rows(path)}


def _key(row: dict[str, Any]) -> tuple:
    return tuple(row[name] for name in KEY)
