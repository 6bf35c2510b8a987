"""The stack of rounds: judged in order, undone, killed, refused; and any score as a threshold."""

import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.filters.duplicates import ExactDuplicates
from brine.data.filters.filter_context import FilterError, FilterResult
from brine.data.filters.filter_log import FilterLog
from brine.data.filters.quality import TextBounds, TextQuality
from brine.data.filters.threshold import ScoreThreshold, scatter
from brine.data.packing.plan import PackingPlan
from brine.salt.selection import DocumentScores
from tests.data.media_files import line, manifest


@dataclass(frozen=True)
class Every:
    """Drops the documents whose number divides, with their number as a score."""

    step: int = 3
    name: ClassVar[str] = "every"

    def apply(self, filter_context):
        inspected = filter_context.select(splits=("train",))
        score = np.full(filter_context.corpus.num_documents, -1, np.int64)
        score[inspected] = inspected % self.step
        reasons = {
            number: f"{number} is a multiple of {self.step}" for number in inspected.tolist() if not score[number]
        }
        return FilterResult(inspected, reasons, {"remainder": score})


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
    filter_log = FilterLog.open(numbers)
    assert filter_log.kept_mask().all() and len(filter_log) == 0
    first = filter_log.add(Every(3))
    assert (first["inspected"], first["dropped"], first["kept"]) == (25, 9, 21)
    second = filter_log.add(Every(2))
    gone = [n for n in range(25) if n % 3 == 0 or n % 2 == 0]
    assert np.flatnonzero(~filter_log.kept_mask()).tolist() == gone
    # only what the first round had kept was judged: 16 of 25
    assert second["inspected"] == 16 and second["dropped"] == len(gone) - 9
    assert second["tokens_dropped"] == numbers.num_tokens[[n for n in gone if n % 3]].sum()
    assert second["tokens_kept"] == numbers.num_tokens[filter_log.kept_mask()].sum()
    assert second["dropped_by_kind"] == {"a": second["dropped"]}
    column = filter_log.column("remainder")
    assert column[1] == 1 and column[4] == 0 and column[3] == -1 and column[27] == -1
    assert filter_log.dropped(2)[0] == {"document": 2, "id": "n2", "kind": "a", "reason": "2 is a multiple of 2"}
    again = FilterLog.open(EncodedCorpus.open(numbers.folder))
    assert np.array_equal(again.kept_mask(), filter_log.kept_mask()) and again.digest == filter_log.digest
    table = filter_log.report().splitlines()
    assert len(table) == 5 and len({len(row) for row in table}) == 1
    assert table[-1].split()[:5] == ["02", "every", "16", "8", "13"]


def test_plan_takes_what_is_kept(numbers):
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))
    plan = PackingPlan.build(numbers, seq_len=64, documents=filter_log.kept_mask())
    assert set(plan.document.tolist()) == {n for n in range(25) if n % 3}


def test_undo_restores_to_the_byte(numbers):
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))
    before, kept, digest = files_of(filter_log.folder), filter_log.kept_mask(), filter_log.digest
    added = filter_log.add(Every(2))
    after = files_of(filter_log.folder)
    assert filter_log.undo() == added and filter_log.digest == digest
    assert files_of(filter_log.folder) == before and np.array_equal(filter_log.kept_mask(), kept)
    filter_log.add(Every(2))
    assert files_of(filter_log.folder) == after
    filter_log.undo()
    filter_log.undo()
    assert filter_log.kept_mask().all() and FilterLog.open(numbers).kept_mask().all()
    with pytest.raises(FilterError, match="no filter pass to undo"):
        filter_log.undo()


def test_killed_round_leaves_the_previous_state(numbers, monkeypatch):
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))
    kept, digest = filter_log.kept_mask(), filter_log.digest

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("brine.data.filters.filter_log.os.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            filter_log.add(Every(2))
    assert any(path.name.endswith(".partial") for path in filter_log.folder.iterdir())
    for state in (filter_log, FilterLog.open(numbers)):
        assert np.array_equal(state.kept_mask(), kept) and state.digest == digest and len(state) == 1
    whole = filter_log.add(Every(2))
    assert whole["number"] == 2 and sorted(path.name for path in filter_log.folder.iterdir()) == [
        "01_every",
        "02_every",
    ]


def test_undoing_that_is_killed_is_done(numbers, monkeypatch):
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("brine.data.filters.filter_log.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            filter_log.undo()
    again = FilterLog.open(numbers)
    assert len(again) == 0
    again.add(Every(2))
    assert [path.name for path in again.folder.iterdir()] == ["01_every"]


def test_what_cannot_be_is_refused(numbers, tmp_path, tokenizer):
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))
    with pytest.raises(FilterError, match="pass 01 has applied every with this configuration already"):
        filter_log.add(Every(3))
    with pytest.raises(FilterError, match="there are remainder"):
        filter_log.column("loss")
    # a second process that opened the stack before the first added to it
    late = FilterLog.open(numbers)
    filter_log.add(Every(2))
    with pytest.raises(FilterError, match="changed meanwhile"):
        late.add(Every(5))
    other = build_corpus(
        manifest(tmp_path / "o", [line("x", "words " * 9)]), tmp_path / "oc", tokenizer=tokenizer, num_workers=1
    )
    filter_log.folder.rename(other.folder / "filter_log")
    with pytest.raises(FilterError, match="another corpus"):
        FilterLog.open(other)


