"""Two runs compared at equal steps and at equal cost: arithmetic that can be done on paper."""

import numpy as np
import pytest

from brine.evals.comparison.arms import at_equal_cost, at_equal_steps, compare_arms, cost_to_match, validation_curve_of
from brine.evals.comparison.runs import compare_seeds, format_seeds
from brine.evals.config import EvalConfig
from brine.evals.loss import DocumentLosses
from brine.evals.measurement import Measurement, MeasureSpec
from brine.evals.run_files import format_interval

CONFIG = EvalConfig(bootstrap_resamples=300)
TOKENS = [10] * 40


def losses(per_token, *, spread=0.1, first=0):
    """40 documents of 10 tokens, of very different difficulty, `per_token` on average."""
    difficulty = np.linspace(-1, 1, 40)
    tokens = np.zeros((40, 4), np.int64)
    tokens[:, 1] = 10
    loss = np.zeros((40, 4))
    loss[:, 1] = 10 * (per_token + spread * difficulty)
    numbers = np.arange(first, first + 40)
    return DocumentLosses(numbers, np.zeros(40, int), np.ones(40, int), loss, tokens, tokens, ("screenshot",))


def metrics(points, *, teacher=0.0):
    """Lines of metrics.jsonl: {step: loss per token}, 100 FLOPs a step, a teacher's share beside."""
    return [
        {
            "step": step,
            "loss": value,
            "flops": {"total": 100 * step * (1 + teacher)},
            "validation": {"documents": [10 * value] * 40, "tokens": TOKENS},
        }
        for step, value in points.items()
    ]


def test_one_training_of_each_has_values_and_no_verdict():
    """However clear the documents are: two equal trainings may differ as clearly."""
    better = at_equal_steps(losses(1.0), losses(1.1), CONFIG)
    assert better["difference"] == pytest.approx(-0.1) and better["high"] < 0
    assert better["outcome"] == "no verdict" == better["kinds"][0]["outcome"]
    assert better["kinds"][0]["kind"] == "screenshot"
    with pytest.raises(ValueError, match="same documents"):
        at_equal_steps(losses(1.0), losses(1.0, first=1), CONFIG)


def test_a_single_document_has_no_interval():
    one = CONFIG.interval(np.array([3.0]), np.array([2.0]))
    assert (one.value, one.low, one.high, one.num_documents) == (1.5, None, None, 1)
    assert format_interval(one.to_dict(), "value") == "1.500"


def seeds(shift, *, kinds=("a", "b"), count=3, worse=""):
    """What `count` trainings measured: bits per byte, moved by `shift`, of one kind the other way."""
    generator, cases = np.random.default_rng(round(abs(shift) * 1000)), tuple(f"d{number}" for number in range(20))
    found = []
    for _ in range(count):
        rates = 2 + np.linspace(-1, 1, 20) + shift + generator.normal(0, 0.01) + generator.normal(0, 0.01, 20)
        run = {"bits_per_byte": Measurement(MeasureSpec("bits_per_byte"), cases, rates * 50, np.full(20, 50.0))}
        for kind in kinds:
            values = rates - 2 * shift if kind == worse else rates
            name = f"bits_per_byte.{kind}"
            run[name] = Measurement(MeasureSpec(name), cases, values * 50, np.full(20, 50.0))
        found.append(run)
    return found


def test_several_seeds_are_better_worse_or_undecided():
    found = compare_seeds(seeds(-0.2, worse="b"), seeds(0.0))
    assert {name: entry["outcome"] for name, entry in found.items()} == {
        "bits_per_byte": "better", "bits_per_byte.a": "better", "bits_per_byte.b": "worse"}  # fmt: skip
    assert found["bits_per_byte"]["value"] == pytest.approx(-0.2, abs=0.03)
    assert found["bits_per_byte"]["high"] < 0 and found["bits_per_byte"]["needed"] == "nothing more"
    itself = compare_seeds(seeds(0.0), seeds(0.0))
    assert {entry["outcome"] for entry in itself.values()} == {"undecided"}
    text = format_seeds(found)
    assert "better" in text and "3 seeds, paired by position; per seed bits_per_byte" in text


