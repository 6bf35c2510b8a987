"""The gate's decision on made-up measurements: who passes, who is refused and by which name, and what is told."""

import json

import numpy as np
import pytest

from benchmarks.statistics.candidates import GateDesign, draw, guards_failed, primary_better
from benchmarks.statistics.gate import GAIN, decided
from brine.evals.measurement import Measurement, MeasureSpec
from brine.registry.gate import calibrate_margins, decide, margin_factor, median_seed

PRIMARY = MeasureSpec("bits_per_byte")
AUDIO = MeasureSpec("gain.audio", lower_is_better=False, one_minus=True)
IMAGE = MeasureSpec("cer.image")
MEMORY = MeasureSpec("memory", unit="MiB")
GUARDS = ("gain.audio", "cer.image", "memory")
SPREAD = {"bits_per_byte": 0.01, "gain.audio": 0.02, "cer.image": 0.01}
LEVEL = {"bits_per_byte": 2.0, "gain.audio": 0.5, "cer.image": 0.1}


def runs(count, *, seed=0, memory=900.0, **shifts):
    """What was measured of `count` seeds; shifts: bits_per_byte, audio, image, by which values are moved."""
    rng, cases = np.random.default_rng(seed), tuple(f"c{number}" for number in range(20))
    moved = {"bits_per_byte": shifts.get("bits", 0), "gain.audio": shifts.get("audio", 0),
             "cer.image": shifts.get("image", 0)}  # fmt: skip
    found = []
    for _ in range(count):
        run = {}
        for spec in (PRIMARY, AUDIO, IMAGE):
            value = LEVEL[spec.name] + moved[spec.name] + rng.normal(0, SPREAD[spec.name])
            value = value + rng.normal(0, 0.01, len(cases))
            ratio = 1 - value if spec.one_minus else value
            run[spec.name] = Measurement(spec, cases, ratio * 100, np.full(len(cases), 100.0))
        run["memory"] = Measurement(MEMORY, ("machine",), np.array([memory]), np.ones(1))
        found.append(run)
    return found


CHAMPION = runs(5)
MARGINS = calibrate_margins(CHAMPION, guards=GUARDS)


def ask(candidate, champion=CHAMPION[:3], **changes):
    return decide(candidate, champion, **({"primary": "bits_per_byte", "guards": GUARDS, "margins": MARGINS} | changes))


def test_a_better_candidate_passes_with_its_numbers():
    decision = ask(runs(3, seed=1, bits=-0.2))
    assert decision.passed and decision.outcome == "better" and decision.failed_guards == ()
    told = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert told["primary"]["high"] < 0 and [guard["name"] for guard in told["guards"]] == list(GUARDS)
    assert told["guards"][0]["difference"]["measure"] == "gain.audio" and not told["reasons"]


def test_a_regression_is_refused_by_name_and_without_numbers():
    decision = ask(runs(3, seed=1, bits=-0.2, audio=-0.3))
    assert decision.outcome == "refused" and decision.failed_guards == ("gain.audio",) and not decision.passed
    assert decision.reasons[0].startswith("guard gain.audio is ")
    told = decision.to_dict()
    assert told["primary"] is None and not any("difference" in guard for guard in told["guards"])
    assert str(decision.primary.value)[:6] not in json.dumps(told)


def test_several_regressions_are_all_named():
    decision = ask(runs(3, seed=1, bits=-0.2, audio=-0.3, image=0.3, memory=1000.0))
    assert decision.failed_guards == GUARDS
    assert {guard.why for guard in decision.guards} <= {"margin", "significant, margin"}


def test_either_rule_refuses_alone():
    """A worsening that is significant though small, and one that is large though seeds differ too much for a test."""
    wide = dict.fromkeys(GUARDS, 10.0)
    steady = [dict(run) for run in runs(5, seed=3)]
    for number, run in enumerate(steady):
        values = LEVEL["cer.image"] + 1e-4 * number + np.linspace(0, 0.1, 20)
        run["cer.image"] = Measurement(IMAGE, run["cer.image"].case, values, np.ones(20))
    worse = [dict(run) for run in steady]
    for number, run in enumerate(worse):
        known = steady[number]["cer.image"]
        run["cer.image"] = Measurement(IMAGE, known.case, known.numerator + 0.01 + 1e-4 * (number % 2), np.ones(20))
    decision = ask(worse, steady, margins=wide)
    assert [(guard.name, guard.why) for guard in decision.guards if guard.failed] == [("cer.image", "significant")]
    noisy = [dict(run) for run in runs(3, seed=4, bits=-0.2)]
    for run, move in zip(noisy, (0.0, 0.05, 0.3), strict=True):
        known = run["cer.image"]
        run["cer.image"] = Measurement(IMAGE, known.case, known.numerator + 100 * move, known.denominator)
    decision = ask(noisy, margins=MARGINS | {"cer.image": 0.05})
    assert [(guard.name, guard.why) for guard in decision.guards if guard.failed] == [("cer.image", "margin")]


