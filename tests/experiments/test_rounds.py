"""Rounds: the words of a model become training data, each round is compared with the last, a kill changes nothing."""

import dataclasses
import json
import logging
import time

import pytest

from brine.common.files import read_json, read_jsonl
from brine.data.corpus.store import EncodedCorpus
from brine.data.document import SPLITS
from brine.experiments.cli import ExperimentRunRequest, main
from brine.experiments.engines.options import EngineOptions
from brine.experiments.engines.slurm import SlurmEngine
from brine.experiments.rounds.command import format_rounds
from brine.experiments.rounds.driver import NOTHING_NEW, LineRun
from brine.experiments.rounds.line import RoundLine
from brine.salt.collapse import CollapseConfig
from tests.experiments.rounds import line_run, tiny_line, write_images, write_line
from tests.paths import ROOT


class Killed(BaseException):
    pass


def kept(found):
    """What must not depend on how often a line was killed."""
    return [{name: each[name] for name in ("weights", "value", "asked", "audit", "accepted")} for each in found]


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_round_labels_trains_and_compares(tmp_path, caplog):
    steps = []
    runs = tmp_path / "runs"
    more = write_images(tmp_path / "others", count=20, first=100, labelled=False, mark=5)
    line = tiny_line(tmp_path, seeds=(0, 1), unlabelled=more)
    base = dataclasses.replace(
        line.base, corpus=dataclasses.replace(line.base.corpus, filters=("exact_duplicates",)),
        packing=dataclasses.replace(line.base.packing, mixture=("source:pseudo=0:0.5,1:1.5",)),
    )  # fmt: skip
    line = dataclasses.replace(line, base=base)
    with caplog.at_level(logging.INFO):
        (first,) = line_run("line", line, runs, after=steps.append).run(1)
    assert steps == ["inputs", "teacher", "audit", "labels", "data", "trainings", "comparison", "gate", "round"]
    assert first["audit"]["photo"] is not None and first["pools"]["pseudo"]
    assert first["brought"]["num_seeds"] == [2, 2] and first["last"]["outcome"] == "first round"
    data = json.loads((runs / "line/round_01/data/round_data.json").read_text())
    assert 0 < data["pools"]["pseudo"]["chosen"] <= 20 and data["share"] <= line.pseudo_share
    check_filtered(runs, first)
    assert "round 1" in format_rounds([first]) and (runs / "line-r01" / "experiment.html").is_file()
    # found again, without doing anything
    start = time.monotonic()
    assert line_run("line", line, runs, after=steps.append).run(1) == [first]
    assert len(steps) == 9 and time.monotonic() - start < 20


def check_filtered(runs, record):
    """What the filter dropped is recorded, by source, and no training saw it: neither the small model's nor others."""
    for setting, run in (("01", "line-r01/trials/01-seed0"), ("02", "line-r01/trials/02-seed1")):
        (said,) = record["data"][setting]["filtered"]
        assert said["filter"] == "exact_duplicates" and said["dropped"]["words"] > 0
        corpus = EncodedCorpus.open(runs / run / "encoded/store")
        train = int((corpus.split == SPLITS.index("train")).sum())
        assert sum(record["data"][setting]["documents"].values()) + sum(said["dropped"].values()) == train
    for run in ("line/round_01/teacher", "line-r01/trials/01-seed0", "line-r01/trials/02-seed1"):
        packed = read_json(runs / run / "excluded.json")["total_documents"]
        arm = "02" if "02" in run else "01"
        assert packed == sum(record["data"][arm]["documents"].values()) > 0
    assert 0 < record["data"]["02"]["pseudo_share"] <= 0.4 and record["data"]["01"]["pseudo_share"] == 0


