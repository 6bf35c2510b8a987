"""The report's headline cards and its sections on media gain, SALT, losses, FLOP accounting and the record of the run.

Each section is a dict for the template of its id, or None where the run has no such records.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brine.data.corpus.statistics import quarantine_summary
from brine.data.document import MODALITIES
from brine.evals.report.charts import IntervalPoint, dot_chart, short
from brine.evals.report.tables import NBSP, STAGE_NAMES, cell_name, counts, duration, interval, number, percent
from brine.evals.run_files import sum_flops

MODALITY_STYLE = {"image": 0, "audio": 3, "video": 4}
COST_CATEGORY_NAMES = {
    "student": "student training",
    "teacher_forward": "soft labels from the small model",
    "scoring": "scoring documents",
    "labelling": "pseudo-labels",
    "teacher_training": "teacher training",
}
_QUARANTINED_SHOWN, _EVENTS_SHOWN = 50, 200
_WITHOUT, _WITH = "without_teacher_training", "with_teacher_training"


def headline_cards(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers and their targets."""
    cards: list[dict[str, Any]] = []

    def add(name: str, value: str, below: str, *, target: str = "", sign: str = "", **more: Any) -> None:
        entry = (summary.get("targets") or {}).get(target)
        if entry:
            status = {True: "reached", False: "missed", None: "not measured"}[entry["reached"]]
            goal = "" if entry["reached"] is None else f" {sign}{NBSP}{entry['target']:g}"
            more |= {"badge": status + goal, "tone": {True: "good", False: "bad"}.get(entry["reached"], "")}
        cards.append({"name": name, "value": value, "below": below, **more})

    if summary.get("bits_per_byte") is not None:
        add("Held-out text", number(summary["bits_per_byte"], 2), "bits per byte")
    for name in MODALITIES:
        gain = (summary.get("media_gain") or {}).get(name) or {}
        if gain.get("gain") is not None:
            value = number(gain["gain"], 2)
            add(f"Media gain, {name}", value, interval(gain), target=f"{name}_gain", sign="≥")
    cells = (summary.get("details") or {}).get("transcription") or []
    hardness = "easiest level" if any(cell.get("level") for cell in cells) else "held-out documents"
    for name in ("image", "audio"):
        rate = (summary.get("cer") or {}).get(name)
        if rate is not None:
            add(f"Character error rate, {name}", percent(rate, 1), hardness, target=f"{name}_cer", sign="≤")
    salt = summary.get("salt") or {}
    equal = salt.get("equal_steps") or {}
    if equal.get("difference") is not None:
        ends = interval(equal, 3)
        below = f"nats per token at equal steps{', ' if ends else ''}{ends}"
        add("Loss with SALT minus without", number(equal["difference"]), below, badge="one seed: no verdict")
    if summary.get("wall_s") is not None:
        memory = summary.get("peak_rss_gib")
        below = f"peak memory {number(float(memory), 1)} GiB" if memory is not None else ""
        add("Whole pipeline", duration(summary["wall_s"]), below)
    return cards


