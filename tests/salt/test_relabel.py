"""Pools of pseudo-labels over rounds: thresholds, no doubles, replacement by surer answers, held-out content, caps."""

import dataclasses
import json
import random

import pytest

from brine.common.files import file_digest
from brine.data.corpus.readers import read_manifest
from brine.data.document import Document, Text, media_paths
from brine.inference.load import WEIGHTS
from brine.salt.audit import AuditConfig, AuditResult, KindAudit
from brine.salt.content import ContentHasher
from brine.salt.pseudo_label import PseudoLabelConfig
from brine.salt.pseudo_pool import (
    PseudoEntry,
    accumulate,
    choose_within,
    max_pseudo_targets,
    read_pool,
    write_pool,
)
from brine.salt.relabel import relabel
from tests.salt.test_pseudo_label import loaded, manifest, one_thread  # noqa: F401

CONFIG = PseudoLabelConfig(max_tokens=8)


def audited(loaded, least: float | None, *, kind="photo") -> AuditResult:  # noqa: F811
    found = KindAudit(kind, 100, {}, 0.9, 0.9, least, "" if least is not None else "below the aim")
    return AuditResult(AuditConfig(), file_digest(loaded.folder / WEIGHTS), {kind: found})


def entry(n: int, *, confidence=-0.1, targets=5, number=0, key="", split="train") -> PseudoEntry:
    document = Document(f"d{n}-pseudo", (Text("?", loss_mask=False), Text(f"words {n}")), "photo-pseudo", split=split)
    return PseudoEntry(document, key or f"{n:064x}", targets, confidence, "a" * 64, number)


