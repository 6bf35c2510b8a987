"""`brine convert` on a run that a version before 0.2 made: arms salt and baseline with selection, weights cut away."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from brine.common.files import read_jsonl
from brine.convert import BACKUP, convert, main
from brine.data.corpus.store import EncodedCorpus
from brine.data.packing.plan import ARRAYS, PackingPlan
from brine.model.config import ModelConfig
from brine.pipeline.model_stages import check_trained_stages, stage_inputs, stage_settings, train_config_of
from brine.pipeline.recipe import MODEL_STAGES
from brine.pipeline.stage_store import StageStore
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
    for arm in ("small", "large"):
        for prefix, options in ((f"--{arm}.", ARM), (f"--{arm}.model.", MODEL)):
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


def test_a_conversion_is_finished_and_kept(run):
    """Cut off after any file, the same command ends it; what was there stays beside each file."""
    text = (run / "recipe.json").read_bytes()
    changed = convert(run)
    assert (run / f"recipe.json{BACKUP}").read_bytes() == text and len(changed) > 30
    assert not (run / "evaluate").exists() and (run / "evaluate.old-1" / "done").exists()
    assert convert(run) == []
    os.replace(run / f"recipe.json{BACKUP}", run / "recipe.json")
    assert convert(run) == [run / "recipe.json"] and b"packing" in (run / "recipe.json").read_bytes()


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
    assert f"error: {tmp_path} is no run folder" in capsys.readouterr().err
