"""Words of splits mean the same in a field, a file's name and a folder's name, in every form."""

import json

import pytest

from brine.data.formats.open import open_source
from brine.data.formats.splits.names import SPLITS, WORDS, declared_split, split_of_name, split_of_word
from tests.data.format_files import read
from tests.data.formats.splits.test_rules import fill, rows
from tests.data.formats.test_webdataset_names import tar
from tests.data.media_files import line, manifest

SAID = {
    "val": "validation", "Val": "validation", " VAL ": "validation", "dev": "validation", "valid": "validation",
    "eval": "validation", "evaluation": "validation", "dev_clean": "validation", "dev-other": "validation",
    "val2017": "validation", "validation_matched": "validation", "minival": "validation", "coco_val2014": "validation",
    "TEST": "test", "test-clean": "test", "testA": "test", "test_std": "test", "testing": "test", "en-test": "test",
    "train": "train", "Training": "train", "train-clean-100": "train", "trainval": "train", "restval": "train",
    "train[:90%]": "train", "held_out": "test", "Hold-Out 2": "test", "heldout": "test",
}  # fmt: skip
RECORD_FORMATS = {
    "native": lambda split: line("d", "words") | {"split": split},
    "house": lambda split: {"id": "d", "kind": "text", "path": "t.txt", "split": split},
    "words": lambda split: {"text": "words", "split": split},
    "picture": lambda split: {"file_name": "a.png", "text": "words", "split": split},
    "chat": lambda split: {"messages": [{"role": "assistant", "content": "words"}], "split": split},
    "llava": lambda split: {"conversations": [{"from": "gpt", "value": "words"}], "split": split},
    "obelics": lambda split: {"texts": ["words"], "images": [None], "split": split},
}
forms = pytest.mark.parametrize("form", RECORD_FORMATS.values(), ids=RECORD_FORMATS)


@pytest.mark.parametrize("word, split", SAID.items(), ids=lambda word: word.strip())
def test_a_word_in_a_field(word, split):
    assert split_of_word(word) == split


@forms
def test_a_field_in_each_form(tmp_path, form):
    (tmp_path / "t.txt").write_text("words")
    words = [" Val ", "dev", "eval", "Test", "training"]
    lines = [form(word) for word in words]
    for number, fields in enumerate(lines):
        fields |= {"id": f"d{number}"}
    documents, bad = read(manifest(tmp_path, lines))
    expected = ["validation", "validation", "validation", "test", "train"]
    assert not bad and [document.split for document in documents] == expected


@forms
@pytest.mark.parametrize("value", ["fold 3", "unsplit", 3, ["test"], "tests"], ids=str)
def test_a_value_that_nobody_knows_is_set_aside(tmp_path, form, value):
    (tmp_path / "t.txt").write_text("words")
    documents, (bad,) = read(manifest(tmp_path, [form(value)]))
    assert not documents and "'split'" in bad.reason and bad.line == 1


@pytest.mark.parametrize("value", [None, "", " "], ids=repr)
def test_an_empty_field_says_nothing(tmp_path, value):
    for name in ("native", "words", "chat"):
        (tmp_path / name / "test").mkdir(parents=True)
        manifest(tmp_path / name / "test", [RECORD_FORMATS[name](value)])
        (document,), bad = read(tmp_path / name)
        assert not bad and document.split == "test"


@pytest.mark.parametrize("word", sorted(WORDS))
def test_each_word_is_one_in_a_folder_a_file_and_a_field(tmp_path, word):
    lines = [{"text": f"{number}"} for number in range(3)]
    train = "fit" if WORDS[word] == "train" else "train"
    fill(tmp_path, {f"folders/{word}/metadata.jsonl": rows(lines), f"folders/{train}/metadata.jsonl": rows(lines)})
    fill(tmp_path, {f"files/{word}.jsonl": rows(lines), f"files/{train}.jsonl": rows(lines)})
    fill(tmp_path, {"fields/a.jsonl": rows([each | {"split": word} for each in lines])})
    for kind in ("folders", "files", "fields"):
        found = [document.split for document in read(tmp_path / kind)[0] if "fit" not in document.id]
        held = found if kind == "fields" else [split for split in found if split == WORDS[word]]
        assert held == [WORDS[word]] * 3 or WORDS[word] == "train"


