"""Rounds: the words of a model become training data, each round is compared with the last, a kill changes nothing."""

import json
import logging
import time

import pytest

from brine.experiments.rounds.command import format_rounds
from brine.experiments.rounds.line import RoundLine
from tests.experiments.rounds import line_run, tiny_line


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
    line = tiny_line(tmp_path, seeds=(0, 1))
    with caplog.at_level(logging.INFO):
        (first,) = line_run("line", line, runs, after=steps.append).run(1)
    assert steps == ["inputs", "teacher", "audit", "labels", "data", "trainings", "comparison", "gate", "round"]
    assert first["audit"]["photo"] is not None and first["pools"]["pseudo"]
    assert first["brought"]["num_seeds"] == [2, 2] and first["last"]["outcome"] == "first round"
    data = json.loads((runs / "line/round_01/data/round_data.json").read_text())
    assert 0 < data["pools"]["pseudo"]["chosen"] <= 20 and data["share"] <= line.pseudo_share
    assert "round 1" in format_rounds([first]) and (runs / "line-r01" / "experiment.html").is_file()
    # found again, without doing anything
    start = time.monotonic()
    assert line_run("line", line, runs, after=steps.append).run(1) == [first]
    assert len(steps) == 9 and time.monotonic() - start < 20


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
    import dataclasses

    line = tiny_line(tmp_path)
    corpus = dataclasses.replace(line.base.corpus, manifest=tmp_path)
    with pytest.raises(ValueError, match="give them as words"):
        RoundLine(base=dataclasses.replace(line.base, corpus=corpus), words=tmp_path)
