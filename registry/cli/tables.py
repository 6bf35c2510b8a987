"""What the commands of the registry print: the list of models, one model, and the gate's answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from brine.common.tables import sanitize, table
from brine.registry.history import History
from brine.registry.lineage import OF_NOTHING
from brine.registry.promotion import Promotion

SHORT = 12


def list_table(history: History):
    """A rich table with a line for each model, the champion first; what is revoked or was forced is red."""
    rows, styles = [], []
    order = sorted(history.added, key=lambda model: (model != history.champion, -history.added[model]["line"]))
    for model in order:
        entry = history.added[model]
        measured = history.measured.get(model, [])
        suites = dict.fromkeys(f"{each['suite']['name']}@{each['suite']['version']}" for each in measured)
        rows.append((model[:SHORT], state_of(model, history), sanitize(f"{entry['run']}/{entry['stage']}", 60),
                     date_of(entry), sanitize(", ".join(suites) or "not measured", 60)))  # fmt: skip
        styles.append("red" if model in history.forced or history.why_revoked(model) else "")
    made = table(("model", "state", "run", "added", "measured on"), rows)
    for row, style in zip(made.rows, styles, strict=True):
        row.style = style
    for column in made.columns:
        column.justify = "left"
    return made


def state_of(model: str, history: History) -> str:
    """Words for what a model is in its registry."""
    words = []
    if model == history.champion:
        words.append("champion")
    elif model in history.was_champion:
        words.append("former champion")
    if history.why_revoked(model):
        words.append("REVOKED")
    if forced := history.forced.get(model):
        words.append(f"FORCED: {sanitize(forced[-1]['reason'], 60)}")
    if history.added[model].get("missing"):
        words.append("lineage incomplete")
    return ", ".join(words) or "-"


def date_of(entry: Mapping[str, Any]) -> str:
    """The time of a line of the log, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.get("unix_time", 0)))


def show_tables(card: Mapping[str, Any], history: History) -> list[Any]:
    """Tables of one model: what it is, what it was made from, what was measured of it, what happened to it."""
    model = card["weights"]
    commit = str(card["commit"]) + (f" (differences {card['diff'][:SHORT]})" if card["diff"] else "")
    facts = [
        ("weights", model), ("state", state_of(model, history)), ("run", f"{card['run']}/{card['stage']}"),
        ("commit", commit), ("setting", card["setting"]), ("seeds", _pairs(card["seeds"])),
        ("tokenizer", card["tokenizer"]),
        ("consent", _pairs({name: "?" if count is None else count for name, count in card["consent"].items()})),
        ("FLOPs", f"{_flops(card['compute_cost']):.3g}"),
    ]  # fmt: skip
    facts += [("missing", reason) for reason in card["missing"]]
    facts += [("revoked", reason) for reason in history.why_revoked(model)]
    facts += [("forced", f"{each['reason']} ({date_of(each)})") for each in history.forced.get(model, ())]
    lineage = [(entry["name"], name, _pairs(entry["inputs"])) for name, entry in card["stages"].items()]
    lineage += [(name, digest, "source") for name, digest in card["sources"].items() if digest != OF_NOTHING]
    lineage += [(name, digest, "weights") for name, digest in card["parents"].items()]
    tables = [_left(("", ""), facts), _left(("made from", "digest", "inputs"), lineage)]
    measured = [
        (f"{each['suite']['name']}@{each['suite']['version']}", ", ".join(each["parts"]), each["machine"],
         each["precision"], each["revision"], date_of(each))
        for each in history.measured.get(model, ())
    ]  # fmt: skip
    if measured:
        tables.append(_left(("measured on", "parts", "machine", "precision", "revision", "when"), measured))
    return tables


def decision_tables(promotion: Promotion) -> list[Any]:
    """The gate's answer: guards in a table, then sentences."""
    answer = promotion.answer
    parts: list[Any] = []
    guards = answer.details.get("guards") or []
    if guards:
        rows = [
            (guard["name"], "FAILED" if guard["failed"] else "passed", guard.get("why") or "-",
             _number(guard.get("margin")), _interval(guard.get("difference")))
            for guard in guards
        ]  # fmt: skip
        made = _left(("guard", "", "why", "margin", "difference"), rows)
        for row, guard in zip(made.rows, guards, strict=True):
            row.style = "red" if guard["failed"] else ""
        parts.append(made)
    words = [
        f"answer of the gate: {answer.outcome}" + (f" ({answer.details['note']})" if "note" in answer.details else "")
    ]
    primary = answer.details.get("primary")
    if primary:
        words.append(f"{primary['measure']}: {_interval(primary)}")
    words += [f"against it: {reason}" for reason in answer.reasons]
    if promotion.uses:
        words.append(f"questions asked of this suite's gate part: {promotion.uses}")
    if promotion.model is None:
        words.append(f"not promoted; the champion stays {str(promotion.before)[:SHORT]}")
    else:
        force = f", by force: {promotion.forced}" if promotion.forced else ""
        of = f", the median of {len(promotion.seeds)} seeds on dev" if len(promotion.seeds) > 1 else ""
        words.append(f"promoted: {promotion.model[:SHORT]}{of}{force}")
    return [*parts, "\n".join(sanitize(line, 1000) for line in words)]


def _left(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]):
    made = table(head, [tuple(sanitize(str(value), 200) for value in row) for row in rows])
    for column in made.columns:
        column.justify = "left"
    return made


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {name: "none" if value == OF_NOTHING else str(value)[:16] for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "-"


def _flops(cost: Mapping[str, Any]) -> float:
    return float(sum(entry.get("flops", 0) for categories in cost.values() for entry in categories.values()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "-"
    ends = "" if found.get("low") is None else f" [{found['low']:.4g}, {found['high']:.4g}]"
    return f"{found['value']:+.4g}{ends}"
