"""The report stands alone, escapes everything, and does without what is missing."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from brine.data.corpus.excluded import ExclusionStats
from brine.evals.config import EvalConfig
from brine.evals.report.charts import IntervalPoint, Series, dot_chart, line_chart, short, ticks
from brine.evals.report.page import render, write_report
from brine.evals.report.samples import ReportMediaEmbedder, highlight_differences
from brine.evals.report.sections import headline_cards, salt_sentence

HOSTILE = "</span><script>alert(1)</script><img src=x onerror=alert(1)> & \" ' \u202e"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags with attributes and the visible text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def interval(value):
    return {"gain": value, "low": value - 0.1, "high": value + 0.1, "num_documents": 9, "matched": 1.0, "blank": 2.0}


@pytest.fixture
def run(tmp_path):
    """A run folder whose every string is hostile."""
    run = tmp_path / "run <b>"
    (run / "evaluate" / "media").mkdir(parents=True)
    cell = {"kind": HOSTILE, "level": 1}
    loss = {"loss": 1.0, "bits_per_byte": 1.0, "documents": 3, "tokens": 30}
    rates = {"modality": "image", "cer": 0.5, "cer_low": 0.4, "cer_high": 0.6, "exact": 0.1, "documents": 3}
    results = {
        "split": HOSTILE, "main_model": "large_salt", "bits_per_byte": 2.0, "cer": {"image": 0.5},
        "models": {"large_salt": {"parameters": 5, "cells": [cell | loss]}, HOSTILE: {"cells": [cell | loss]}},
        "media_gain": {"image": interval(0.5) | {"cells": [cell | interval(0.4), cell | interval(0.3)]}},
        "transcription": [cell | rates], "targets": {"image_gain": 0.4},
        "compare": {"equal_steps": {"difference": -0.1, "low": -0.2, "high": 0.1, "outcome": "undecided",
                                    "note": HOSTILE}},
    }  # fmt: skip
    (run / "evaluate" / "results.json").write_text(json.dumps(results))
    (run / "summary.json").write_text(json.dumps({
        "media_gain": {"image": interval(0.5)}, "cer": {"image": 0.5}, "wall_s": 60.0, "salt": results["compare"],
        "compute_cost": {"small": {HOSTILE: {"flops": 10, "seconds": 1.0}}},
        "targets": {"image_gain": {"target": 0.4, "value": 0.5, "reached": True}},
    }))  # fmt: skip
    (run / "evaluate" / "media" / "1_0.png").write_bytes(b"\x89PNG not really")
    sample = cell | {"modality": "image", "reference": HOSTILE, "hypothesis": HOSTILE[::-1], "edits": 3}
    files = ["evaluate/media/1_0.png", "../../etc/passwd.png", "evaluate/media/gone.png", HOSTILE, 7]
    lines = [sample | {"media": [{"type": "image", "file": file}]} for file in files]
    (run / "evaluate" / "transcripts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in ("small", "large_salt"):
        (run / stage).mkdir()
        (run / stage / "metrics.jsonl").write_text(
            '{"step": 1, "loss": 2.0}\nnot json\n{"step": 2, "loss": null}\n'
            '{"step": 2, "flops": {"total": 5}, "validation": {"loss": 1.5, "image": 1.0}}\n'
        )
        (run / stage / "events.jsonl").write_text(json.dumps({"event": HOSTILE, "reason": HOSTILE}) + "\n")
    (run / "corpus").mkdir()
    quarantine = {"id": HOSTILE, "file": HOSTILE, "reason": HOSTILE}
    (run / "corpus" / "quarantine.jsonl").write_text(json.dumps(quarantine) + "\n")
    (run / "recipe.json").write_text(json.dumps({"name": HOSTILE}))
    (run / "encoded" / "store").mkdir(parents=True)
    (run / "encoded" / "store" / "meta.json").write_text(json.dumps({"summary": [f"noted: {HOSTILE}"]}))
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "compile": True, "versions": {"torch": "2"}}))
    return run


def test_page_stands_alone(run):
    text = write_report(run).read_text()
    assert "http://" not in text and "https://" not in text and "url(" not in text
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "form", "base"}
        for name in ("src", "href", "poster", "srcset", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:60])
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links == {attributes["id"] for tag, attributes in page.tags if tag == "section"}


def test_hostile_text_stays_text(run):
    text = write_report(run).read_text()
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script" not in text and "onerror=alert(1)>" not in text
    assert "alert(1)" in "".join(page.words)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_only_files_of_the_run_are_carried(run):
    (run.parent / "secret.png").write_bytes(b"secret")
    (run / "evaluate" / "media" / "link.png").symlink_to(run.parent / "secret.png")
    (run / "evaluate" / "media" / "page.svg").write_text("<svg/>")
    budget = ReportMediaEmbedder(run, max_sample_mib=1, max_report_mib=1)
    assert budget.embed("evaluate/media/1_0.png")[0] == "image/png"
    for name in ("../secret.png", "evaluate/media/link.png", "evaluate/media/page.svg", "evaluate/media", "a\0b", None):
        assert budget.embed(name) is None, name
    spent = ReportMediaEmbedder(run, max_sample_mib=1, max_report_mib=20 / 2**20)
    assert spent.embed("evaluate/media/1_0.png") and not spent.embed("evaluate/media/1_0.png")


@pytest.mark.parametrize(
    "missing",
    ["summary.json", "evaluate/results.json", "evaluate/transcripts.jsonl", "large_salt/metrics.jsonl",
     "corpus/quarantine.jsonl", "recipe.json", "environment.json", "everything"],
)  # fmt: skip
def test_missing_parts_are_left_out(run, missing):
    for path in run.rglob("*") if missing == "everything" else [run / missing]:
        if path.is_file():
            path.unlink()
    Page(render(run, config=EvalConfig()))


@pytest.mark.parametrize("value", ["null", "[]", "{}", '{"media_gain": {}, "cer": {}}', "half a li"])
def test_odd_results_make_a_page_all_the_same(run, value):
    (run / "evaluate" / "results.json").write_text(value)
    (run / "summary.json").write_text(value)
    Page(render(run, config=EvalConfig()))


def test_no_comparison_at_equal_cost_is_said(run):
    results = json.loads((run / "evaluate" / "results.json").read_text())
    missing = {"difference": None, "low": None, "high": None, "outcome": None, "note": "validated once"}
    results["compare"]["equal_cost"] = {"without_teacher_training": missing}
    (run / "evaluate" / "results.json").write_text(json.dumps(results))
    words = Page(render(run, config=EvalConfig())).words
    assert "not compared" in words and "None" not in words


@pytest.mark.parametrize("outcome", ["win", "no verdict"], ids=["of before", "now"])
def test_one_seed_has_differences_and_no_verdict(run, outcome):
    """Whatever documents say, and whatever an earlier version wrote."""
    clear = {"difference": -0.0312, "low": -0.04, "high": -0.02, "outcome": outcome, "ours": 1.0, "theirs": 1.0312}
    cost = {"without_teacher_training": clear | {"difference": 0.0049, "low": 0.0029, "high": 0.007},
            "with_teacher_training": clear | {"difference": 0.0, "low": None, "high": None}}  # fmt: skip
    compare = {"equal_steps": clear, "equal_cost": cost}
    sentence = salt_sentence(compare)
    assert sentence == (
        "After the same number of steps, the loss with SALT is 0.0312 nats per token below the baseline's; at equal "
        "cost it is 0.0049 above, and the same when the small model's training is counted too. One seed of training "
        "gives no verdict: two equal trainings differ as well."
    )
    results = json.loads((run / "evaluate" / "results.json").read_text())
    (run / "evaluate" / "results.json").write_text(json.dumps(results | {"compare": compare}))
    text = "".join(Page(render(run, config=EvalConfig())).words)
    assert sentence in text and "no verdict" in text and "SALT is better" not in text.replace("0 SALT is", "")
    card = headline_cards({"salt": compare})[0]
    assert card["below"] == "nats per token at equal steps, \u22120.040 to \u22120.020"
    assert card["value"] == "\u22120.031" and card["badge"] == "one seed: no verdict" and not card.get("tone")


def test_what_selection_kept_is_said(run):
    (run / "select").mkdir()
    lines = [{"kept": number < 2, "targets": 10 * (number + 1)} for number in range(4)]
    (run / "select" / "selection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join("".join(Page(render(run, config=EvalConfig())).words).split())
    assert "was trained on 2 of 4 documents (30 % of the targets)" in text
    # the folder is of an earlier command
    results = json.loads((run / "evaluate" / "results.json").read_text())
    (run / "evaluate" / "results.json").write_text(json.dumps(results | {"stages": ["large_salt"]}))
    assert "was trained on" not in render(run, config=EvalConfig())


def test_split_documents_are_counted_as_packing_counted_them(run):
    stats = ExclusionStats(64, {}, total_documents=5, cut=Counter(page=3), num_split_with_media=2)
    stats.unsplit_needs["tokens"] = 100
    (run / "excluded.json").write_text(json.dumps(stats.to_json()))
    text = "".join(Page(render(run, config=EvalConfig())).words)
    assert "3 fit only in chunks that do not attend to each other: 3 page; 2 of these have media" in text
    assert "Whole they would need at most: 100 tokens (a sequence has 64)" in text


def test_no_run_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_differences_are_marked_in_both_texts():
    truth, said = highlight_differences("a<b c", "a<x c!")
    assert truth == [("", "a<"), ("gone", "b"), ("", " c")]
    assert said == [("", "a<"), ("wrong", "x"), ("", " c"), ("wrong", "!")]
    assert highlight_differences("a" * 3000, "b")[0] == [("", "a" * 3000)]


def test_differences_are_marked_in_the_page(run):
    line = {"kind": "page", "level": 1, "modality": "image", "reference": "a<b c", "hypothesis": "a<x c!", "edits": 2}
    line["media"] = [{"type": "image", "file": "evaluate/media/1_0.png"}]
    (run / "evaluate" / "transcripts.jsonl").write_text(json.dumps(line) + "\n")
    text = render(run, config=EvalConfig())
    assert '<span class="said">a&lt;<span class="gone">b</span> c</span>' in text
    assert '<span class="said">a&lt;<span class="wrong">x</span> c<span class="wrong">!</span></span>' in text


def test_charts_leave_out_what_is_no_number():
    chart = line_chart("t", [Series("a", [1, 2, 3], [1.0, None, float("nan")])], x_label="x", y_label="y")
    assert chart.count("<circle") == 1 and "nan" not in chart
    assert line_chart("t", [Series("a", [], []), Series("b", [1], [None])], x_label="x", y_label="y") == ""
    assert dot_chart("t", [], x_label="x") == ""
    flat = line_chart("t", [Series("a", [5, 5], [2.0, 2.0])], x_label="x", y_label="y")
    assert "nan" not in flat and "inf" not in flat
    Page(dot_chart("t", [IntervalPoint(HOSTILE, 0.1, -0.2, 0.3, target=0.2)], x_label=HOSTILE))


def test_chart_coordinates_stay_inside():
    lines = [Series("a", [1, 10, 1e15], [0.1, 5.0, 3.0])]
    chart = line_chart("t", lines, x_label="x", y_label="y")
    points = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', chart)
    assert len(points) == 3 and all(0 <= float(x) <= 400 and 0 <= float(y) <= 250 for x, y in points)


def test_numbers_for_people():
    assert [short(v) for v in (0, 0.1234, 12.0, 1234, 25_000, 3.1e6, 2.5e14)] == [
        "0", "0.123", "12", "1234", "25k", "3.1M", "250T"]  # fmt: skip
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
