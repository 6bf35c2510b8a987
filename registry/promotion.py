"""A promotion: what is asked of the gate, what of its answer is told, and what is written.

The setting of the candidates (equal but for the seeds of training) is compared with the champion's, seed by seed, on
the suite's gate part. The answer is recorded whatever it is, and counts as one use of the gate part; it has numbers
only where the candidate passed, since a gate that answers every question with numbers can be climbed by asking (the
Ladder, Blum and Hardt 2015, https://arxiv.org/abs/1502.04585).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from brine.common.files import finite, to_plain
from brine.common.formatting import counted
from brine.evals.measurement import MEASUREMENTS_FILE, Measurement, load_measurements
from brine.registry.measured import (
    DEV,
    GATE,
    Conditions,
    SuiteInfo,
    common_conditions,
    conditions_for,
    newest,
    specs_of,
    suite_identity,
)
from brine.registry.model_files import RECORD_FILE, damaged_files

if TYPE_CHECKING:
    from brine.registry.registry import Registry

MIN_SEEDS = 3
PARTS = (DEV, GATE)


class Gate(Protocol):
    """What decides, from measurements alone (`brine.registry.gate`)."""

    decide: Callable[..., Any]
    calibrate_margins: Callable[..., Any]
    median_seed: Callable[..., int]


def the_gate() -> Any:
    """The gate's module."""
    return importlib.import_module("brine.registry.gate")


class ChampionChangedError(ValueError):
    """Another process changed the champion while a promotion was decided."""


@dataclass(frozen=True)
class GateAnswer:
    """outcome: the gate's ("better", "refused", "not better", "undecided"), "first" where there was no champion, "not
    asked" where something else refuses. passed: may it be promoted. reasons: why not, a sentence each. details: the
    decision as it is told."""

    outcome: str
    passed: bool
    reasons: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Promotion:
    """What came of it. model: the new champion, None where it was refused. before: the champion that it was compared
    with. uses: questions asked of this suite's gate part so far, this one included."""

    model: str | None
    before: str | None
    answer: GateAnswer
    uses: int
    seeds: tuple[str, ...]
    forced: str | None = None


@dataclass(frozen=True)
class PreparedPromotion:
    """A question ready to be asked. candidates, champions: models by seed, at equal positions where `paired`. equals:
    trainings of the champion's setting, by which margins are calibrated. measured: {model: {part: {measure:
    Measurement}}}. reasons: what refuses it whatever the gate says. median: the candidate to promote."""

    suite: SuiteInfo
    candidates: tuple[str, ...]
    champion: str | None
    champions: tuple[str, ...]
    equals: tuple[str, ...]
    paired: bool
    conditions: Conditions | None
    measured: dict[str, dict[str, dict[str, Measurement]]]
    reasons: tuple[str, ...]
    median: str

    def ask(self, gate: Gate, margins: Mapping[str, float] | None, *, forced: bool = False) -> GateAnswer:
        """The gate's answer; the first model of a registry is asked for measurements and lineage alone.

        forced: why the gate cannot be asked is a reason to be recorded. Raises ValueError with it if not.
        """
        if self.champion is None:
            note = {"note": "the first model of this registry: measurements and lineage alone"}
            return GateAnswer("first", not self.reasons, self.reasons, note)
        if not self.measured or not self.champions:
            return GateAnswer("not asked", False, self.reasons)
        guards = [name for name in dict.fromkeys(self.suite.guards) if name != self.suite.primary]
        try:
            decision = gate.decide(
                self._runs(self.candidates), self._runs(self.champions), primary=self.suite.primary, guards=guards,
                margins=self._margins(gate, guards) if margins is None else margins, paired=self.paired,
            )  # fmt: skip
        except ValueError as error:
            if not forced:
                raise
            return GateAnswer("not asked", False, (*self.reasons, str(error)))
        passed = bool(decision.passed) and not self.reasons
        details = finite(to_plain(decision.to_dict()))
        return GateAnswer(str(decision.outcome), passed, (*self.reasons, *decision.reasons), details)

    def _runs(self, models: Sequence[str]) -> list[dict[str, Measurement]]:
        return [self.measured[model][GATE] for model in models]

    def _margins(self, gate: Gate, guards: Sequence[str]) -> dict[str, float]:
        """Margins of the guards by the champion's equal trainings. One that a training to be compared with lacks has
        any margin: the gate refuses what is unmeasured, and names it."""
        lacking = {
            name for name in guards if not all(_is_measured(run.get(name)) for run in self._runs(self.champions))
        }
        known = [name for name in guards if name not in lacking]
        equals = [run for run in self._runs(self.equals) if all(_is_measured(run.get(name)) for name in known)]
        margins = dict.fromkeys(lacking, math.inf)
        return margins | gate.calibrate_margins(equals, guards=known, seeds=len(self.candidates))


