"""A model is added with its lineage, measured, promoted through the gate, rolled back and revoked."""

import json
import os
import time

import pytest

from brine.common.files import digest, read_json, read_jsonl, write_json
from brine.registry.cli.tables import list_table
from brine.registry.history import History
from brine.registry.lineage import trace
from brine.registry.promotion import ChampionChangedError
from brine.registry.registry import Registry
from brine.registry.verify import verify
from tests.registry.fakes import (
    CLEAN,
    FAKE_GATE,
    SUITE,
    add_setting,
    make_run,
    sha,
    value_of,
    write_measured,
    write_stage,
)

BETTER = {"learning_rate": 2e-3, "bits_per_byte": 1.5}


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def promote(registry, models, **options):
    return registry.promote(models, SUITE, gate=FAKE_GATE, **options)


def events(registry):
    return [line["event"] for line in read_jsonl(registry.root / "log.jsonl")]


def test_a_model_is_added_with_everything_that_it_was_made_from(registry, runs):
    run = make_run(runs, "demo", seed=3)
    model = registry.add(run)
    card, folder = registry.card(model), registry.folder_of(model)
    assert card["weights"] == model == sha((run / "large_salt" / "model" / "model.safetensors").read_text())
    assert {entry["name"] for entry in card["stages"].values()} == {"large_salt", "encoded", "corpus", "small"}
    assert card["sources"] == {"corpus.source": sha("source")} and card["missing"] == []
    small = read_json(run / "small" / "done")["result"]["fingerprint"]
    assert card["parents"] == {"teacher": small} and card["commit"] == CLEAN["commit"]
    assert card["seeds"] == {"seed": 3, "small.seed": 3, "large.seed": 3}
    assert card["consent"] == {"unknown": 40} and card["compute_cost"]["large_salt"]["student"]["flops"] == 5e9
    assert card["recipe"] == read_json(run / "recipe.json") and card["tokenizer"] == sha("tokenizer\n")
    weights = folder / "model" / "model.safetensors"
    assert weights.samefile(run / "large_salt" / "model" / "model.safetensors")
    assert not weights.stat().st_mode & 0o222
    assert registry.add(run) == model and events(registry) == ["add"] and verify(registry.root) == []


def test_stages_that_are_links_into_a_store_are_followed(registry, runs):
    run = make_run(runs, "demo")
    for stage in ("corpus", "encoded", "small", "large_salt"):
        mark = read_json(run / stage / "done")
        stored = runs / ".store" / stage / digest(mark["key"])
        stored.parent.mkdir(parents=True, exist_ok=True)
        os.rename(run / stage, stored)
        if stage != "corpus":
            # the corpus is in the store alone
            os.symlink(os.path.relpath(stored, run), run / stage)
    card = registry.card(registry.add(run))
    assert {entry["name"] for entry in card["stages"].values()} == {"corpus", "encoded", "small", "large_salt"}
    assert card["missing"] == []


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda run: os.rename(run / "corpus", run.parent / "elsewhere"), "the input corpus of the stage encoded"),
        (lambda run: (run / "recipe.json").unlink(), "the recipe"),
        (lambda run: (run / "environment.json").unlink(), "the environment"),
    ],
    ids=["input", "recipe", "environment"],
)
def test_what_is_missing_of_a_lineage_is_named_and_it_cannot_be_promoted(registry, runs, spoil, said):
    run = make_run(runs, "demo")
    spoil(run)
    model = registry.add(run)
    registry.measure(model, write_measured(run / "suites" / "synth", model), SUITE)
    assert any(said in reason for reason in registry.card(model)["missing"])
    found = promote(registry, [model])
    assert found.model is None and said in found.answer.reasons[0] and registry.champion is None