@pytest.mark.parametrize(
    "fields, split",
    [
        ({"Split": "VAL"}, "validation"),
        ({"data_split": "test"}, "test"),
        ({"split_name": "dev_clean"}, "validation"),
        ({"subset": "Test"}, "test"),
        ({"partition": "validation"}, "validation"),
        ({"subset": "test_subset_of_birds"}, ""),
        ({"set": {"a": 1}}, ""),
        ({"is_test": True}, "test"),
        ({"is_train": 0}, "test"),
        ({"is_train": False, "is_val": True}, "validation"),
        ({"is_train": 1, "is_test": 0}, "train"),
        ({"is_test": "yes"}, "test"),
        ({"is_test": "True"}, "test"),
        ({"is_test": 1.0}, "test"),
        ({"is_train": "False"}, "test"),
        ({"is_train": " 0 "}, "test"),
        ({"is_train": "1.0"}, "train"),
        ({"in_train": "true", "is_val": "FALSE"}, "train"),
        ({"is_train": 0.0, "is_dev": "1"}, "validation"),
        ({"is_test": ""}, ""),
        ({"is_test": " ", "is_val": None, "is_train": float("nan")}, ""),
        ({"meta": {"split": "test"}}, "test"),
        ({"metadata": {"split": "of wood"}}, ""),
        ({"split": "train", "subset": "test"}, "train"),
        ({"metadata": "[null]"}, ""),
    ],
    ids=str,
)
def test_other_names_of_the_field(tmp_path, fields, split):
    assert declared_split(fields) == split
    (document,), bad = read(manifest(tmp_path, [{"text": "words"} | fields]))
    assert not bad and (not split or document.split == split)


LIKE = [
    ({"source_split": "test"}, "test"), ({"_split": "test"}, "test"), ({"train_test_split": "val"}, "validation"),
    ({"splits": ["test"]}, "test"), ({"splitName": "Dev"}, "validation"), ({"train/test split": "test"}, "test"),
    ({"image_split": "val2014"}, "validation"), ({"coco_split": "restval"}, "train"),
    ({"SplitType": "held-out"}, "test"),
    ({"meta": {"source_split": "test"}}, "test"), ({"a_split": "train", "b_split": "test"}, "test"),
    ({"data_type": "test"}, "test"), ({"datasetType": "validation"}, "validation"), ({"sample_type": "TEST"}, "test"),
    ({"fold": "fold_test"}, "test"), ({"fold": "test_fold"}, "test"), ({"_fold": "dev"}, "validation"),
    ({"subset": "test-clean"}, "test"), ({"subset": "test subset"}, "test"),
    ({"data_subset": "dev-other"}, "validation"),
    ({"usage": "PublicTest"}, "test"), ({"Usage": "Training"}, "train"), ({"mode": "test mode"}, "test"),
    ({"set": "testA"}, "test"), ({"part": "part-dev"}, "validation"), ({"isTest": True}, "test"),
    ({"IsTraining": False}, "test"), ({"is_test": "true"}, "test"), ({"is_test_set": 1}, "test"),
]  # fmt: skip


@pytest.mark.parametrize("fields, split", LIKE, ids=str)
def test_fields_like_those_of_a_split(tmp_path, fields, split):
    """They were trained on, whatever they said, and no word was lost on them."""
    assert declared_split(fields) == split
    source = open_source(manifest(tmp_path, [{"text": "words"} | fields]))
    assert [document.split for document in source.documents()] == [split]
    assert "a_split" in fields or not [line for line in source.summary_lines() if line.startswith("noted")]


NOTED = [
    {"source_split": "wood"}, {"splits": ["train", "test"]}, {"splits": {"a": "test"}}, {"split_index": 3},
    {"sentence_split": "we | test | all | of | it"}, {"_split": "train or test"}, {"subset": "test_subset_of_birds"},
    {"fold": "train, test"}, {"meta": {"a": 1}, "fold": "test or train"}, {"split": "train", "source_split": "test"},
    {"data_type": "test images of cats"}, {"source": "test"}, {"dataset": "dev"}, {"tags": ["a", "test"]},
    {"Split_": "x" * 3000},
]  # fmt: skip


