"""A corpus that is made again: the former one stays whole until the new one is, whatever happens between."""

import json
import os
import shutil

import pytest

from brine.data.cli import main as command
from brine.data.corpus import shards
from brine.data.corpus import swap as rebuild
from brine.data.corpus.store import CorpusError, EncodedCorpus, build_corpus
from brine.data.corpus.swap import CorpusLockedError, build_lock, rebuild_path, replaced_path
from brine.data.filters.filter_log import FilterLog
from brine.data.filters.registry import run_filters
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest, picture

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)


@pytest.fixture()
def material(tmp_path):
    lines = []
    for number in range(9):
        picture(tmp_path / f"s/{number}.png", 16, 16, seed=number)
        lines.append(line(f"d{number}", {"image": f"{number}.png"}, f"image {number}"))
    return manifest(tmp_path / "s", lines)


@pytest.fixture()
def build(material, tmp_path, tokenizer):
    def build(**options):
        return build_corpus(material, tmp_path / "c", tokenizer=tokenizer, num_workers=1, shard_documents=3, **options)

    return build


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def more_text(material):
    material.write_bytes(material.read_bytes() + json.dumps(line("new", "text")).encode())


def other_image(material):
    picture(material.parent / "4.png", 32, 32, seed=99)


def nothing_usable(material):
    material.write_bytes(json.dumps(line("gone", {"image": "gone.png"}, "x")).encode())


CHANGES = {"more text": more_text, "another image": other_image}


def stop_after(monkeypatch, count):
    add, seen = shards.ShardWriter.add, []

    def stopping(self, result):
        seen.append(1)
        if len(seen) > count:
            raise KeyboardInterrupt
        add(self, result)

    monkeypatch.setattr(shards.ShardWriter, "add", stopping)


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stopped_rebuild_loses_nothing_and_goes_on(build, material, tmp_path, monkeypatch, change, count, tokenizer):
    first = build()
    change(material)
    former = files_of(tmp_path / "c")
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(KeyboardInterrupt):
            build()
    assert EncodedCorpus.open(tmp_path / "c").fingerprint == first.fingerprint
    now = files_of(tmp_path / "c")
    # times of media that were looked at again may be noted
    assert {name: data for name, data in now.items() if not name.endswith("media.npy")} == {
        name: data for name, data in former.items() if not name.endswith("media.npy")
    }
    with pytest.raises(CorpusError, match="no finished corpus"):
        EncodedCorpus.open(rebuild_path(tmp_path / "c"))
    again = build()
    whole = build_corpus(material, tmp_path / "new", tokenizer=tokenizer, num_workers=1, shard_documents=3)
    assert again.fingerprint == whole.fingerprint != first.fingerprint and again.ids == whole.ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "new", "s"]


def test_a_rebuild_that_fails_loses_nothing(build, material, tmp_path):
    first = build()
    nothing_usable(material)
    for _ in range(2):
        with pytest.raises(
            CorpusError, match=r"no document of .* c\.rebuilding/quarantine\.jsonl".replace(" c", ".*c")
        ):
            build()
    assert EncodedCorpus.open(tmp_path / "c").fingerprint == first.fingerprint


def test_shards_before_the_change_are_not_encoded_again(build, material, tmp_path, monkeypatch):
    build()
    other_image(material)
    seen = []
    add = shards.ShardWriter.add
    monkeypatch.setattr(shards.ShardWriter, "add", lambda self, result: (seen.append(1), add(self, result)))
    build()
    # the image is in the second of three shards
    assert len(seen) == 6