def test_weights_of_another_run_must_be_registered_with_their_lineage(registry, runs):
    parent_run = make_run(runs, "parent", code={"commit": None, "diff": None})
    weights = read_json(parent_run / "large_salt" / "done")["result"]["fingerprint"]
    child = registry.add(make_run(runs, "child", learning_rate=5e-3, init_from=weights))
    registry.measure(child, write_measured(runs / "m", child), SUITE)
    reasons = promote(registry, [child]).answer.reasons
    assert len(reasons) == 1 and f"the model {weights[:12]} that it was trained from" in reasons[0]
    assert registry.add(parent_run) == weights
    reasons = promote(registry, [child]).answer.reasons
    assert len(reasons) == 1 and f"(of its parent {weights[:12]})" in reasons[0]


def test_media_of_a_corpus_without_media_are_nothing_that_models_share(registry, runs):
    """The SHA-256 of nothing would join all models of texts: revoking it would revoke them all."""
    run = make_run(runs, "texts")
    mark = read_json(run / "encoded" / "done")
    key = mark["key"] | {"inputs": mark["key"]["inputs"] | {"media": sha("")}}
    write_json(run / "encoded" / "done", mark | {"key": key})
    model = registry.add(run)
    card = registry.card(model)
    assert card["missing"] == [] and card["sources"] == {"corpus.source": sha("source")}
    assert sha("") not in registry.history.contains(model)
    with pytest.raises(ValueError, match="is no model, stage or source"):
        registry.revoke(sha(""), reason="x")
    with_media = key | {"inputs": key["inputs"] | {"media": sha("an image")}}
    write_json(run / "encoded" / "done", mark | {"key": with_media})
    assert trace(run, "small").sources["encoded.media"] == sha("an image")


def test_a_digest_is_named_by_four_characters_or_more(registry, runs):
    model = registry.add(make_run(runs, "demo"))
    assert registry.digest_of(model[:4]) == model == registry.contained_digest(model[:8])
    for name in (model[:1], model[:3]):
        for find in (registry.digest_of, registry.contained_digest):
            with pytest.raises(ValueError, match=f"'{name}' is too short: give at least 4 characters"):
                find(name)


def test_weights_named_by_the_settings_of_a_training_are_a_parent(registry, runs):
    parent = registry.add(make_run(runs, "parent"))
    run = make_run(runs, "child", learning_rate=5e-3)
    mark = read_json(run / "large_salt" / "done")
    config = mark["key"]["config"]
    config["train"]["init_digest"] = parent
    write_stage(run / "large_salt", config=config, inputs=mark["key"]["inputs"], result=mark["result"])
    child = registry.add(run)
    assert registry.card(child)["parents"]["init_from"] == parent and registry.card(child)["unknown_parents"] == [
        parent
    ]
    assert registry.revoke(parent, reason="x") == [parent, child]


def test_a_dirty_tree_is_incomplete_also_where_the_next_command_was_clean(registry, runs):
    """The run's environment is that of its last command; a stage records the code that trained it."""
    run = make_run(runs, "demo", code={"commit": "0123456789ab+", "diff": "d" * 64})
    write_json(run / "environment.json", {"commit": "ba9876543210"})
    card = registry.card(registry.add(run))
    assert card["commit"] == "0123456789ab+" and card["diff"] == "d" * 64
    assert card["missing"] == [f"the code that made {name}: files differed from commit 0123456789ab"
                               for name in ("large_salt", "small")]  # fmt: skip


def test_weights_that_the_stage_did_not_make_are_incomplete(registry, runs):
    run = make_run(runs, "demo")
    (run / "large_salt" / "model" / "model.safetensors").write_text("others")
    assert "which it had made" in registry.card(registry.add(run))["missing"][0]


def test_the_first_model_needs_measurements_and_lineage_alone_and_says_so(registry, runs):
    model = registry.add(make_run(runs, "demo"))
    with pytest.raises(ValueError, match="not measured on dev and gate of the suite synth"):
        promote(registry, [model])
    folder = write_measured(runs / "m", model, without=["cer.audio"])
    registry.measure(model, folder, SUITE)
    refused = promote(registry, [model])
    assert refused.model is None and "not measured in cer.audio" in refused.answer.reasons[0]
    registry.measure(model, write_measured(runs / "m2", model), SUITE)
    found = promote(registry, [model])
    assert found.model == model == registry.champion and found.answer.outcome == "first"
    line = read_jsonl(registry.root / "log.jsonl")[-1]
    assert line["event"] == "promote" and line["first"] is True and registry.history.gate_uses[SUITE.digest] == 0
    assert os.readlink(registry.root / "champion") == f"models/{model}"


