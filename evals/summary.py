"""summary.json: the headline numbers of a run in one file, for scripts and for comparison with other runs.

Computed from the files of the run alone. `salt` is null with one arm only, `media_gain` of a modality where the corpus
has no such media; `cer` and `identifier_recall` are those of level 1, or the lowest there is; `excluded` are training
documents too long for a packed sequence, `kept_stale` stages kept although the documents changed; `details` are by kind
and level.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from brine.common.files import read_json
from brine.data.document import MODALITIES
from brine.evals.run_files import STAGES, read_object, read_results, write_results

STUDENT_CATEGORY = "student"
TEACHER_CATEGORIES = ("teacher_forward", "scoring", "labelling")
"""The cost of SALT's teacher, besides its training."""
ARMS = ("large_salt", "large_baseline")


def stage_costs(run: Path, stages: Collection[str] = STAGES) -> dict[str, dict[str, dict[str, float]]]:
    """{stage: {category: {flops, seconds}}} of the stages with a ledger, without empty categories."""
    entries = {stage: read_object(run / stage / "ledger.json") for stage in STAGES if stage in stages}
    return {
        stage: {
            category: {"flops": entry.get("flops", 0), "seconds": entry.get("seconds", 0.0)}
            for category, entry in categories.items()
            if isinstance(entry, dict) and (entry.get("flops") or entry.get("seconds"))
        }
        for stage, categories in entries.items()
        if categories
    }


def sum_flops(entries: Mapping[str, Mapping[str, float]] | None, *categories: str) -> float:
    """FLOPs of some cost categories of one stage, or of all."""
    entries = entries or {}
    return float(sum(entry["flops"] for name, entry in entries.items() if not categories or name in categories))


def teacher_training_flops(costs: Mapping[str, Any]) -> float:
    """FLOPs of the small model's training, under whichever category its stage recorded it."""
    return sum_flops(costs.get("small"), STUDENT_CATEGORY, "teacher_training")


def flops_by_arm(costs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """FLOPs of each arm: its training, the teacher's forward passes and scoring, and the teacher's training."""
    flops = {
        arm: {
            "student": sum_flops(costs[arm], STUDENT_CATEGORY),
            "teacher_help": sum_flops(costs[arm], *TEACHER_CATEGORIES),
            "teacher_training": 0.0,
        }
        for arm in ARMS
        if arm in costs
    }
    if salt := flops.get("large_salt"):
        salt["teacher_help"] += sum_flops(costs.get("select"))
        salt["teacher_training"] = teacher_training_flops(costs)
    return flops


def total_costs(costs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """FLOPs and seconds by category over all stages, the small model's training counted as the teacher's."""
    totals: dict[str, dict[str, float]] = {}
    for stage, entries in costs.items():
        for category, entry in entries.items():
            name = "teacher_training" if stage == "small" and category == STUDENT_CATEGORY else category
            sums = totals.setdefault(name, {"flops": 0, "seconds": 0.0})
            sums["flops"] += entry["flops"]
            sums["seconds"] += entry["seconds"]
    return totals


def check_targets(targets: Mapping[str, Any], gains: Mapping[str, Any], cer: Mapping[str, Any]) -> dict[str, Any]:
    """Each target with its value and whether it was reached (None: not measured); a gain must also be above 0."""
    result = {}
    for name, target in targets.items():
        if target is None:
            continue
        modality, _, metric = name.rpartition("_")
        gain = gains.get(modality) or {}
        value, reached = gain.get("gain") if metric == "gain" else cer.get(modality), None
        if value is not None:
            reached = value >= target and (gain.get("low") or 0) > 0 if metric == "gain" else value <= target
        result[name] = {"target": target, "value": value, "reached": reached}
    return result


def build_summary(run: Path, *, wall_s: float | None = None, peak_rss_gib: float | None = None) -> dict[str, Any]:
    """The summary of a run folder. Raises ValueError when its evaluation is missing."""
    run = Path(run)
    results = read_results(run)
    if not results:
        raise ValueError(f"{run / 'evaluate' / 'results.json'} is missing or cut off: run the evaluate stage first")
    gains = {
        name: {key: (results["media_gain"].get(name) or {}).get(key) for key in ("gain", "low", "high")}
        for name in MODALITIES
    }
    cer = {name: results["cer"].get(name) for name in ("image", "audio")}
    costs = stage_costs(run, results.get("stages", STAGES))
    return {
        "run": run.name,
        "wall_s": wall_s,
        "peak_rss_gib": peak_rss_gib,
        "split": results.get("split"),
        "bits_per_byte": results.get("bits_per_byte"),
        "media_gain": gains,
        "cer": cer,
        "identifier_recall": {name: (results.get("identifier_recall") or {}).get(name) for name in MODALITIES},
        "metrics": results.get("metrics") or {},
        "salt": results.get("compare"),
        "compute_cost": {**costs, "total": total_costs(costs), "flops_by_arm": flops_by_arm(costs)},
        "excluded": read_json(run / "excluded.json"),
        "kept_stale": read_json(run / "stayed.json"),
        "targets": check_targets(results.get("targets") or {}, gains, cer),
        "details": {
            "media_gain": results["media_gain"],
            "transcription": results.get("transcription", []),
            "loss": {name: model.get("cells", []) for name, model in (results.get("models") or {}).items()},
        },
    }


def write_summary(run: Path, *, wall_s: float | None = None, peak_rss_gib: float | None = None) -> dict[str, Any]:
    """`build_summary`, written to summary.json in the run folder; returns it."""
    summary = build_summary(run, wall_s=wall_s, peak_rss_gib=peak_rss_gib)
    write_results(Path(run) / "summary.json", summary)
    return summary


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as aligned lines for a console."""
    status = {True: "reached", False: "missed", None: "not measured"}
    pairs = [("bits per byte of held-out text", _number(summary["bits_per_byte"]))]
    pairs += [
        (f"media gain, {name}", f"{gain['gain']:z.3f} [{gain['low']:z.3f}, {gain['high']:z.3f}]")
        for name, gain in summary["media_gain"].items()
        if gain["gain"] is not None
    ]
    pairs += [(f"{name} character error rate", _number(rate)) for name, rate in summary["cer"].items()]
    pairs += [(f"target {name}", status[target["reached"]]) for name, target in summary["targets"].items()]
    pairs.append(("wall clock", f"{summary['wall_s'] / 60:.1f} min, peak memory {summary['peak_rss_gib']} GiB"))
    return "\n".join(f"{name:<34}{value}" for name, value in pairs)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
