"""Commands `compare` and `report`: two evaluated runs document by document, and a report made again from files."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from brine.evals.cli import compare, report
from brine.evals.comparison.runs import load_losses
from brine.evals.config import ratio_interval
from brine.evals.measurement import Measurement, MeasureSpec
from brine.evals.needle.run import main as needle
from brine.evals.run_files import read_results
from tests.evals.command_runs import KINDS, last_line

pytestmark = pytest.mark.slow


def test_two_runs_are_compared_document_by_document(made, capsys):
    base, _ = made
    assert compare([str(base / "one-on"), str(base / "two-on")]) == 0
    said = capsys.readouterr().out
    found = last_line(said)
    assert found["models"] == ["large_baseline", "large_baseline"] and found["documents"] == 11
    ours, theirs = load_losses(base / "one-on"), load_losses(base / "two-on")
    assert ours.ids == theirs.ids
    gap = (ours.loss - theirs.loss) / math.log(2)
    expected = ratio_interval(gap, ours.bytes).to_dict(name="difference")
    assert {name: found["bits_per_byte"][name] for name in expected} == pytest.approx(expected)
    # the tokenizers differ, so a token is not a token
    assert not np.array_equal(ours.tokens, theirs.tokens) and found["nats_per_token"] is None
    assert {row["kind"]: row["documents"] for row in found["kinds"]} == KINDS
    assert "bits per byte" in said


def test_two_models_of_a_run_are_compared(made, capsys):
    base, _ = made
    out = str(base / "one-on")
    assert compare([out, out, "--models", "small", "large_baseline"]) == 0
    forth = last_line(capsys.readouterr().out)["nats_per_token"]
    assert compare([out, out, "--models", "large_baseline", "small"]) == 0
    back = last_line(capsys.readouterr().out)["nats_per_token"]
    assert forth["difference"] == pytest.approx(-back["difference"]) and forth["difference"] != 0
    assert compare([out, out]) == 0
    said = capsys.readouterr().out
    # one training of each decides nothing
    assert last_line(said)["nats_per_token"]["outcome"] == "no verdict" and "give several with --ours" in said


def seeds_of(base, folder, name, *, factor, count=3):
    """Evaluations of `count` seeds of a setting: losses of one run times `factor`, each seed a little apart."""
    made = []
    for seed in range(count):
        out = shutil.copytree(base / "one-on", folder / f"{name}{seed}")
        path = out / "evaluate" / "documents.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        own = factor * (1 + 0.001 * np.random.default_rng((seed, len(name))).normal())
        path.write_text("".join(json.dumps(line | {"loss": line["loss"] * own}) + "\n" for line in lines))
        made.append(str(out))
    return made


def test_several_seeds_have_a_verdict(made, tmp_path, capsys):
    base, _ = made
    ours = seeds_of(base, tmp_path, "ours", factor=0.9)
    theirs = seeds_of(base, tmp_path, "other", factor=1.0)
    assert compare(["--ours", *ours, "--theirs", *theirs]) == 0
    said = capsys.readouterr().out
    measures = last_line(said)["measures"]
    assert set(measures) == {"bits_per_byte", "bits_per_byte.pic", "bits_per_byte.note"}
    assert {entry["outcome"] for entry in measures.values()} == {"better"}
    assert measures["bits_per_byte"]["num_cases"] == 11 and measures["bits_per_byte"]["num_seeds"] == [3, 3]
    assert "paired by position" in said and "p, Holm" in said
    assert compare(["--ours", *theirs, "--theirs", *ours[:2], "--unpaired"]) == 0
    assert last_line(capsys.readouterr().out)["measures"]["bits_per_byte"]["outcome"] == "worse"
    # the same runs on both sides: a setting against itself
    assert compare(["--ours", *ours, "--theirs", *ours]) == 0
    assert last_line(capsys.readouterr().out)["measures"]["bits_per_byte"]["outcome"] == "undecided"
    one = compare(["--ours", ours[0], "--theirs", theirs[0]])
    assert one == 0 and last_line(capsys.readouterr().out)["bits_per_byte"]["outcome"] == "no verdict"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["{a}"], "give two runs to compare, or several a side"),
        (["{a}", "{b}", "{a}"], "give two runs to compare, or several a side"),
        (["--ours", "{a}"], "give two runs to compare, or several a side"),
        (["{a}", "{b}", "--ours", "{a}"], "give either two runs, or --ours"),
        (["--ours", "{a}", "{b}", "--theirs", "{a}"], "2 runs against 1 cannot be paired by seed"),
        (["--ours", "{a}", "{a}", "--theirs", "{b}", "{b}"], "are one training (equal losses)"),
    ],
    ids=["one", "three", "one side", "both forms", "unequal", "twice"],
)
def test_sides_that_cannot_be_compared_are_refused(made, capsys, words, hint):
    base, _ = made
    given = [word.format(a=base / "one-on", b=base / "two-on") for word in words]
    assert compare(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and hint in said and said.count("\n") == 1


def write_weights(folder, name):
    """A model folder, as far as it is looked at before it is measured."""
    (folder / name).mkdir()
    (folder / name / "model.safetensors").write_text(name)
    (folder / name / "config.json").write_text("{}")
    return folder / name


def test_runs_are_measured_on_a_suite(monkeypatch, tmp_path, capsys):
    """What the suite measures is compared, its primary measure first; no run is evaluated beforehand."""
    asked = []

    def measure_on_suite(run, suite, *, model, part, device, compute_dtype, cache):
        asked.append((run.name, suite.name, model, part, device.type))
        better = 0.1 if run.name.startswith("a") else 0.0
        rates = 2 - better + 0.001 * int(run.name[1]) + np.linspace(0, 1, 9)
        cases = tuple(f"c{number}" for number in range(9))
        names = ("latency", "bits_per_byte")
        return {"dev": {name: Measurement(MeasureSpec(name), cases, rates, np.ones(9)) for name in names}}

    opened = SimpleNamespace(open=lambda name: SimpleNamespace(name=name, primary="bits_per_byte"))
    monkeypatch.setattr("brine.evals.comparison.on_suite.measure_on_suite", measure_on_suite)
    monkeypatch.setattr("brine.evals.comparison.on_suite.Suite", opened)
    runs = [[str(write_weights(tmp_path, side + str(number))) for number in (1, 2, 3)] for side in "ab"]
    words = ["--ours", *runs[0], "--theirs", *runs[1], "--on", "synth@1", "--part", "dev", "--device", "cpu"]
    assert compare(words) == 0
    measures = last_line(capsys.readouterr().out)["measures"]
    assert list(measures) == ["bits_per_byte", "latency"] and measures["bits_per_byte"]["outcome"] == "better"
    assert [name for name, *_ in asked] == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert set(asked[0][1:]) == {"synth@1", None, ("dev",), "cpu"}
    # equal weights elsewhere are the same training
    shutil.copytree(runs[0][0], tmp_path / "copy")
    asked.clear()
    for twice in ([runs[0][0]] * 2, [runs[0][0], str(tmp_path / "copy")]):
        assert compare(["--ours", *runs[1][:2], "--theirs", *twice, "--on", "synth@1", "--device", "cpu"]) == 2
        assert "are one training (equal weights): give different seeds" in capsys.readouterr().err
    assert asked == []


def other_ids(out):
    path = out / "evaluate" / "documents.jsonl"
    path.write_text(path.read_text().replace('"id": "d3"', '"id": "e3"'))


def other_bytes(out):
    lines = [json.loads(line) for line in (out / "evaluate" / "documents.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"bytes": line["bytes"] + (line["id"] == "d2")}) + "\n" for line in lines)
    (out / "evaluate" / "documents.jsonl").write_text(text)


def fewer(out):
    path = out / "evaluate" / "documents.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"id": "d5"' not in line))


def not_evaluated(out):
    shutil.rmtree(out / "evaluate")


def no_losses(out):
    (out / "evaluate" / "documents.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (other_ids, "1 only in the first, such as d3; 1 only in the second, such as e3"),
        (fewer, "1 only in the first, such as d5"),
        (other_bytes, "document d2 has"),
        (not_evaluated, "is not evaluated"),
        (no_losses, "has no losses"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_runs_on_other_documents_are_not_compared(made, tmp_path, capsys, change, hint):
    base, _ = made
    out = shutil.copytree(base / "one-on", tmp_path / "out")
    change(out)
    assert compare([str(base / "one-on"), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and hint in said and said.count("\n") == 1


def test_evaluations_of_before_are_compared_by_their_corpus(made, tmp_path, capsys):
    """They hold numbers of documents; the run's corpus has the ids."""
    base, _ = made
    out = shutil.copytree(base / "one-on", tmp_path / "out")
    lines = [json.loads(line) for line in (out / "evaluate" / "documents.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({name: line[name] for name in line if name != "id"}) + "\n" for line in lines)
    (out / "evaluate" / "documents.jsonl").write_text(text)
    assert compare([str(base / "one-on"), str(out)]) == 2
    assert "does not say which documents" in capsys.readouterr().err
    (out / "encoded").rename(out / "store")
    (out / "encoded").mkdir()
    (out / "store").rename(out / "encoded" / "store")
    assert compare([str(base / "one-on"), str(out)]) == 0


def test_a_model_that_is_not_there_is_named(made, capsys):
    base, _ = made
    assert compare([str(base / "one-on"), str(base / "two-on"), "--models", "small", "small"]) == 2
    assert "has no model 'small': choose one of large_baseline" in capsys.readouterr().err


def test_a_report_is_made_again(made, tmp_path, capsys):
    base, _ = made
    run = shutil.copytree(base / "one", tmp_path / "run")
    shutil.copytree(base / "one-on" / "evaluate", run / "evaluate")
    (run / "summary.json").write_text('{"wall_s": 12.5, "peak_rss_gib": 1.5}')
    assert report([str(run)]) == 0
    assert last_line(capsys.readouterr().out) == {"report": str(run / "report.html"), "evaluated": True}
    assert '<section id="gain"' in (run / "report.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["wall_s"] == 12.5 and summary["peak_rss_gib"] == 1.5 and summary["bits_per_byte"]


def test_a_report_of_a_run_without_an_evaluation(made, tmp_path, capsys):
    run = shutil.copytree(made[0] / "one", tmp_path / "run")
    assert report([str(run)]) == 0
    captured = capsys.readouterr()
    assert last_line(captured.out)["evaluated"] is False and "not evaluated yet" in captured.err
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("command", [report, needle], ids=["report", "needle"])
def test_a_run_of_before_is_answered_with_the_command_that_converts_it(made, tmp_path, capsys, command):
    run = shutil.copytree(made[0] / "one", tmp_path / "run")
    (run / "recipe.json").write_text('{"rows": {"row_tokens": 512}}')
    (run / "report.html").write_text("")
    assert command([str(run)]) == 2
    assert f"run `brine convert {run}` first" in capsys.readouterr().err
    assert not (run / "report.html").read_text() and not (run / "needle").exists()


@pytest.mark.parametrize("name", ["nowhere", "documents"])
def test_a_report_of_no_run_is_refused(made, capsys, name):
    assert report([str(made[0] / name)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and name in said and not (made[0] / name / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("nowhere", "nowhere does not exist"), ("one", "--out FOLDER"), ("documents", "--out FOLDER")],
)
def test_the_way_out_of_a_comparison_is_one(made, capsys, name, hint):
    """Without --out nothing is kept that could be compared."""
    assert compare([str(made[0] / "one-on"), str(made[0] / name)]) == 2
    assert hint in capsys.readouterr().err


def test_former_names_of_the_conditions_are_read(made, tmp_path, capsys):
    """Results called matched media "own" and mismatched ones "other"."""
    base, _ = made
    out = shutil.copytree(base / "one-on", tmp_path / "out")
    for name in ("documents.jsonl", "results.json"):
        path = out / "evaluate" / name
        path.write_text(path.read_text().replace('"mismatched', '"other').replace('"matched"', '"own"'))
    assert compare([str(base / "one-on"), str(out)]) == 0
    assert last_line(capsys.readouterr().out)["nats_per_token"]["difference"] == 0
    assert read_results(out) == read_results(base / "one-on")
    assert '"own"' in (out / "evaluate" / "results.json").read_text()