def test_what_does_not_vary_is_judged_by_its_margin_alone():
    """Memory is the same under every seed: one MiB more is no regression, a tenth more is."""
    assert MARGINS["memory"] == pytest.approx(9.0)
    assert ask(runs(3, seed=1, bits=-0.2, memory=901.0)).passed
    assert ask(runs(3, seed=1, bits=-0.2, memory=990.0)).failed_guards == ("memory",)


def test_equal_and_worse_candidates_do_not_pass():
    decision = ask(runs(3, seed=2))
    assert decision.outcome == "undecided" and not decision.passed
    assert "would decide" in decision.reasons[0] and decision.needed and decision.to_dict()["primary"] is None
    assert ask(CHAMPION[:3]).outcome == "undecided"
    worse = ask(runs(3, seed=2, bits=0.5))
    assert worse.outcome == "not better" and worse.reasons == ("bits_per_byte is worse",)


@pytest.mark.parametrize("name", ["gain.audio", "bits_per_byte"])
def test_nothing_declared_may_be_unmeasured(name):
    candidate = runs(3, seed=1, bits=-0.2)
    del candidate[1][name]
    decision = ask(candidate)
    assert decision.outcome == "refused" and decision.unmeasured == (f"{name} of candidate[1]",)
    assert f"{name} of candidate[1] was not measured" in decision.reasons
    champion = [dict(run) for run in CHAMPION[:3]]
    known = champion[0][name]
    champion[0][name] = Measurement(known.spec, known.case, known.numerator, np.zeros(len(known)))
    assert ask(runs(3, seed=1, bits=-0.2), champion).unmeasured == (f"{name} of champion[0]",)


def test_two_seeds_are_too_few():
    decision = ask(runs(2, seed=1, bits=-0.5), CHAMPION[:2])
    assert decision.outcome == "undecided" and "at least 3 seeds" in decision.needed and not decision.passed


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"no margin for cer\.image"):
        ask(runs(3), margins={"gain.audio": 0.1, "memory": 1.0})
    with pytest.raises(ValueError, match="cannot be paired"):
        ask(runs(4))
    assert ask(runs(4, seed=1, bits=-0.3), paired=False).passed
    with pytest.raises(ValueError, match="at least 3 equal trainings of the champion, not 2"):
        calibrate_margins(CHAMPION[:2], guards=GUARDS)
    with pytest.raises(ValueError, match=r"needle\.2048\.text was not measured on training 0"):
        calibrate_margins(CHAMPION, guards=("needle.2048.text",))
    other = [dict(run) for run in CHAMPION]
    other[2]["cer.image"] = other[2]["cer.image"].select(["c0", "c1"])
    with pytest.raises(ValueError, match="trainings 0 and 2 were measured on different cases"):
        calibrate_margins(other, guards=GUARDS)


def test_margins_follow_their_formula():
    values = np.array([run["cer.image"].value for run in CHAMPION])
    margin = calibrate_margins(CHAMPION, guards=GUARDS, seeds=4)["cer.image"]
    # the mean over pairs of the squared difference is twice the variance
    assert margin == pytest.approx(margin_factor(5, 3) * np.sqrt(2 * values.var(ddof=1) / 4))
    assert [margin_factor(runs, 8) for runs in (3, 5, 20)] == pytest.approx([8.86, 4.31, 2.76], abs=0.01)


def test_the_median_seed_is_promoted():
    values = (0.3, 0.1, 0.2, 0.5)
    found = [{"bits_per_byte": Measurement(PRIMARY, ("c",), np.array([value]), np.ones(1))} for value in values]
    assert median_seed(found[:3], "bits_per_byte") == 2
    # of an even number the worse of the two in the middle
    assert median_seed(found, "bits_per_byte") == 0
    higher = MeasureSpec("needle", lower_is_better=False)
    found = [{"needle": Measurement(higher, ("c",), np.array([value]), np.ones(1))} for value in values]
    assert median_seed(found, "needle") == 2
    with pytest.raises(ValueError, match="was not measured on dev for seed 0"):
        median_seed(found, "bits_per_byte")
    with pytest.raises(ValueError, match="no seeds"):
        median_seed([], "needle")


def test_decide_agrees_with_the_arrays_of_the_simulation():
    found = decided(GateDesign(8, 3, 5, cases=12), problems=12)
    assert found["disagreements"] == 0 and found["passed"] >= 0.6 and found["refused"] >= 0.9


@pytest.mark.parametrize("guards", [8, 20])
def test_power_in_a_small_simulation(guards):
    """The whole of it is in `tests/acceptance/test_simulations.py`."""
    equal = draw(GateDesign(guards, 3, 5, cases=12), 200, np.random.default_rng(guards))
    significant, beyond = guards_failed(equal)
    kept = ~(significant | beyond).any(axis=1)
    assert (kept & primary_better(equal.better_by(GAIN))).mean() >= 0.8
    assert (kept & primary_better(equal)).mean() <= 0.05
    significant, beyond = guards_failed(equal.worse_by(0, 2.0))
    assert (significant | beyond)[:, 0].mean() >= 0.95
    # a gate that looks at significance alone would not: with 3 seeds a test sees little
    assert significant[:, 0].mean() < 0.9
