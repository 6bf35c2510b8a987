"""Lists of files that say what is held out: found, believed where they name media, and told where they do not count."""

import json

import pytest

from brine.data.formats.open import open_source
from tests.data.media_files import picture

NAMES = [f"{'cat' if number % 2 else 'dog'}/{number:03d}" for number in range(20)]
HELD = NAMES[:5]
OTHERS = NAMES[5:]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture()
def root(tmp_path):
    """A folder of twenty captioned images in images/cat and images/dog."""
    for number, name in enumerate(NAMES):
        picture(tmp_path / "a" / "images" / f"{name}.png", 8, 8, seed=number)
        (tmp_path / "a" / "images" / f"{name}.txt").write_text(f"words of {number}")
    return tmp_path / "a"


def splits_of(root) -> dict[str, set[str]]:
    """Split -> names of the documents in it."""
    source = open_source(root)
    found: dict[str, set[str]] = {}
    for document in source.documents():
        found.setdefault(str(document.split), set()).add(document.parts[0].path.removeprefix("images/")[:-4])
    return found | {"told": " | ".join(source.summary_lines())}


LISTS = {
    "Speech Commands": {"testing_list.txt": [f"images/{name}.png" for name in HELD]},
    "Food-101": {"meta/train.txt": OTHERS, "meta/test.txt": HELD},
    "Pascal VOC": {
        "ImageSets/Main/train.txt": [name[-3:] for name in OTHERS],
        "ImageSets/Main/test.txt": [name[-3:] for name in HELD],
    },
    "UCF101": {
        "trainlist01.txt": [f"{name}.png {number}" for number, name in enumerate(OTHERS)],
        "testlist01.txt": [f"{name}.png" for name in HELD],
    },
    "paths of another machine": {"test.txt": [f"/home/me/darknet/obj/{name}.png" for name in HELD]},
    "of another system": {
        "test.lst": [f".\\images\\{name}.png" for name in ("dog\\000", "cat\\001", "dog\\002", "cat\\003", "dog\\004")]
    },
    "with words": {"images/test.txt": [f"{name}.png,words of it" for name in HELD]},
    "what neither names": {"train.txt": OTHERS, "test.txt": HELD[:2]},
    "a mark of byte order": {"val.txt": ["\ufeff" + HELD[0], *HELD[1:]]},
    "names that are not here": {"test.txt": [*HELD, *(f"images/cat/gone{number}.png" for number in range(50))]},
    "lines of something else": {"train.txt": ["a list of what trains", *OTHERS, "", "gone"], "test.txt": HELD},
}


@pytest.mark.parametrize("lists", LISTS.values(), ids=LISTS)
def test_what_a_list_holds_out_is_not_trained_on(root, lists):
    for name, lines in lists.items():
        write(root / name, lines)
    found = splits_of(root)
    held = "validation" if "val.txt" in lists else "test"
    assert found[held] == set(HELD) and found["train"] | found.get("validation", set()) >= set(OTHERS)
    assert "lists of files" in found["told"] and "without media" not in found["told"]
    assert ("3 media that none of the lists names count as test" in found["told"]) == (
        len(lists.get("test.txt", "")) == 2
    )


def test_lists_count_beside_a_manifest_too(root):
    """Speech Commands has no captions: the command that is told writes a metadata.jsonl."""
    write(root / "metadata.jsonl", [json.dumps({"file_name": f"images/{name}.png", "text": name}) for name in NAMES])
    write(root / "validation_list.txt", [f"images/{name}.png" for name in HELD])
    before = open_source(root).fingerprint()
    found = splits_of(root)
    assert found["validation"] == set(HELD) and found["train"] == set(OTHERS) and "NOT READ" not in found["told"]
    write(root / "validation_list.txt", [f"images/{name}.png" for name in NAMES[:6]])
    assert open_source(root).fingerprint() != before


def test_a_list_for_training_alone_declares_nothing_and_is_told(root):
    """Ten per cent of a training set in a list of its own would have held out the rest."""
    write(root / "train_10pct.txt", OTHERS)
    found = splits_of(root)
    assert "15 of 20 media are named in train_10pct.txt, and no list names what is held out" in found["told"]
    assert "lists of files (" not in found["told"] and len(found["train"]) > 15


def test_lists_say_nothing_of_what_lies_elsewhere(root):
    """Two data sets in one folder, of which one has lists."""
    for number in range(12):
        picture(root / "birds" / f"{number}.png", 8, 8)
        (root / "birds" / f"{number}.txt").write_text("words")
    write(root / "meta" / "train.txt", OTHERS)
    write(root / "meta" / "test.txt", HELD)
    found = splits_of(root)
    birds = {name for name in found["train"] if name.startswith("birds")}
    assert found["test"] - {f"birds/{number}" for number in range(12)} == set(HELD) and len(birds) >= 9


