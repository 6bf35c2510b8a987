"""Mixtures: what is accepted, schedules as they come out, visits that are balanced and known."""

from types import SimpleNamespace

import numpy as np
import pytest

from brine.data.document import MODALITIES
from brine.data.packing.composition import count_chunk_tokens
from brine.data.packing.counter_rng import shuffle_order, uniform
from brine.data.packing.mixture import Mixture
from brine.data.packing.plan import PackingPlan


def made_up(count: int = 6000, *, seed: int = 0):
    """A corpus of numbers only: three kinds, two levels, three sources; kind "c" is half images."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, 3, count).astype(np.int16)
    tokens = generator.integers(20, 200, count)
    return SimpleNamespace(
        num_documents=count,
        kinds=["a", "b", "c"],
        sources=["books", "wikitext-2", "wikitext-103"],
        kind=kind,
        level=generator.integers(1, 3, count).astype(np.int16),
        source=generator.integers(0, 3, count).astype(np.int32),
        split=np.zeros(count, np.int8),
        num_tokens=tokens,
        num_media={name: np.where(kind == 2, tokens // 2, 0) * (name == "image") for name in MODALITIES},
        fingerprint="made up",
    )


def plan_of(corpus, weights, **options):
    return PackingPlan.build(corpus, seq_len=2048, mixture=Mixture(weights), **options)


def share_of(corpus, plan, chosen, first, last):
    """Part of the visits between two parts of the plan that are of the chosen documents."""
    rows = plan.slice(int(first * len(plan)), int(last * len(plan)))
    return chosen[rows.document].mean()


def test_a_schedule_comes_out_as_asked():
    corpus = made_up()
    plan = plan_of(
        corpus, {"kind:a": [(0.0, 0.0), (1.0, 2.0)], "kind:b/2": [(0.5, 3.0), (0.6, 0.0)]}, num_sequences=1500
    )
    a, others = corpus.kind == 0, (corpus.kind == 1) & (corpus.level == 2)
    rest = ~a & ~others
    for first in np.arange(0, 1, 0.125):
        at = np.clip(first + 0.125 * (np.arange(50) + 0.5) / 50, 0, 1)
        weight = {"a": (2 * at).mean() * a.sum(), "b": np.interp(at, [0.5, 0.6], [3, 0]).mean() * others.sum()}
        total = sum(weight.values()) + rest.sum()
        assert share_of(corpus, plan, a, first, first + 0.125) == pytest.approx(weight["a"] / total, abs=0.03)
        assert share_of(corpus, plan, others, first, first + 0.125) == pytest.approx(weight["b"] / total, abs=0.03)
    assert len(plan) == 1500 and plan.packing_efficiency > 0.99


def test_no_document_is_visited_a_third_time_before_all_were_twice():
    corpus = made_up(3000)
    plan = plan_of(corpus, {"kind:a": [(0, 1), (1, 4)], "source:wikitext*": 0.5}, num_sequences=700)
    visits, document = plan.sample_counts(), plan.document
    assert visits.sum() == len(document) and plan.info["epochs_begun"] == visits.max() > 2
    wiki, a = corpus.source > 0, corpus.kind == 0
    for group in (a & wiki, a & ~wiki, ~a & wiki, ~a & ~wiki):
        # rows that were too many are cut off, which may take one from a few
        counts = np.bincount(visits[group])
        assert np.flatnonzero(counts > 0.02 * group.sum()).size <= 2 and np.ptp(visits[group]) <= 2


def test_constant_weights_are_visits_of_an_epoch():
    corpus = made_up()
    weights = {"kind:a": 2, "source:wiki*": 0.5, "source:wikitext-2": 0, "kind:c/1": 3}
    visits = plan_of(corpus, weights, epochs=1).sample_counts()
    books, two = corpus.source == 0, corpus.source == 1
    assert (visits[(corpus.kind == 0) & books] == 2).all()
    assert (visits[(corpus.kind == 0) & (corpus.source == 2)] == 1).all()
    # the longest pattern that matches is a source's, kind/level comes before kind
    assert not visits[two].any()
    assert (visits[(corpus.kind == 2) & (corpus.level == 1) & books] == 3).all()
    # what has no entry for its kind is one group
    unnamed = ((corpus.kind == 1) | ((corpus.kind == 2) & (corpus.level == 2))) & (corpus.source == 2)
    half = visits[unnamed]
    assert set(half.tolist()) == {0, 1} and half.sum() == pytest.approx(len(half) / 2, abs=1)
    # in the next epoch it is the other half's turn
    both = plan_of(corpus, weights, epochs=2).sample_counts()[unnamed]
    assert both.mean() == pytest.approx(1, abs=0.01) and np.ptp(both) <= 1


def test_weights_of_kinds_that_another_corpus_has_are_left_out():
    """A recipe's weights are for the kinds of its own corpus; level and source entries follow the same rule."""
    corpus = made_up(2000)
    mixture = Mixture({"kind:a": 2, "kind:z": 3, "kind:y/1": 0, "kind:b/1": 0.5, "source:wiki*": 0.5})
    known = mixture.for_kinds(corpus.kinds)
    assert known == Mixture({"kind:a": 2, "kind:b/1": 0.5, "source:wiki*": 0.5}) == known.for_kinds(corpus.kinds)
    assert plan_of(corpus, known.weights, epochs=1).sample_counts().max() == 2


