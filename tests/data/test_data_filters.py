"""The stack of rounds: judged in order, undone, killed, refused; and any score as a threshold."""

import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from media_files import line, manifest

from data.filters.duplicates import ExactDuplicates
from data.filters.pool import RoundError, Verdict
from data.filters.quality import TextBounds, TextQuality
from data.filters.rounds import Rounds
from data.filters.scores import Threshold, scatter
from data.plan import Plan
from data.store import EncodedCorpus, build_corpus
from salt.select import Scores


@dataclass(frozen=True)
class Every:
    """Drops the documents whose number divides, with their number as a score."""

    step: int = 3
    name: ClassVar[str] = "every"

    def judge(self, pool):
        judged = pool.of(splits=("train",))
        score = np.full(pool.corpus.num_documents, -1, np.int64)
        score[judged] = judged % self.step
        reasons = {number: f"{number} is a multiple of {self.step}" for number in judged.tolist() if not score[number]}
        return Verdict(judged, reasons, {"remainder": score})


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer):
    """30 texts of two kinds; 25 to 29 are held out."""
    folder = tmp_path_factory.mktemp("numbers")
    lines = [
        line(f"n{n}", f"text number {n} " * (1 + n % 7), kind="ab"[n % 2], split="train" if n < 25 else "test")
        for n in range(30)
    ]
    return build_corpus(manifest(folder / "m", lines), folder / "c", tokenizer=tokenizer, num_workers=1)


@pytest.fixture()
def numbers(built, tmp_path):
    """A copy to add rounds to."""
    return EncodedCorpus.open(shutil.copytree(built.folder, tmp_path / "c"))


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rounds_judge_what_is_kept_and_say_why(numbers):
    rounds = Rounds.open(numbers)
    assert rounds.kept().all() and len(rounds) == 0
    first = rounds.add(Every(3))
    assert (first["judged"], first["dropped"], first["kept"]) == (25, 9, 21)
    second = rounds.add(Every(2))
    gone = [n for n in range(25) if n % 3 == 0 or n % 2 == 0]
    assert np.flatnonzero(~rounds.kept()).tolist() == gone
    # only what the first round had kept was judged: 16 of 25
    assert second["judged"] == 16 and second["dropped"] == len(gone) - 9
    assert second["tokens_dropped"] == numbers.num_tokens[[n for n in gone if n % 3]].sum()
    assert second["tokens_kept"] == numbers.num_tokens[rounds.kept()].sum()
    assert second["dropped_by_kind"] == {"a": second["dropped"]}
    column = rounds.column("remainder")
    assert column[1] == 1 and column[4] == 0 and column[3] == -1 and column[27] == -1
    assert rounds.dropped(2)[0] == {"document": 2, "id": "n2", "kind": "a", "reason": "2 is a multiple of 2"}
    again = Rounds.open(EncodedCorpus.open(numbers.folder))
    assert np.array_equal(again.kept(), rounds.kept()) and again.digest == rounds.digest
    table = rounds.report().splitlines()
    assert len(table) == 4 and len({len(row) for row in table}) == 1
    assert table[-1].split()[:5] == ["02", "every", "16", "8", "13"]


def test_plan_takes_what_is_kept(numbers):
    rounds = Rounds.open(numbers)
    rounds.add(Every(3))
    plan = Plan.build(numbers, row_tokens=64, documents=rounds.kept())
    assert set(plan.document.tolist()) == {n for n in range(25) if n % 3}


def test_undo_restores_to_the_byte(numbers):
    rounds = Rounds.open(numbers)
    rounds.add(Every(3))
    before, kept, digest = files_of(rounds.folder), rounds.kept(), rounds.digest
    added = rounds.add(Every(2))
    after = files_of(rounds.folder)
    assert rounds.undo() == added and rounds.digest == digest
    assert files_of(rounds.folder) == before and np.array_equal(rounds.kept(), kept)
    rounds.add(Every(2))
    assert files_of(rounds.folder) == after
    rounds.undo()
    rounds.undo()
    assert rounds.kept().all() and Rounds.open(numbers).kept().all()
    with pytest.raises(RoundError, match="no round to undo"):
        rounds.undo()


def test_killed_round_leaves_the_previous_state(numbers, monkeypatch):
    rounds = Rounds.open(numbers)
    rounds.add(Every(3))
    kept, digest = rounds.kept(), rounds.digest

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.filters.rounds.os.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            rounds.add(Every(2))
    assert any(path.name.endswith(".partial") for path in rounds.folder.iterdir())
    for state in (rounds, Rounds.open(numbers)):
        assert np.array_equal(state.kept(), kept) and state.digest == digest and len(state) == 1
    whole = rounds.add(Every(2))
    assert whole["number"] == 2 and sorted(path.name for path in rounds.folder.iterdir()) == ["01_every", "02_every"]


def test_undoing_that_is_killed_is_done(numbers, monkeypatch):
    rounds = Rounds.open(numbers)
    rounds.add(Every(3))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.filters.rounds.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            rounds.undo()
    again = Rounds.open(numbers)
    assert len(again) == 0
    again.add(Every(2))
    assert [path.name for path in again.folder.iterdir()] == ["01_every"]


