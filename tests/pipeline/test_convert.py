"""`brine convert` on a run that a version before 0.2 made: arms salt and baseline with selection, weights cut away."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from brine.common.files import read_jsonl
from brine.convert import BACKUP, convert, main
from brine.data.corpus.store import CorpusError, EncodedCorpus, build_corpus
from brine.data.filters.filter_log import FilterLog
from brine.data.loader import Loader
from brine.data.packing.plan import ARRAYS, PackingPlan
from brine.data.tokenizer import Tokenizer
from brine.evals.run_files import build_summary
from brine.model.config import ModelConfig
from brine.pipeline.model_stages import check_trained_stages, stage_inputs, stage_settings, train_config_of
from brine.pipeline.recipe import MODEL_STAGES
from brine.pipeline.stages.stage_store import StageStore
from brine.recipes.launch import parse
from brine.training.checkpoint.checkpoint import CheckpointError, check, list_checkpoints
from brine.training.runtime import resolve_runtime

REQUEST = """real --corpus.manifest documents --name run --arms salt baseline --salt.selection --corpus.vocab-size 300
--packing.seq-len 64 --packing.image-budget 32 --packing.audio-budget 0 --packing.video-budget 0 --evals.seq-len 64
--runtime.device cpu
--runtime.dtype float32 --runtime.compile False --runtime.num-threads 1 --large.learning-rate 2e-3 --large.seed 2
--large.weight-decay 0.3 --small.learning-rate 4e-3 --small.seed 1 --small.weight-decay 0.1"""
ARM = ["num-steps", "8", "global-batch-size", "4", "micro-batch-size", "2", "warmup-steps", "1"]
MODEL = [
    "dim",
    "32",
    "num-layers",
    "2",
    "num-heads",
    "2",
    "num-kv-heads",
    "1",
    "head-dim",
    "16",
    "mlp-dim",
    "64",
    "window",
    "32",
]


@pytest.fixture
def run(tmp_path) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / "run_before_0_2.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def request():
    """The recipe that the run was made with."""
    words = REQUEST.split()
    for model_name in ("small", "large"):
        for prefix, options in ((f"--{model_name}.", ARM), (f"--{model_name}.model.", MODEL)):
            words += [word for i in range(0, len(options), 2) for word in (prefix + options[i], options[i + 1])]
    return parse(words).recipe


def test_a_run_of_before_is_refused_with_the_remedy(run):
    with pytest.raises(ValueError, match=rf"was written by a version before 0\.2: run `brine convert {run}` first"):
        StageStore(run).__enter__()
    # and the folder is not left locked
    convert(run)
    with StageStore(run):
        pass


def test_a_checkpoint_of_before_is_refused_with_the_remedy(run):
    stage = run / "small"
    with pytest.raises(CheckpointError, match=rf"before 0\.2: run `brine convert {stage}` first"):
        check(stage / "checkpoints" / "step_00000004")
    assert convert(stage)
    state = json.loads((stage / "checkpoints" / "step_00000004" / "state.json").read_text())
    assert (state["format"], state["sequence_index"], state["scheduled"]) == (2, 16, True) and "row" not in state
    assert state["compute_cost"]["teacher_training"]["flops"] > 0 and state["val_loss"] == state["best"]


def test_a_converted_run_has_nothing_to_do(run, capsys):
    """Each stage is found under the key that the same recipe has today, so nothing is trained again."""
    before = json.loads((run / "large_salt" / "done").read_text())
    assert main([str(run)]) == 0 and "files converted" in capsys.readouterr().out
    recipe = request().resolved(300)
    runtime = resolve_runtime(recipe.runtime, folder=run)
    assert json.loads((run / "recipe.json").read_text())["packing"]["seq_len"] == 64
    with StageStore(run) as store:
        check_trained_stages(recipe, store=store, runtime=runtime)
        encoded = {"encode": recipe.corpus.encode, "vocab_size": 300}
        inputs = json.loads((run / "encoded" / "stage.json").read_text())["inputs"]
        assert store.stage("encoded", pytest.fail, config=encoded, inputs=inputs).skipped
        for name in ("small", "select", "large_salt", "large_baseline"):
            if name in MODEL_STAGES:
                settings = stage_settings(recipe, name, config=train_config_of(recipe, name), runtime=runtime)
                found = store.reuse(name, config=settings, inputs=stage_inputs(recipe, name, corpus_stages=["encoded"]))
            else:
                key = json.loads((run / name / "stage.json").read_text())
                found = store.reuse(name, config=key["config"], inputs=list(key["inputs"]))
            assert found, name
    assert store.done["large_salt"].digest == before["digest"]
    assert [one.step for one in list_checkpoints(run / "small" / "checkpoints")] == [0, 1, 4, 8]


def test_records_have_the_names_of_today(run):
    convert(run)
    lines = [line for line in read_jsonl(run / "large_salt" / "metrics.jsonl") if "loss" in line]
    assert lines[0]["sequence_index"] == 32 and "data_wait_fraction" in lines[0]["time"]
    assert lines[0]["modality_context"]["image"]["targets"] == 370
    started, finished = read_jsonl(run / "large_salt" / "events.jsonl")
    assert (started["event"], finished["event"], finished["sequence_index"]) == ("started", "finished", 32)
    assert started["runtime"]["activation_checkpointing"] == "none" and started["unix_time"] > 0
    model = json.loads((run / "large_salt" / "model" / "config.json").read_text())
    assert model["trained_context_tokens"] == 33 and ModelConfig(**model["model"]).dim == 32
    corpus = EncodedCorpus.open(run / "encoded" / "store")
    assert corpus.num_documents == 40 and corpus.document(0).parts[0].loss_mask is False


def test_what_training_excluded_is_read_under_its_former_name(run):
    left_out = {"documents": 1, "of_documents": 4, "row_tokens": 64, "cut": {"kinds": {"page": 2}, "apart": 1}}
    (run / "left_out.json").write_text(json.dumps(left_out))
    convert(run)
    (run / "evaluate.old-1").rename(run / "evaluate")
    summary = build_summary(run)
    assert summary["excluded"]["total_documents"] == 4 and summary["excluded"]["cut"]["num_split_with_media"] == 1
    assert summary["compute_cost"]["small"]["teacher_training"]["flops"] > 0


def test_a_conversion_is_finished_and_kept(run):
    """Cut off after any file, the same command ends it; what was there stays beside each file."""
    text = (run / "recipe.json").read_bytes()
    changed = convert(run)
    assert (run / f"recipe.json{BACKUP}").read_bytes() == text and len(changed) > 30
    assert not (run / "evaluate").exists() and (run / "evaluate.old-1" / "done").exists()
    assert convert(run) == []
    os.replace(run / f"recipe.json{BACKUP}", run / "recipe.json")
    assert convert(run) == [run / "recipe.json"] and b"packing" in (run / "recipe.json").read_bytes()


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A corpus of 12 documents, two of them dropped as duplicates, and a packing plan of the others."""
    with tarfile.open(Path(__file__).parent / "data" / "corpus_before_0_2.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "corpus"


def test_filter_passes_and_plans_of_a_converted_corpus_stay_valid(corpus):
    with pytest.raises(CorpusError, match=f"of format 2, not 3: convert it with `brine convert {corpus}`"):
        EncodedCorpus.open(corpus)
    assert corpus / "plans" / "train.npz" in convert(corpus) and convert(corpus) == []
    opened = EncodedCorpus.open(corpus)
    kept = FilterLog.open(opened).kept_mask()
    assert np.flatnonzero(~kept).tolist() == [5, 7]
    loader = Loader(opened, PackingPlan.load(corpus / "plans" / "train.npz"), local_batch_size=1)
    documents = {int(number) for batch in loader for number in batch.document.unique()} - {-1}
    assert documents == set(np.flatnonzero(kept & (opened.split == 0)).tolist())


@pytest.mark.parametrize("same", [True, False])
def test_filter_passes_of_before_are_kept_when_the_corpus_is_made_again(corpus, same):
    """The folder has its former name, and stays, or becomes `filter_log.former` where documents changed."""
    convert(corpus)
    if not same:
        with open(corpus.parent / "docs.jsonl", "a") as manifest:
            manifest.write('{"id": "new", "split": "train", "content": [{"type": "text", "text": "new"}]}\n')
    tokenizer = Tokenizer.load(corpus / "tokenizer.json")
    again = build_corpus(corpus.parent / "docs.jsonl", corpus, tokenizer=tokenizer, num_workers=1, shard_documents=5)
    assert len(FilterLog.open(again)) == same
    assert (corpus / "filter_log.former" / "01_exact_duplicates" / "round.json").is_file() == (not same)


def test_a_plan_of_before_is_read_after_conversion(tmp_path):
    meta = {"row_tokens": 8, "media_budget": {}, "fingerprint": "f", "lengths": [], "info": {}}
    plan = tmp_path / "plans" / "plan.npz"
    plan.parent.mkdir()
    arrays = {name: np.zeros(0, dtype=bool if name == "blank" else np.int32) for name in ARRAYS}
    arrays["offset"] = np.zeros(1, dtype=np.int64)
    with open(plan, "wb") as file:
        np.savez(file, **arrays, meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8))
    with pytest.raises(ValueError, match="row_tokens"):
        PackingPlan.load(plan)
    assert convert(plan) == [plan] and convert(plan) == []
    assert PackingPlan.load(plan).seq_len == 8


def test_a_path_that_holds_nothing_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert f"error: {tmp_path} is not a run folder" in capsys.readouterr().err
