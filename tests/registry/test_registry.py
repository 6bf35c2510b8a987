"""The way back: rollback and revoke, who holds the registry, and the log alone gives the state."""

import json
import os
import time

import pytest

from brine.common.files import read_jsonl
from brine.registry.history import History
from brine.registry.promotion import ChampionChangedError
from brine.registry.registry import Registry
from brine.registry.verify import verify
from tests.registry.fakes import BETTER, FAKE_GATE, SUITE, add_setting, events, make_run, promote, sha


def test_a_rollback_is_one_line_and_gives_the_same_bytes(registry, runs):
    first = promote(registry, add_setting(registry, runs, "base")).model
    before = {path.name: path.read_bytes() for path in (registry.root / "champion" / "model").iterdir()}
    second = promote(registry, add_setting(registry, runs, "better", **BETTER)).model
    start, lines = time.perf_counter(), len(events(registry))
    assert registry.rollback(reason="errors in production") == first
    took = time.perf_counter() - start
    assert {path.name: path.read_bytes() for path in (registry.root / "champion" / "model").iterdir()} == before
    assert len(events(registry)) == lines + 1 and registry.champion == first
    print(f"rollback took {took:.3f} s")
    with pytest.raises(ValueError, match="no earlier champion"):
        registry.rollback(reason="more")
    assert registry.rollback(reason="it was not that", to=second[:10]) == second
    assert registry.rollback(reason="it was") == first and verify(registry.root) == []
    with pytest.raises(ValueError, match="was never the champion"):
        registry.rollback(reason="x", to=add_setting(registry, runs, "other", seeds=(5,), learning_rate=4e-3)[0])


def test_a_revoked_source_marks_all_downstream(registry, runs):
    base = add_setting(registry, runs, "base")
    first = promote(registry, base).model
    new = add_setting(registry, runs, "better", **BETTER, source="poisoned")
    grandchild = registry.add(make_run(runs, "child", init_from=new[0], source="clean"))
    second = promote(registry, new).model
    with pytest.raises(ValueError, match="give --rollback"):
        registry.revoke(sha("poisoned"), reason="no consent")
    assert registry.champion == second and events(registry)[-1] == "promote"
    affected = registry.revoke(sha("poisoned")[:16], reason="no consent", rollback=True)
    assert affected == [*new, grandchild] and registry.champion == first
    assert "no consent" in registry.card(grandchild)["revoked"][0] and registry.card(base[0])["revoked"] == []
    for options in ({}, {"force": "I insist"}):
        with pytest.raises(ValueError, match=r"cannot be promoted.*no consent"):
            promote(registry, new, **options)
    with pytest.raises(ValueError, match="may not be used"):
        registry.rollback(reason="x", to=second)
    with pytest.raises(ValueError, match="revoked already"):
        registry.revoke(sha("poisoned"), reason="again")
    # made from it later
    late = registry.add(make_run(runs, "late", source="poisoned", learning_rate=9e-3))
    assert registry.history.why_revoked(late) and registry.card(late)["revoked"] and verify(registry.root) == []
    with pytest.raises(ValueError, match="no earlier champion is free of it"):
        registry.revoke(first, reason="x")


def test_a_revoked_labeller_marks_what_was_trained_on_its_labels(registry, runs, monkeypatch):
    """Also where the model that gave pseudo-labels is not registered itself."""
    labels = [{"name": "pseudo", "consent": "pseudo", "labelled_by": [sha("teacher")]}]
    monkeypatch.setattr("brine.registry.card.consent_counts", lambda run, lineage: {"pseudo": 40})
    plain = registry.add(make_run(runs, "plain"))
    monkeypatch.setattr("brine.registry.card._corpus_sources", lambda run, lineage: labels)
    pupil = registry.add(make_run(runs, "pupil", learning_rate=9e-3))
    assert registry.card(pupil)["sources"]["labels.pseudo.1"] == sha("teacher")
    assert registry.revoke(sha("teacher")[:16], reason="it was trained on test data") == [pupil]
    assert "test data" in registry.card(pupil)["revoked"][0] and registry.card(plain)["revoked"] == []


def test_a_second_promoter_is_told_that_the_champion_changed(registry, runs):
    promote(registry, add_setting(registry, runs, "base"))
    ours = add_setting(registry, runs, "ours", **BETTER)
    theirs = add_setting(registry, runs, "theirs", learning_rate=3e-3, bits_per_byte=1.4)
    other = Registry(registry.root)

    class SlowGate:
        median_seed, calibrate_margins = FAKE_GATE.median_seed, FAKE_GATE.calibrate_margins

        @staticmethod
        def decide(*sides, **options):
            # while this one is deciding, another is promoted
            promote(other, theirs)
            return FAKE_GATE.decide(*sides, **options)

    with pytest.raises(ChampionChangedError, match="while this was decided"):
        registry.promote(ours, SUITE, gate=SlowGate)
    assert registry.champion == other.champion in theirs and registry.history.gate_uses[SUITE.digest] == 2
    assert [line["passed"] for line in read_jsonl(registry.root / "log.jsonl") if line["event"] == "gate"][1:] == [
        True,
        False,
    ]


def test_who_holds_the_registry_is_told(registry, runs, monkeypatch):
    model = registry.add(make_run(runs, "demo"))
    monkeypatch.setattr("brine.registry.registry.LOCK_WAIT_S", 0.1)
    with registry._locked("a test"), pytest.raises(TimeoutError, match=rf"waited 0 s for process {os.getpid()} on"):
        Registry(registry.root).revoke(model, reason="x")
    assert events(registry) == ["add"]


def test_nothing_is_made_where_a_request_is_refused(tmp_path):
    registry = Registry(tmp_path / "registry")
    with pytest.raises(ValueError, match="does not exist"):
        registry.add(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no champion yet"):
        registry.resolve("champion")
    assert not registry.root.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="something else than a registry"):
        Registry(tmp_path / "notes")


def test_the_log_alone_gives_the_state(registry, runs):
    promote(registry, add_setting(registry, runs, "base"))
    promote(registry, add_setting(registry, runs, "better", **BETTER))
    registry.rollback(reason="x")
    lines = [json.loads(line) for line in (registry.root / "log.jsonl").read_text().splitlines()]
    assert History.of(lines) == Registry(registry.root).history
    with pytest.raises(ValueError, match="unknown event 'bless'"):
        History.of([{"event": "bless", "line": 1}])
