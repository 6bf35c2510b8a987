"""The files of a run folder, as evaluation reads and writes them, and their summary: the headline numbers in one file.

Reading is lenient: a file that is missing or cut off gives nothing, since a report is also made of a run that was
interrupted. Writing is atomic, and replaces what JSON and UTF-8 cannot hold (NaN, infinity, lone surrogates). In
summary.json `salt` is null with one arm only, `media_gain` of a modality where the corpus has no such media; `cer` and
`identifier_recall` are those of level 1, or the lowest there is; `kept_stale` are stages kept although the documents
changed.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from brine.common.files import finite, read_json, write_text
from brine.common.renamed import current_file, rename, require_current_names
from brine.data.document import MODALITIES
from brine.evals.config import EvalConfig, EvalTargets
from brine.inference.load import STAGE_PREFERENCE

STAGES = ("small", "select", "large_salt", "large_baseline")
"""Stages whose costs are counted."""
STUDENT_CATEGORY = "student"
TEACHER_CATEGORIES = ("teacher_forward", "scoring", "labelling")
"""The cost of SALT's teacher, besides its training."""
ARMS = ("large_salt", "large_baseline")
FORMER_CONDITIONS = {"own": "matched", "other": "mismatched"}


def main_model(names: Iterable[str]) -> str:
    """The name of the main model among some: the best stage, or the first name."""
    names = list(names)
    return next((name for name in STAGE_PREFERENCE if name in names), names[0])


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


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


def require_current_run(run: Path) -> None:
    """Raise ValueError, with the command that converts it, for a run of a version before 0.2."""
    recipe = run / "recipe.json"
    require_current_names({"config": read_object(recipe)}, recipe, convert=run)


def eval_config_of(run: Path, **changes: Any) -> EvalConfig:
    """The evaluation settings of a run's recipe, without targets, with the changes that are not None.

    Raises ValueError for settings that cannot work, and for a run of a version before 0.2.
    """
    require_current_run(run)
    saved = read_object(run / "recipe.json").get("evals")
    known = {field.name for field in fields(EvalConfig)} - {"targets"}
    settings = {name: value for name, value in saved.items() if name in known} if isinstance(saved, dict) else {}
    settings |= {name: value for name, value in changes.items() if value is not None}
    try:
        return EvalConfig(**settings, targets=EvalTargets(None, None, None, None, None))
    except TypeError as error:
        raise ValueError(f"{run / 'recipe.json'}: evals cannot be read ({error})") from None


def format_interval(entry: Mapping[str, Any], name: str, spec: str = "z.3f") -> str:
    """A value with its interval where it has one, for a console. spec: format of each number."""
    if entry.get(name) is None:
        return "·"
    ends = [format(entry[end], spec) for end in ("low", "high") if entry[end] is not None]
    return format(entry[name], spec) + (f" [{', '.join(ends)}]" if ends else "")


def write_page(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_text(path, text.encode("utf-8", errors="replace").decode("utf-8"))


def write_results(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_page(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSON lines, atomically."""
    write_page(path, "".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))


def stage_costs(run: Path, stages: Collection[str] = STAGES) -> dict[str, dict[str, dict[str, float]]]:
    """{stage: {category: {flops, seconds}}} of the stages that have it, without empty categories."""
    entries = {
        stage: read_object(current_file(run / stage / "compute_cost.json")) for stage in STAGES if stage in stages
    }
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
    flops = {}
    for arm in (arm for arm in ARMS if arm in costs):
        student, teacher = sum_flops(costs[arm], STUDENT_CATEGORY), sum_flops(costs[arm], *TEACHER_CATEGORIES)
        flops[arm] = {"student": student, "teacher_forward_and_scoring": teacher, "teacher_training": 0.0}
    if salt := flops.get("large_salt"):
        salt["teacher_forward_and_scoring"] += sum_flops(costs.get("select"))
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
    """Each target with its value and whether it was reached (None: not measured, or a gain of a single document); a
    gain must also be above 0 with its whole interval."""
    result = {}
    for name, target in targets.items():
        if target is None:
            continue
        modality, _, metric = name.rpartition("_")
        gain = gains.get(modality) or {}
        value, reached = gain.get("gain") if metric == "gain" else cer.get(modality), None
        if value is not None and metric != "gain":
            reached = value <= target
        elif value is not None and gain.get("low") is not None:
            reached = value >= target and gain["low"] > 0
        result[name] = {"target": target, "value": value, "reached": reached}
    return result


def build_summary(run: Path, *, wall_s: float | None = None, peak_rss_gib: float | None = None) -> dict[str, Any]:
    """The summary of a run folder. Raises ValueError when its evaluation is missing."""
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
        "excluded": read_json(current_file(run / "excluded.json")),
        "kept_stale": read_json(current_file(run / "kept_stale.json")),
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
        (f"media gain, {name}", format_interval(gain, "gain"))
        for name, gain in summary["media_gain"].items()
        if gain["gain"] is not None
    ]
    pairs += [(f"{name} character error rate", _number(rate)) for name, rate in summary["cer"].items()]
    pairs += [(f"target {name}", status[target["reached"]]) for name, target in summary["targets"].items()]
    pairs.append(("time of all stages", f"{summary['wall_s'] / 60:.1f} min, peak memory {summary['peak_rss_gib']} GiB"))
    return "\n".join(f"{name:<34}{value}" for name, value in pairs)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