def prepare(
    registry: Registry, candidates: Sequence[str], suite: SuiteInfo, *, gate: Gate, forced: bool
) -> PreparedPromotion:
    """Check a request and read its measurements. forced: what would be refused is a reason to be recorded instead.

    Raises ValueError for a request that cannot be answered: the same model twice, another setting, a revoked model, too
    few seeds, measurements that are missing or of different machines, damaged weights.
    """
    history, cards = registry.history, {}
    if not candidates:
        raise ValueError(
            f"give at least {MIN_SEEDS} candidates, the confirmation seeds of one setting (one is enough for the first "
            f"champion of a registry)"
        )
    if len(set(candidates)) != len(candidates):
        raise ValueError("give each candidate once: the confirmation seeds of one setting")
    champion = history.champion
    for model in candidates:
        if why := history.why_revoked(model):
            raise ValueError(f"{model[:12]} cannot be promoted, not even by force: {why[0]}")
        if model == champion:
            raise ValueError(f"{model[:12]} is the champion already")
        cards[model] = registry.card(model)
    reasons: list[str] = []

    def refuse(message: str) -> None:
        if not forced:
            raise ValueError(message)
        reasons.append(message)

    if len({card["setting"] for card in cards.values()}) > 1:
        refuse("the candidates differ in more than the seeds of training: give the confirmation seeds of one setting")
    elif len({_seed_key(card) for card in cards.values()}) < len(cards):
        refuse("two candidates have the same seeds of training: give different ones")
    for model in cards:
        if gaps := lineage_gaps(registry, model):
            reasons.append(f"the lineage of {model[:12]} is incomplete, without {'; '.join(gaps)}")
    ordered = tuple(sorted(candidates, key=lambda model: _seed_key(cards[model])))
    champions: tuple[str, ...] = ()
    equals: tuple[str, ...] = ()
    paired = False
    if champion is not None:
        if len(ordered) < MIN_SEEDS:
            refuse(f"{counted(len(ordered), 'confirmation seed')}: a promotion needs at least {MIN_SEEDS}")
        by_seed = _equal_trainings(registry, champion, without=ordered)
        equals = tuple(by_seed[key] for key in sorted(by_seed))
        paired = all(_seed_key(cards[model]) in by_seed for model in ordered)
        champions = tuple(by_seed[_seed_key(cards[model])] for model in ordered) if paired else equals
        if len(champions) < MIN_SEEDS:
            refuse(
                f"the champion's setting has {counted(len(champions), 'seed')} here and {MIN_SEEDS} are needed, or a "
                f"difference could be one of seeds: train it under {MIN_SEEDS - len(champions)} more, then add and "
                f"measure them"
            )
    conditions, measured = None, {}
    try:
        everyone = dict.fromkeys([*ordered, *champions])
        lines = {model: history.measured.get(model, []) for model in dict.fromkeys([*everyone, *equals])}
        conditions = common_conditions(
            {model: lines[model] for model in everyone}, suite, parts=PARTS, champions=set(equals)
        )
        equals = tuple(model for model in equals if conditions in conditions_for(lines[model], suite.digest, PARTS))
        measured = {model: _read(registry, model, conditions) for model in dict.fromkeys([*everyone, *equals])}
    except ValueError as error:
        refuse(str(error))
    if champion is None:
        # else the gate says so
        for model, parts in measured.items():
            declared = dict.fromkeys([suite.primary, *suite.guards])
            if unmeasured := [name for name in declared if not _is_measured(parts[GATE].get(name))]:
                reasons.append(f"{model[:12]} was not measured in {', '.join(unmeasured)}, which the suite declares")
    by_value = [model for model in ordered if measured and _is_measured(measured[model][DEV].get(suite.primary))]
    if measured:
        unmeasured = [model for model in ordered if model not in by_value]
        reasons += [f"{model[:12]} was not measured in {suite.primary} on {DEV}" for model in unmeasured]
    median = ordered[0]
    if by_value:
        median = by_value[gate.median_seed([measured[model][DEV] for model in by_value], suite.primary)]
    # before the gate is asked, and while others may write
    if damage := damaged_files(registry.folder_of(median), history.added[median]["files"]):
        raise ValueError(f"{damage[0]}: put it back from a copy before it is promoted")
    return PreparedPromotion(
        suite, ordered, champion, champions, equals, paired, conditions, measured, tuple(reasons), median
    )


