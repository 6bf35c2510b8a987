"""The gate lets a better setting through, refuses by name, and force is recorded."""

import json
import os

import pytest

from brine.common.files import read_jsonl
from brine.registry.cli.tables import list_table
from brine.registry.verify import verify
from tests.registry.fakes import (
    BETTER,
    SUITE,
    add_setting,
    events,
    make_run,
    promote,
    value_of,
    write_measured,
)


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