@pytest.mark.parametrize("fields", NOTED, ids=lambda fields: str(fields)[:60])
def test_what_may_be_a_split_and_was_not_read_is_noted(tmp_path, fields):
    source = open_source(manifest(tmp_path, [{"text": "words"} | fields]))
    assert [document.split for document in source.documents()] == ["train"]
    key = list(fields)[-1]
    assert any(line.startswith(f"noted: field {key!r} was not read") for line in source.summary_lines())


@pytest.mark.parametrize(
    "fields",
    [
        *({"data_type": "image"}, {"subset": "physics"}, {"set": "Alpha"}, {"mode": "RGB"}, {"fold": 3}, {"phase": 2}),
        *({"subset": {"test": 1}}, {"set": "set a"}, {"source_split": None}, {"is_test": None}, {"part": "contest"}),
        *({"source": "Wikipedia"}, {"type": "test"}, {"kind": "text"}, {"data_type": ""}),
    ],
    ids=str,
)
def test_what_means_nothing_is_passed_over(tmp_path, fields):
    assert declared_split(fields) == ""
    source = open_source(manifest(tmp_path, [{"text": "words"} | fields]))
    assert [document.split for document in source.documents()] == ["train"]
    assert not [line for line in source.summary_lines() if "as a split" in line]


@pytest.mark.parametrize("value", ["perhaps", 2, 0.5, -2, "2", [1], {"a": 1}, "test"], ids=str)
@pytest.mark.parametrize("form", RECORD_FORMATS)
def test_a_flag_that_says_neither_is_set_aside(tmp_path, form, value):
    documents, (bad,) = read(manifest(tmp_path, [RECORD_FORMATS[form](None) | {"is_test": value}]))
    assert not documents and "field 'is_test' must be true, false, 0 or 1" in bad.reason


@pytest.mark.parametrize(
    "value", [10**400, float("inf"), "9" * 9999, " " * 9999 + "9", "-." * 5000, [[]]], ids=range(6)
)
def test_hostile_values_of_flags_and_subsets_end_well(value):
    assert declared_split({"subset": value, "fold": [value]}) == ""
    with pytest.raises(ValueError, match="'is_test' must be true"):
        declared_split({"is_test": value})


@pytest.mark.parametrize("name", ["is_val", "isTest", "is_train", "is_dev", "is_heldout"])
@pytest.mark.parametrize("value", ["None", "null", " NaN ", "N/A", "-", "unknown", "<NA>", -1, "-1", -1.0], ids=repr)
def test_a_flag_without_a_value_says_nothing(tmp_path, name, value):
    assert declared_split({name: value}) == ""
    assert declared_split({name: value, "is_testing": 1}) == "test"
    source = open_source(manifest(tmp_path, [{"text": "words", name: value}]))
    assert [document.split for document in source.documents()] == ["train"]
    assert any(line.startswith(f"noted: field {name!r} was not read") for line in source.summary_lines())


NO_FLAGS = {"a rank": {"is_dev": "senior"}, "a share": {"in_train": 0.7}, "a share as text": {"is_training": "0.25"},
            "a sentence": {"is_eval": "see below"}, "a state": {"is_holdout": "pending"}}  # fmt: skip


@pytest.mark.parametrize("fields", NO_FLAGS.values(), ids=NO_FLAGS)
def test_a_word_or_a_fraction_is_no_flag_and_noted(tmp_path, fields):
    (name,) = fields
    source = open_source(manifest(tmp_path, [{"text": "words"} | fields]))
    assert [document.split for document in source.documents()] == ["train"]
    assert any(line.startswith(f"noted: field {name!r} was not read") for line in source.summary_lines())