def test_relabelled_documents_are_a_manifest_with_its_media(loaded, manifest, tmp_path):  # noqa: F811
    found = relabel(loaded, manifest, tmp_path / "one", audit=audited(loaded, -0.85), round_number=1, config=CONFIG)
    entries = read_pool(tmp_path / "one")
    assert 0 < len(entries) == found["entries"] == found["counts"]["kept"] < 24
    documents = list(read_manifest(tmp_path / "one/pool.jsonl"))
    assert documents == [one.document for one in entries] and all(isinstance(one, Document) for one in documents)
    for one, line in zip(entries, (tmp_path / "one/pool.jsonl").read_text().splitlines(), strict=True):
        assert one.confidence >= -0.85 and one.round == 1 and one.origin == file_digest(loaded.folder / WEIGHTS)
        assert one.document.kind == "photo-pseudo" and one.document.split == "train"
        assert json.loads(line)["consent"] == "pseudo"
        number = int(one.document.id.removeprefix("p").removesuffix("-pseudo"))
        (path,) = media_paths(one.document)
        assert (tmp_path / "one" / path).read_bytes() == (manifest.parent / f"media/{number}.png").read_bytes()
    predictions = [json.loads(line) for line in (tmp_path / "one/predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == found["counts"]["prompted"] == 24
    again = relabel(loaded, manifest, tmp_path / "two", audit=audited(loaded, -0.85), round_number=1, config=CONFIG)
    assert again == found
    for name in ("pool.jsonl", "predictions.jsonl", "relabel.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_later_round_adds_and_never_doubles(loaded, manifest, tmp_path):  # noqa: F811
    options = {"config": CONFIG, "audit": audited(loaded, -0.7)}
    relabel(loaded, manifest, tmp_path / "one", round_number=1, **options)
    first = {one.key: one for one in read_pool(tmp_path / "one")}
    options["audit"] = audited(loaded, -0.85)
    found = relabel(loaded, manifest, tmp_path / "two", round_number=2, earlier=tmp_path / "one", **options)
    second = {one.key: one for one in read_pool(tmp_path / "two")}
    assert 0 < len(first) < len(second) == found["entries"]
    # the same answers again are not surer: they stay those of the first round
    assert all(second[key].round == 1 for key in first) and {one.round for one in second.values()} == {1, 2}
    assert all((tmp_path / "two" / path).is_file() for one in second.values() for path in media_paths(one.document))
    # a kind that is refused later keeps what it had
    options["audit"] = audited(loaded, None)
    found = relabel(loaded, manifest, tmp_path / "three", round_number=3, earlier=tmp_path / "two", **options)
    assert found["refused"] == {"photo": "below the aim"} and found["counts"]["kept"] == 0
    assert {one.key: one for one in read_pool(tmp_path / "three")} == second


def test_nothing_that_a_held_out_case_shares_is_labelled(loaded, manifest, tmp_path):  # noqa: F811
    """By the prompt's content, whatever its path and id; also of what an earlier round had."""
    options = {"config": CONFIG, "audit": audited(loaded, -0.85), "round_number": 1}
    relabel(loaded, manifest, tmp_path / "one", **options)
    before = read_pool(tmp_path / "one")
    hasher = ContentHasher(tmp_path / "one")
    picture = hasher.media_digest(media_paths(before[0].document)[0])
    found = relabel(loaded, manifest, tmp_path / "two", held_out={picture}, **options)
    assert found["counts"]["shares_held_out"] == 1
    assert {one.key for one in read_pool(tmp_path / "two")} == {one.key for one in before[1:]}
    found = relabel(loaded, manifest, tmp_path / "three", held_out={before[0].key}, earlier=tmp_path / "one", **options)
    assert found["counts"]["earlier_shares_held_out"] == 1
    assert {one.key for one in read_pool(tmp_path / "three")} == {one.key for one in before[1:]}


def test_an_audit_of_other_weights_is_refused(loaded, manifest, tmp_path):  # noqa: F811
    other = dataclasses.replace(audited(loaded, -0.5), origin="b" * 64)
    with pytest.raises(ValueError, match="the audit is of the weights bbbbbbbbbbbb"):
        relabel(loaded, manifest, tmp_path / "out", audit=other, round_number=1)
    assert not (tmp_path / "out").exists()


def test_accumulation_keeps_the_surer_label():
    earlier = [entry(1, confidence=-0.3), entry(2, confidence=-0.1)]
    new = [
        entry(1, confidence=-0.2, number=1), entry(2, confidence=-0.1, number=1), entry(3, number=1),
        entry(3, confidence=-0.5, number=1),
    ]  # fmt: skip
    found = accumulate(earlier, new)
    assert [(one.key[-1], one.confidence, one.round) for one in found] == [
        ("1", -0.2, 1), ("2", -0.1, 0), ("3", -0.1, 1)
    ]  # fmt: skip
    assert accumulate(found, new) == found and accumulate([], found) == found


def test_held_out_documents_cannot_be_entries():
    with pytest.raises(ValueError, match="of the split test"):
        entry(1, split="test")
    with pytest.raises(ValueError, match="at most 0"):
        entry(1, confidence=float("nan"))


def test_pools_are_read_as_written_and_broken_ones_are_named(tmp_path):
    # two documents may have the same id in two manifests
    entries = [entry(1), dataclasses.replace(entry(2), document=entry(1).document), entry(3, confidence=0.0)]
    write_pool(tmp_path, entries)
    found = read_pool(tmp_path)
    assert [one.key for one in found] == [one.key for one in entries] and len({one.document.id for one in found}) == 3
    lines = (tmp_path / "pool.jsonl").read_text().splitlines()
    for broken in ("{}", "no JSON", lines[0].replace('"consent": "pseudo"', '"consent": "own"'),
                   lines[0].replace('"round": 0', '"round": true'), lines[0].replace("train", "test")):  # fmt: skip
        (tmp_path / "broken.jsonl").write_text(f"{lines[1]}\n{broken}\n")
        with pytest.raises(ValueError, match=r"broken.jsonl, line 2, is not an entry of a pool"):
            read_pool(tmp_path / "broken.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        read_pool(tmp_path / "none.jsonl")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("real", [0, 1, 7, 1000, 123457])
def test_cap_in_tokens(share, real):
    limit = max_pseudo_targets(real, share)
    assert limit <= share * (limit + real) + 1e-9, "the cap holds"
    assert limit + 1 > share * (limit + 1 + real) - 1e-9, "and no tighter than it must"


def test_choice_is_a_hash_of_content_and_grows_with_the_cap():
    rng = random.Random(0)
    entries = [entry(n, targets=rng.randrange(1, 30)) for n in range(200)]
    shuffled = random.Random(1).sample(entries, 200)
    for most in (0, 10, 100, 1000, 10**6):
        chosen = choose_within(entries, most)
        assert chosen == choose_within(shuffled, most)
        assert sum(one.num_targets for one in chosen) <= most
        if most < 10**6:
            left = {one.key: one for one in entries} | {one.key: None for one in chosen}
            rest = most - sum(one.num_targets for one in chosen)
            assert all(one.num_targets > rest for one in left.values() if one), "each that fits is taken"
    assert len(choose_within(entries, 10**6)) == 200
    small, large = ({one.key for one in choose_within(entries, most)} for most in (300, 3000))
    assert len(small & large) >= 0.8 * len(small)
    assert sum(one.num_targets for one in choose_within(entries, 100, weight=2.0)) <= 50
    with pytest.raises(ValueError, match="pseudo_share"):
        max_pseudo_targets(10, 1.0)