def test_the_median_seed_is_promoted_through_the_gate(registry, runs):
    first = add_setting(registry, runs, "base")
    before = promote(registry, first)
    new = add_setting(registry, runs, "better", **BETTER)
    found = promote(registry, new)
    dev = {model: promoted_value(registry, model) for model in new}
    assert found.model == sorted(new, key=dev.get)[1] == registry.champion
    assert found.before == before.model and found.uses == 1 and set(found.seeds) == set(new)
    assert events(registry)[-2:] == ["gate", "promote"] and verify(registry.root) == []


def promoted_value(registry, model):
    from brine.evals.measurement import load_measurements
    from tests.registry.fakes import SPECS

    folder = registry.folder_of(model) / "measured" / registry.history.measured[model][-1]["folder"]
    return value_of(load_measurements(folder / "measurements.jsonl", SPECS)["dev"], "bits_per_byte")


def test_a_regression_in_audio_is_refused_by_name_although_the_primary_is_better(registry, runs):
    champion = promote(registry, add_setting(registry, runs, "base")).model
    deaf = add_setting(registry, runs, "deaf", **BETTER, gain__audio=0.95, cer__audio=0.9)
    found = promote(registry, deaf)
    assert found.model is None and registry.champion == champion
    assert [word for word in found.answer.reasons if "gain.audio" in word or "cer.audio" in word] == list(
        found.answer.reasons
    )
    assert len(found.answer.reasons) == 2 and events(registry)[-1] == "gate"
    # asked again it is counted again
    assert promote(registry, deaf).uses == 2


def test_undecided_says_what_would_decide(registry, runs):
    promote(registry, add_setting(registry, runs, "base"))
    found = promote(registry, add_setting(registry, runs, "same", learning_rate=1.1e-3))
    assert found.answer.outcome == "undecided" and "4 more seeds" in found.answer.reasons[0]


def test_what_is_not_measured_is_refused(registry, runs):
    promote(registry, add_setting(registry, runs, "base"))
    found = promote(registry, add_setting(registry, runs, "new", **BETTER, without=["gain.audio"]))
    assert found.model is None and "gain.audio was not measured" in found.answer.reasons[0]


@pytest.mark.parametrize("what, value", [("machine", "m2"), ("precision", "bfloat16"), ("revision", 2)])
def test_both_are_measured_on_the_same_machine_precision_and_code(registry, runs, what, value):
    champion = promote(registry, add_setting(registry, runs, "base"))
    new = add_setting(registry, runs, "better", **BETTER, result={what: value})
    with pytest.raises(ValueError, match=r"\(the champion\).*measure all of them on one"):
        promote(registry, new)
    for model in champion.seeds:
        seed = registry.card(model)["seeds"]["seed"]
        registry.measure(model, write_measured(runs / "again" / model, model, seed=seed, result={what: value}), SUITE)
    assert promote(registry, new).model in new


def test_a_request_that_cannot_be_answered_is_refused(registry, runs, tmp_path):
    base = add_setting(registry, runs, "base")
    promote(registry, base[:1])
    new = add_setting(registry, runs, "better", **BETTER)
    other = add_setting(registry, runs, "other", seeds=(3,), learning_rate=5e-3)
    for models, said in [
        (new[:2], "at least 3"),
        ([*new[:2], new[0]], "give each candidate once"),
        ([], "give at least 3 candidates"),
        ([*new[:2], *other], "more than the seeds"),
        ([*new[:2], registry.champion], "is the champion already"),
        (["ffff"], "is no model"),
    ]:
        with pytest.raises(ValueError, match=said):
            promote(registry, models)
    with pytest.raises(ValueError, match=f"measures the weights {new[1][:12]}, not {new[0][:12]}"):
        registry.measure(new[0], write_measured(tmp_path / "m", new[1]), SUITE)
    with pytest.raises(ValueError, match=r"is not a finished stage|holds no finished model"):
        registry.add(tmp_path)
    assert promote(registry, new).model in new


