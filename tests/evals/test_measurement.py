"""Measurements are ratios of sums, keyed by content, and their file gives them back byte for byte."""

import numpy as np
import pytest

from brine.evals.measurement import Measurement, MeasureSpec, load_measurements, save_measurements

BITS, GAIN = MeasureSpec("bits_per_byte", unit="bits"), MeasureSpec("gain.image", lower_is_better=False, one_minus=True)


def measurement(spec=BITS, cases="abc"):
    n = len(cases)
    return Measurement(spec, tuple(cases), np.arange(1.0, n + 1) / 3, np.full(n, 2.0), ("text",) * n, np.ones(n, int))


def test_value_is_a_ratio_of_sums():
    assert measurement().value == pytest.approx(2 / 6)
    assert measurement(GAIN).value == pytest.approx(1 - 2 / 6)
    assert Measurement(BITS, (), np.zeros(0), np.zeros(0)).value is None


def test_file_gives_back_what_was_saved(tmp_path):
    parts = {
        "dev": {"bits_per_byte": measurement(), "gain.image": measurement(GAIN)},
        "gate": {"gain.image": measurement(GAIN, "xy")},
    }
    save_measurements(tmp_path / "a.jsonl", parts)
    found = load_measurements(tmp_path / "a.jsonl", [BITS, GAIN])
    assert found["dev"]["bits_per_byte"].case == ("a", "b", "c") and found["gate"]["gain.image"].level.tolist() == [
        1,
        1,
    ]
    assert found["dev"]["gain.image"].numerator.tolist() == measurement(GAIN).numerator.tolist()
    save_measurements(tmp_path / "b.jsonl", found)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_select_keeps_the_order_asked_for():
    chosen = measurement().select("cb")
    assert chosen.case == ("c", "b") and chosen.numerator.tolist() == pytest.approx([1.0, 2 / 3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"case": ("a", "a", "b")}, "twice"),
        ({"case": ("a",)}, "1 cases"),
        ({"numerator": np.array([1, 2, np.nan])}, "not finite"),
    ],
)
def test_what_is_no_measurement_is_refused(change, said):
    fields = {"spec": BITS, "case": ("a", "b", "c"), "numerator": np.ones(3), "denominator": np.ones(3)}
    with pytest.raises(ValueError, match=f"bits_per_byte: .*{said}"):
        Measurement(**fields | change)


@pytest.mark.parametrize(
    "line",
    ["{", '{"measure": "bits_per_byte"}', '{"measure":"x","part":"dev","case":"a","numerator":1,"denominator":1}'],
)
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl:1"):
        load_measurements(tmp_path / "m.jsonl", [BITS])
