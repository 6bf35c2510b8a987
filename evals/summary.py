"""The run in one JSON file: the numbers of the report, for scripts and for the next run to be judged against.

    run, wall_s, peak_rss_gib, split
    bits_per_byte                       of held-out text
    media_gain  {image, audio, video}   each {gain, low, high}; null where the corpus has no such medium
    cer         {image, audio}          character error rate at level 1 (or the lowest there is)
    names_recovered {image, audio, video}   share of names given in order, at the same level
    salt        {equal_steps, equal_cost, to_match}   differences with intervals and verdicts; null with one arm only
    ledger      {stage: {account: {flops, seconds}}, "total": ..., "billed": {...}}
    targets     {name: {target, value, reached}}
    left_out    training documents that fit no row: how many of how many, kinds, first ids, what a row lacks
    stayed      stages that were left as they were although the documents changed, and why
    details     media_gain and transcription by kind and level, loss by kind and level of each model

It is computed from files alone: `evaluate/results.json`, `left_out.json` and the stages' `ledger.json`. Nothing is
measured here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data.document import MODALITIES

STAGES = ("small", "select", "large_salt", "large_baseline")
TRAINING = "student"
TEACHER_ACCOUNTS = ("teacher_forward", "scoring", "labelling")
"""What the small model's help costs beside its training."""


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; lines that are none are left out, a missing file gives none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def ledgers(run: Path, stages: Collection[str] = STAGES) -> dict[str, dict[str, dict[str, float]]]:
    """{stage: {account: {flops, seconds}}} of those of the stages that have a ledger, empty accounts left out."""
    found = {}
    for stage in (name for name in STAGES if name in stages):
        entries = read_json(run / stage / "ledger.json")
        if isinstance(entries, dict):
            found[stage] = {
                account: {"flops": entry.get("flops", 0), "seconds": entry.get("seconds", 0.0)}
                for account, entry in entries.items()
                if isinstance(entry, dict) and (entry.get("flops") or entry.get("seconds"))
            }
    return found


def flops_of(entries: Mapping[str, Mapping[str, float]] | None, *accounts: str) -> float:
    """FLOPs of some accounts of one stage's ledger, or of all."""
    return float(
        sum(entry["flops"] for account, entry in (entries or {}).items() if not accounts or account in accounts)
    )


def teacher_training_flops(books: Mapping[str, Any]) -> float:
    """What the small model's own training cost, under whichever account its stage billed it."""
    return flops_of(books.get("small"), TRAINING, "teacher_training")


def billed(books: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """FLOPs that each arm answers for: its own training, the teacher's help, and the teacher's training."""
    bills = {}
    for stage in ("large_salt", "large_baseline"):
        if stage not in books:
            continue
        helped = stage == "large_salt"
        student = flops_of(books[stage], TRAINING)
        help_cost = flops_of(books[stage], *TEACHER_ACCOUNTS) + (flops_of(books.get("select")) if helped else 0.0)
        bills[stage] = {
            "student": student,
            "teacher_help": help_cost,
            "teacher_training": teacher_training_flops(books) if helped else 0.0,
        }
    return bills


def total(books: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """FLOPs and seconds by account over all stages, the small model's training counted as the teacher's."""
    accounts: dict[str, dict[str, float]] = {}
    for stage, entries in books.items():
        for account, entry in entries.items():
            name = "teacher_training" if stage == "small" and account == TRAINING else account
            sums = accounts.setdefault(name, {"flops": 0, "seconds": 0.0})
            sums["flops"] += entry["flops"]
            sums["seconds"] += entry["seconds"]
    return accounts


def reached(targets: Mapping[str, Any], gains: Mapping[str, Any], cer: Mapping[str, Any]) -> dict[str, Any]:
    """Each target with its value and whether it was reached, None where it could not be measured; a gain's interval
    must lie above 0 too."""
    result = {}
    for name, target in targets.items():
        modality, _, what = name.rpartition("_")
        if target is None:
            continue
        if what == "gain":
            entry = gains.get(modality) or {}
            value = entry.get("gain")
            good = None if value is None else value >= target and (entry.get("low") or 0) > 0
        else:
            value = cer.get(modality)
            good = None if value is None else value <= target
        result[name] = {"target": target, "value": value, "reached": good}
    return result


def summarise(run: Path, *, wall_s: float | None = None, peak_rss_gib: float | None = None) -> dict[str, Any]:
    """The summary of a run folder.

    Raises ValueError, telling the remedy, when its evaluation is missing.
    """
    run = Path(run)
    results = read_json(run / "evaluate" / "results.json")
    if not isinstance(results, dict):
        raise ValueError(f"{run / 'evaluate' / 'results.json'} is missing or not whole: run the evaluate stage first")
    gains = {
        name: {key: (results["media_gain"].get(name) or {}).get(key) for key in ("gain", "low", "high")}
        for name in MODALITIES
    }
    cer = {name: results["cer"].get(name) for name in ("image", "audio")}
    books = ledgers(run, results.get("stages", STAGES))
    return {
        "run": run.name,
        "wall_s": wall_s,
        "peak_rss_gib": peak_rss_gib,
        "split": results.get("split"),
        "bits_per_byte": results.get("bits_per_byte"),
        "media_gain": gains,
        "cer": cer,
        "names_recovered": {name: (results.get("names_recovered") or {}).get(name) for name in MODALITIES},
        "salt": results.get("compare"),
        "ledger": {**books, "total": total(books), "billed": billed(books)},
        "left_out": read_json(run / "left_out.json"),
        "stayed": read_json(run / "stayed.json"),
        "targets": reached(results.get("targets") or {}, gains, cer),
        "details": {
            "media_gain": results["media_gain"],
            "transcription": results.get("transcription", []),
            "loss": {name: model.get("cells", []) for name, model in (results.get("models") or {}).items()},
        },
    }


def write_summary(run: Path, *, wall_s: float | None = None, peak_rss_gib: float | None = None) -> dict[str, Any]:
    """`summarise`, written to summary.json in the run folder, whole or not at all; returns it."""
    run = Path(run)
    summary = summarise(run, wall_s=wall_s, peak_rss_gib=peak_rss_gib)
    write_whole(run / "summary.json", json.dumps(finite(summary), indent=1, allow_nan=False) + "\n")
    return summary


def finite(value: Any) -> Any:
    """The same JSON value with NaN and infinity, which are no JSON, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one rename; what UTF-8 cannot hold is replaced."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text.encode("utf-8", errors="replace"))
    partial.replace(path)
