"""Commands `compare` and `report`: two evaluated runs document by document, and a report made again from files."""

import json
import math
import shutil

import numpy as np
import pytest

from brine.evals.cli import compare, report
from brine.evals.compare import load_losses
from brine.evals.config import ratio_interval
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
    assert last_line(capsys.readouterr().out)["nats_per_token"]["outcome"] == "undecided"


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
