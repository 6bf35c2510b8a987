"""What the log of a registry amounts to: its models, the champion and those before it, what is revoked or forced.

The log alone decides: cards and the pointer to the champion are made from this. Lines by event:

    add       model, run, stage, contains (digests of its lineage), files, card
    measure   model, folder, suite, parts, machine, precision, revision, files
    gate      models, champion, suite, outcome, passed, reasons, decision, uses (where the gate part was asked)
    force     model, reason, overrides
    promote   model, before, seeds, suite, first, forced
    rollback  model, before, reason
    revoke    digest, models, reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EVENTS = ("add", "measure", "gate", "force", "promote", "rollback", "revoke")


@dataclass
class History:
    """The state after all lines. added, measured, forced: lines by model. champions: those that would follow one
    another back, the present one last. was_champion: all that ever were. seeds: models of the same setting that a
    champion was promoted with. revoked: digest -> reason. gate_uses: questions asked of a suite's gate part."""

    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    forced: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    champions: list[str] = field(default_factory=list)
    was_champion: set[str] = field(default_factory=set)
    seeds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    revoked: dict[str, str] = field(default_factory=dict)
    gate_uses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> History:
        """Replay the lines of a log."""
        history = cls()
        for entry in entries:
            history.apply(entry)
        return history

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Take one line into account. Raises ValueError for an event of a later version."""
        event, model = entry.get("event"), entry.get("model", "")
        if event == "add":
            self.added[model] = dict(entry)
        elif event == "measure":
            self.measured.setdefault(model, []).append(dict(entry))
        elif event == "gate":
            self.gate_uses[entry["suite"]["digest"]] += "uses" in entry
        elif event == "force":
            self.forced.setdefault(model, []).append(dict(entry))
        elif event == "promote":
            self.champions.append(model)
            self.was_champion.add(model)
            self.seeds[model] = tuple(entry.get("seeds") or [model])
        elif event == "rollback":
            if model in self.champions:
                while self.champions[-1] != model:
                    self.champions.pop()
            else:
                # one that a former way back had left behind
                self.champions.append(model)
        elif event == "revoke":
            self.revoked[entry["digest"]] = entry["reason"]
        else:
            raise ValueError(f"line {entry.get('line')} of the log has the unknown event {event!r}: use a newer Brine")

    @property
    def champion(self) -> str | None:
        """Weights' digest of the champion, None before the first promotion."""
        return self.champions[-1] if self.champions else None

    def contains(self, model: str) -> set[str]:
        """Every digest that a model was made from, through parents that are registered too, and its own."""
        found: set[str] = set()
        waiting = [model]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += (self.added.get(name) or {}).get("contains", [])
        return found

    def downstream(self, digest: str) -> list[str]:
        """Models that are, or were made from, what has this digest, in the order in which they were added."""
        return [model for model in self.added if digest in self.contains(model)]

    def why_revoked(self, model: str) -> list[str]:
        """Reasons for which a model must not be used, one for each revoked digest that it contains."""
        found = self.contains(model) & self.revoked.keys()
        return [
            f"{digest[:12]} is revoked ({self.revoked[digest]})" if digest == model
            else f"it contains {digest[:12]}, which is revoked ({self.revoked[digest]})"
            for digest in sorted(found)
        ]  # fmt: skip

    def former_champion(self, without: Iterable[str] = ()) -> str | None:
        """The latest former champion in which nothing is revoked, nor any of the digests `without`."""
        without = set(without)
        for model in reversed(self.champions[:-1]):
            # promoted again after a rollback, the same model may come twice
            if model != self.champion and not self.why_revoked(model) and not self.contains(model) & without:
                return model
        return None