@pytest.mark.parametrize("new_is_whole", [True, False], ids=["after", "before"])
def test_a_stop_between_the_renames_is_put_right(build, material, tmp_path, monkeypatch, new_is_whole):
    first = build()
    more_text(material)
    rename = os.rename

    def stopping(source, target):
        if str(source).endswith(".rebuilding"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(rebuild.os, "rename", stopping)
        with pytest.raises(KeyboardInterrupt):
            build()
    assert not (tmp_path / "c").exists() and replaced_path(tmp_path / "c").is_dir()
    if not new_is_whole:
        (rebuild_path(tmp_path / "c") / "meta.json").unlink()
    assert build().num_documents == first.num_documents + 1
    assert not replaced_path(tmp_path / "c").exists() and not rebuild_path(tmp_path / "c").exists()


def test_a_link_stays_one(build, material, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "c").symlink_to("disk/corpus")
    (tmp_path / "disk/corpus").mkdir()
    first = build()
    more_text(material)
    assert build().num_documents == first.num_documents + 1
    assert (tmp_path / "c").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["corpus"]


def test_what_was_left_behind_of_a_replaced_corpus_goes(build, tmp_path):
    first = build()
    shutil.copytree(tmp_path / "c", replaced_path(tmp_path / "c"))
    assert build().fingerprint == first.fingerprint and not replaced_path(tmp_path / "c").exists()


def test_filter_rounds_are_kept(build, material, tmp_path):
    corpus = build()
    run_filters(corpus, ["exact_duplicates"], num_workers=1, progress=False)
    more_text(material)
    again = build()
    assert (
        not len(FilterLog.open(again)) and (tmp_path / "c/filter_log.former/01_exact_duplicates/filter.json").is_file()
    )
    run_filters(again, ["exact_duplicates"], num_workers=1, progress=False)
    # the same documents in other shards: the rounds are good for them
    same = build_corpus(material, tmp_path / "c", tokenizer=again.tokenizer, num_workers=1, shard_documents=100)
    assert same.fingerprint == again.fingerprint and len(FilterLog.open(same)) == 1


def test_a_beginning_of_another_build_is_replaced_in_place(build, material, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            build()
    more_text(material)
    assert build().num_documents == 10 and not rebuild_path(tmp_path / "c").exists()


@pytest.mark.parametrize("state", ["new", "begun", "begun otherwise", "finished"])
def test_two_processes_do_not_build_in_one_folder(build, material, tmp_path, monkeypatch, state):
    folder = place = tmp_path / "c"
    if state.startswith("begun"):
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            with pytest.raises(KeyboardInterrupt):
                build()
    if state == "finished":
        build()
        place = rebuild_path(folder)
    if state in ("begun otherwise", "finished"):
        more_text(material)
    with build_lock(place):
        before = files_of(tmp_path)
        with pytest.raises(CorpusLockedError, match=r"another process builds a corpus in .*: wait for it"):
            build()
        assert files_of(tmp_path) == before
    build()
    assert EncodedCorpus.open(folder).num_documents


def test_what_was_begun_under_other_rules_is_begun_again(build, material, tmp_path, monkeypatch):
    """Documents come in another order then: some came twice, and those of test never."""
    with monkeypatch.context() as patch:
        patch.setattr("brine.data.corpus.store.READER_VERSION", 0)
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            build()
    added, add = [], shards.ShardWriter.add
    monkeypatch.setattr(shards.ShardWriter, "add", lambda self, result: (added.append(1), add(self, result)))
    build()
    assert len(added) == 9
    # what is whole stays
    monkeypatch.setattr("brine.data.corpus.store.READER_VERSION", 0)
    build()
    assert len(added) == 9


def test_a_folder_beside_that_is_somebody_elses_is_left_alone(build, material, tmp_path):
    build()
    (tmp_path / "c.rebuilding").mkdir()
    (tmp_path / "c.rebuilding/notes.txt").write_text("mine")
    more_text(material)
    with pytest.raises(CorpusError, match=r"c\.rebuilding holds other files"):
        build()
    assert (tmp_path / "c.rebuilding/notes.txt").read_text() == "mine"


def test_the_command_does_not_replace_the_corpus_of_another_source(tmp_path, capsys):
    for name in ("one", "two"):
        manifest(tmp_path / name, [line(f"{name}-{number}", f"text {number}") for number in range(3)])
    assert command.main(["build", str(tmp_path / "one"), str(tmp_path / "c")]) == 0
    assert command.main(["build", str(tmp_path / "two"), str(tmp_path / "c")]) == 2
    said = capsys.readouterr().err
    assert "holds the corpus of" in said and "give another folder" in said
    assert EncodedCorpus.open(tmp_path / "c").ids == ["one-0", "one-1", "one-2"]
    # the same source with other settings is made again
    assert command.main(["build", str(tmp_path / "one"), str(tmp_path / "c"), "--no-media"]) == 0


def test_a_damaged_corpus_is_replaced(build, material, tmp_path):
    build()
    (tmp_path / "c/index/kind.npy").unlink()
    more_text(material)
    assert build().num_documents == 10 and EncodedCorpus.open(tmp_path / "c").num_documents == 10


@pytest.mark.parametrize("lost", ["00001", "00002"])
def test_a_corpus_that_lacks_a_shard_does_not_read_as_whole(build, tmp_path, lost):
    build()
    shutil.rmtree(tmp_path / "c/shards" / lost)
    with pytest.raises(CorpusError, match=f"lacks shard {lost}"):
        EncodedCorpus.open(tmp_path / "c")
