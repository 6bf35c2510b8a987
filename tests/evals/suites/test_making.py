"""A suite is made once, of the lowest hashes, and is never replaced; what was changed is named."""

import itertools
import json
import os
import shutil

import pytest

from brine.cli import main
from brine.data.document import Text
from brine.evals.suites.case import PARTS, rank_of_id
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.evals.suites.suite import Suite, suite_digest
from tests.data.media_files import line, manifest, picture
from tests.evals.suites.sources import SMALL, text_suite

TEXTS = [f"words of number {number}" for number in range(60)]


def ids_of(suite):
    return {case.id for case in suite.cases}


def texts_in(suite):
    return {part.text for case in suite.cases for part in case.parts if isinstance(part, Text)}


def guards_of(suite):
    """Gains and error rates of the kinds that have a case in each part."""
    modality = {"pic": "image", "say": "audio", "film": "video"}
    cells = {(cell["kind"], cell["part"]) for cell in suite.info["cells"]}
    found = [modality[kind] for kind in modality if all((kind, part) in cells for part in PARTS)]
    return tuple(f"{name}.{each}" for name in ("gain", "cer") for each in ("image", "audio", "video") if each in found)


@pytest.mark.slow
def test_a_suite_of_four_modalities(suite, source):
    assert suite.info["num_cases"] == {part: len(suite.cases_in(part)) for part in PARTS}
    # three of four documents are held out: 9 of 12, and all 6 films
    total = sum(cell["candidates"] for cell in suite.info["cells"])
    assert total == 9 + 9 + 9 + 6 and all(cell["cases"] <= SMALL.per_cell for cell in suite.info["cells"])
    names = [spec.name for spec in suite.measures]
    assert names == [
        "bits_per_byte", "bits_per_byte.film", "bits_per_byte.note", "bits_per_byte.pic", "bits_per_byte.say",
        "gain.image", "gain.audio", "gain.video", "cer.image", "cer.audio", "cer.video",
    ]  # fmt: skip
    assert suite.primary == "bits_per_byte" and suite.guards == guards_of(suite)
    assert suite.verify() == []
    # the training split is not in it, and nothing names a path or an id of the source
    held_out = {f"number {number}" for number in range(12) if number % 4}
    assert all(any(f"{said}" in text for said in held_out) for text in texts_in(suite) - {"Listen: "})
    kept = (suite.folder / "suite.json").read_text() + (suite.folder / "cases.jsonl").read_text()
    assert str(source) not in kept and "pic 1" not in kept and '.png"' in kept
    assert not any(path.stat().st_mode & 0o222 for path in suite.folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_equal_contents_are_equal_suites(suite, source, tmp_path):
    """On another path, with other names, ids and order of documents."""
    same = shutil.copytree(source, tmp_path / "birds")
    assert make_suite("birds", [same], SMALL, root=tmp_path, workers=2).digest == suite.digest
    lines = [json.loads(text) for text in (same / "manifest.jsonl").read_text().splitlines()]
    for number, each in enumerate(lines):
        each["id"] = f"x{number}"
        for part in each["content"]:
            for modality in ("image", "audio", "video"):
                if modality in part:
                    os.rename(same / part[modality], same / f"other-{part[modality]}")
                    part[modality] = f"other-{part[modality]}"
    manifest(same, lines[::-1])
    other = make_suite("others", [same], SMALL, root=tmp_path, workers=1)
    assert (other.folder / "cases.jsonl").read_bytes() == (suite.folder / "cases.jsonl").read_bytes()


@pytest.mark.slow
def test_the_lowest_hashes_are_chosen(tmp_path):
    suite = text_suite(tmp_path, TEXTS, config=SuiteConfig(per_cell=5, timing=False, seed=3))
    whole = text_suite(tmp_path, TEXTS, name="whole", config=SuiteConfig(per_cell=999, timing=False, seed=3))
    assert len(whole.cases) == 60 and len(suite.cases) == 15
    for cell in suite.info["cells"]:
        ranks = sorted(rank_of_id(case.id, 3) for case in whole.cases_in(cell["part"]))
        assert {rank_of_id(case.id, 3) for case in suite.cases_in(cell["part"])} == set(ranks[:5])
        assert cell["below"] == ranks[4] and cell["candidates"] == len(ranks)
    assert {cell["below"] for cell in whole.info["cells"]} == {None}


@pytest.mark.slow
def test_new_documents_displace_only_by_a_lower_hash_and_with_like_never(tmp_path):
    config = SuiteConfig(per_cell=5, timing=False)
    before = text_suite(tmp_path, TEXTS[:40], config=config)
    after = text_suite(tmp_path, TEXTS, config=config)
    assert (before.version, after.version) == (1, 2)
    part = {case.id: case.part for case in before.cases}
    assert all(part.get(case.id, case.part) == case.part for case in after.cases)
    limits = {cell["part"]: cell["below"] for cell in after.info["cells"]}
    kept = {case.id for case in before.cases if rank_of_id(case.id, 0) <= limits[case.part]}
    gone = ids_of(before) - ids_of(after)
    assert ids_of(before) & ids_of(after) == kept and gone
    assert all(rank_of_id(name, 0) > limits[part[name]] for name in gone)
    grown = text_suite(tmp_path, TEXTS, config=config, like=before)
    assert ids_of(before) < ids_of(grown) < ids_of(text_suite(tmp_path, TEXTS, config=SuiteConfig(per_cell=60)))
    assert [cell["below"] for cell in grown.info["cells"]] == [cell["below"] for cell in before.info["cells"]]
    with pytest.raises(ValueError, match="give the same seed"):
        text_suite(tmp_path, TEXTS, config=SuiteConfig(seed=1), like=before)


def test_one_content_is_one_case(tmp_path):
    suite = text_suite(tmp_path, [*TEXTS[:6], *TEXTS[:6], TEXTS[0]], config=SuiteConfig(timing=False))
    assert len(suite.cases) == 6 and suite.info["duplicates"] == 7


@pytest.mark.slow
def test_what_cannot_be_a_case_is_counted(tmp_path):
    source = tmp_path / "source"
    picture(source / "good.png", 8, 8)
    (source / "broken.png").write_bytes(b"\x89PNG and no more")
    documents = [
        line("good", {"image": "good.png"}, "seen", split="test"),
        line("broken", {"image": "broken.png"}, "seen", split="test"),
        line("gone", {"image": "gone.png"}, "seen", split="test"),
        line("dull", {"text": "never", "loss_mask": False}, split="test"),
        line("long", "x" * 20000, split="test"),
        line("trained", "of the training split"),
    ]
    documents[3]["content"] = [{"type": "text", "text": "never", "loss_mask": False}]
    suite = make_suite("few", [manifest(source, documents).parent], SMALL, root=tmp_path, workers=1)
    assert texts_in(suite) == {"seen"}
    assert suite.info["skipped"] == {
        "media that cannot be decoded": 1, "media that cannot be read": 1, "no target text": 1,
        "over 16,384 bytes of text": 1,
    }  # fmt: skip
    assert len(make_suite("all", [source], SuiteConfig(all_splits=True), root=tmp_path, workers=1).cases) == 2


@pytest.mark.slow
def test_a_suite_is_never_replaced(tmp_path):
    first = text_suite(tmp_path, TEXTS[:9])
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"words@1 is there already, and no suite is replaced"):
        text_suite(tmp_path, TEXTS, name="words@1")
    with pytest.raises(ValueError, match="cannot name a suite"):
        text_suite(tmp_path, TEXTS, name="../words")
    with pytest.raises(ValueError, match="has no measure 'speed'"):
        text_suite(tmp_path, TEXTS, config=SuiteConfig(primary="speed"))
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in first.folder.parent.iterdir()] == ["words@1"], "something half made is left"
    assert text_suite(tmp_path, TEXTS[:9], name="words@7").version == 7
    assert text_suite(tmp_path, TEXTS[:9]).version == 8
    root = first.folder.parent
    assert Suite.open("words", root=root).version == 8 and Suite.open("words@1", root=root).digest == first.digest
    with pytest.raises(ValueError, match=r"there are words@1, words@7, words@8"):
        Suite.open("wrods", root=root)


