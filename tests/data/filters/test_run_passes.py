"""`brine data plan|filter RUN/encoded/store`: the run's own passes, none in a corpus that runs share."""

import json
import os
from pathlib import Path

import pytest

from brine.common.content_store import ContentStore, store_key
from brine.data.cli.main import main
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.filters.registry import run_filters
from brine.data.tokenizer import train_tokenizer
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Two runs that share a corpus of ten documents; one filters it, the other does not."""
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
    lines = [line(f"{number}", f"document number {number % 7} says so", kind="text") for number in range(10)]
    source, tokenizer = manifest(tmp_path / "m", lines), train_tokenizer(["document number says so"], 280)
    content = ContentStore(tmp_path / "runs/.store")
    stage = content.get_or_build(
        "encoded", store_key({}, {}, revision=1), lambda folder: build_corpus(source, folder / "store",
        tokenizer=tokenizer) and None,
    )  # fmt: skip
    for name in ("plain", "filtered"):
        run = tmp_path / "runs" / name
        run.mkdir()
        os.symlink(os.path.relpath(stage, run), run / "encoded")
    run_filters(EncodedCorpus.open(stage / "store"), ["exact_duplicates"], folder=run / "filtered/filter_log")
    return tmp_path / "runs"


def planned(run: Path, capsys, *options: str) -> tuple[int, str]:
    assert main(["plan", str(run / "encoded/store"), "--seq-len", "64", *options]) == 0
    text = capsys.readouterr().out
    return json.loads(text.splitlines()[-1])["documents"], text


def test_a_plan_takes_the_run_s_own_passes(runs, capsys):
    """It planned what the filters had left out."""
    found, text = planned(runs / "filtered", capsys)
    assert found == 7 and "filters: exact_duplicates, by which 7 of 10 documents are kept" in text
    assert planned(runs / "plain", capsys)[0] == 10
    assert main(["filter", str(runs / "filtered/encoded/store")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["dropped"] == {"exact_duplicates": 3}


def test_what_a_plan_leaves_out_of_the_run_is_said(runs, capsys):
    recipe = {
        "corpus": {"filters": ["exact_duplicates"], "sources": [{"name": "a", "weight": 2.0}]},
        "packing": {"seq_len": 32, "image_budget": 8, "audio_budget": None, "mixture": ["kind:text=2"]},
        "salt": {"selection": True},
    }
    (runs / "plain/recipe.json").write_text(json.dumps(recipe))
    text = planned(runs / "plain", capsys)[1]
    assert "not applied: the run's filters (exact_duplicates), which have not been through yet" in text
    assert "packing.mixture and the weights of corpus.sources and salt.selection" in text
    assert "the run itself packs with --seq-len 32 --image-budget 8" in text
    (runs / "plain/recipe.json").write_text(json.dumps({"packing": {"seq_len": 64, "image_budget": 8}}))
    text = planned(runs / "plain", capsys, "--image-budget", "8")[1]
    assert "not applied" not in text and "packs with" not in text


@pytest.mark.parametrize("arguments", [["exact_duplicates"], ["--undo", "1"]], ids=["add", "undo"])
def test_no_pass_is_written_into_a_shared_corpus(runs, capsys, arguments):
    """Other runs link to it."""
    for name, said in (("plain", "runs share"), ("filtered", "has the filter passes of its run")):
        assert main(["filter", str(runs / name / "encoded/store"), *arguments]) == 2
        assert said in capsys.readouterr().err
    stored = (runs / "plain/encoded").resolve() / "store"
    assert main(["filter", str(stored), *arguments]) == 2
    assert not (stored / "filter_log").exists() and (runs / "filtered/filtered/filter_log/01_exact_duplicates").is_dir()
