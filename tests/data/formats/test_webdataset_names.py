"""Which members of a tar are one sample: dots in names, endings of several parts, capitals, folders, repetitions."""

import io
import tarfile

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import media, read, texts
from tests.data.media_files import picture


def tar(path, members) -> None:
    """A tar of (name, text or bytes), names as they are given, repeated ones too."""
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data.encode() if isinstance(data, str) else data))


def samples(tmp_path, names) -> tuple[dict, list, dict]:
    """(id -> (words, members), what was set aside, what was counted) of a tar whose texts hold their own names."""
    tar(tmp_path / "s.tar", [(name, name) for name in names])
    documents, bad = read(tmp_path / "s.tar")
    source = open_source(tmp_path / "s.tar")
    list(source.documents())
    found = {d.id: (texts(d), [path.partition("::")[2] for _, path in media(d)]) for d in documents}
    return found, bad, dict(source.skipped)


APART = {
    "numbers with a point": ["22.05.png", "22.05.txt", "22.06.png", "22.06.txt"],
    "a point and spaces": ["Track 2.0 (Clean).mp3", "Track 2.0 (Clean).txt", "Track 2.1.mp3", "Track 2.1.txt"],
    "versions": ["app-1.10.2.png", "app-1.10.2.caption", "app-1.10.3.png", "app-1.10.3.caption"],
    "dates": ["2024.01.02.wav", "2024.01.02.txt", "2024.01.03.wav", "2024.01.03.txt"],
    "capitals": ["A.1.JPG", "A.1.TXT", "A.2.Png", "A.2.Txt"],
    "folders with dots": ["v1.0/a.b/1.png", "v1.0/a.b/1.txt", "v1.0/a.c/1.png", "v1.0/a.c/1.txt"],
    "one number begins the other": ["1.png", "1.txt", "1.5.png", "1.5.txt"],
    "not beside each other": ["a.1.png", "a.2.txt", "a.1.txt", "a.2.png"],
    "a leading ./": ["./x.1.png", "./x.1.txt", "./d/x.2.png", "d/x.2.txt"],
    "media that are not read yet named alike": ["e.1.png", "e.1.txt", "e.2.flac", "e.2.txt"],
}


@pytest.mark.parametrize("names", APART.values(), ids=APART)
def test_samples_stay_apart_and_keep_their_words(tmp_path, names):
    found, bad, skipped = samples(tmp_path, names)
    assert not bad and not skipped and len(found) == 2
    clean = [name.removeprefix("./") for name in names]
    for words, (member,) in found.values():
        # the words are the name of the text, which is the medium's but for its ending
        assert words.removeprefix("./").rpartition(".")[0] == member.rpartition(".")[0]
        assert words.removeprefix("./") in clean and member in clean


TOGETHER = {
    "views": (["a.left.jpg", "a.right.jpg", "a.txt"], "a", 2),
    "a map beside": (["a.png", "a.seg.png", "a.txt"], "a", 2),
    "words of two parts": (["a.png", "a.caption.txt"], "a", 1),
    "capitals": (["b.LEFT.JPG", "b.TXT"], "b", 1),
    "dots in the name and views": (["v1.2.left.png", "v1.2.right.png", "v1.2.txt", "v1.2.png"], "v1.2", 3),
    "an array beside": (["c/a.png", "c/a.depth.npy", "c/a.txt"], "c/a", 1),
}


@pytest.mark.parametrize("names, sample, num_media", TOGETHER.values(), ids=TOGETHER)
def test_endings_of_several_parts_are_one_sample(tmp_path, names, sample, num_media):
    found, bad, skipped = samples(tmp_path, names)
    assert not bad and list(found) == [sample] and len(found[sample][1]) == num_media
    assert any("are one sample" in reason for reason in skipped) == (num_media > 1)


def test_views_of_samples_with_dots(tmp_path):
    found, bad, _ = samples(tmp_path, [f"1.{n}.{e}" for n in (5, 6) for e in ("left.png", "right.png", "txt")])
    assert not bad and found == {
        f"1.{n}": (f"1.{n}.txt", [f"1.{n}.left.png", f"1.{n}.right.png"]) for n in (5, 6)
    }  # fmt: skip


LOST = {
    "words of one are missing": (["22.05.png", "22.05.txt", "22.06.png"], ["22.06"], []),
    "media of one are missing": (["22.05.png", "22.05.txt", "22.06.txt"], [], ["22.06"]),
    "words in two languages": (["a.png", "a.txt", "a.de.txt"], [], []),
    "two languages and no plain words": (["a.png", "a.en.txt", "a.de.txt"], [], []),
    "hidden files": (["._a.png", "._a.txt", ".DS_Store", "a.png", "a.txt"], [], []),
    "no ending": (["a.png", "a.txt", "README"], [], []),
}


@pytest.mark.parametrize("names, aside, texts_alone", LOST.values(), ids=LOST)
def test_what_is_lost_is_named(tmp_path, names, aside, texts_alone):
    found, bad, skipped = samples(tmp_path, names)
    assert [item.id for item in bad] == aside
    assert [name for name, (_, members) in found.items() if not members] == texts_alone
    used = sum(len(members) + 1 for _, members in found.values())
    assert used + len(bad) + sum(skipped.values()) == len(names)


def test_texts_alone_stay_apart(tmp_path):
    found, bad, _ = samples(tmp_path, ["22.05.txt", "22.06.txt", "3.txt"])
    assert not bad and sorted(found) == ["22.05", "22.06", "3"]


@pytest.mark.parametrize("times", [2, 3])
def test_of_members_of_one_name_the_first_is_read_and_the_others_named(tmp_path, times):
    """The whole sample was set aside once, and a third one of the name came out of no record at all."""
    members = [(name, f"{name} {number}") for number in range(times) for name in ("1.png", "1.txt")]
    tar(tmp_path / "s.tar", [*members, ("2.png", "x"), ("2.txt", "two")])
    documents, bad = read(tmp_path / "s.tar")
    assert [(d.id, texts(d)) for d in documents] == [("1", "1.txt 0"), ("2", "two")]
    assert len(bad) == 2 * (times - 1) == len({item.id for item in bad})
    assert all("name of an earlier member" in item.reason for item in bad)


def test_a_medium_that_is_not_read_makes_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr("brine.data.files.extensions.UNSUPPORTED", {"zzv": "convert to MP4", "zza": "convert to FLAC"})
    picture(tmp_path / "p.png", 8, 8)
    found, bad, skipped = samples(tmp_path, ["a.ZZV", "a.txt", "b.1.zza", "b.1.txt", "c.png", "c.zza", "c.txt"])
    assert {item.id: item.reason.rpartition(": ")[2] for item in bad} == {
        "a": "convert to MP4",
        "b.1": "convert to FLAC",
    }
    assert list(found) == ["c"] and skipped == {"media file .zza: convert to FLAC": 1}