def test_epochs_of_a_schedule_hold_as_many_visits_as_its_mean():
    corpus = made_up()
    visits = plan_of(corpus, {"kind:a": [(0, 0), (1, 2)], "kind:b": [(0, 2), (1, 0)]}, epochs=2).sample_counts()
    assert visits.mean() == pytest.approx(2, abs=0.1)
    assert visits[corpus.kind == 0].mean() == pytest.approx(2, abs=0.2)


def test_plan_is_a_function_of_its_seed():
    corpus = made_up(1000)
    first, second, third = (
        plan_of(corpus, {"kind:a": [(0, 1), (1, 3)]}, num_sequences=100, seed=seed).digest() for seed in (1, 1, 2)
    )
    assert first == second != third


def test_realised_mixture_of_a_plan():
    corpus = made_up()
    plan = plan_of(corpus, {"kind:c": [(0.4, 0.0), (0.6, 1.0)]}, num_sequences=400)
    found = plan.mixture(corpus, num_bins=4)
    assert found["sequences"] == [0, 100, 200, 300, 400]
    for part in ("kind", "source", "modality"):
        assert np.allclose(sum(np.array(shares) for shares in found[part].values()), 1, atol=1e-5)
    assert found["kind"]["c"][0] == 0 < found["kind"]["c"][3]
    # images are half of the tokens of that kind
    assert np.allclose(found["modality"]["image"], np.array(found["kind"]["c"]) / 2, atol=0.01)
    by_hand = plan.slice(300, 400)
    tokens = (by_hand.stop - by_hand.start).astype(float)
    expected = tokens[corpus.source[by_hand.document] == 1].sum() / tokens.sum()
    assert found["source"]["wikitext-2"][3] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="another corpus"):
        plan.mixture(SimpleNamespace(fingerprint="other"))


def test_media_of_split_documents_are_counted_where_they_lie(corpus):
    plan = PackingPlan.build(corpus, seq_len=160, media_budget={"image": 96, "audio": 96, "video": 160}, epochs=1)
    media = count_chunk_tokens(corpus, plan)[:, 1:]
    for entry in range(len(plan.document)):
        number, start, stop = (int(getattr(plan, name)[entry]) for name in ("document", "start", "stop"))
        part = corpus.encoded_document(number).slice(start, stop)
        assert media[entry].tolist() == [len(getattr(part, name)) for name in MODALITIES]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"page": 1}, "must be kind:NAME"),
        ({"kind:": 1}, "must be kind:NAME"),
        ({"kind:a": -1}, "must lie in"),
        ({"kind:a": float("nan")}, "must lie in"),
        ({"kind:a": 5000}, "must lie in"),
        ({"kind:a": []}, "must ascend"),
        ({"kind:a": [(0.5, 1), (0.5, 2)]}, "must ascend"),
        ({"kind:a": [(0, 1), (1.5, 2)]}, "must ascend"),
        ({"kind:a": [(0, 1, 2)]}, "must be a number or points"),
        ({"kind:a": "many"}, "must be a number or points"),
        ((("kind:a", 1), ("kind:a", 2)), "given twice"),
    ],
)
def test_weights_that_cannot_be_meant(weights, words):
    with pytest.raises(ValueError, match=words):
        Mixture(weights)


