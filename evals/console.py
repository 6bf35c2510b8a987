"""Evaluations and comparisons as aligned text for a console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brine.common.tables import sanitize


def _interval(entry: Mapping[str, Any], name: str, digits: int = 3) -> str:
    if entry.get(name) is None:
        return f"{'·':>24}"
    return f"{entry[name]:8.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]".ljust(24)


def format_evaluation(found: Mapping[str, Any]) -> str:
    """The tables of `evaluate_on`."""
    lines = [sanitize(line, 1000) for line in found["notes"]]
    lines += [f"quarantined: {sanitize(reason, 1000)}" for reason in found["quarantine_reasons"]]
    counts = [f"{found[name]} {word}" for name, word in (("documents", "documents"), ("quarantined", "quarantined"))]
    lines.append(", ".join([*counts, f"{found['num_measured']} measured"]))
    if found["num_trained_on"] is None:
        lines.append("whether the run was trained on these is not known: its training documents are gone")
    elif found["num_trained_on"]:
        lines.append(f"the run was trained on {found['num_trained_on']} of these: on them this is no test")
    for name, model in found["models"].items():
        lines.append(f"\n{name:<20}{'documents':>10}  {'nats per token':<24}  bits per byte")
        for row in [{"kind": "all", **model}, *model["kinds"]]:
            loss, bits = _interval(row["loss"], "value"), _interval(row["bits_per_byte"], "value")
            lines.append(f"  {row['kind']:<18}{row['documents']:>10}  {loss}  {bits}".rstrip())
    for modality, gain in found["media_gain"].items():
        formula = f"1 - L(matched) / L(blank), {found['main_model']}"
        lines.append(f"\nmedia gain, {modality:<8}{'documents':>10}  {formula}")
        for row in [{"kind": "headline", **gain}, *gain["kinds"]]:
            lines.append(f"  {row['kind']:<18}{row['num_documents']:>10}  {_interval(row, 'gain')}".rstrip())
    return "\n".join(lines)


def format_comparison(found: Mapping[str, Any]) -> str:
    """The table of `compare_evaluations`."""
    lines = [f"{'first minus second':<20}{'documents':>10}  {'bits per byte':<24}  outcome for the first"]
    for row in [{"kind": "all", **found}, *found["kinds"]]:
        bits = row["bits_per_byte"]
        lines.append(
            f"  {row['kind']:<18}{row['documents']:>10}  {_interval(bits, 'difference', 4)}  {bits['outcome']}"
        )
    return "\n".join(lines)