def test_measures_beside_the_first_are_corrected_together():
    """What would be significant alone is not among twenty."""
    names = tuple(f"k{number}" for number in range(20))
    ours, theirs = seeds(0.016, kinds=names), seeds(0.0, kinds=names)
    found = compare_seeds(ours, theirs)
    first, kind = found["bits_per_byte"], found["bits_per_byte.k0"]
    assert first["p_value"] == kind["p_value"] == first["p_holm"] and kind["p_holm"] == pytest.approx(
        min(1, 20 * kind["p_value"])
    )
    alone = compare_seeds(ours, theirs, primary="bits_per_byte.k3")
    assert next(iter(alone)) == "bits_per_byte.k3" and alone["bits_per_byte.k3"]["p_holm"] == kind["p_value"]
    clear = compare_seeds(seeds(0.08, kinds=names), theirs)["bits_per_byte.k0"]
    assert clear["p_value"] < 0.05 < clear["p_holm"] and clear["outcome"] == "undecided"
    assert "not among so many" in clear["needed"]


def test_a_measure_that_one_seed_lacks_is_named():
    ours, theirs = seeds(-0.2), seeds(0.0)
    del theirs[1]["bits_per_byte.a"]
    with pytest.raises(ValueError, match=r"bits_per_byte\.a was not measured for theirs\[1\]"):
        compare_seeds(ours, theirs)
    with pytest.raises(ValueError, match="latency was not measured"):
        compare_seeds(ours, seeds(0.0), primary="latency")


def test_equal_cost_reads_the_dearer_run_before_its_end():
    """Steps cost 25 % more with a teacher: at the baseline's end the other is at step 80, between 64 and 100."""
    ours = validation_curve_of(metrics({64: 2.0, 100: 1.0}, teacher=0.25))
    theirs = validation_curve_of(metrics({64: 2.0, 100: 1.6}))
    result = at_equal_cost(ours, theirs, CONFIG)
    # log(80 / 64) / log(100 / 64) is one half
    assert result["ours"] == pytest.approx(1.5) and result["theirs"] == pytest.approx(1.6)
    assert result["high"] < 0 and result["outcome"] == "no verdict" and result["cost_flops"] == 10_000
    assert result["note"].startswith("SALT is interpolated from its validation curve")
    dear = at_equal_cost(ours, theirs, CONFIG, prior_flops=2_000)
    assert dear["ours"] == pytest.approx(2.0) and dear["low"] > 0


def test_equal_cost_never_extrapolates():
    ours, theirs = (
        validation_curve_of(metrics({50: 2.0, 100: 1.0}, teacher=0.25)),
        validation_curve_of(metrics({50: 2.0, 100: 1.5})),
    )
    result = at_equal_cost(ours, theirs, CONFIG, prior_flops=9_000)
    assert result["outcome"] is None and result["difference"] is None and "not been validated" in result["note"]


def test_cost_to_match():
    ours, theirs = (
        validation_curve_of(metrics({64: 2.0, 100: 1.0}, teacher=0.25)),
        validation_curve_of(metrics({64: 2.0, 100: 1.5})),
    )
    match = cost_to_match(ours, theirs)
    assert match["cost_fraction"] == pytest.approx(1.0) and match["step_fraction"] == pytest.approx(0.82)
    assert cost_to_match(ours, theirs, prior_flops=1_000)["cost_fraction"] == pytest.approx(1.1)
    assert cost_to_match(theirs, ours) == {"step_fraction": None, "cost_fraction": None}


def test_curve_takes_the_last_of_a_repeated_step_and_passes_lines_without_validation():
    lines = [{"step": 1, "loss": 3.0}, *metrics({10: 2.0, 20: 1.5}), *metrics({20: 1.4})]
    curve = validation_curve_of(lines)
    assert curve.step.tolist() == [10, 20] and curve.mean() == pytest.approx([2.0, 1.4])
    assert validation_curve_of([{"step": 1, "loss": 3.0}]) is None


def test_compare_arms_without_validations_compares_ends_only():
    assert set(compare_arms(losses(1.0), losses(1.1), [], [], CONFIG)) == {"equal_steps"}
    full = compare_arms(losses(1.0), losses(1.1), metrics({50: 2.0, 100: 1.0}), metrics({50: 2.0, 100: 1.1}), CONFIG,
                        teacher_training_flops=4_000.0)  # fmt: skip
    assert set(full) == {"equal_steps", "equal_cost", "cost_to_match"}
    arm_flops = full["equal_cost"]
    assert arm_flops["without_teacher_training"]["high"] < 0
    assert arm_flops["with_teacher_training"]["ours"] > arm_flops["without_teacher_training"]["ours"]