def commit_promotion(
    registry: Registry, asked: PreparedPromotion, answer: GateAnswer, *, force: str | None
) -> Promotion:
    """Write the answer, and the promotion where it passed or is forced; the caller holds the registry's lock.

    Raises ChampionChangedError where the champion is no longer the one that was compared with, ValueError for a
    candidate that was revoked meanwhile.
    """
    history, model = registry.history, asked.median
    suite = suite_identity(asked.suite)
    gate: dict[str, Any] = {
        "event": "gate",
        "models": list(asked.candidates),
        "champion": asked.champion,
        "suite": suite,
    }
    gate |= {"outcome": answer.outcome, "passed": answer.passed, "reasons": list(answer.reasons)}
    gate |= {"conditions": vars(asked.conditions) if asked.conditions else None, "decision": answer.details}
    was_asked = answer.outcome not in ("first", "not asked")
    uses = history.gate_uses[asked.suite.digest] + was_asked
    gate |= {"uses": uses} if was_asked else {}
    if history.champion != asked.champion:
        registry.commit([gate | {"passed": False, "reasons": ["the champion changed meanwhile"]}])
        now = str(history.champion)[:12]
        raise ChampionChangedError(
            f"the champion changed from {str(asked.champion)[:12]} to {now} while this was decided, so nothing was "
            f"promoted: the same command compares with {now}"
        )
    for each in asked.candidates:
        if why := history.why_revoked(each):
            registry.commit([gate | {"passed": False, "reasons": why}])
            raise ValueError(f"{each[:12]} cannot be promoted: {why[0]}")
    forced = force if force is not None and not answer.passed else None
    if not answer.passed and forced is None:
        registry.commit([gate])
        return Promotion(None, asked.champion, answer, uses, asked.candidates)
    lines: list[dict[str, Any]] = [gate]
    if forced is not None:
        lines.append({"event": "force", "model": model, "reason": forced, "overrides": list(answer.reasons)})
    first = {"first": True} if asked.champion is None else {}
    lines.append(
        {"event": "promote", "model": model, "before": asked.champion, "seeds": list(asked.candidates), "suite": suite}
        | first
        | ({"forced": forced} if forced is not None else {})
    )
    registry.commit(lines)
    return Promotion(model, asked.champion, answer, uses, asked.candidates, forced)


def lineage_gaps(registry: Registry, model: str) -> list[str]:
    """What is missing of a model's lineage, that of its registered parents included."""
    added, gaps = registry.history.added, []
    for name in sorted(registry.history.contains(model) & added.keys()):
        card = registry.card(name)
        of = "" if name == model else f" (of its parent {name[:12]})"
        gaps += [f"{gap}{of}" for gap in card["missing"]]
        gaps += [
            f"the model {parent[:12]} that it was trained from{of}, which is not in this registry: add it"
            for parent in card["unknown_parents"]
            if parent not in added
        ]
    return gaps


def trainings_of_champion(registry: Registry, *, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The models that candidates are compared with and margins are calibrated by: every training of the champion's
    setting that is here and not revoked, `without` the candidates; () before the first champion."""
    champion = registry.history.champion
    return () if champion is None else tuple(_equal_trainings(registry, champion, without=without).values())


def _seed_key(card: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(card["seeds"].items()))


def _equal_trainings(registry: Registry, champion: str, *, without: Sequence[str]) -> dict[Any, str]:
    """{seeds: model} of the champion's setting: those that it was promoted with first, then others that were added."""
    history = registry.history
    setting = history.added[champion]["setting"]
    group = dict.fromkeys([champion, *history.seeds[champion], *history.added])
    found: dict[Any, str] = {}
    for model in group:
        if history.added[model]["setting"] == setting and model not in without and not history.why_revoked(model):
            found.setdefault(_seed_key(registry.card(model)), model)
    return found


def _read(registry: Registry, model: str, conditions: Conditions) -> dict[str, dict[str, Measurement]]:
    """{part: {measure: Measurement}} of the latest records under these conditions. Raises ValueError for damage."""
    found = {}
    for part in PARTS:
        entry = newest(registry.history.measured[model], conditions, part)
        assert entry is not None
        folder = registry.folder_of(model) / "measured" / entry["folder"]
        if damage := damaged_files(folder, entry["files"]):
            raise ValueError(f"{damage[0]}: measure {model[:12]} again")
        record = registry.read_record(folder / RECORD_FILE)
        found[part] = load_measurements(folder / MEASUREMENTS_FILE, specs_of(record))[part]
    return found


def _is_measured(found: Measurement | None) -> bool:
    return found is not None and len(found) > 0 and found.value is not None
