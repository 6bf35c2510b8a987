"""The page of an experiment: what it says about seeds, outcomes, failures and the anchor; nothing from outside."""

import dataclasses
import re

from brine.evals.measurement import MeasureSpec
from brine.experiments.page.charts import CostPoint, cost_chart, difference_map, pareto_front
from brine.experiments.page.records import PageData, ShownDifference, ShownSetting, ShownTrial
from brine.experiments.page.render import render, write_page

MEASURES = {
    "bits_per_byte": MeasureSpec("bits_per_byte"),
    "gain.image": MeasureSpec("gain.image", lower_is_better=False, one_minus=True),
}


def trials(level: float, *, flops: float = 1e12, **last) -> tuple[ShownTrial, ...]:
    found = [
        ShownTrial(
            f"t{seed}", seed, values={"bits_per_byte": level + seed / 100, "gain.image": 0.2}, flops=flops, wall_s=40.0
        )
        for seed in range(3)
    ]
    return (*found[:2], dataclasses.replace(found[2], **last))


BETTER = ShownDifference(-0.1, -0.15, -0.05, "better", 0.01, 3, 400, (-0.1, -0.12, -0.08))
DATA = PageData(
    name="filters_vs_none",
    question="Do filters help at equal FLOPs?",
    expects="bits per byte fall by 0.01 to 0.03",
    primary="bits_per_byte",
    measures=MEASURES,
    reference="none",
    winner="near",
    settings=(
        ShownSetting("none", trials=trials(2.0)),
        ShownSetting(
            "near", ("corpus.filters: [] -> [near_duplicates]",), trials(1.9, flops=2e12),
            {"bits_per_byte": BETTER, "gain.image": ShownDifference(-0.02, -0.05, 0.01, "undecided")},
            {"bits_per_byte": BETTER},
        ),
        ShownSetting(
            "<b>fast</b>", ("large.learning_rate: 0.004 -> 1",),
            trials(3.0, state="diverged", message="diverged 4 times", values={}),
            {"bits_per_byte": ShownDifference(0.9)},
        ),
    ),
    suite="synth@1",
    commit="0123abc",
)  # fmt: skip


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_says_expectation_outcome_and_failures():
    words = text_of(render(DATA))
    assert "bits per byte fall by 0.01 to 0.03" in words and "better than none" in words
    assert "1 of 3 diverged" in words and "diverged 4 times" in words
    assert "large.learning_rate: 0.004 -&gt; 1" in words and "synth@1" in words and "0123abc" in words


def test_what_diverged_comes_last_however_good():
    good = dataclasses.replace(DATA.settings[2], trials=trials(0.1, state="diverged"))
    data = dataclasses.replace(DATA, settings=(good, *DATA.settings[:2]))
    assert [setting.name for setting in data.ranked()] == ["near", "none", "<b>fast</b>"]


def test_the_page_is_whole_escaped_and_offline(tmp_path):
    page = write_page(tmp_path / "experiment.html", DATA).read_text()
    assert "<b>fast" not in page and "&lt;b&gt;fast" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "<script" not in page
    assert page == render(DATA)


def test_one_seed_has_a_value_and_no_whisker():
    single = ShownDifference(-0.1, outcome="no verdict", num_seeds=1, seeds=(-0.1,))
    setting = dataclasses.replace(DATA.settings[1], differences={"bits_per_byte": single}, confirmed={})
    page = render(dataclasses.replace(DATA, settings=(DATA.settings[0], setting), winner=None))
    forest = page[page.index('id="forest"') : page.index('id="cost"')]
    assert "no verdict" in text_of(page) and 'class="whisker"' not in forest and 'class="dot"' in forest


def test_the_table_s_warning_of_the_anchor_is_on_the_page():
    anchor = {"new - anchor": BETTER, "anchor - former": BETTER, "new - former": BETTER}
    page = render(dataclasses.replace(DATA, anchor=anchor, anchor_warning="older tables do not compare"))
    assert "older tables do not compare" in text_of(page) and '<span class="badge bad">older' in page
    assert "badge bad" not in render(dataclasses.replace(DATA, anchor=anchor))


def test_what_was_decided_alone_is_said_beside_its_interval():
    found = dataclasses.replace(BETTER, outcome="undecided", note="decided alone, not among so many settings")
    setting = dataclasses.replace(DATA.settings[1], differences={"bits_per_byte": found}, confirmed={})
    words = text_of(render(dataclasses.replace(DATA, settings=(DATA.settings[0], setting))))
    assert "undecided; decided alone, not among so many settings" in words


def test_the_reference_is_named_and_only_the_base_recipe_is_called_so():
    """The first setting of a grid may change a field, and another one have the recipe that all are made from."""
    first = dataclasses.replace(
        DATA.settings[0], name="01 rate=0.003", changes=("large.learning_rate: 0.006 -> 0.003",)
    )
    second = dataclasses.replace(DATA.settings[1], name="02 rate=0.006", changes=())
    page = render(dataclasses.replace(DATA, settings=(first, second), reference=first.name, winner=second.name))
    words = text_of(page)
    assert "better than 01 rate=0.003" in words and "Differences to 01 rate=0.003" in words
    assert "the base;" not in words and "than the base" not in words
    assert "01 rate=0.003 large.learning_rate: 0.006 -&gt; 0.003 (the others" in words
    assert "02 rate=0.006 the base recipe" in words and words.count("the base recipe") == 2
    assert "02 rate=0.006</text>" in page and "minus 01; below 0 is better" in words


def ticks_of(svg: str, kind: str) -> list[str]:
    """Texts of a drawing's ticks below ("middle") or beside ("end") its axes."""
    return re.findall(rf'<text x="[^"]*" y="[^"]*" text-anchor="{kind}">([^<]*)</text>', svg)


def test_equal_costs_have_one_tick_and_close_ones_differ_in_their_digits():
    def chart(*costs):
        points = [
            CostPoint(f"{number:02d} a setting of its own", cost, 2.0 + number) for number, cost in enumerate(costs)
        ]
        return cost_chart("t", points, x_label="FLOPs", y_label="bits_per_byte")

    equal = chart(1.04e9, 1.04e9)
    assert ticks_of(equal, "middle") == ["1.04G"] and ">bits_per_byte</text>" in equal
    assert ticks_of(chart(1.0400e9, 1.0401e9), "middle") == ["1.04G"]
    close = ticks_of(chart(1.040e9, 1.060e9), "middle")
    assert len(close) > 2 and len(set(close)) == len(close)
    assert "00 a setting of its own</text>" in equal


def test_names_that_do_not_fit_a_column_are_given_by_their_number():
    names = [f"{number:02d} learning_rate=0.00{number}" for number in range(1, 7)]
    for columns in (names, names[:1]):
        drawn = ticks_of(difference_map("t", columns, ["m"], [[(0.1, True)] * len(columns)], x_label="x"), "middle")
        assert drawn == (columns if len(columns) == 1 else [name[:2] for name in columns])


def test_pareto_front():
    points = [(1.0, 5.0), (2.0, 4.0), (3.0, 4.5), (2.0, 3.0), (4.0, 3.0)]
    assert pareto_front(points, lower_is_better=True) == [0, 3]
    assert pareto_front(points, lower_is_better=False) == [0]
    assert cost_chart("t", [], x_label="x", y_label="y") == ""
    assert "none beats a" in cost_chart("t", [CostPoint("a", 1.0, 1.0)], x_label="x", y_label="y")
