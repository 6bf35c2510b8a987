"""A round's sources: the cap on pseudo targets in tokens, the arm without new data, and what is written."""

import json
import random

import pytest

from brine.data.corpus.readers import read_manifest
from brine.data.document import Document, Text
from brine.data.tokenizer import train_tokenizer
from brine.salt.content import ContentHasher
from brine.salt.pseudo_pool import PseudoEntry, read_pool, write_pool
from brine.salt.round_data import DataPool, count_targets, round_sources


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the words of a model that knows nothing\n"] * 3, 280)


@pytest.fixture
def pools(tmp_path):
    """A base of 100 documents of 20 tokens each, and two pools of 60 entries."""
    lines = [
        {"id": f"b{n}", "split": "test" if n % 10 == 0 else "train", "content": [
            {"type": "text", "text": "asked ", "loss_mask": False}, {"type": "text", "text": f"{n:019d}"}]}
        for n in range(100)
    ]  # fmt: skip
    (tmp_path / "base.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = random.Random(0)
    for number, name in enumerate(("pseudo", "self-play")):
        write_pool(
            tmp_path / name,
            [
                PseudoEntry(
                    Document(f"{name}-{n}", (Text("?", loss_mask=False), Text(f"{name} {n}"))),
                    f"{number}{n:063x}", rng.randrange(5, 40), -0.1, "a" * 64, n % 3,
                )
                for n in range(60)
            ],
        )  # fmt: skip
    return (
        DataPool("base", tmp_path / "base.jsonl", "own"),
        DataPool("pseudo", tmp_path / "pseudo", "pseudo"),
        DataPool("self-play", tmp_path / "self-play", "pseudo"),
    )


def chosen_of(source) -> list[PseudoEntry]:
    return read_pool(source.path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.4])
def test_cap_is_enforced_in_tokens(pools, tokenizer, tmp_path, share):
    base = count_targets(pools[0].path, tokenizer)
    assert base == 90 * (len(tokenizer.encode("0" * 19)) + 1)
    sources = round_sources(pools, tmp_path / "round", pseudo_share=share, tokenizer=tokenizer)
    assert [source.name for source in sources] == ["base", "pseudo", "self-play"][: len(sources)]
    pseudo = sum(one.num_targets for source in sources[1:] for one in chosen_of(source))
    assert pseudo == sum(source.num_targets for source in sources[1:]) and 0 < pseudo <= share * (base + pseudo)
    record = json.loads((tmp_path / "round/round_data.json").read_text())
    assert record["share"] <= share and record["pseudo_targets"] == pseudo and record["real_targets"] == base
    # each manifest can be read, and both pools keep their part
    for source in sources[1:]:
        assert len([*read_manifest(source.path)]) == len(chosen_of(source))
    if share == 0.4:
        sizes = [source.num_targets for source in sources[1:]]
        assert min(sizes) > 0.25 * sum(sizes)
    again = round_sources(pools[::-1], tmp_path / "again", pseudo_share=share, tokenizer=tokenizer)
    assert {s.name: chosen_of(s) for s in again[:-1]} == {s.name: chosen_of(s) for s in sources[1:]}


def test_weights_count(pools, tokenizer, tmp_path):
    heavy = (pools[0], DataPool("pseudo", pools[1].path, "pseudo", weight=3.0))
    sources = round_sources(heavy, tmp_path / "round", pseudo_share=0.3, tokenizer=tokenizer)
    base = sources[0].num_targets
    assert 0 < 3 * sources[1].num_targets <= 0.3 * (base + 3 * sources[1].num_targets)


def test_what_a_mixture_samples_more_often_counts_more(pools, tokenizer, tmp_path):
    """The weight of the source stays what it is."""
    often = (pools[0], DataPool("pseudo", pools[1].path, "pseudo", weight=1.5, sampling=2.0))
    sources = round_sources(often, tmp_path / "round", pseudo_share=0.3, tokenizer=tokenizer)
    heavy = (pools[0], DataPool("pseudo", pools[1].path, "pseudo", weight=3.0))
    same = round_sources(heavy, tmp_path / "same", pseudo_share=0.3, tokenizer=tokenizer)
    assert sources[1].num_targets == same[1].num_targets and sources[1].weight == 1.5
    never = (pools[0], DataPool("pseudo", pools[1].path, "pseudo", sampling=0.0))
    found = round_sources(never, tmp_path / "never", pseudo_share=0.0, tokenizer=tokenizer)
    assert len(chosen_of(found[1])) == 60


def test_share_of_nothing_and_a_known_size(pools, tokenizer, tmp_path):
    known = (DataPool("base", pools[0].path, "own", num_targets=10**9), *pools[1:])
    sources = round_sources(known, tmp_path / "all", pseudo_share=0.4, tokenizer=tokenizer)
    assert [len(chosen_of(source)) for source in sources[1:]] == [60, 60]
    sources = round_sources(known, tmp_path / "none", pseudo_share=0.0, tokenizer=tokenizer)
    assert [source.name for source in sources] == ["base"] and sources[0].consent == "own"


def test_the_arm_that_leaves_new_data_out(pools, tokenizer, tmp_path):
    known = (DataPool("base", pools[0].path, "own", num_targets=10**9), *pools[1:])
    sources = round_sources(known, tmp_path / "before", pseudo_share=0.4, tokenizer=tokenizer, before_round=2)
    assert {one.round for source in sources[1:] for one in chosen_of(source)} == {0, 1}
    sources = round_sources(known, tmp_path / "first", pseudo_share=0.4, tokenizer=tokenizer, before_round=0)
    assert [source.name for source in sources] == ["base"]


def test_held_out_content_never_enters(pools, tokenizer, tmp_path):
    known = (DataPool("base", pools[0].path, "own", num_targets=10**9), pools[1])
    entries = read_pool(pools[1].path)
    held_out = {ContentHasher(pools[1].path).content(one.document) for one in entries[:7]}
    sources = round_sources(known, tmp_path / "out", pseudo_share=0.4, tokenizer=tokenizer, held_out=held_out)
    assert {one.key for one in chosen_of(sources[1])} == {one.key for one in entries[7:]}


def test_wrong_pools(pools, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="two pools are called base"):
        round_sources((pools[0], pools[0]), tmp_path, pseudo_share=0.1, tokenizer=tokenizer)
    for settings in ({"name": "../x"}, {"name": ""}, {"weight": 0.0}, {"weight": float("nan")}, {"sampling": -1.0}):
        with pytest.raises(ValueError, match="pool"):
            DataPool(**{"name": "base", "path": tmp_path} | settings)
