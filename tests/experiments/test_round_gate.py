"""The gate of a round: asked once, about confirmation seeds, on the recipe's device; what it answered is recorded."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from brine.common.files import write_json
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.experiments.planning.freeze import again_with_seed
from brine.experiments.planning.plan import CONFIRM, TRIAL_FILE
from brine.experiments.rounds import gate
from brine.registry.registry import Registry
from brine.registry.verify import verify
from tests.experiments.rounds import line_run, tiny_line, write_images
from tests.experiments.tiny import finish_trial
from tests.registry.fakes import SUITE, make_run, write_measured

SEEDS = (100, 101, 102)


class Killed(BaseException):
    pass


@pytest.fixture
def world(tmp_path, make_plan, monkeypatch):
    """A line with a registry whose measurements are made up; `setting(name, rate)` makes a plan with a finished arm."""
    line = tiny_line(tmp_path, registry=tmp_path / "registry", suite="made-up", confirm=SEEDS)
    calls, values = [], {}

    def measure(folder, suite, out, *, device, compute_dtype):
        calls.append((folder.name, device, compute_dtype))
        write_measured(out, folder.name, **values.get(folder.name, {}))

    monkeypatch.setattr(gate, "open_suite", lambda name: SUITE)
    monkeypatch.setattr(gate, "measure_model", measure)

    def setting(name, rate, seeds=SEEDS, **measured):
        plan = make_plan(name)
        arm = list(plan.settings)[-1]
        first = next(trial for trial in plan.trials if trial.setting == arm)
        plan = plan.append([again_with_seed(first, seed) for seed in seeds])
        for trial in plan.trials:
            make_run(plan.folder / "trials", trial.name, seed=trial.seed, learning_rate=rate)
            finish_trial(plan, trial, {"bits_per_byte": [1.0, 2.0]})
        for trial in plan.of_phase(CONFIRM):
            model = Registry(line.registry).add(plan.trial_folder(trial))
            values[model] = {"seed": trial.seed, **measured}
        return plan, arm

    def ask(made, round_folder="round_01"):
        folder = tmp_path / round_folder
        folder.mkdir(exist_ok=True)
        return gate.ask_gate(line, *made, suite=tmp_path, folder=folder)

    def events():
        return Counter(entry["event"] for entry in Registry(line.registry).log.scan().entries)

    return SimpleNamespace(line=line, setting=setting, ask=ask, events=events, calls=calls, folder=tmp_path)


def test_nothing_is_asked_twice(world):
    first = world.setting("first", 1e-3)
    answer = world.ask(first)
    assert answer["outcome"] == "first" and answer["promoted"] in answer["models"] and len(answer["models"]) == 3
    # the models of the confirmation seeds alone
    assert set(Registry(world.line.registry).history.added) == set(answer["models"])
    assert world.ask(first) == answer
    # a round in which nothing changed
    again = world.ask(first, "round_02")
    assert again["outcome"] == "undecided" and again["reasons"] == ["these are the champion's own trainings"]
    equal = world.setting("equal", 2e-3)
    answer = world.ask(equal, "round_03")
    assert answer["outcome"] != "first" and answer["promoted"] is None and answer["reasons"]
    before, uses = world.events(), Registry(world.line.registry).history.gate_uses[SUITE.digest]
    assert before["gate"] == 2 and before["promote"] == 1 and uses == 1
    # killed before the round's record, and a later round with the same trainings
    assert world.ask(equal, "round_03") == answer
    assert world.ask(equal, "round_04") == answer | {"note": answer_note(world)}
    assert world.events() == before


def answer_note(world):
    entries = Registry(world.line.registry).log.scan().entries
    line = [entry["line"] for entry in entries if entry["event"] == "gate"][-1]
    return f"asked before, in line {line} of the registry's log"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_the_promotion_leaves_one(world, moment, monkeypatch):
    made, promote = world.setting("first", 1e-3), Registry.promote

    def killed(self, *args, **options):
        if moment == "after":
            promote(self, *args, **options)
        raise Killed

    monkeypatch.setattr(Registry, "promote", killed)
    with pytest.raises(Killed):
        world.ask(made)
    monkeypatch.setattr(Registry, "promote", promote)
    answer = world.ask(made)
    assert answer["outcome"] == "first" and answer["promoted"] == Registry(world.line.registry).champion
    assert world.events()["promote"] == world.events()["gate"] == 1


def test_candidates_and_champion_are_measured_as_the_recipe_says(world, monkeypatch):
    first = world.ask(world.setting("first", 1e-3))
    asked = []

    def resolve(config):
        asked.append(config)
        return SimpleNamespace(device="cuda", compute_dtype=torch.bfloat16)

    monkeypatch.setattr(gate, "resolve_runtime", resolve)
    world.calls.clear()
    second = world.ask(world.setting("second", 2e-3, bits_per_byte=1.0), "round_02")
    assert second["outcome"] == "better" and second["promoted"] in second["models"]
    assert asked == [world.line.base.runtime]
    assert {call[1:] for call in world.calls} == {("cuda", torch.bfloat16)}
    assert {call[0] for call in world.calls} == {*first["models"], *second["models"]}


def test_every_training_that_is_compared_with_is_measured_in_turn(world):
    """Trainings of the champion's setting that were added later, and measured elsewhere, too; what the machine does
    meanwhile slows candidates and champions alike."""
    first = world.ask(world.setting("first", 1e-3))
    registry, added = Registry(world.line.registry), []
    for seed in (200, 201):
        added.append(registry.add(make_run(world.folder / "runs", f"more-{seed}", seed=seed, learning_rate=1e-3)))
        measured = write_measured(world.folder / f"m2-{seed}", added[-1], seed=seed, result={"machine": "m2"})
        registry.measure(added[-1], measured, SUITE)
    made = world.setting("second", 2e-3, seeds=(110, 111, 112), bits_per_byte=1.0)
    world.calls.clear()
    second = world.ask(made, "round_02")
    assert second["outcome"] == "better" and second["promoted"] in second["models"]
    calls = [name for name, *_ in world.calls]
    assert set(calls[0::2][:3]) == set(second["models"])
    assert {*calls[1:6:2], *calls[6:]} == {*first["models"], *added} and len(calls) == 8


def test_a_champion_of_one_seed_is_known_before_a_round_trains(world):
    registry = Registry(world.line.registry)
    assert gate.why_not_askable(world.line) == ""
    made = world.setting("other", 2e-3)
    lone = registry.add(make_run(world.folder / "runs", "lone", seed=100, learning_rate=1e-3))
    registry.measure(lone, write_measured(world.folder / "lone", lone, seed=100), SUITE)
    assert registry.promote([lone], SUITE).model == lone
    why = gate.why_not_askable(world.line)
    assert lone[:12] in why and "has 1 training of its setting" in why and "under 2 more seeds" in why
    # one that became the champion while the round trained
    world.calls.clear()
    answer = world.ask(made)
    assert answer["outcome"] == "not asked" and answer["promoted"] is None and answer["reasons"] == [why]
    assert not world.calls and world.events()["gate"] == 1
    for seed in (200, 201):
        gone = registry.add(make_run(world.folder / "runs", f"more-{seed}", seed=seed, learning_rate=1e-3))
    assert gate.why_not_askable(world.line) == ""
    (registry.folder_of(gone) / "model").rename(world.folder / "elsewhere")
    assert "is gone: put it back" in gate.why_not_askable(world.line)


def test_what_was_rolled_back_stays_so_in_a_round_that_changes_nothing(world):
    first = world.ask(world.setting("first", 1e-3))
    made = world.setting("second", 2e-3, bits_per_byte=1.0)
    second = world.ask(made, "round_02")
    assert second["outcome"] == "better" and second["promoted"]
    Registry(world.line.registry).rollback(reason="it answers in riddles")
    third = world.ask(made, "round_03")
    assert third["promoted"] is None and third["note"].startswith("asked before")
    assert Registry(world.line.registry).champion == first["promoted"]


def test_a_seed_that_diverged_is_not_asked_about(world):
    plan, arm = world.setting("first", 1e-3)
    trial = plan.of_phase(CONFIRM)[1]
    write_json(plan.trial_folder(trial) / TRIAL_FILE, {"outcome": "diverged", "reason": "loss is nan"})
    answer = world.ask((plan, arm))
    assert answer["outcome"] == "not asked" and answer["reasons"] == [f"{trial.name} is diverged"]
    assert "gate" not in world.events()


@pytest.mark.parametrize("confirm", [(0, 100, 101), (100, 101), (100, 100, 101)])
def test_seeds_that_chose_are_not_confirmed_with(tmp_path, confirm):
    with pytest.raises(ValueError, match="at least 3 different seeds that are none of seeds"):
        tiny_line(tmp_path, registry=tmp_path / "registry", suite="s", seeds=(0, 1), confirm=confirm)


@pytest.mark.acceptance
def test_rounds_with_a_real_registry_and_suite(tmp_path, monkeypatch):
    """First round: the first champion. Then it teaches, and users' words come: asked and answered. Killed between
    promotion and record."""
    monkeypatch.setenv("BRINE_COMMIT", "0123456789ab")
    held_out = write_images(tmp_path / "held-out", count=240, first=1000, labelled=True, mark=7)
    config = SuiteConfig(per_cell=64, transcripts_per_cell=0, timing=False)
    suite = make_suite("colours", [held_out], config, root=tmp_path / "suites", workers=1)
    feedback = write_images(tmp_path / "feedback", count=4, first=400, labelled=True, mark=9)
    registry = tmp_path / "registry"
    more = write_images(tmp_path / "others", count=20, first=100, labelled=False, mark=5)
    line = tiny_line(
        tmp_path, suite=str(suite.folder), registry=registry, feedback=feedback, unlabelled=more, teacher="champion"
    )
    runs = tmp_path / "runs"

    def kill(step):
        if step == "gate":
            raise Killed

    with pytest.raises(Killed):
        line_run("line", line, runs, after=kill).run(1)
    promoted = Registry(registry).champion
    (first,) = line_run("line", line, runs).run(1)
    assert first["gate"]["outcome"] == "first" and first["gate"]["promoted"] == promoted
    assert first["teacher"]["name"] == "small"
    write_images(tmp_path / "feedback", count=60, first=400, labelled=True, mark=9)
    _, second = line_run("line", line, runs).run(2)
    print(second["gate"], second["data"])
    assert second["teacher"] == {"name": "champion", "weights": promoted}
    assert not (runs / "line/round_02/teacher").exists()
    assert second["data"]["02"]["documents"]["feedback"] > second["data"]["01"]["documents"].get("feedback", 0)
    assert second["gate"]["outcome"] in ("better", "undecided", "refused", "not better")
    entries = Registry(registry).log.scan().entries
    assert line_run("line", line, runs).run(2)[1] == second
    assert Registry(registry).log.scan().entries == entries and verify(registry) == []
    assert [entry["event"] for entry in entries].count("gate") == 2
    # who trains on labels is made from who gave them
    if second["data"][second["setting"]]["documents"].get("pseudo"):
        card = Registry(registry).card(second["gate"]["models"][0])
        assert promoted in card["sources"].values()