@pytest.mark.parametrize("damage", ["edited", "cut", "missing", "gone"])
def test_damaged_rounds_are_not_applied(numbers, damage):
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))
    filter_log.add(Every(2))
    folder = filter_log.folder / "01_every"
    if damage == "edited":
        keep = np.load(folder / "keep.npy")
        keep[5] = ~keep[5]
        np.save(folder / "keep.npy", keep)
    elif damage == "cut":
        (folder / "keep.npy").write_bytes((folder / "keep.npy").read_bytes()[:-3])
    elif damage == "missing":
        (folder / "filter.json").unlink()
    else:
        folder.rename(filter_log.folder.parent / "elsewhere")
    with pytest.raises(FilterError, match=r"01_every|02_every"):
        FilterLog.open(numbers).kept_mask()


@pytest.mark.parametrize("filter_", [Every(), ExactDuplicates(), TextQuality(prose=TextBounds(characters=(40, 90)))])
def test_twice_gives_the_same_bytes(numbers, tmp_path, filter_):
    FilterLog.open(numbers).add(filter_)
    first = files_of(numbers.folder / "filter_log")
    FilterLog.open(numbers).undo()
    FilterLog.open(numbers).add(filter_)
    assert files_of(numbers.folder / "filter_log") == first


def test_bounds_and_shares_of_a_score(numbers):
    score = np.arange(30.0)
    score[[4, 6]] = np.nan
    filter_log = FilterLog.open(numbers)
    filter_log.add(ScoreThreshold("loss", values=score, low=3, high=20))
    # held-out documents, and those without a score, are left alone
    assert np.flatnonzero(filter_log.kept_mask()).tolist() == [*range(3, 21), *range(25, 30)]
    assert filter_log.dropped(1)[0]["reason"] == "loss of 0 is below 3"
    record = filter_log.add(ScoreThreshold("loss", keep_fraction=0.25, keep_end="lowest", per_kind=True))
    assert record["inspected"] == 16 and record["name"] == "threshold_loss"
    kept = filter_log.kept_mask()[:25]
    assert np.flatnonzero(kept).tolist() == [3, 4, 5, 6, 7, 8, 10]
    assert (
        "not among the lowest 25.0% of documents of kind 'a' (which end at 10)" in filter_log.dropped(2)[-1]["reason"]
    )
    with pytest.raises(FilterError, match="scatter"):
        filter_log.add(ScoreThreshold("short", values=score[:7], low=1))


def test_threshold_keeps_what_salt_selection_keeps(numbers):
    """With ties, with documents that have nothing learnable, and with documents that were not scored."""
    generator = np.random.default_rng(4)
    document = np.sort(generator.choice(25, 20, replace=False))
    score = generator.integers(0, 6, 20).astype(np.float64)
    score[:3] = -np.inf
    scores = DocumentScores(document, score, np.full(20, 9), numbers.num_tokens[document])
    filter_log = FilterLog.open(numbers)
    for keep in (0.2, 0.5, 1.0):
        chosen = scores.select_documents(keep=keep, kind=numbers.kind[document])
        values = scatter(numbers.num_documents, scores.document, scores.score)
        filter_log.add(ScoreThreshold("salt", values=values, keep_fraction=keep, by_tokens=True, per_kind=True))
        kept = filter_log.kept_mask()
        assert np.array_equal(kept[document], chosen) and kept.sum() == 10 + chosen.sum()
        assert np.array_equal(filter_log.column("salt")[document], score.astype(np.float32))
        filter_log.undo()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "either bounds"),
        ({"low": 1, "keep_fraction": 0.5}, "either bounds"),
        ({"low": 2, "high": 1}, "nothing would be kept"),
        ({"keep_fraction": 0}, r"\(0, 1\]"),
        ({"keep_fraction": 1, "keep_end": "middle"}, "highest"),
        ({"low": 1, "splits": ("dev",)}, "train, validation, test"),
    ],
)
def test_threshold_tells_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        ScoreThreshold("x", **fields)


def test_records_are_plain_json(numbers):
    filter_log = FilterLog.open(numbers)
    filter_log.add(TextQuality())
    record = json.loads((filter_log.folder / "01_text_quality" / "filter.json").read_text())
    assert record["config"]["prose"]["alnum_fraction"] == [0.6, None] and record["corpus"] == numbers.fingerprint
    assert set(record["columns"]) == {path.stem for path in (filter_log.folder / "01_text_quality/columns").iterdir()}


def test_passes_of_version_0_1_are_read(numbers):
    """The folder was called `rounds`, its record round.json, and two of its keys had other names."""
    filter_log = FilterLog.open(numbers)
    filter_log.add(Every(3))
    kept, folder = filter_log.kept_mask(), filter_log.folder / "01_every"
    record = json.loads((folder / "filter.json").read_text())
    record["judged"], record["tokens_judged"] = record.pop("inspected"), record.pop("tokens_inspected")
    (folder / "filter.json").unlink()
    (folder / "round.json").write_text(json.dumps(record))
    filter_log.folder.rename(numbers.folder / "rounds")
    again = FilterLog.open(numbers)
    assert np.array_equal(again.kept_mask(), kept) and again.records[0]["inspected"] == 25
    again.add(Every(2))
    assert (numbers.folder / "rounds" / "02_every" / "filter.json").is_file()
    assert len(FilterLog.open(numbers)) == 2 and again.report().splitlines()[-1].split()[:3] == ["02", "every", "16"]