def test_a_champion_of_one_seed_needs_more_of_its_setting(registry, runs):
    promote(registry, add_setting(registry, runs, "base", seeds=(0,)))
    new = add_setting(registry, runs, "better", **BETTER)
    with pytest.raises(ValueError, match=r"has 1 seed here and 3 are needed.*under 2 more"):
        promote(registry, new)
    add_setting(registry, runs, "base", seeds=(1, 2))
    assert promote(registry, new).model in new


def test_damaged_weights_are_not_promoted_and_the_gate_is_not_asked(registry, runs):
    models = add_setting(registry, runs, "base")
    for model in models:
        path = registry.folder_of(model) / "model" / "model.safetensors"
        path.unlink()
        path.write_text("others")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged.*put it back"):
        promote(registry, models)
    assert registry.champion is None and "gate" not in events(registry)


def test_forced_and_revoked_models_are_red_in_the_list(registry, runs):
    base = add_setting(registry, runs, "base")
    promote(registry, base)
    forced = promote(registry, add_setting(registry, runs, "deaf", **BETTER, gain__audio=0.95), force="x").model
    registry.revoke(next(model for model in base if model not in registry.history.was_champion), reason="y")
    listed = list_table(registry.history)
    assert len(listed.rows) == 6 and [row.style for row in listed.rows].count("red") == 2
    assert listed.rows[0].style == "red" and registry.champion == forced


def test_force_is_recorded_for_ever(registry, runs):
    promote(registry, add_setting(registry, runs, "base"))
    deaf = add_setting(registry, runs, "deaf", **BETTER, gain__audio=0.95)
    found = promote(registry, deaf, force="a demonstration")
    assert found.model in deaf and registry.champion == found.model
    assert events(registry)[-3:] == ["gate", "force", "promote"]
    (forced,) = registry.card(found.model)["forced"]
    assert forced["reason"] == "a demonstration" and "gain.audio" in forced["overrides"][0]
    registry.rollback(reason="enough")
    assert registry.card(found.model)["forced"] == [forced] and verify(registry.root) == []
    with pytest.raises(ValueError, match="reason"):
        promote(registry, deaf, force=" ")


def test_force_replaces_a_champion_of_one_seed(registry, runs):
    """The gate itself needs three equal trainings for its margins, and is not asked."""
    base = add_setting(registry, runs, "base", seeds=(0,))
    assert registry.promote(base, SUITE).answer.outcome == "first"
    new = add_setting(registry, runs, "better", **BETTER)
    with pytest.raises(ValueError, match="has 1 seed here and 3 are needed"):
        registry.promote(new, SUITE)
    found = registry.promote(new, SUITE, force="I insist")
    assert found.model in new and registry.champion == found.model and found.uses == 0
    assert found.answer.outcome == "not asked" and "has 1 seed here" in found.answer.reasons[0]
    (forced,) = registry.card(found.model)["forced"]
    assert forced["reason"] == "I insist" and any("3 equal trainings" in why for why in forced["overrides"])
    assert registry.promote(base, SUITE, force="back").model == base[0] and verify(registry.root) == []