def test_a_declared_split_is_not_changed_by_a_list_that_does_not_name_it(root):
    lines = [{"file_name": f"images/{name}.png", "text": name} for name in NAMES]
    write(root / "train.jsonl", map(json.dumps, lines[3:]))
    write(root / "test.jsonl", map(json.dumps, lines[:3]))
    write(root / "train_small.txt", NAMES[10:])
    write(root / "val_small.txt", NAMES[8:10])
    found = splits_of(root)
    assert found["test"] == set(NAMES[:3]) and found["train"] >= set(NAMES[10:])
    # where test.jsonl alone is declared, the hash takes some of train.jsonl for validation
    assert set(NAMES[8:10]) <= found["validation"] <= set(NAMES[3:10])


def test_an_object_that_names_its_split_goes_before_lists(root):
    lines = [{"file_name": f"images/{name}.png", "text": name, "split": "train"} for name in NAMES]
    write(root / "metadata.jsonl", map(json.dumps, lines))
    write(root / "test.txt", HELD)
    assert splits_of(root)["train"] == set(NAMES)


@pytest.mark.parametrize("manifest", [False, True], ids=["media", "manifest"])
def test_folds_that_hold_everything_out_are_told(root, manifest):
    if manifest:
        write(root / "metadata.jsonl", [json.dumps({"file_name": f"images/{n}.png", "text": n}) for n in NAMES])
    for fold in range(4):
        write(root / f"testlist0{fold}.txt", NAMES[fold::4])
        write(root / f"trainlist0{fold}.txt", [name for name in NAMES if name not in NAMES[fold::4]])
    found = splits_of(root)
    assert len(found["train"]) > 10 and "leave nothing to train on (testlist00.txt, " in found["told"]


NO_LISTS = {
    "notes": {"test_notes.txt": [f"{name} could not be decoded" for name in HELD]},
    "a report": {"validation_report.txt": [f"{HELD[0]}.png blurry"]},
    "corrupt ones": {"test_corrupt.txt": HELD},
    "a log": {"validation_errors.txt": [f"{HELD[0]}.png is blurry and dark"]},
    "other words": {"test.txt": ["these words name nothing", "nor do these"]},
    "half of other words": {"test.txt": [*HELD, *(f"{number} and words" for number in range(5))]},
    "a name of two splits": {"train_test_split.txt": HELD},
    "a name of none": {"latest.txt": HELD, "contest.txt": HELD},
    "names of several": {"test.txt": ["000", "001", "002"], "more/000.txt": [], "more/001.txt": [], "more/002.txt": []},
    "everything trains": {"train.txt": NAMES},
    "bytes": {"test.txt": ["\0\0"]},
}


@pytest.mark.parametrize("lists", NO_LISTS.values(), ids=NO_LISTS)
def test_other_texts_are_no_lists(root, lists):
    plain = splits_of(root)
    for name, lines in lists.items():
        write(root / name, lines)
        if name.startswith("more/"):
            picture((root / name).with_suffix(".png"), 8, 8)
            (root / name).write_text("words")
    found = splits_of(root)
    assert set(HELD) - found["test"] and {split: plain[split] - found[split] for split in ("train", "test")} == {
        "train": set(),
        "test": set(),
    }
    assert "lists of files" not in found["told"]
    if "test.txt" in lists:
        assert "NOT READ although named after a split (test): 1 text without media: test.txt" in found["told"]


def test_captions_of_two_splits_are_lists(root):
    for file, names in (("train.txt", OTHERS), ("test.txt", HELD)):
        write(root / file, [f"{name}.png words of it" for name in names])
    assert splits_of(root)["test"] == set(HELD)


def test_texts_that_are_no_lists_do_not_change_the_source(root):
    write(root / "metadata.jsonl", [json.dumps({"file_name": f"images/{n}.png", "text": n}) for n in NAMES])
    before = open_source(root).fingerprint()
    write(root / "validation_notes.txt", ["these images are blurry"])
    assert open_source(root).fingerprint() == before
    write(root / "val.txt", HELD)
    assert open_source(root).fingerprint() != before


def test_a_caption_is_no_list(root):
    """The words beside a medium that is called test name others."""
    picture(root / "test.png", 8, 8)
    write(root / "test.txt", ["000"])
    assert "lists of files" not in splits_of(root)["told"]


def test_a_folder_that_is_held_out_stays_so(root):
    (root / "images").rename(root / "test")
    for number in range(12):
        picture(root / "train" / f"{number}.png", 8, 8)
        (root / "train" / f"{number}.txt").write_text("words")
    write(root / "train.txt", [f"test/{name}.png" for name in NAMES])
    documents = {document.parts[0].path: document.split for document in open_source(root).documents()}
    assert {str(split) for path, split in documents.items() if path.startswith("test/")} == {"test"}