def gains_section(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Media gains with their targets, per kind and level, and the losses behind them."""
    gains = {name: (results.get("media_gain") or {}).get(name) for name in MODALITIES}
    gains = {name: entry for name, entry in gains.items() if entry and entry.get("gain") is not None}
    if not gains:
        return None
    targets = results.get("targets") or {}

    def dot(name: str, entry: Mapping[str, Any], modality: str, **more: Any) -> IntervalPoint:
        note = f", {entry.get('num_documents', 0)} documents"
        low, high = entry.get("low"), entry.get("high")
        return IntervalPoint(name, entry["gain"], low, high, MODALITY_STYLE[modality], note=note, **more)

    heads = [
        dot(name, entry, name, target=targets.get(f"{name}_gain"), emphasized=True) for name, entry in gains.items()
    ]
    cells = [
        dot(f"{cell['kind'][:11]} {cell['level'] or ''}".rstrip(), cell, modality)
        for modality, entry in gains.items()
        for cell in entry.get("cells", [])
        if cell.get("gain") is not None
    ]
    columns = ("matched", "blank", "mismatched", "num_documents")
    return {
        "id": "gain",
        "chart": dot_chart("Media gain per modality", heads, x_label="gain (dashed mark: target)"),
        "cells": dot_chart("Media gain per kind and level", cells, x_label="gain, by kind and level")
        if len(cells) > len(heads)
        else "",
        "losses": {
            "caption": "Loss, nats per token, with media that are",
            "head": ("media", "matched", "blank", "mismatched", "documents"),
            "rows": [[name, *(number(entry.get(key)) for key in columns)] for name, entry in gains.items()],
        },
    }


def salt_section(
    compare: Mapping[str, Any] | None, compute_cost: Mapping[str, Any], *, selection: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """SALT against baseline: the differences in words and with their intervals over documents.

    selection: a line for each document that data selection scored.
    """
    if not compare or not compare.get("equal_steps"):
        return None
    cost = compare.get("equal_cost") or {}
    named = [
        ("equal steps", "equal student steps", compare["equal_steps"]),
        ("equal cost", "equal cost, teacher's training not counted", cost.get(_WITHOUT)),
        ("with teacher", "equal cost, teacher's training counted", cost.get(_WITH)),
    ]
    named = [(name, title, entry) for name, title, entry in named if entry]
    dots = [
        IntervalPoint(name, entry["difference"], entry["low"], entry["high"], 0, emphasized=True)
        for name, _, entry in named
        if entry.get("difference") is not None and entry.get("low") is not None
    ]
    rows = [
        [title, number(entry.get("ours")), number(entry.get("theirs")), number(entry.get("difference"), 4),
         interval(entry, 4), "not compared" if entry.get("difference") is None else "no verdict"]
        for _, title, entry in named
    ]  # fmt: skip
    return {
        "id": "salt",
        "outcome": salt_sentence(compare),
        "selection": _selection_sentence(selection),
        "match": compare.get("cost_to_match"),
        "arms": compute_cost.get("flops_by_arm") or {},
        "chart": dot_chart("SALT minus baseline", dots, x_label="nats per token; below 0 SALT is better"),
        "differences": {
            "head": ("compared at", "SALT", "baseline", "difference", "interval", "outcome"),
            "rows": rows,
            "notes": [entry.get("note") for _, _, entry in named],
        },
    }


def _selection_sentence(selection: Sequence[Mapping[str, Any]]) -> str:
    kept = [line for line in selection if line.get("kept")]
    targets, of_targets = (sum(line.get("targets", 0) for line in lines) for lines in (kept, selection))
    if not of_targets:
        return ""
    return (
        f"During its first stage the model with SALT was trained on {len(kept):,} of {len(selection):,} documents "
        f"({percent(targets / of_targets)} of the targets), those that an early checkpoint of the small model found "
        "hardest, and then, as the baseline was, on all."
    )


def salt_sentence(compare: Mapping[str, Any]) -> str:
    """The differences in words, and that one seed of training gives no verdict."""
    cost = compare.get("equal_cost") or {}
    words = f"After the same number of steps, {_standing(compare['equal_steps'], whole=True)}"
    if without := cost.get(_WITHOUT):
        if without.get("difference") is None:
            words += "; at equal cost there is no comparison"
        else:
            words += f"; at equal cost it is {_standing(without)}"
            if (cost.get(_WITH) or {}).get("difference") is not None:
                words += f", and {_standing(cost[_WITH])} when the small model's training is counted too"
    return f"{words}. One seed of training gives no verdict: two equal trainings differ as well."


def _standing(entry: Mapping[str, Any], *, whole: bool = False) -> str:
    """ "0.0060 below"; whole: as a sentence about the loss with SALT."""
    difference = entry.get("difference")
    if difference is None:
        return "the models were not compared"
    if not difference:
        return "the loss with SALT equals the baseline's" if whole else "the same"
    side = "above" if difference > 0 else "below"
    size = number(abs(float(difference)), 4)
    if not whole:
        return f"{size} {side}"
    return f"the loss with SALT is {size} nats per token {side} the baseline's"


def losses_section(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Held-out loss per kind and level of every model, and the transcription rates."""
    models = {name: model for name, model in (results.get("models") or {}).items() if model.get("cells")}
    names = [name for name in STAGE_NAMES if name in models] + [name for name in models if name not in STAGE_NAMES]
    tables = []
    if models:
        cells = {name: {(cell["kind"], cell["level"]): cell for cell in models[name]["cells"]} for name in names}
        rows = []
        for kind, level in sorted({key for found in cells.values() for key in found}):
            found = [cells[name].get((kind, level)) or {} for name in names]
            some = next(cell for cell in found if cell)
            rows.append([cell_name(kind, level), *(number(cell.get("loss")) for cell in found),
                         number(found[0].get("bits_per_byte"), 2), number(some.get("documents")),
                         number(some.get("tokens"))])  # fmt: skip
        titles = [STAGE_NAMES.get(name, name) for name in names]
        caption = f"Nats per target token; bits per byte of: {titles[0]}"
        head = ["kind and level", *titles, "bits per byte", "documents", "tokens"]
        tables.append({"caption": caption, "head": head, "rows": rows})
    if results.get("transcription"):
        rows = [
            [cell_name(cell["kind"], cell["level"]), number(cell.get("cer")), interval(cell, 3, prefix="cer_"),
             number(cell.get("exact"), 2), number(cell.get("identifier_recall"), 2), number(cell.get("documents"))]
            for cell in results["transcription"]
        ]  # fmt: skip
        head = ("kind and level", "character error rate", "interval", "exact", "identifier recall", "documents")
        caption = "Greedy transcriptions: edits per character, fraction without error, identifiers recovered in order"
        tables.append({"caption": caption, "head": head, "rows": rows})
    return {"id": "levels", "tables": tables} if tables else None


def cost_section(compute_cost: Mapping[str, Any]) -> dict[str, Any] | None:
    """FLOPs and seconds of every stage and category."""
    entries = [
        (f"{STAGE_NAMES[stage]}: {COST_CATEGORY_NAMES.get(category, category)}", entry)
        for stage in STAGE_NAMES
        for category, entry in (compute_cost.get(stage) or {}).items()
    ]
    if not entries:
        return None
    most = max(entry["flops"] for _, entry in entries) or 1
    rows = [
        [name, 100 * entry["flops"] / most, short(entry["flops"]), duration(entry["seconds"])]
        for name, entry in entries
    ]
    seconds = sum(entry["seconds"] for _, entry in entries)
    rows.append(["total", None, short(sum_flops(dict(entries))), duration(seconds)])
    return {
        "id": "cost",
        "costs": {"head": ("stage and category", "", "FLOPs", "time"), "rows": rows, "has_total": True},
    }


def record_section(
    quarantine: list[dict[str, Any]], excluded: Mapping[str, Any], events: Mapping[str, list[dict[str, Any]]],
    recipe: Any, environment: Mapping[str, Any] | None, *, kept_stale: Mapping[str, Any] | None = None,
    split_documents: Mapping[str, Any] | None = None, reader_notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """quarantine: lines of quarantine.jsonl. excluded: excluded.json. events: stage -> lines of events.jsonl.

    kept_stale: stages kept although the documents changed, and why. split_documents: see `loss.split_documents`.
    reader_notes: what reading the documents found, such as skipped files.
    """
    sentences, texts = [_quarantine_sentence(quarantine), *_excluded_sentences(excluded)], []
    if split_documents and split_documents.get("documents"):
        sentences.append(
            f"{split_documents['documents']:,} of {split_documents['total_documents']:,} held-out documents are longer "
            f"than {split_documents['seq_len']:,} tokens and were split into chunks that do not attend to each other "
            f"(the longest has {split_documents['longest_tokens']:,})."
        )
    sentences += [f"{stage}: {reason}." for stage, reason in (kept_stale or {}).items()]
    if reader_notes:
        texts.append(("Notes of reading the documents", "\n".join(reader_notes)))
    if quarantine:
        lines = [f"{line.get('id', '?')} {line.get('file') or ''}: {line.get('reason', '')}" for line in quarantine]
        more = [f"… and {len(lines) - _QUARANTINED_SHOWN} more"] if len(lines) > _QUARANTINED_SHOWN else []
        texts.append(("Quarantine", "\n".join(lines[:_QUARANTINED_SHOWN] + more)))
    lines = [_event(stage, event) for stage, found in events.items() for event in found]
    if lines:
        texts.append((f"{len(lines)} events during training", "\n".join(lines[-_EVENTS_SHOWN:])))
    if recipe is not None:
        texts.append(("Resolved recipe", json.dumps(recipe, indent=2, ensure_ascii=False)))
    return {
        "id": "record",
        "sentences": sentences,
        "texts": texts,
        "environment": [
            (name.replace("_", " "), _plain(value))
            for name, value in (environment or {}).items()
            if value not in (None, "", {}, [])
        ],
    }


def _event(stage: str, event: Mapping[str, Any]) -> str:
    details = {name: value for name, value in event.items() if name not in ("event", "unix_time")}
    return f"{stage}: {event.get('event', '?')} {json.dumps(details, ensure_ascii=False)}"


def _quarantine_sentence(quarantine: list[dict[str, Any]]) -> str:
    if not quarantine:
        return "No document was quarantined."
    return quarantine_summary([{"reason": str(line.get("reason", "unknown"))} for line in quarantine]) + "."


def _excluded_sentences(excluded: Mapping[str, Any]) -> list[str]:
    documents, total = excluded.get("documents"), excluded.get("total_documents")
    if not isinstance(documents, int) or not isinstance(total, int) or not total:
        return []
    limits = {"tokens": excluded.get("seq_len"), **(excluded.get("media_budget") or {})}

    def needed(needs: Mapping[str, int] | None) -> str:
        return ", ".join(
            f"{need:,} {name}{' tokens' if name != 'tokens' else ''} (a sequence has {limits.get(name)})"
            for name, need in (needs or {}).items()
        )

    cut = excluded.get("cut") or {}
    kinds = cut.get("kinds") or {}
    split = [
        f"{sum(kinds.values()):,} fit only in chunks that do not attend to each other: {counts(kinds)}; "
        f"{cut.get('num_split_with_media', 0):,} of these have media or a question. Whole they would need at most: "
        f"{needed(cut.get('needs'))}."
    ]
    if not documents:
        return ["No training document was excluded.", *(split if kinds else [])]
    tokens = excluded.get("tokens", 0) / max(1, excluded.get("total_tokens", 0))
    return [
        f"{documents:,} of {total:,} training documents fit no packed sequence and were excluded "
        f"({percent(documents / total, 1)} of the documents, {percent(tokens, 1)} of the tokens): "
        f"{counts(excluded.get('kinds') or {})}. The first: {', '.join(map(str, excluded.get('first') or ()))}. "
        f"Needed at most: {needed(excluded.get('needs'))}.",
        *(split if kinds else []),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
