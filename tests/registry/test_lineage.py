"""What a model was made from, down to the sources; what cannot be followed is named."""

import os

import pytest

from brine.common.files import digest, read_json, write_json
from brine.registry.lineage import trace
from brine.registry.verify import verify
from tests.registry.fakes import CLEAN, SUITE, events, make_run, promote, sha, write_measured, write_stage


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