def test_what_cannot_be_is_refused(numbers, tmp_path, tokenizer):
    rounds = Rounds.open(numbers)
    rounds.add(Every(3))
    with pytest.raises(RoundError, match="round 01 has applied every with this configuration already"):
        rounds.add(Every(3))
    with pytest.raises(RoundError, match="there are remainder"):
        rounds.column("loss")
    # a second process that opened the stack before the first added to it
    late = Rounds.open(numbers)
    rounds.add(Every(2))
    with pytest.raises(RoundError, match="changed meanwhile"):
        late.add(Every(5))
    other = build_corpus(
        manifest(tmp_path / "o", [line("x", "words " * 9)]), tmp_path / "oc", tokenizer=tokenizer, num_workers=1
    )
    rounds.folder.rename(other.folder / "rounds")
    with pytest.raises(RoundError, match="another corpus"):
        Rounds.open(other)


@pytest.mark.parametrize("damage", ["edited", "cut", "missing", "gone"])
def test_damaged_rounds_are_not_applied(numbers, damage):
    rounds = Rounds.open(numbers)
    rounds.add(Every(3))
    rounds.add(Every(2))
    folder = rounds.folder / "01_every"
    if damage == "edited":
        keep = np.load(folder / "keep.npy")
        keep[5] = ~keep[5]
        np.save(folder / "keep.npy", keep)
    elif damage == "cut":
        (folder / "keep.npy").write_bytes((folder / "keep.npy").read_bytes()[:-3])
    elif damage == "missing":
        (folder / "round.json").unlink()
    else:
        folder.rename(rounds.folder.parent / "elsewhere")
    with pytest.raises(RoundError, match=r"01_every|02_every"):
        Rounds.open(numbers).kept()


@pytest.mark.parametrize("rule", [Every(), ExactDuplicates(), TextQuality(prose=TextBounds(characters=(40, 90)))])
def test_twice_gives_the_same_bytes(numbers, tmp_path, rule):
    Rounds.open(numbers).add(rule)
    first = files_of(numbers.folder / "rounds")
    Rounds.open(numbers).undo()
    Rounds.open(numbers).add(rule)
    assert files_of(numbers.folder / "rounds") == first


def test_bounds_and_shares_of_a_score(numbers):
    score = np.arange(30.0)
    score[[4, 6]] = np.nan
    rounds = Rounds.open(numbers)
    rounds.add(Threshold("loss", values=score, low=3, high=20))
    # held-out documents, and those without a score, are left alone
    assert np.flatnonzero(rounds.kept()).tolist() == [*range(3, 21), *range(25, 30)]
    assert rounds.dropped(1)[0]["reason"] == "loss of 0 is below 3"
    record = rounds.add(Threshold("loss", keep_share=0.25, end="lowest", per_kind=True))
    assert record["judged"] == 16 and record["name"] == "threshold_loss"
    kept = rounds.kept()[:25]
    assert np.flatnonzero(kept).tolist() == [3, 4, 5, 6, 7, 8, 10]
    assert "not among the lowest 25.0% of documents of kind 'a' (which end at 10)" in rounds.dropped(2)[-1]["reason"]
    with pytest.raises(RoundError, match="scatter"):
        rounds.add(Threshold("short", values=score[:7], low=1))


def test_threshold_keeps_what_salt_selection_keeps(numbers):
    """With ties, with documents that have nothing learnable, and with documents that were not scored."""
    generator = np.random.default_rng(4)
    document = np.sort(generator.choice(25, 20, replace=False))
    score = generator.integers(0, 6, 20).astype(np.float64)
    score[:3] = -np.inf
    scores = Scores(document, score, np.full(20, 9), np.full(20, 9))
    rounds = Rounds.open(numbers)
    for keep in (0.2, 0.5, 1.0):
        chosen = scores.choose(keep=keep, num_tokens=numbers.num_tokens[document], kind=numbers.kind[document])
        values = scatter(numbers.num_documents, scores.document, scores.score)
        rounds.add(Threshold("salt", values=values, keep_share=keep, by_tokens=True, per_kind=True))
        kept = rounds.kept()
        assert np.array_equal(kept[document], chosen) and kept.sum() == 10 + chosen.sum()
        assert np.array_equal(rounds.column("salt")[document], score.astype(np.float32))
        rounds.undo()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "either bounds"),
        ({"low": 1, "keep_share": 0.5}, "either bounds"),
        ({"low": 2, "high": 1}, "nothing would be kept"),
        ({"keep_share": 0}, r"\(0, 1\]"),
        ({"keep_share": 1, "end": "middle"}, "highest"),
        ({"low": 1, "splits": ("dev",)}, "train, validation, test"),
    ],
)
def test_threshold_tells_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        Threshold("x", **fields)


def test_records_are_plain_json(numbers):
    rounds = Rounds.open(numbers)
    rounds.add(TextQuality())
    record = json.loads((rounds.folder / "01_text_quality" / "round.json").read_text())
    assert record["config"]["prose"]["alnum_share"] == [0.6, None] and record["corpus"] == numbers.fingerprint
    assert set(record["columns"]) == {path.stem for path in (rounds.folder / "01_text_quality/columns").iterdir()}