def test_names_that_the_corpus_does_not_have():
    corpus = made_up(200)
    for weights, words in (
        ({"kind:z": 1}, "kinds: a, b, c"),
        ({"kind:a/x": 1}, "is not a kind"),
        ({"source:news*": 1}, "sources: books, wikitext-2"),
        ({"kind:a": 0, "kind:b": 0, "kind:c": 0}, "no document to plan"),
        ({"kind:a": [(0, 1), (0.2, 0)], "kind:b": 0, "kind:c": 0}, "leaves no document at progress 0.2"),
    ):
        with pytest.raises(ValueError, match=words):
            plan_of(corpus, weights, num_sequences=20)


def test_entries_of_a_command_line():
    parsed = Mixture.parse(["kind:page=0:0.5,0.5:2", "source:wiki=text*=0.1"])
    assert parsed == Mixture({"kind:page": [(0, 0.5), (0.5, 2)], "source:wiki=text*": 0.1})
    assert not parsed.constant and Mixture.parse([]).constant and hash(parsed) == hash(Mixture(parsed.weights))
    assert parsed.to_dict() == {"kind:page": [[0.0, 0.5], [0.5, 2.0]], "source:wiki=text*": [[0.0, 0.1]]}
    for wrong in ("kind:page", "kind:page=", "kind:page=a", "kind:page=1,2", "kind:page=0:1:2"):
        with pytest.raises(ValueError, match="must read KEY=WEIGHT"):
            Mixture.parse([wrong])


def test_a_recipe_takes_a_mixture_from_the_command_line():
    from brine.pipeline.recipe import PackingConfig
    from brine.recipes.launch import parse

    given = ["demo", "--packing.mixture", "kind:page=0:0.5,0.5:2", "source:*=1", "--packing.seq-len", "600"]
    assert parse(given).recipe.packing.mixture == ("kind:page=0:0.5,0.5:2", "source:*=1")
    with pytest.raises(ValueError, match="'kind:page' is given twice"):
        PackingConfig(mixture=("kind:page=1", "kind:page=2"))
    with pytest.raises(ValueError, match="must read KEY=WEIGHT"):
        PackingConfig(mixture=("page",))


def test_training_counts_what_a_batch_is_made_of(corpus):
    import torch

    from brine.data.batch import make_batch
    from brine.training.step import MIXTURE, StepSums

    plan = PackingPlan.build(corpus, seq_len=160, media_budget={"image": 96, "audio": 96, "video": 160}, epochs=1)
    batch = make_batch(corpus, plan, range(6))
    part = plan.slice(0, 6)
    media, tokens = count_chunk_tokens(corpus, part)[:, 1:].sum(axis=0), int((part.stop - part.start).sum())
    assert not batch.failures and media.any()
    expected = [tokens - int(media.sum()), *media.tolist(), 6 * 160 - tokens]
    assert [batch.mixture[name] for name in MIXTURE] == expected
    stats = StepSums(("code",))
    for _ in range(2):
        stats.add_batch(batch, objective=torch.zeros(()), token_loss=torch.zeros(batch.labels.numel()))
    stats.sums[-len(MIXTURE) :] = 2 * torch.tensor([batch.mixture[name] for name in MIXTURE])
    assert stats.to_dict()["mixture"] == {n: 2 * e for n, e in zip(MIXTURE, expected, strict=True) if e}


