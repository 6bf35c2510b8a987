"""The row plan: budgets, segments, purity, weights, blanking, files."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from media_files import targets

from data.document import MODALITIES
from data.plan import Plan
from data.sequence import Sequence
from data.tokenizer import CLOSE_ID, OPEN_ID, SLOT_ID

BUDGET = {"image": 96, "audio": 96, "video": 160}


def synthetic(count: int, *, seed: int = 0, longest: int = 100):
    """A corpus of numbers only: text, then one medium, then text."""
    generator = np.random.default_rng(seed)
    which = generator.integers(0, 4, count)
    sizes = generator.integers(1, longest // 2, count)
    num_media = {name: np.where(which == place, sizes, 0) for place, name in enumerate(MODALITIES)}
    num_tokens = sum(num_media.values()) + generator.integers(8, longest // 2, count)
    return SimpleNamespace(
        num_documents=count,
        kinds=["a", "b", "c"],
        kind=generator.integers(0, 3, count).astype(np.int16),
        level=generator.integers(1, 4, count),
        split=(np.arange(count) % 10 == 9).astype(np.int8),
        num_tokens=num_tokens,
        num_media=num_media,
        fingerprint="synthetic",
    )


@pytest.mark.parametrize("num_rows", [7, 60, 700])
def test_rows_keep_every_budget(num_rows):
    corpus = synthetic(1500)
    budget = {"image": 60, "audio": 60, "video": 60}
    plan = Plan.build(corpus, row_tokens=256, media_budget=budget, num_rows=num_rows, seed=3)
    assert len(plan) == num_rows
    for number in range(len(plan)):
        entries = plan.row(number)
        documents = [entry[0] for entry in entries]
        assert len(set(documents)) == len(documents) > 0
        assert sum(stop - start for _, start, stop, _ in entries) <= 256
        for name in MODALITIES:
            assert sum(corpus.num_media[name][document] for document in documents) <= 60
        assert all(corpus.split[document] == 0 for document in documents)
    with pytest.raises(IndexError):
        plan.row(num_rows)


def test_rows_are_well_filled_and_fair():
    corpus = synthetic(4000)
    plan = Plan.build(corpus, row_tokens=512, epochs=1)
    assert plan.fill > 0.99
    visited = Counter(plan.document.tolist())
    assert visited == Counter(np.flatnonzero(corpus.split == 0).tolist())
    # a plan of few rows must not favour what packs first
    short = Plan.build(corpus, row_tokens=512, num_rows=60)
    assert short.fill > 0.95
    length = (short.stop - short.start).mean()
    assert abs(length - corpus.num_tokens.mean()) < 0.1 * corpus.num_tokens.mean()


def test_plan_is_a_function_of_its_arguments():
    corpus = synthetic(500)
    plans = [Plan.build(corpus, row_tokens=200, num_rows=120, seed=seed) for seed in (1, 1, 2)]
    assert all(plans[0].row(n) == plans[1].row(n) for n in range(120))
    assert any(plans[0].row(n) != plans[2].row(n) for n in range(120))
    first, second = np.split(plans[0].document, [len(plans[0].document) // 2])
    assert first[:50].tolist() != second[:50].tolist()


def test_epochs_are_shuffled_anew_and_complete():
    corpus = synthetic(300)
    plan = Plan.build(corpus, row_tokens=200, epochs=3, seed=5)
    assert set(Counter(plan.document.tolist()).values()) == {3} and plan.info["epochs_begun"] == 3


def test_save_load(tmp_path):
    plan = Plan.build(synthetic(200), row_tokens=200, media_budget=BUDGET, num_rows=20, seed=1)
    plan.save(tmp_path / "plan.npz")
    again = Plan.load(tmp_path / "plan.npz")
    assert [again.row(n) for n in range(20)] == [plan.row(n) for n in range(20)]
    assert (again.row_tokens, again.media_budget, again.info) == (plan.row_tokens, plan.media_budget, plan.info)
    (tmp_path / "plan.npz").write_bytes((tmp_path / "plan.npz").read_bytes()[:100])
    for name in ("plan.npz", "none.npz"):
        with pytest.raises(ValueError, match="not a row plan"):
            Plan.load(tmp_path / name)
    np.savez(tmp_path / "object.npz", document=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="not a row plan"):
        Plan.load(tmp_path / "object.npz")


def test_part_of_a_plan():
    plan = Plan.build(synthetic(200), row_tokens=200, num_rows=20)
    part = plan.rows(5, 9)
    assert len(part) == 4 and [part.row(n) for n in range(4)] == [plan.row(n) for n in range(5, 9)]


def test_filters():
    corpus = synthetic(400)
    plan = Plan.build(corpus, row_tokens=200, epochs=1, kinds=["a", "c"], levels=[2])
    assert set(corpus.kind[plan.document].tolist()) == {0, 2} and set(corpus.level[plan.document].tolist()) == {2}
    chosen = np.flatnonzero(corpus.split == 0)[::7]
    mask = np.zeros(400, dtype=bool)
    mask[chosen] = True
    for documents in (chosen, chosen.tolist(), mask):
        plan = Plan.build(corpus, row_tokens=200, epochs=1, documents=documents)
        assert sorted(plan.document.tolist()) == chosen.tolist()
    held_out = Plan.build(corpus, split="validation", row_tokens=200)
    assert set(corpus.split[held_out.document].tolist()) == {1} and not held_out.blank.any()
    for options, words in (
        ({"kinds": ["z"]}, "unknown kind 'z'; the corpus has a, b, c"),
        ({"split": "dev"}, "unknown split"),
        ({"levels": [9]}, "no document to plan"),
        ({"num_rows": 3, "epochs": 1}, "not both"),
        ({"media_budget": {"smell": 3}}, "unknown modality 'smell'"),
        ({"kind_weights": {"z": 1}}, "is no kind"),
        ({"documents": np.zeros(3, dtype=bool)}, "mask needs 400 entries"),
        ({"row_tokens": 1}, "at least 2"),
        ({"kind_weights": {"a": -1}}, "must lie in"),
        ({"split": "test"}, "no document to plan"),
    ):
        with pytest.raises(ValueError, match=words):
            Plan.build(corpus, **{"row_tokens": 200, **options})


def test_kind_weights():
    corpus = synthetic(2000)
    weights = {"a": 2, "b": 0.25, ("c", 1): 0, "c/2": 3}
    plan = Plan.build(corpus, row_tokens=300, epochs=1, kind_weights=weights)
    visits = np.bincount(plan.document, minlength=2000)
    train = corpus.split == 0
    assert (visits[train & (corpus.kind == 0)] == 2).all()
    assert set(visits[train & (corpus.kind == 1)].tolist()) == {0, 1}
    assert 0.18 < visits[train & (corpus.kind == 1)].mean() < 0.32
    for level, times in ((1, 0), (2, 3), (3, 1)):
        assert (visits[train & (corpus.kind == 2) & (corpus.level == level)] == times).all()
    assert not visits[~train].any()


def test_blanking_is_a_tenth_and_independent_of_packing():
    corpus = synthetic(3000)
    plan = Plan.build(corpus, row_tokens=300, epochs=2, seed=1)
    media = sum(corpus.num_media.values())[plan.document] > 0
    assert not plan.blank[~media].any() and 0.08 < plan.blank[media].mean() < 0.12
    other = Plan.build(corpus, row_tokens=900, epochs=2, seed=1)

    def count(plan):
        return Counter(zip(plan.document.tolist(), plan.blank.tolist(), strict=True))

    assert count(plan) == count(other)
    assert plan.with_blank(True).blank.all() and not plan.with_blank(False).blank.any()
    assert not Plan.build(corpus, row_tokens=300, blank_fraction=0.0).blank.any()


def test_long_documents_are_spread_and_every_target_is_predicted_once(corpus):
    row = 160
    plan = Plan.build(corpus, row_tokens=row, media_budget=BUDGET, epochs=1)
    entries = [entry for number in range(len(plan)) for entry in plan.row(number)]
    pieces = Counter(entry[0] for entry in entries)
    assert max(pieces.values()) > 2
    left_out = {int(number) for number in plan.info["left_out_reasons"]}
    train = np.flatnonzero(corpus.split == 0).tolist()
    assert set(pieces) == set(train) - left_out
    assert targets(corpus, entries) == Counter(
        (document, token)
        for document in pieces
        for token in np.flatnonzero(corpus.tokens(document).learn).tolist()
        if token
    )
    for document, start, stop, _ in entries:
        part = corpus.sequence(document).slice(start, stop).validate()
        assert len(part) <= row
        for name in MODALITIES:
            assert len(getattr(part, name)) <= BUDGET[name]
            assert (part.token_ids == OPEN_ID[name]).sum() == (part.token_ids == CLOSE_ID[name]).sum()
    for document in left_out:
        assert "cannot be cut" in plan.info["left_out_reasons"][str(document)]
        assert (
            max(corpus.num_media[name][document] - BUDGET[name] for name in MODALITIES) > 0
            or corpus.num_tokens[document] > row
        )


def test_medium_larger_than_a_row_is_left_out_with_the_reason():
    ids = np.array([20, OPEN_ID["image"], *[SLOT_ID["image"]] * 50, CLOSE_ID["image"], *range(20, 60)], np.int32)
    learn = ids >= 20
    zeros = np.zeros(len(ids), np.int32)
    sequence = Sequence(
        ids,
        np.zeros((len(ids), 3), np.float32),
        zeros,
        learn,
        zeros.astype(np.uint8),
        np.zeros((50, 768), np.uint8),
        np.zeros((0, 256), np.float16),
        np.zeros((0, 1536), np.uint8),
    )
    fake = SimpleNamespace(
        num_documents=2,
        kinds=["a"],
        kind=np.zeros(2, np.int16),
        level=np.zeros(2, int),
        split=np.zeros(2, np.int8),
        num_tokens=np.array([len(ids), 8]),
        fingerprint="f",
        tokens=lambda number: sequence,
        num_media={"image": np.array([50, 0]), "audio": np.zeros(2, int), "video": np.zeros(2, int)},
    )
    plan = Plan.build(fake, row_tokens=40, epochs=1)
    assert plan.info["left_out"] == 1 and "exceed a row of 40 tokens" in plan.info["left_out_reasons"]["0"]
    budget = Plan.build(fake, row_tokens=200, media_budget={"image": 49}, epochs=1)
    assert "'image': 50" in budget.info["left_out_reasons"]["0"]
    # 53 places of picture with its two boundary tokens, and the target after it
    fits = Plan.build(fake, row_tokens=54, epochs=1)
    assert fits.info["left_out"] == 0
    stretches = sorted(entry[1:3] for number in range(len(fits)) for entry in fits.row(number) if entry[0] == 0)
    assert stretches[0][0] == 0 and stretches[-1][1] == len(ids)
    assert all(after[0] in (before[1], before[1] - 1) for before, after in pairwise(stretches))
