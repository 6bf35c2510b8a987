"""What the other names of a source say about one: a word for a split in its middle, or one that is added."""

import pytest

from brine.data.formats.open import open_source
from brine.data.formats.splits.rules import PathSplits
from tests.data.format_files import read
from tests.data.formats.splits.test_rules import fill, rows
from tests.data.formats.test_containers import tar

pytestmark = pytest.mark.slow

# train, held out, split of the second
SIBLINGS = {
    "middle": ("llava_train_v1", "llava_test_v1", "test"),
    "before a language": ("captions_train_en", "captions_test_en", "test"),
    "another language": ("captions_train_en", "captions_val_de", "validation"),
    "digits around": ("coco2017_train_captions", "coco2014_val_captions", "validation"),
    "capitals": ("birdsTrainSmall", "birdsTestSmall", "test"),
    "two words": ("gqa_train_balanced", "gqa_held_out_balanced", "test"),
    "behind alone": ("en-train-16k", "de-dev-16k", "validation"),
    "added behind": ("data", "data_test", "test"),
    "added to a long name": ("llava_instruct_150k", "llava_instruct_val_150k", "validation"),
    "added with another number": ("pairs.v2", "pairs.eval.v3", "validation"),
    "sets": ("trainset", "testset", "test"),
    "data": ("traindata", "valdata", "validation"),
    "lists": ("ucf_trainlist01", "ucf_testlist01", "test"),
    "short": ("en.trn", "en.tst", "test"),
    "set apart": ("fit", "Test set", "test"),
    "held-out": ("rows", "held-out", "test"),
}
NONE = [
    "latest",
    "contest",
    "testament",
    "fastest",
    "protest",
    "my_test_questions",
    "attestation",
    "invalid",
    "devices",
]


def held(path, word: str) -> set[str]:
    return {document.split for document in read(path)[0] if word in document.parts[-1].text}


@pytest.mark.parametrize("train, other, split", SIBLINGS.values(), ids=SIBLINGS)
def test_siblings_in_files_and_folders(tmp_path, train, other, split):
    words = {train: [f"seen {n}" for n in range(30)], other: [f"unseen {n}" for n in range(4)]}
    fill(tmp_path / "files", {f"{name}.jsonl": rows({"text": t} for t in found) for name, found in words.items()})
    for name, found in words.items():
        fill(tmp_path / "media", {f"{name}/{n}.png": b"x" for n in range(len(found))})
        fill(tmp_path / "media", {f"{name}/{n}.txt": text for n, text in enumerate(found)})
        tar(tmp_path / "tars" / f"{name}.tar", {f"{n}.txt": text for n, text in enumerate(found)})
    for kind in ("files", "media", "tars"):
        assert held(tmp_path / kind, "unseen") == {split}
        assert "train" in {document.split for document in read(tmp_path / kind)[0]}


@pytest.mark.parametrize("name", NONE)
@pytest.mark.parametrize("beside", ["train", "all", "questions"])
def test_other_words_stay_others(name, beside):
    splits = PathSplits([f"{beside}.jsonl", f"{name}.jsonl"], files=True)
    assert splits.split_of(f"{name}.jsonl") == "" and not splits.held_out


HOLDERS = {"a tar": "test.tar", "a tar below": "media/dev.tar", "a numbered tar": "val-00001-of-00002.tar"}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("others", ["train.tar::{}.png", "train/{}.png", "{}.png"])
def test_media_in_a_tar_named_after_a_split(tmp_path, holder, others):
    lines = [{"image": others.format(n), "text": f"seen {n}"} for n in range(30)]
    tar(tmp_path / holder, {"1.png": "x"})
    fill(tmp_path, {"all.jsonl": rows([*lines, {"image": f"{holder}::1.png", "text": "unseen"}])})
    assert held(tmp_path / "all.jsonl", "unseen") <= {"test", "validation"}


@pytest.mark.parametrize("empty", [("test", "validation"), ("val/images", "test/images"), ("dev",)], ids=str)
def test_folders_that_hold_nothing_hold_nothing_out(tmp_path, empty):
    """Two empty folders once made every document one of training, none of them held out."""
    fill(tmp_path, {f"train/{n}.png": b"x" for n in range(30)})
    fill(tmp_path, {"m.jsonl": rows({"file_name": f"train/{n}.png", "text": f"{n}"} for n in range(30))})
    before = [document.split for document in read(tmp_path / "m.jsonl")[0]]
    digest = open_source(tmp_path / "m.jsonl").fingerprint()
    for folder in empty:
        (tmp_path / folder).mkdir(parents=True)
    assert [document.split for document in read(tmp_path / "m.jsonl")[0]] == before
    assert set(before) == {"train", "validation", "test"}
    assert open_source(tmp_path / "m.jsonl").fingerprint() == digest


def test_a_folder_that_declares_splits_changes_the_fingerprint(tmp_path):
    """It changes the split of documents that were there before it."""
    fill(tmp_path, {"train/1.png": b"x", "m.jsonl": rows({"file_name": "train/1.png", "text": "a"} for _ in range(12))})
    digests = [open_source(tmp_path / "m.jsonl").fingerprint(media=False)]
    for name in ("validation/2.png", "test/deep/3.png"):
        fill(tmp_path, {name: b"x"})
        digests.append(open_source(tmp_path / "m.jsonl").fingerprint(media=False))
    assert len(set(digests)) == 3