def test_numbers_from_counters():
    """Fixed values: a plan must not change with the version of numpy, or the machine."""
    number, count = np.arange(4), np.array([0, 1, 2, 3])
    assert uniform(7, 2, number, count).round(9).tolist() == [0.284125489, 0.667712589, 0.187357892, 0.213289715]
    assert shuffle_order(3, 3, np.arange(8), np.zeros(8, int)).tolist() == [1, 5, 4, 7, 6, 0, 2, 3]
    draws = uniform(0, 2, np.arange(20_000), np.zeros(20_000, int))
    assert abs(draws.mean() - 0.5) < 0.01 and np.abs(np.histogram(draws, 10, (0, 1))[0] - 2000).max() < 200
    order = shuffle_order(0, 3, np.arange(1000), np.zeros(1000, int))
    assert sorted(order.tolist()) == list(range(1000)) and abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def joined(count: int = 2000) -> SimpleNamespace:
    """Two joined sources of unequal numbers and lengths; the first had two sources before."""
    corpus = made_up(count)
    corpus.sources = ["one:x", "one:y", "two"]
    corpus.consent_classes = {"one": "public", "two": "own", "three": "own"}
    corpus.num_tokens = np.where(corpus.source == 2, corpus.num_tokens + 100, corpus.num_tokens)
    corpus.num_media = {name: np.zeros(count, np.int64) for name in MODALITIES}
    return corpus


@pytest.mark.parametrize(
    ("weights", "sources", "visits"),
    [({}, {"one": 3}, (3, 3, 1)), ({}, {"two": 0.25}, (1, 1, 0.25)), ({}, {"one": 2, "two": 0, "three": 7}, (2, 2, 0)),
     ({"source:one": 2}, {"one": 3}, (6, 6, 1)), ({"source:one": 2, "source:one:y": 0}, {"two": 0.5}, (2, 0, 0.5)),
     ({"source:*": 2}, {"one": 0.5}, (1, 1, 2)), ({"kind:a": 3, "kind:b": 3, "kind:c": 3}, {"one": 2}, (6, 6, 3))],
)  # fmt: skip
def test_weights_of_joined_sources_are_exact_shares_of_tokens(weights, sources, visits):
    """A source's weight multiplies what the mixture gives; "source:NAME" stands for NAME:former too."""
    corpus = joined()
    plan = PackingPlan.build(corpus, seq_len=2048, mixture=Mixture(weights, sources), epochs=4)
    tokens = np.bincount(corpus.source[plan.document], plan.stop - plan.start, minlength=3)
    expected = np.bincount(corpus.source, corpus.num_tokens, minlength=3) * visits
    assert tokens / tokens.sum() == pytest.approx(expected / expected.sum(), abs=2e-3)
    assert (plan.sample_counts()[corpus.source == 0] == 4 * visits[0]).all()
    assert plan.info["mixture"].keys() == {*weights, *(f"corpus:{name}" for name in sources)}


def test_a_schedule_of_a_joined_source_moves_all_of_its_documents():
    corpus = joined(6000)
    mixture = Mixture({"source:one": [(0.0, 0.0), (1.0, 2.0)]}, {"one": 2.0, "two": 1.0})
    plan = PackingPlan.build(corpus, seq_len=2048, mixture=mixture, num_sequences=1500)
    one = corpus.source < 2
    for first in np.arange(0, 1, 0.125):
        weight = 4.0 * (first + 0.0625) * one.sum()
        found = share_of(corpus, plan, one, first, first + 0.125)
        assert found == pytest.approx(weight / (weight + (~one).sum()), abs=0.03)
    assert not mixture.constant and Mixture({}, {"one": 2}).constant
    assert mixture.for_kinds(["a"]) == mixture and Mixture({}, {"one": 1.0}) == Mixture()


def test_a_weight_of_a_source_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"corpus:one.*must lie in"):
        Mixture({}, {"one": -1})
    # without joined sources a name is a pattern like any other
    with pytest.raises(ValueError, match="no source matches 'wikitext'"):
        plan_of(made_up(), {"source:wikitext": 2}, epochs=1)
