"""Lists of words and folders of classes: the refusal names them, and the command that it tells is followed."""

import pytest
from test_data_beside_tables import follow, pairs, put

from data.formats import open_source

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
def test_a_list_of_words(tmp_path, monkeypatch, files, wanted):
    """Of a list that lay there it was said that files such as this "have names of none"."""
    root = put(tmp_path / "set", files)
    assert "has its words in '" in follow(root, monkeypatch)
    assert pairs(root) == wanted


CLASSES = {
    "images": ({"cat/1.jpg": "", "dog/1.jpg": "", "dog/2.jpg": ""}, ["cat", "dog", "dog"]),
    "splits": ({"train/cat/1.jpg": "", "train/dog/1.png": "", "test/cat/1.jpg": ""}, ["cat", "cat", "dog"]),
    "sounds": ({"yes/a.wav": "", "no/a.wav": "", "README.md": "# card"}, ["no", "yes"]),
}


@pytest.mark.parametrize("files, wanted", CLASSES.values(), ids=CLASSES)
def test_folders_of_classes(tmp_path, monkeypatch, files, wanted):
    root = put(tmp_path / "set", files)
    assert "if the names of their folders (" in follow(root, monkeypatch)
    assert sorted(words for _, words in pairs(root)) == wanted


OTHERS = {
    "splits": {"images/train/1.jpg": "", "images/val/2.jpg": "", "images/val/3.jpg": ""},
    "one folder": {"cat/1.jpg": "", "cat/2.jpg": ""},
    "on top": {"1.jpg": "", "2.jpg": "", "notes.txt": "what I did\nyesterday\n"},
    "a list of names": {"img/10.jpg": "", "img/11.jpg": "", "all.txt": "10.jpg\n11.jpg\n"},
    "few names": {"1.jpg": "", "2.jpg": "", "notes.txt": "1 thing\nwas left\nto do\nand no more\nof it\n"},
    "a binary": {"img/10.jpg": "", "all.txt": "\0\0 10.jpg\n"},
}


@pytest.mark.parametrize("files", OTHERS.values(), ids=OTHERS)
def test_no_command_where_there_are_no_words(tmp_path, files):
    assert "`python" not in refused(put(tmp_path, files))


def test_a_name_cannot_run_in_the_command(tmp_path, monkeypatch):
    """A file's name stands in a program that a person runs."""
    evil = '.x"+open(chr(1))+"[a].txt'
    files = {"a/u1.wav": "", "b/u2.wav": "", f"a/a{evil}": "u1 one two\n", f"b/b{evil}": "u2 three\n"}
    root = put(tmp_path / "set", files)
    follow(root, monkeypatch)
    assert pairs(root) == [("a/u1.wav", "one two"), ("b/u2.wav", "three")]


def refused(path) -> str:
    with pytest.raises(ValueError) as caught:
        open_source(path)
    return str(caught.value)