@pytest.mark.parametrize(
    "fields", [{"is_validation": "x"}, {"is_val": 0.7}, {"isTrain": "often"}, {"is_dev": 2}], ids=str
)
def test_a_flag_for_sure_is_set_aside(tmp_path, fields):
    documents, (bad,) = read(manifest(tmp_path, [{"text": "words"} | fields]))
    assert not documents and "must be true, false, 0 or 1" in bad.reason


LETTERS = ["T-test", "A/B test", "t test", "z test", "F-Test", "Test A/B", "a-b-test", "x test set"]


@pytest.mark.parametrize("field", ["subset", "fold", "data_type"])
@pytest.mark.parametrize("value", LETTERS)
def test_letters_make_another_word_of_a_split(field, value):
    assert declared_split({field: value}) == ""


@pytest.mark.parametrize("value", ["testA", "test_B", "Test-c", "test_v1", "v2_test", "test-v2-clean", "v1.1 test set"])
def test_letters_of_a_part_or_a_version_are_of_the_name(value):
    assert declared_split({"subset": value}) == "test"


@pytest.mark.parametrize(
    "name",
    ["held", "householdout", "hold outs", "tests", "testament", "devices", "trainer", "contest", "", "42", "évaluer"],
)
def test_other_words(name):
    assert split_of_name(name) == ""


def test_columns_of_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def splits(table):
        pq.write_table(table, tmp_path / "t.parquet")
        documents, bad = read(tmp_path / "t.parquet")
        return [document.split for document in documents], bad

    found, bad = splits(pa.table({"text": ["a", "b", "c", "d"], "split": [" Val", "dev", "Test", "fold"]}))
    assert found == ["validation", "validation", "test"] and "'split' must be one of" in bad[0].reason
    talk = [json.dumps([{"role": "assistant", "content": "x"}])] * 2
    assert splits(pa.table({"messages": talk, "split": ["eval", "testing"]})) == (["validation", "test"], [])
    assert splits(pa.table({"text": ["a", "b"], "is_test": [True, True]}))[0] == ["test", "test"]
    assert splits(pa.table({"text": ["a", "b"], "source_split": ["dev", "test"]}))[0] == ["validation", "test"]
    for flags in (["True", "False"], ["1", "0"], [1.0, 0.0]):
        assert splits(pa.table({"text": ["a", "b"], "is_test": flags}))[0][0] == "test"
        assert splits(pa.table({"messages": talk, "is_train": flags}))[0][1] == "test"
    # a class label, as `datasets` writes it
    names = {"split": {"names": ["train", "dev", "test"], "_type": "ClassLabel"}}
    for column in ("split", "_split", "data_type"):
        marked = pa.table({"text": ["a", "b", "c"], column: [0, 1, 2]})
        features = {"info": {"features": {column: names["split"]}}}
        marked = marked.replace_schema_metadata({"huggingface": json.dumps(features)})
        assert splits(marked) == (["train", "validation", "test"], [])


def test_a_sample_of_a_tar(tmp_path):
    members = [(f"{n}.json", json.dumps(RECORD_FORMATS["chat"](n) | {"split": n})) for n in ("val", "Test", "train")]
    tar(tmp_path / "s.tar", members)
    assert [document.split for document in read(tmp_path / "s.tar")[0]] == ["validation", "test", "train"]


def test_media_in_a_tar_below_a_folder_of_a_split(tmp_path):
    """`odd::name` is a folder's own name; only a container's address is cut."""
    lines = [{"file_name": f"{folder}/s::1/{n}.png", "text": "x"} for folder in ("train", "test") for n in range(3)]
    fill(tmp_path, {"all.jsonl": rows(lines)} | {f"{folder}/s::1/0.png": b"x" for folder in ("train", "test")})
    assert [document.split for document in read(tmp_path)[0]] == ["train"] * 3 + ["test"] * 3
    lines = [{"file_name": f"{folder}/s.tar::val/{n}.png", "text": "x"} for folder in ("a", "test") for n in range(3)]
    fill(tmp_path, {"all.jsonl": rows(lines), "a/s.tar": b""})
    found = [document.split for document in read(tmp_path)[0]]
    assert found[3:] == ["test"] * 3 and set(SPLITS) >= set(found)
