"""Documents that change between the making of a stage's key and their encoding never end under that key."""

import dataclasses
from pathlib import Path

import pytest

from brine.data.corpus.store import EncodedCorpus
from brine.data.formats.corpus_source import CorpusSource
from brine.pipeline import corpus as corpus_stage
from brine.pipeline import run as train
from brine.pipeline import train_stage
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest, picture
from tests.pipeline.test_sources import asked

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_but_encoding(monkeypatch):
    monkeypatch.setattr(train.evaluate_stage, "report", lambda run: None)
    monkeypatch.setattr(train_stage, "train_model", lambda run, name, selected: None)
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)


def documents(root: Path, *, word: str = "picture") -> Path:
    lines = []
    for number in range(8):
        picture(root / f"m/{number}.png", 32, 16, seed=number)
        split = "validation" if number == 0 else "train"
        lines.append(line(f"d{number}", {"image": f"m/{number}.png"}, f"{word} {number}", split=split))
    return manifest(root, lines)


def change_medium(root: Path) -> None:
    picture(root / "m/5.png", 32, 16, seed=50)


def change_words(root: Path) -> None:
    path = root / "manifest.jsonl"
    path.write_text(path.read_text().replace("picture 3", "another 3"))


def before_encoding(patch, change) -> None:
    """Once the key is made, before any document is read."""
    real = corpus_stage.train_tokenizer
    patch.setattr(corpus_stage, "train_tokenizer", lambda *args: (change(), real(*args))[1])


def while_decoding(patch, change) -> None:
    """Once the file was looked at and hashed, before it is decoded."""

    class Changing(Here):
        def encode(self, documents):
            documents = list(documents)
            change()
            yield from super().encode(documents)

    patch.setattr("brine.data.corpus.fill_shards.DecodePool", Changing)


def content(run: Path) -> list[int]:
    return EncodedCorpus.open(run / "encoded/store").checksums.tolist()


@pytest.mark.parametrize("several", [False, True], ids=["manifest", "sources"])
@pytest.mark.parametrize("moment", [before_encoding, while_decoding], ids=["before", "while"])
@pytest.mark.parametrize(
    ("change", "named"),
    [(change_medium, r"m/5\.png changed while"), (change_words, "the text or the list of files changed while")],
    ids=["medium", "words"],
)
def test_what_changes_meanwhile_is_never_found_under_the_former_key(
    tmp_path, monkeypatch, moment, change, named, several
):
    runs, path = tmp_path / "runs", documents(tmp_path / "docs")
    where = {"sources": (CorpusSource("own", path),)} if several else {"manifest": path}
    recipe = asked(**where)
    with monkeypatch.context() as patch:
        moment(patch, lambda: change(tmp_path / "docs"))
        with pytest.raises(ValueError, match=named) as error:
            train.run_pipeline(recipe, runs=runs)
        assert "\n" not in str(error.value)
    assert not list((runs / ".store/encoded").glob("*/done"))
    changed = train.run_pipeline(recipe, runs=runs)
    # as it was at first, under the first key
    documents(tmp_path / "docs")
    former = train.run_pipeline(dataclasses.replace(recipe, name="former"), runs=runs)
    fresh = train.run_pipeline(dataclasses.replace(recipe, name="fresh"), runs=tmp_path / "fresh")
    assert content(former) == content(fresh) != content(changed)
    assert len(list((runs / ".store/encoded").glob("*/done"))) == 2