@pytest.mark.parametrize("lacking", ["bits_per_byte", "gain.audio"])
@pytest.mark.parametrize("side", ["candidate", "champion"])
def test_what_one_side_was_not_measured_in_is_refused_by_name_and_can_be_forced(registry, runs, lacking, side):
    base = add_setting(registry, runs, "base")
    registry.promote(base, SUITE)
    new = add_setting(registry, runs, "new", **BETTER, without=[lacking] if side == "candidate" else [])
    if side == "champion":
        # a newer record, of one seed
        folder = write_measured(runs / "again", base[1], seed=1, without=[lacking])
        registry.measure(base[1], folder, SUITE)
    refused = registry.promote(new, SUITE)
    assert refused.model is None and refused.answer.outcome == "refused" and registry.champion in base
    assert any(lacking in why and f"of {side}[" in why and "not measured" in why for why in refused.answer.reasons)
    assert f"{lacking} of {side}[{1 if side == 'champion' else 0}]" in refused.answer.details["unmeasured"]
    found = registry.promote(new, SUITE, force="I insist")
    assert found.model in new and registry.card(found.model)["forced"][0]["overrides"] == list(found.answer.reasons)


def test_a_primary_that_one_seed_lacks_on_dev_alone_is_refused(registry, runs):
    registry.promote(add_setting(registry, runs, "base"), SUITE)
    new = add_setting(registry, runs, "new", **BETTER)
    file = write_measured(runs / "again", new[0]) / "measurements.jsonl"
    lines = [line for line in read_jsonl(file) if (line["part"], line["measure"]) != ("dev", "bits_per_byte")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    registry.measure(new[0], file.parent, SUITE)
    refused = registry.promote(new, SUITE)
    assert refused.model is None and not refused.answer.passed
    assert f"{new[0][:12]} was not measured in bits_per_byte on dev" in refused.answer.reasons
    # the median is one of those that have a value
    assert registry.promote(new, SUITE, force="I insist").model in new[1:]


def test_force_promotes_also_where_nothing_was_measured_or_a_measurement_is_damaged(registry, runs):
    base = add_setting(registry, runs, "base")
    registry.promote(base, SUITE)
    bare = [registry.add(make_run(runs, f"bare-{seed}", seed=seed, learning_rate=5e-3)) for seed in (0, 1, 2)]
    assert registry.promote(bare, SUITE, force="x").answer.outcome == "not asked" and registry.champion in bare
    new = add_setting(registry, runs, "better", **BETTER)
    registry.rollback(reason="y")
    (path,) = registry.folder_of(new[1]).glob("measured/*/measurements.jsonl")
    path.unlink()
    path.write_text("others")
    with pytest.raises(ValueError, match="damaged"):
        registry.promote(new, SUITE)
    found = registry.promote(new, SUITE, force="z")
    assert found.model in new and found.answer.outcome == "not asked" and "damaged" in found.answer.reasons[0]


def test_a_spare_training_of_the_champion_that_lacks_a_guard_calibrates_nothing(registry, runs):
    registry.promote(add_setting(registry, runs, "base"), SUITE)
    add_setting(registry, runs, "base", seeds=(7,), without=["gain.audio"])
    found = registry.promote(add_setting(registry, runs, "better", **BETTER), SUITE)
    assert found.model and found.answer.outcome == "better"


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


@pytest.mark.parametrize(
    "found, said",
    [({"labelled_by": []}, "whose lines name them"), ({}, "encode it again"), ({"labelled_by": ["1" * 64]}, None)],
    ids=["none found", "an older corpus", "found"],
)
def test_pseudo_labels_of_unknown_models_are_missing_of_a_lineage(registry, runs, monkeypatch, found, said):
    monkeypatch.setattr("brine.registry.card.consent_counts", lambda run, lineage: {"pseudo": 40})
    run = make_run(runs, "pupil")
    sources = [{"name": "own", "consent": "own"}, {"name": "pool", "consent": "pseudo"} | found]
    (run / "encoded" / "store").mkdir()
    write_json(run / "encoded" / "store" / "meta.json", {"corpus_sources": sources})
    model = registry.add(run)
    missing = registry.card(model)["missing"]
    assert len(missing) == (said is not None)
    registry.measure(model, write_measured(runs / "m", model), SUITE)
    if said:
        assert "pseudo-labels of the source pool" in missing[0] and said in missing[0]
        assert promote(registry, [model]).model is None
    else:
        assert promote(registry, [model]).model == model


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
