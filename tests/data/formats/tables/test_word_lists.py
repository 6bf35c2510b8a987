"""Lists of words and folders of classes: the refusal names them, and the command that it tells is followed."""

import pytest

from brine.data.formats.open import open_source
from tests.data.formats.tables.test_beside_tables import coco, follow, pairs, put

LISTS = {
    "LibriSpeech": (
        {"LS/dev-clean/84/1/84-1-0.flac": "", "LS/dev-clean/84/1/84-1-1.flac": "", "LS/dev-clean/85/2/85-2-0.flac": "",
         "LS/dev-clean/84/1/84-1.trans.txt": "84-1-0 GO DO\n84-1-1 YOU HEAR\n",
         "LS/dev-clean/85/2/85-2.trans.txt": "85-2-0 YES\n", "LS/README.TXT": "x", "LS/SPEAKERS.TXT": "84 | F\n"},
        [("LS/dev-clean/84/1/84-1-0.flac", "GO DO"), ("LS/dev-clean/84/1/84-1-1.flac", "YOU HEAR"),
         ("LS/dev-clean/85/2/85-2-0.flac", "YES")],
    ),
    "one of them": (
        {"84-1-0.flac": "", "84-1-1.flac": "", "84-1.trans.txt": "84-1-0 GO DO\n84-1-1 YOU HEAR\n"},
        [("84-1-0.flac", "GO DO"), ("84-1-1.flac", "YOU HEAR")],
    ),
    "Kaldi": (
        {"wav/u1.wav": "", "wav/u2.wav": "", "data/text": "u1 one two\nu2 three\n"},
        [("wav/u1.wav", "one two"), ("wav/u2.wav", "three")],
    ),
    "MLS": (
        {"audio/48/10/48_10_0.flac": "", "audio/49/11/49_11_0.flac": "",
         "transcripts.txt": "48_10_0\tein wort\n49_11_0\tund zwei\n"},
        [("audio/48/10/48_10_0.flac", "ein wort"), ("audio/49/11/49_11_0.flac", "und zwei")],
    ),
    "Flickr8k": (
        {"Images/0.jpg": "", "Images/1.jpg": "", "captions.txt": 'image,caption\n0.jpg,A child\n1.jpg,"A dog, wet"\n'},
        [("Images/0.jpg", "A child"), ("Images/1.jpg", "A dog, wet")],
    ),
    "Flickr8k, numbered": (
        {"Flicker8k/10.jpg": "", "Flicker8k/11.jpg": "",
         "Flickr8k.token.txt": "10.jpg#0\tA child .\n10.jpg#1\tA girl .\n11.jpg#0\tA dog .\n"},
        [("Flicker8k/10.jpg", "A child ."), ("Flicker8k/10.jpg", "A girl ."), ("Flicker8k/11.jpg", "A dog .")],
    ),
    "names with endings and spaces": (
        {"img/10.jpg": "", "img/11.jpg": "", "labels.lst": "10.jpg a wren\n11.jpg a heron\n"},
        [("img/10.jpg", "a wren"), ("img/11.jpg", "a heron")],
    ),
    "bars": (
        {"wavs/10.wav": "", "wavs/11.wav": "", "filelists/all.txt": "wavs/10.wav|one, two\nwavs/11.wav|three, four\n"},
        [("wavs/10.wav", "one, two"), ("wavs/11.wav", "three, four")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("files, wanted", LISTS.values(), ids=LISTS)
def test_a_list_of_words(tmp_path, files, wanted):
    """Of a list that lay there it was said that files such as this "have names of none"."""
    root = put(tmp_path / "set", files)
    assert "has its text in '" in follow(root)
    assert pairs(root) == wanted


SPLIT_LISTS = {
    "Kaldi, beside": (
        {"train/text": "a HELLO\nb BYE\n", "train/a.wav": "", "train/b.wav": "", "test/text": "c YO\n",
         "test/c.wav": ""},
        {"train": ["HELLO", "BYE"], "test": ["YO"]},
    ),
    "Kaldi": (
        {"data/train/text": "u1 HELLO\n", "data/train/wav.scp": "u1 wav/u1.wav\n", "data/train/utt2spk": "u1 s1\n",
         "data/test/text": "u2 YO\n", "data/test/wav.scp": "u2 wav/u2.wav\n", "data/test/segments": "u2 u2 0.0 0.1\n",
         "data/dev/text": "u3 NO WAY\n", "data/dev/feats.scp": "u3 raw.ark:3\n",
         "wav/u1.wav": "", "wav/u2.wav": "", "wav/u3.wav": ""},
        {"train": ["HELLO"], "test": ["YO"], "validation": ["NO WAY"]},
    ),
    "Kaldi of several parts": (
        {"data/train_a/text": "u1 HELLO\n", "data/train_b/text": "u2 BYE\n", "data/test_other/text": "u3 YO\n",
         "wav/s1/u1.wav": "", "wav/s2/u2.wav": "", "wav/s3/u3.wav": ""},
        {"train": ["HELLO", "BYE"], "test": ["YO"]},
    ),
    "LibriSpeech": (
        {"LS/train-clean-100/84/1/1.wav": "", "LS/train-clean-100/84/1/84-1.trans.txt": "1 GO DO\n",
         "LS/test-clean/85/2/2.wav": "", "LS/test-clean/85/2/85-2.trans.txt": "2 YES\n"},
        {"train": ["GO DO"], "test": ["YES"]},
    ),
    "LibriSpeech, many": (
        {f"LS/{'dev' if n % 2 else 'train'}-clean/{n}/{n}.{end}": "" if end == "wav" else f"{n} WORDS {n}\n"
         for n in range(10) for end in ("wav", "trans.txt")},
        {"train": [f"WORDS {n}" for n in (0, 2, 4, 6, 8)], "validation": [f"WORDS {n}" for n in (1, 3, 5, 7, 9)]},
    ),
    "captions beside": (
        {"train.txt": "1.png a cat\n2.png a dog\n", "test.txt": "3.png a cow\n", "1.png": "", "2.png": "", "3.png": ""},
        {"train": ["a cat", "a dog"], "test": ["a cow"]},
    ),
    "captions, words in their names": (
        {"captions_train.txt": "img/1.png a cat\n", "captions_val.txt": "img/3.png a cow\n", "notes.txt": "1 thing\n",
         "img/1.png": "", "img/3.png": ""},
        {"train": ["a cat"], "validation": ["a cow"]},
    ),
    "captions, one without such a word": (
        {"captions.lst": "img/1.png a cat\n", "captions_test.lst": "img/3.png a cow\n", "img/1.png": "",
         "img/3.png": ""},
        {"train": ["a cat"], "test": ["a cow"]},
    ),
    "the same names in each split": (
        {"train/labels.txt": "a/1 a cat\nb/1 a dog\n", "train/images/a/1.png": "", "train/images/b/1.png": "",
         "test/labels.txt": "a/1 a cow\n", "test/images/a/1.png": ""},
        {"train": ["a cat", "a dog"], "test": ["a cow"]},
    ),
    "single lines with a comma": (
        {"train.txt": "img/1.png a cat, wet\n", "test.txt": "img/3.png a cow, a dog | a hen\n", "img/1.png": "",
         "img/3.png": ""},
        {"train": ["a cat, wet"], "test": ["a cow, a dog | a hen"]},
    ),
    "a letter that is in the ending too": (
        {"train/text": "w ONE\n", "train/w.wav": "", "val/text": "v TWO\n", "val/v.wav": ""},
        {"train": ["ONE"], "validation": ["TWO"]},
    ),
    "many": (
        {f"p{n}/{split}.{end}": "" if end == "png" else f"{split}.png words of {split} {n}\n"
         for n in range(9) for split in ("train", "val") for end in ("png", "lst")},
        {"train": [f"words of train {n}" for n in range(9)], "validation": [f"words of val {n}" for n in range(9)]},
    ),
    "many without an ending": (
        {f"{split}/{n}/list{n}{end}": "" if end else f"list{n} WORDS OF {n}\n"
         for n, split in enumerate(("train", "test") * 5) for end in ("", ".wav")},
        {"train": [f"WORDS OF {n}" for n in range(0, 10, 2)], "test": [f"WORDS OF {n}" for n in range(1, 10, 2)]},
    ),
    "many, above": (
        {f"{split}_{n}/text": f"{split}_{n} WORDS OF {n}\n" for n in range(9) for split in ("dev", "train")}
        | {f"wav/{split}_{n}.wav": "" for n in range(9) for split in ("dev", "train")},
        {"train": [f"WORDS OF {n}" for n in range(9)], "validation": [f"WORDS OF {n}" for n in range(9)]},
    ),
    "what is held out alone": (
        {"data/test/text": "u1 HELLO\nu2 YO\n", "wav/u1.wav": "", "wav/u2.wav": ""}, {"test": ["HELLO", "YO"]},
    ),
    "tables with headers": (
        {"train/captions.txt": "image,caption\na.png,a red cat\nb.png,two dogs\n", "train/a.png": "",
         "train/b.png": "", "test/captions.txt": "image,caption\nc.png,a cow\n", "test/c.png": ""},
        {"train": ["a red cat", "two dogs"], "test": ["a cow"]},
    ),
    "bars": (
        {"wavs/10.wav": "", "wavs/11.wav": "", "filelists/train.txt": "wavs/10.wav|one, two\n",
         "filelists/val.txt": "wavs/11.wav|three, four\n"},
        {"train": ["one, two"], "validation": ["three, four"]},
    ),
    "MLS": (
        {"train/audio/48/48_0.wav": "", "train/transcripts.txt": "48_0\tein wort\n",
         "dev/audio/49/49_0.wav": "", "dev/transcripts.txt": "49_0\tund zwei\n"},
        {"train": ["ein wort"], "validation": ["und zwei"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("files, wanted", SPLIT_LISTS.values(), ids=SPLIT_LISTS)
def test_lists_of_several_splits_keep_them(tmp_path, files, wanted):
    """Of Kaldi's test/text and train/text the first alone was joined into a metadata.jsonl, and trained on."""
    root = put(tmp_path / "set", files)
    follow(root)
    assert pairs(root)
    found: dict[str, list[str]] = {}
    source = open_source(root)
    for document in source.documents():
        found.setdefault(str(document.split), []).append(document.parts[-1].text)
    assert "NOT READ" not in " ".join(source.summary_lines())
    assert {split: sorted(words) for split, words in found.items()} == {s: sorted(words) for s, words in wanted.items()}


def test_all_lists_of_many_are_converted(tmp_path):
    files = {f"train_{n}/text": f"a{n} WORDS OF {n}\n" for n in range(25)} | {f"wav/a{n}.wav": "" for n in range(25)}
    assert ", ..., lines of a name and text" in follow(put(tmp_path, files))
    (made,) = tmp_path.glob("*.jsonl")
    assert len(made.read_text().splitlines()) == 25


BELOW_SPLITS = {
    "a table": {"test/labels.csv": "image,text\na.png,a wren\n"},
    "a table, deep": {"test/annotations/labels.csv": "image,text\na.png,a wren\n"},
    "tables of one name": {f"ann/{split}/v1/labels.csv": "image,text\na.png,a wren\n" for split in ("test", "train")},
    "lists with tabs": {"data/test/ann/words.txt": "img/a\ta wren\n"},
    "a word further on": {"my_test/labels.csv": "image,text\na.png,a wren\n"},
    "COCO": {"test/ann/c.json": coco(a="a wren")},
    "COCO, one of several": {f"captions_{split}.json": coco(a="a wren") for split in ("test", "train")},
}  # fmt: skip


@pytest.mark.parametrize("files", BELOW_SPLITS.values(), ids=BELOW_SPLITS)
def test_what_lies_below_a_split_keeps_it_above(tmp_path, files):
    """Of test/labels.csv, whose images lie in img/, a metadata.jsonl was written on top, and trained on."""
    image = "img/a.jpg" if next(iter(files)).endswith(".json") else "img/a.png"
    root = put(tmp_path / "set", files | {image: ""})
    follow(root)
    assert pairs(root) == [(image, "a wren")]
    source = open_source(root)
    assert [document.split for document in source.documents()] == ["test"]
    assert next(iter(files)) not in " ".join(line for line in source.summary_lines() if line.startswith("NOT READ"))


def test_words_that_nobody_reads_are_told_beside_others(tmp_path):
    """A list of other media is still said to be lost."""
    lines = '{"file_name": "a.png", "text": "x"}\n'
    files = {"test/text": "b a cow\nc a dog\n", "test/words.txt": "a is\nno list\nof it\n"}
    source = open_source(put(tmp_path, files | {"train.jsonl": lines, "a.png": ""}))
    assert list(source.documents())
    lost = " ".join(line for line in source.summary_lines() if line.startswith("NOT READ"))
    assert "test/text" in lost and "test/words.txt" in lost


def test_a_name_of_a_split_cannot_run_in_the_command(tmp_path):
    evil = '\'"+open(chr(1))+"\\n'
    files = {f"{split} {evil}/text": f"{name} TWO WORDS\n" for split, name in (("train", "u1"), ("test", "u2"))}
    root = put(tmp_path / "set", files | {"wav/u1.wav": "", "wav/u2.wav": ""})
    follow(root)
    assert pairs(root) == [("wav/u1.wav", "TWO WORDS"), ("wav/u2.wav", "TWO WORDS")]
    assert sorted(document.split for document in open_source(root).documents()) == ["test", "train"]


CLASSES = {
    "images": ({"cat/1.jpg": "", "dog/1.jpg": "", "dog/2.jpg": ""}, ["cat", "dog", "dog"]),
    "splits": ({"train/cat/1.jpg": "", "train/dog/1.png": "", "test/cat/1.jpg": ""}, ["cat", "cat", "dog"]),
    "sounds": ({"yes/a.wav": "", "no/a.wav": "", "README.md": "# card"}, ["no", "yes"]),
}


@pytest.mark.parametrize("files, wanted", CLASSES.values(), ids=CLASSES)
def test_folders_of_classes(tmp_path, files, wanted):
    root = put(tmp_path / "set", files)
    assert "if the names of their folders (" in follow(root)
    assert sorted(words for _, words in pairs(root)) == wanted


OTHERS = {
    "splits": {"images/train/1.jpg": "", "images/val/2.jpg": "", "images/val/3.jpg": ""},
    "one folder": {"cat/1.jpg": "", "cat/2.jpg": ""},
    "on top": {"1.jpg": "", "2.jpg": "", "notes.txt": "what I did\nyesterday\n"},
    "a list of names": {"img/10.jpg": "", "img/11.jpg": "", "all.txt": "10.jpg\n11.jpg\n"},
    "few names": {"1.jpg": "", "2.jpg": "", "notes.txt": "1 thing\nwas left\nto do\nand no more\nof it\n"},
    "numbers of classes": {"img/10.jpg": "", "img/11.jpg": "", "trainlist01.txt": "10.jpg 1\n11.jpg 2\n"},
    "Kaldi without words": {
        "a/u1.wav": "",
        "utt2spk": "u1 s1\n",
        "wav.scp": "u1 a/u1.wav\n",
        "segments": "u1 u1 x y\n",
    },
    "a binary": {"img/10.jpg": "", "all.txt": "\0\0 10.jpg\n"},
}


@pytest.mark.parametrize("files", OTHERS.values(), ids=OTHERS)
def test_no_command_where_there_are_no_words(tmp_path, files):
    assert "data convert" not in refused(put(tmp_path, files))


def test_a_name_cannot_run_in_the_command(tmp_path):
    """A file's name stands in a program that a person runs."""
    evil = '.x"+open(chr(1))+"[a].txt'
    files = {"a/u1.wav": "", "b/u2.wav": "", f"a/a{evil}": "u1 one two\n", f"b/b{evil}": "u2 three\n"}
    root = put(tmp_path / "set", files)
    follow(root)
    assert pairs(root) == [("a/u1.wav", "one two"), ("b/u2.wav", "three")]


def refused(path) -> str:
    with pytest.raises(ValueError) as caught:
        open_source(path)
    return str(caught.value)