@pytest.mark.slow
def test_words_that_collapsed_are_not_trained_on(tmp_path):
    """The round trains without them and is the line's last."""
    steps, runs = [], tmp_path / "runs"
    # two words cannot be as varied as the true ones of a hundred
    collapse = CollapseConfig(min_words=1, min_true_distinct_ratio=0.99, min_entropy_ratio=0.99)
    words = write_images(tmp_path / "words", count=60, first=0, labelled=True)
    lines = read_jsonl(words)
    for number, line in enumerate(lines):
        line["content"][1]["text"] += f" {number}"
    words.with_name("varied.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = tiny_line(tmp_path, seeds=(0,), collapse=collapse, words=words.with_name("varied.jsonl"))
    found = line_run("line", line, runs, after=steps.append).run(2)
    assert len(found) == 1 and found[0]["collapsed"] and not found[0]["accepted"]
    assert found[0]["brought"]["note"] == NOTHING_NEW and found[0]["pools"] == {}
    assert list(found[0]["data"]) == ["01"]


@pytest.mark.slow
def test_trainings_run_on_the_engine_that_is_asked_for(tmp_path, monkeypatch):
    """submitit's local executor, as SLURM's jobs would be."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = tiny_line(tmp_path, seeds=(0,), unlabelled=None)
    running = LineRun(
        "line", line, runs=tmp_path / "runs", engine_name="slurm",
        open_engine=lambda folder: SlurmEngine(folder, cluster="local", hours=0.2),
    )  # fmt: skip
    (found,) = running.run(1)
    events = read_jsonl(tmp_path / "runs/line-r01/events.jsonl")
    assert [event["engine"] for event in events if event["event"] == "submitted"] == ["slurm"]
    assert found["brought"]["note"] == NOTHING_NEW and len(found["weights"]) == 1
    assert list((tmp_path / "runs/line-r01/slurm").glob("*_result.pkl"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "nowhere"], "give one of local, slurm, ray"),
        (["--engine", "slurm", "--slurm", "account"], "give name=value"),
        (["--engine", "slurm", "--hours", "0"], "above 0"),
        (["--workers", "0"], "give 1 or more"),
        (["--rounds", "0"], "give 1 or more"),
    ],
)
def test_a_wrong_request_builds_nothing(tmp_path, options, said, capsys):
    path = write_line(tmp_path / "line.py", tmp_path)
    assert main(["round", str(path), "--runs", str(tmp_path / "runs"), *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_rounds_take_the_options_of_run(tmp_path, monkeypatch):
    """What `brine experiments run` takes: the same class parses them."""
    asked = []
    monkeypatch.setattr(
        "brine.experiments.engines.options.open_engine", lambda name, **given: asked.append((name, given))
    )
    monkeypatch.setattr("brine.experiments.rounds.command.LineRun", FakeLineRun)
    path = write_line(tmp_path / "line.py", tmp_path)
    options = ["--engine", "slurm", "--partition", "gpu", "--hours", "2", "--slurm", "account=mine", "--workers", "7"]
    assert main(["round", str(path), "--runs", str(tmp_path / "runs"), *options]) == 0
    expected = {"partition": "gpu", "hours": 2.0, "more": {"account": "mine"}}
    assert asked == [("slurm", {"folder": tmp_path, "workers": 7, "options": expected})]
    assert FakeLineRun.engine_name == "slurm"
    assert {field.name for field in dataclasses.fields(EngineOptions)} < {
        field.name for field in dataclasses.fields(ExperimentRunRequest)
    }


class FakeLineRun:
    def __init__(self, name, line, *, runs, open_engine, engine_name):
        type(self).engine_name = engine_name
        open_engine(runs.parent)

    def run(self, rounds):
        return []

    def stop_reason(self, found):
        return ""


@pytest.mark.slow
def test_a_line_that_changed_is_refused(tmp_path):
    line = tiny_line(tmp_path)

    def stop(step):
        raise Killed

    with pytest.raises(Killed):
        line_run("line", line, tmp_path / "runs", after=stop).run(1)
    other = tiny_line(tmp_path, pseudo_share=0.1)
    with pytest.raises(ValueError, match=r"pseudo_share: 0\.4 -> 0\.1.*another name"):
        line_run("line", other, tmp_path / "runs").run(1)


@pytest.mark.acceptance
def test_three_rounds_killed_at_each_boundary_give_the_same_digests(tmp_path):
    line = tiny_line(tmp_path)
    start = time.monotonic()
    whole = line_run("line", line, tmp_path / "whole").run(3)
    print(f"three rounds: {time.monotonic() - start:.0f} s")
    seen: set[str] = set()

    def kill(step):
        key = f"{len(list((tmp_path / 'killed' / 'line').glob('round_*')))} {step}"
        if key not in seen:
            seen.add(key)
            raise Killed

    found = None
    for _ in range(60):
        try:
            found = line_run("line", line, tmp_path / "killed", after=kill).run(3)
            break
        except Killed:
            continue
    assert found is not None and kept(found) == kept(whole) and len(seen) > 20


@pytest.mark.acceptance
def test_a_round_that_changes_nothing_links_everything(tmp_path):
    line = tiny_line(tmp_path, unlabelled=None, seeds=(0, 1, 2))
    runs = tmp_path / "runs"
    line_run("line", line, runs).run(1)
    stored = sorted(path.parent.name for path in (runs / ".store").glob("*/*/done"))
    start = time.monotonic()
    found = line_run("line", line, runs).run(2)
    print(f"a round that changes nothing: {time.monotonic() - start:.0f} s")
    assert found[1]["brought"]["outcome"] == found[1]["last"]["outcome"] == "undecided"
    assert found[1]["weights"] == found[0]["weights"]
    assert sorted(path.parent.name for path in (runs / ".store").glob("*/*/done")) == stored


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pseudo_share": 1.0}, "pseudo_share"),
        ({"seeds": (0, 0)}, "each seed"),
        ({"registry": "r"}, "suite"),
        ({"patience": 0}, "patience"),
    ],
)
def test_a_line_that_cannot_be_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        tiny_line(tmp_path, **changes)


def test_a_base_with_documents_is_refused(tmp_path):
    line = tiny_line(tmp_path)
    corpus = dataclasses.replace(line.base.corpus, manifest=tmp_path)
    with pytest.raises(ValueError, match="give them as words"):
        RoundLine(base=dataclasses.replace(line.base, corpus=corpus), words=tmp_path)
