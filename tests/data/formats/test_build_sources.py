"""`brine data build FOLDER --sources`: one corpus of several sources, as a run joins them."""

import json

import pytest

from brine.data.cli.main import main
from brine.data.corpus.store import EncodedCorpus
from brine.data.packing.mixture import Mixture
from brine.data.packing.plan import PackingPlan
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest


@pytest.fixture
def given(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
    for name in ("wiki", "own"):
        lines = [line(f"{name}{number}", f"page {number} of {name}", split="train") for number in range(20)]
        manifest(tmp_path / name, lines)
    return [f"wiki={tmp_path}/wiki,consent=public", f"own={tmp_path}/own,consent=user-evaluate"]


def test_sources_become_one_corpus(given, tmp_path, capsys):
    folder = tmp_path / "corpus"
    assert main(["build", str(folder), "--vocab-size", "280", "--workers", "1", "--sources", *given]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    corpus = EncodedCorpus.open(folder)
    # what may not be trained on is held out
    assert found["splits"] == {"train": 20, "test": 20} and len(corpus) == 40
    assert corpus.consent_classes == {"wiki": "public", "own": "user-evaluate"}
    assert sorted({source.partition(":")[0] for source in corpus.sources}) == ["own", "wiki"]
    # a weight in training, by the source's name
    mixture = Mixture.parse(("source:wiki=2",))
    assert len(PackingPlan.build(corpus, seq_len=64, num_sequences=4, mixture=mixture)) == 4
    # the same command opens it
    before = (folder / "meta.json").read_bytes()
    assert main(["build", str(folder), "--vocab-size", "280", "--workers", "1", "--sources", *given]) == 0
    assert (folder / "meta.json").read_bytes() == before


def test_what_cannot_be_built_is_one_sentence(given, tmp_path, capsys):
    folder = str(tmp_path / "corpus")
    for arguments, said in (
        ([folder], "build needs PATH and FOLDER, or FOLDER and --sources"),
        ([folder, folder, "--sources", *given], "takes the place of PATH"),
        ([folder, "--format", "text", "--sources", *given], "takes the place of PATH"),
        ([folder, "--sources", f"{given[0]},weight=2"], "--packing.mixture source:wiki=2"),
        ([folder, "--sources", given[0], given[0]], "the name 'wiki' comes twice"),
        ([folder, "--sources", "synth", given[0]], "give its manifest, synth=PATH"),
        ([folder, "--sources", given[1]], "no source is left to train on"),
        ([folder, "--sources", "plain"], "must read NAME=PATH"),
        ([folder, "--sources", f"gone={tmp_path}/gone"], "source gone: "),
    ):
        assert main(["build", *arguments]) == 2, arguments
        text = capsys.readouterr().err
        assert said in text and text.count("\n") == 1 and not (tmp_path / "corpus").exists(), (arguments, text)