@pytest.fixture
def copied(suite, tmp_path):
    folder = shutil.copytree(suite.folder, tmp_path / "copied")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("which", ["suite.json", "cases.jsonl", "media"])
def test_a_flipped_bit_is_named(copied, which, capsys):
    paths = [copied / which] if which != "media" else sorted((copied / "media").iterdir())[:3]
    for path, where in itertools.product(paths, (0.1, 0.5, 0.9)):
        before = path.read_bytes()
        at = int(len(before) * where)
        path.write_bytes(before[:at] + bytes([before[at] ^ 4]) + before[at + 1 :])
        assert main(["suite", "verify", str(copied)]) == 2
        said = capsys.readouterr().err
        assert str(path) in said and said.count("\n") == 1, said
        path.write_bytes(before)
    assert main(["suite", "verify", str(copied)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "birds"


@pytest.mark.slow
def test_what_is_missing_added_or_a_link_is_named(copied):
    first, second = sorted((copied / "media").iterdir())[:2]
    (copied / "media" / "more.png").write_bytes(b"x")
    content = first.read_bytes()
    first.unlink()
    second.rename(copied.parent / "elsewhere")
    second.symlink_to(copied.parent / "elsewhere")
    problems = Suite.open(copied).verify()
    assert len(problems) == 3 and all(
        any(str(path) in one and word in one for one in problems)
        for path, word in ((first, "missing"), (second, "link"), (copied / "media" / "more.png", "does not belong"))
    )
    first.write_bytes(content)
    with pytest.raises(ValueError, match=second.name):
        Suite.open(copied).check_media(Suite.open(copied).cases)


@pytest.mark.slow
def test_a_suite_that_was_rewritten_with_a_new_digest_is_another_suite(copied, suite):
    """The digest proves that bytes are those of a digest written down elsewhere, not who wrote them."""
    info = json.loads((copied / "suite.json").read_text())
    info["guards"] = []
    info["digest"] = suite_digest(info)
    (copied / "suite.json").write_text(json.dumps(info))
    assert Suite.open(copied).digest != suite.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        ([], "give a source"),
        (["SOURCE", "--per-cell", "0"], "per_cell = 0 must be at least 1"),
        (["SOURCE", "--needle-lengths", "99999"], "raise it"),
        (["SOURCE", "--max-suite-mib", "0"], "must be above 0"),
        (["SOURCE", "--like", "none"], "none is no suite"),
        (["SOURCE", "--workers", "0"], "--workers must be at least 1"),
        (["TRAIN"], "--all-splits"),
    ],
)
def test_mistakes_end_with_one_sentence_and_nothing_made(tmp_path, capsys, arguments, message):
    manifest(tmp_path / "SOURCE", [line("a", "words", split="test")])
    manifest(tmp_path / "TRAIN", [line("a", "words")])
    given = [str(tmp_path / each) if each in ("SOURCE", "TRAIN") else each for each in arguments]
    assert main(["suite", "make", "x", *given, "--root", str(tmp_path / "suites")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "suites").exists()


def test_a_guard_has_cases_in_every_part(tmp_path):
    """One without would be unmeasured in the gate part, and refuse every model."""
    picture(tmp_path / "source" / "one.png", 8, 8)
    documents = [line(text, text, kind="note", split="test") for text in TEXTS[:20]]
    documents.append(line("pic", {"image": "one.png"}, "seen", kind="pic", split="test"))
    source = manifest(tmp_path / "source", documents).parent
    suite = make_suite("one", [source], SuiteConfig(), root=tmp_path, workers=1)
    assert "gain.image" in [spec.name for spec in suite.measures] and suite.guards == ("latency", "memory")
    with pytest.raises(ValueError, match=r"gain\.image has no case in some part"):
        make_suite("two", [source], SuiteConfig(guards=("gain.image",)), root=tmp_path, workers=1)


def test_media_that_are_too_large_together(tmp_path):
    source = tmp_path / "source"
    for number in range(3):
        picture(source / f"{number}.png", 90, 90, seed=number)
    manifest(source, [line(str(n), {"image": f"{n}.png"}, "seen", split="test") for n in range(3)])
    with pytest.raises(ValueError, match="lower --per-cell"):
        make_suite("big", [source], SuiteConfig(max_suite_mib=0.05), root=tmp_path / "suites", workers=1)
    assert not list((tmp_path / "suites").iterdir())


@pytest.mark.slow
def test_show_prints_cells_and_cases(suite, capsys):
    assert main(["suite", "show", str(suite.folder), "--cases", "3"]) == 0
    said = capsys.readouterr().out
    assert "gain.video" in said and said.count(" dev ") >= 3 and " gate " not in said.split("made from")[1]
    assert json.loads(said.splitlines()[-1])["digest"] == suite.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../etc"}, "cannot name a suite"),
        ({"version": 0}, "cannot name a suite"),
        ({"version": "1"}, "'version' must be of type int"),
        ({"settings": {"max_media_mib": 1e9, "max_case_tokens": 9}}, "the setting max_media_mib"),
        ({"settings": {"max_media_mib": 1}}, "the setting max_case_tokens"),
        ({"primary": "speed"}, "declares 'speed'"),
        ({"measures": [{"name": "x"}]}, "is not a suite of this version"),
        ({"format": 99}, "has format 99"),
        ({"cells": None}, "'cells' must be of type list"),
    ],
)
def test_a_description_that_cannot_be(tmp_path, change, message):
    """With a digest that fits: suites come from outside too."""
    folder = text_suite(tmp_path, TEXTS[:2]).folder
    info = json.loads((folder / "suite.json").read_text()) | change
    (folder / "suite.json").chmod(0o644)
    (folder / "suite.json").write_text(json.dumps(info | {"digest": suite_digest(info)}))
    with pytest.raises(ValueError, match=message) as raised:
        Suite.open(folder)
    assert str(folder / "suite.json") in str(raised.value)
