"""What fits no row is told beforehand, with the option that helps; nothing to learn from is refused by name."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from brine import train as command
from brine.data.cli.main import main as data_command
from brine.data.config import EncodeConfig
from brine.data.corpus.excluded import ExclusionStats, find_excluded
from brine.data.corpus.store import build_corpus
from brine.data.document import MODALITIES
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from brine.evals.report.sections import record_section
from brine.evals.run_files import build_summary
from brine.pipeline import run as train
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.recipes.launch import LaunchConfig
from brine.training.config import RuntimeConfig
from brine.training.parallel.distributed import World
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest, picture
from tests.evals.section_html import section_html

pytestmark = pytest.mark.slow

SIZES = {"small": (32, 32), "wide": (320, 64), "huge": (640, 320)}
"""4, 80 and 800 patches."""


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
    monkeypatch.setattr("brine.data.inspect.check.DecodePool", Here)


def material(root, count=4):
    """A document of each size and split, `count` of the small ones, and a text longer than any row."""
    rows = [line("long", "word " * 2000, kind="text")]
    for name, size in SIZES.items():
        picture(root / f"{name}.png", *size)
        for number in range(count if name == "small" else 1):
            rows.append(line(f"{name}-{number}", {"image": f"{name}.png"}, "a picture", kind="pic"))
    rows.append(line("other", {"image": "huge.png"}, "not of the train split", kind="pic", split="test"))
    return manifest(root, rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
        config = EncodeConfig(max_image_tokens=1024)
        return build_corpus(material(root), root / "built", tokenizer=tokenizer, config=config, num_workers=1)


@pytest.mark.parametrize(
    ("row", "image", "names", "helps"),
    [
        (1024, 1024, [], "all 7 train documents fit"),
        (
            1024,
            100,
            ["huge-0"],
            "packing.image_budget 100 -> 800; or smaller media by a lower corpus.encode.max",
        ),
        (256, 256, ["huge-0"], "packing.seq_len 256 -> 803, packing.image_budget 256 -> 800"),
        (64, 60, ["wide-0", "huge-0"], "packing.seq_len 64 -> 803, packing.image_budget 60 -> 800"),
        (64, 0, ["small-0", "small-1", "small-2", "small-3", "wide-0"], "packing.image_budget 0 -> 800"),
    ],
    ids=["all-fit", "budget", "row", "two-sizes", "no-picture-at-all"],
)
def test_documents_that_fit_no_row_are_counted_with_the_remedy(made, row, image, names, helps):
    budget = {"image": image}
    found = find_excluded(made, seq_len=row, media_budget=budget)
    assert found.first == names and helps in found.text()
    plan = PackingPlan.build(made, seq_len=row, media_budget=budget, epochs=1)
    assert found.documents == plan.info["excluded"] == sum(found.kinds.values())
    tokens = made.num_tokens[[int(each) for each in plan.info["excluded_reasons"]]].sum()
    assert (found.total_documents, found.tokens) == (7, tokens)
    assert found.total_tokens == made.num_tokens[made.split == 0].sum()
    # and what is asked for is enough
    enough = {"image": max(image, found.needs.get("image", 0))}
    assert not find_excluded(made, seq_len=max(row, found.needs.get("tokens", 0)), media_budget=enough).documents


@pytest.mark.parametrize("seed", range(3))
def test_counted_as_the_planner_leaves_out(made, seed):
    """Whatever the rows and budgets, and document by document as from the index."""
    random = np.random.default_rng(seed)
    for _ in range(6):
        row = int(random.integers(16, 900))
        budget = {name: int(random.integers(0, row + 1)) for name in MODALITIES}
        found, single = find_excluded(made, seq_len=row, media_budget=budget), ExclusionStats(row, budget)
        for number in np.flatnonzero(made.split == 0).tolist():
            single.count(made.ids[number], made.kinds[made.kind[number]], made.tokens(number))
        assert single.to_json() == found.to_json()
        assert found.documents == PackingPlan.build(made, seq_len=row, media_budget=budget, epochs=1).info["excluded"]


PIECES = {
    "picture first": [{"image": "wide.png"}, "words"],
    "words first": ["words", {"image": "wide.png"}, "more"],
    "between words that are read": [{"type": "text", "text": "q", "loss_mask": False}, {"image": "wide.png"}, "more"],
    "two pictures": [{"image": "wide.png"}, {"image": "wide.png"}, "x"],
    "words alone": ["words " * 40],
}


@pytest.mark.parametrize("parts", PIECES.values(), ids=PIECES)
def test_rows_one_token_too_short_are_told_from_those_that_fit(tmp_path, tokenizer, parts):
    """To the token: the planner and the count agree on what is just long enough."""
    picture(tmp_path / "wide.png", *SIZES["wide"])
    text = line("x", *[part if isinstance(part, str) or "image" in part else "q" for part in parts])
    content = [part if isinstance(part, dict) and "loss_mask" in part else text["content"][place]
               for place, part in enumerate(parts)]  # fmt: skip
    manifest(tmp_path, [text | {"content": content}, line("one that fits", "x")])
    made = build_corpus(tmp_path, tmp_path / "built", tokenizer=tokenizer, config=EncodeConfig(), num_workers=1)
    need = find_excluded(made, seq_len=2, media_budget={}).needs.get("tokens", 2)
    for row in range(max(2, need - 2), need + 3):
        budget = dict.fromkeys(MODALITIES, row)
        plan = PackingPlan.build(made, seq_len=row, media_budget=budget, epochs=1)
        assert find_excluded(made, seq_len=row, media_budget=budget).documents == plan.info["excluded"], row
        assert plan.info["excluded"] == (row < need), row


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seq-len", "256"], ["1 of 7 train documents are excluded", "'huge-0'", "--seq-len 256 -> 803"]),
        (
            ["--seq-len", "1024", "--image-budget", "60"],
            ["2 of 7", "--image-budget 60 -> 800", "--max-image"],
        ),
        (["--recipe", "real", "--image-budget", "64"], ["2 of 7", "--image-budget 64 -> 12"]),
        (["--recipe", "real", "--max-image-tokens", "1024"], ["1 of 7", "--image-budget 768 -> 800"]),
    ],
    ids=["row", "budget", "recipe", "recipe-and-option"],
)
def test_check_tells_beforehand(tmp_path, capsys, options, expected):
    material(tmp_path)
    encode = [] if "--recipe" in options else ["--max-image-tokens", "1024"]
    assert data_command(["check", str(tmp_path), "--workers", "1", *options, *encode]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in expected), out
    assert json.loads(out.splitlines()[-1])["excluded"]["documents"] == int(expected[0][0])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--recipe", "nothing"], "--recipe 'nothing' is none of "),
        (["--image-budget", "5"], "give --seq-len"),
        (["--seq-len", "none"], "seq-len"),
    ],
    ids=["unknown-recipe", "budget-alone", "no-number"],
)
def test_a_mistake_is_told(tmp_path, capsys, options, word):
    material(tmp_path)
    assert data_command(["check", str(tmp_path), *options]) == 2
    assert word in capsys.readouterr().err


def check_rows(corpus, folder, documents=None, **rows):
    run = SimpleNamespace(
        recipe=Recipe(packing=PackingConfig(audio_budget=0, video_budget=0, **rows)),
        data=corpus,
        documents=documents,
        world=World(),
        folder=folder,
        store=SimpleNamespace(begun=lambda name: None),
    )
    train.Pipeline.check_packing(run)
    return json.loads((folder / "excluded.json").read_text())


def test_training_tells_and_summary_and_report_keep_it(made, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="brine"):
        found = check_rows(made, tmp_path, seq_len=64, image_budget=60)
    assert "2 of 7 train documents are excluded" in caplog.text and "'wide-0', 'huge-0'" in caplog.text
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate/results.json").write_text('{"media_gain": {}, "cer": {}}')
    assert build_summary(tmp_path)["excluded"] == found and found["kinds"] == {"pic": 2}
    page = section_html(record_section([], found | {"first": ["<b>"]}, {}, None, None))
    assert (
        "2 of 7 training documents" in page
        and "28.6\N{NO-BREAK SPACE}%" in page
        and "800 image tokens (a sequence has 60)" in page
    )
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "No training document was excluded" in section_html(
        record_section([], found | {"documents": 0}, {}, None, None)
    )


@pytest.mark.parametrize(
    ("share", "image", "refused"),
    [(0.0, 100, True), (0.1, 100, True), (0.2, 100, False), (0.5, 0, True), (0.9, 0, False), (0.0, 384, False)],
)
def test_too_much_left_out_is_refused(made, tmp_path, share, image, refused):
    rows = {"seq_len": 1024, "image_budget": 1024 if image == 384 else image, "max_excluded_fraction": share}
    if not refused:
        check_rows(made, tmp_path, **rows)
        return
    with pytest.raises(
        ValueError, match=r"more of the train split is excluded than packing\.max_excluded_fraction .*image_budget"
    ):
        check_rows(made, tmp_path, **rows)


def no_split(root):
    return [line(f"d{number}", "words", split="test") for number in range(5)]


def validation_alone(root):
    return [line(f"d{number}", "words", split=("validation", "test")[number % 2]) for number in range(5)]


def nothing_fits(root):
    picture(root / "huge.png", 640, 320)
    return [line(f"d{number}", {"image": "huge.png"}, "words") for number in range(3)]


def not_learned(root):
    texts = [line(f"d{number}", {"type": "text", "text": "words", "loss_mask": False}) for number in range(4)]
    return [{**text, "content": [{"type": "text", "text": "words", "loss_mask": False}]} for text in texts]


def learned_elsewhere(root):
    """The test split has targets, and a document that fits no row."""
    picture(root / "huge.png", 640, 320)
    return [*not_learned(root), line("t", "words", split="test"), line("huge", {"image": "huge.png"}, "words")]


def pictures_alone(root):
    picture(root / "small.png", 32, 32)
    return [line(f"d{number}", {"image": "small.png"}) for number in range(4)]


def empty_texts(root):
    return [line(f"d{number}", "") for number in range(4)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (no_split, r"no document of the train split \(0 of 5 documents: 5 test\).*\"split\": \"train\""),
        (validation_alone, r"no document of the train split \(0 of 5 documents: 3 validation, 2 test\)"),
        (
            nothing_fits,
            r"no document of the train split fits a packed sequence; 3 of 3 .*packing\.image_budget 384 -> 800",
        ),
        (
            not_learned,
            r"no document of the train split has a target \(0 of 4 documents.*\"loss_mask\": false.*to train",
        ),
        (
            learned_elsewhere,
            r"no document of the train split has a target \(0 of 4 documents that fit packed sequences\)",
        ),
        (pictures_alone, r"no document of the train split has a target \(0 of 4 documents.*the assistant"),
        (empty_texts, r"no document of the train split has a target \(0 of 4 documents.*empty"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nothing_to_train_on_is_refused_by_name(tmp_path, tokenizer, rows, expected):
    manifest(tmp_path, rows(tmp_path))
    config = EncodeConfig(max_image_tokens=1024)
    corpus = build_corpus(tmp_path, tmp_path / "built", tokenizer=tokenizer, config=config, num_workers=1)
    with pytest.raises(ValueError, match=expected):
        check_rows(corpus, tmp_path, seq_len=384, image_budget=384)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (no_split, 'no document of the train split: give documents "split": "train"'),
        (nothing_fits, "no document of the train split fits a packed sequence"),
        (not_learned, "no document of the train split has a target"),
        (pictures_alone, "no document of the train split has a target"),
        (lambda root: [line(f"d{number}", "words") for number in range(3)], "no document is held out"),
        (
            lambda root: [*nothing_fits(root), line("d", "w"), line("t", "w", split="test")],
            "more of the train split is excluded than packing.max_excluded_fraction 0.5 al",
        ),
        (lambda root: [line("d", "words"), line("t", "words", split="test")], ""),
    ],
)
def test_check_says_that_training_would_reject(tmp_path, capsys, rows, expected):
    manifest(tmp_path, rows(tmp_path))
    command = ["check", str(tmp_path), "--workers", "1", "--recipe", "real", "--max-image-tokens", "1024"]
    assert data_command(command) in (0, 1)
    out = capsys.readouterr().out
    assert (f"training would reject this: {expected}" in out) if expected else ("would reject" not in out)


@pytest.mark.parametrize("kept", ["none", "test-alone"])
def test_filters_that_leave_nothing_are_refused_by_name(made, tmp_path, kept):
    mask = np.zeros(len(made), bool) if kept == "none" else made.split == 2
    with pytest.raises(ValueError, match=r"no document of the train split is left by the filters \(0 of 7\).*--undo"):
        check_rows(made, tmp_path, documents=mask)
    # of the others, one is enough
    check_rows(made, tmp_path, documents=np.arange(len(made)) == made.ids.index("small-0"))


@pytest.mark.parametrize("rows", [no_split, not_learned], ids=["no-split", "no-target"])
def test_the_command_says_so_in_its_last_line(tmp_path, capsys, monkeypatch, rows):
    """Before anything is trained, with exit code 2 and no trace."""
    path = manifest(tmp_path / "data", rows(tmp_path))
    recipe = Recipe(
        name="real",
        corpus=CorpusConfig(manifest=path, vocab_size=300),
        arms=("baseline",),
        runtime=RuntimeConfig(compile=False, num_threads=1, device="cpu", dtype="float32"),
    )
    # reading the whole command line takes seconds
    monkeypatch.setattr(command, "parse", lambda argv, prog: LaunchConfig(recipe=recipe, runs=tmp_path / "runs"))
    assert command.main([]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: no document of the train split") and "train" in last
    assert not (tmp_path / "runs/real/large_baseline").exists()


def test_a_corpus_that_holds_nothing_out_is_refused_before_training(tmp_path):
    """Evaluation said so when everything was trained."""
    rows = [{"id": f"t{number}", "split": "train", "text": "words of a river"} for number in range(3)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = build_corpus(tmp_path / "m.jsonl", tmp_path / "c", tokenizer=train_tokenizer(["words"], MIN_VOCAB_SIZE),
                          config=EncodeConfig(), num_workers=1)  # fmt: skip
    with pytest.raises(ValueError, match="no held-out document: give some documents the split validation"):
        check_rows(corpus, tmp_path)


@pytest.mark.parametrize("texts", [{"loss_mask": False}, {"text": ""}], ids=["silent", "empty"])
def test_held_out_documents_without_a_target_are_refused_before_training(tmp_path, tokenizer, texts):
    """The report said that nothing was measured, and not why."""
    silent = {"type": "text", "text": "words of a river"} | texts
    rows = [line(f"t{number}", "words") for number in range(3)]
    rows += [line(f"v{number}", "words", split="validation") | {"content": [silent]} for number in range(2)]
    manifest(tmp_path, rows)
    corpus = build_corpus(tmp_path, tmp_path / "c", tokenizer=tokenizer, config=EncodeConfig(), num_workers=1)
    with pytest.raises(ValueError, match=r"no held-out document has a target \(0 of 2\).*nothing can be measured"):
        check_rows(corpus, tmp_path)


IN_PIECES = {
    "a long picture": ([{"image": "wide.png"}, "words of it"], 84, 1, "packing.seq_len 84 -> "),
    "a long question": (
        [{"type": "text", "text": "why " * 60, "loss_mask": False}, "so"],
        100,
        1,
        "packing.seq_len 100 -> ",
    ),
    "a long text": (["words " * 60], 100, 0, "packing.seq_len 100 -> "),
}


@pytest.mark.parametrize(("parts", "row", "num_split_with_media", "helps"), IN_PIECES.values(), ids=IN_PIECES)
def test_what_fits_only_in_pieces_is_told(tmp_path, tokenizer, parts, row, num_split_with_media, helps):
    """It was said that all of it fits."""
    picture(tmp_path / "wide.png", *SIZES["wide"])
    content = [part if "type" in part else line("x", part)["content"][0] for part in parts]
    manifest(tmp_path, [line("long", "x", kind="talk") | {"content": content}, line("short", "x")])
    corpus = build_corpus(tmp_path, tmp_path / "c", tokenizer=tokenizer, config=EncodeConfig(), num_workers=1)
    found = find_excluded(corpus, seq_len=row, media_budget={})
    told = found.text()
    assert f"all 2 train documents fit packed sequences of {row} tokens, 1 only in chunks" in told
    assert "chunks that do not see each other: 1 talk" in told
    assert ("hold media or a question" in told) == bool(num_split_with_media) == bool(
        found.num_split_with_media
    ) and helps in told
    page = section_html(record_section([], found.to_json(), {}, None, None))
    assert "No training document was excluded.</p><p>1 fit only in chunks" in page
    # and what is told keeps it whole
    whole = find_excluded(corpus, seq_len=found.unsplit_needs["tokens"], media_budget={})
    assert whole.text() == f"all 2 train documents fit packed sequences of {found.unsplit_needs['tokens']} tokens"
