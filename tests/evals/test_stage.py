"""The evaluate stage on a tiny real model: every file it promises, and the summary made from them."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from brine.evals.config import EvalConfig
from brine.evals.evaluate import evaluate
from brine.evals.report.page import write_report
from brine.evals.run_files import build_summary, write_summary
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer

CONFIG = EvalConfig(
    documents_per_cell=4,
    transcripts_per_cell=2,
    samples_per_cell=1,
    max_new_tokens=8,
    seq_len=64,
    batch_size=2,
    bootstrap_resamples=100,
)
LEDGER = {"student": {"flops": 1000, "seconds": 2.0}, "teacher_forward": {"flops": 50, "seconds": 0.5}}


def loaded(tokenizer, seed):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16,
        image_dim=48, audio_dim=64, video_dim=96,
    )  # fmt: skip
    model = Transformer(config, generator=torch.Generator().manual_seed(seed)).eval()
    return SimpleNamespace(model=model, tokenizer=tokenizer)


@pytest.fixture
def run(tmp_path, make_corpus, tokenizer):
    """An evaluated run folder with both arms, and its corpus."""
    folder = tmp_path / "made up"
    media = tmp_path / "media"
    media.mkdir()
    corpus = make_corpus(
        [("text", 4, {"level": 0}), ("screenshot", 4, {}), ("narration", 4, {}), ("recording", 4, {"sound": True})],
        root=media,
    )
    for document in corpus.documents:
        for part in document.parts[1:2]:
            (media / part.path).write_bytes(b"no real medium")
    for number, stage in enumerate(("small", "large_salt", "large_baseline")):
        (folder / stage).mkdir(parents=True)
        lines = [
            {
                "step": step,
                "loss": 3.0 / step,
                "flops": {"total": step * (100 + (number == 1))},
                "validation": {"loss": 3.0 / step, "documents": [3.0 / step, 2.0], "tokens": [1, 1]},
            }
            for step in (1, 2, 4)
        ]
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / stage / "compute_cost.json").write_text(json.dumps(LEDGER))
    models = {name: loaded(tokenizer, seed) for seed, name in enumerate(("small", "large_salt", "large_baseline"))}
    results = evaluate(folder / "evaluate", corpus=corpus, models=models, config=CONFIG)
    return SimpleNamespace(folder=folder, corpus=corpus, models=models, results=results)


def test_stage_writes_what_it_promises(run):
    stage = run.folder / "evaluate"
    results = json.loads((stage / "results.json").read_text())
    assert results == json.loads(json.dumps(run.results))
    assert results["main_model"] == "large_salt" and results["split"] == "test"
    assert set(results["media_gain"]) == {"image", "audio", "video"}
    assert set(results["compare"]) == {"equal_steps", "equal_cost", "cost_to_match"}
    assert {row["kind"] for row in results["transcription"]} == {"screenshot", "narration", "recording"}
    records = [json.loads(line) for line in (stage / "documents.jsonl").read_text().splitlines()]
    assert {record["condition"] for record in records if record["model"] == "small"} == {"matched"}
    total = sum(r["loss"] for r in records if r["model"] == "large_salt" and r["condition"] == "matched")
    tokens = sum(r["tokens"] for r in records if r["model"] == "large_salt" and r["condition"] == "matched")
    assert results["models"]["large_salt"]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    # an untrained model knows next to nothing
    assert results["models"]["large_salt"]["loss"] == pytest.approx(math.log(267), abs=0.7)


def test_samples_carry_their_media_and_nothing_else_does(run):
    stage = run.folder / "evaluate"
    lines = [json.loads(line) for line in (stage / "transcripts.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    shown = [line for line in lines if line.get("media")]
    assert sorted(line["kind"] for line in shown) == ["narration", "recording", "screenshot"]
    assert {part["file"] for line in shown for part in line["media"]} == {
        f"evaluate/media/{path.name}" for path in (stage / "media").iterdir()
    }


def test_stage_done_again_gives_the_same_bytes(run):
    before = {path: path.read_bytes() for path in (run.folder / "evaluate").rglob("*") if path.is_file()}
    evaluate(run.folder / "evaluate", corpus=run.corpus, models=run.models, config=CONFIG)
    assert {path: path.read_bytes() for path in before} == before


def test_summary_has_the_promised_shape(run):
    summary = write_summary(run.folder, wall_s=12.5, peak_rss_gib=1.25)
    assert json.loads((run.folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["wall_s"] == 12.5 and summary["peak_rss_gib"] == 1.25
    assert isinstance(summary["bits_per_byte"], float)
    for modality in ("image", "audio", "video"):
        assert set(summary["media_gain"][modality]) == {"gain", "low", "high"}
    assert set(summary["cer"]) == {"image", "audio"}
    assert summary["salt"]["equal_steps"]["outcome"] == "no verdict"
    compute_cost = summary["compute_cost"]
    assert compute_cost["flops_by_arm"]["large_salt"] == {
        "student": 1000.0,
        "teacher_forward_and_scoring": 50.0,
        "teacher_training": 1000.0,
    }
    assert compute_cost["flops_by_arm"]["large_baseline"]["teacher_training"] == 0.0
    assert (
        compute_cost["total"]["teacher_training"]["flops"] == 1000 and compute_cost["total"]["student"]["flops"] == 2000
    )
    assert set(summary["targets"]) == {"image_gain", "audio_gain", "video_gain", "image_cer"}
    assert not summary["targets"]["image_cer"]["reached"]


def test_a_folder_left_by_an_earlier_request_is_not_billed(tmp_path, make_corpus, tokenizer):
    corpus = make_corpus([("text", 3, {"level": 0})])
    for stage in ("small", "large_salt", "large_baseline"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "compute_cost.json").write_text(json.dumps(LEDGER))
    models = {"small": loaded(tokenizer, 0), "large_salt": loaded(tokenizer, 1)}
    stages = ("encoded", "small", "large_salt")
    evaluate(tmp_path / "evaluate", corpus=corpus, models=models, config=CONFIG, stages=stages)
    compute_cost = build_summary(tmp_path)["compute_cost"]
    assert set(compute_cost) == {"small", "large_salt", "total", "flops_by_arm"} and set(
        compute_cost["flops_by_arm"]
    ) == {"large_salt"}
    assert compute_cost["total"]["student"]["flops"] == LEDGER["student"]["flops"]


def test_report_of_the_stage_is_written(run):
    write_summary(run.folder)
    text = write_report(run.folder).read_text()
    for section in ("gain", "samples", "curves", "salt", "levels", "cost", "record"):
        assert f'<section id="{section}"' in text
    assert "data:image/png;base64," in text and "data:audio/wav;base64," in text and "data:video/mp4;base64," in text


def test_one_arm_and_no_media_is_a_run_too(tmp_path, make_corpus, tokenizer):
    corpus = make_corpus([("text", 3, {"level": 0, "split": "validation"})])
    models = {"large_baseline": loaded(tokenizer, 0)}
    results = evaluate(tmp_path / "evaluate", corpus=corpus, models=models, config=CONFIG)
    assert results["compare"] is None and results["media_gain"] == {} and results["split"] == "validation"
    summary = build_summary(tmp_path)
    assert summary["salt"] is None and summary["media_gain"]["image"] == {"gain": None, "low": None, "high": None}
    assert summary["cer"] == {"image": None, "audio": None}
    text = write_report(tmp_path, config=replace(CONFIG, max_report_mib=0)).read_text()
    assert '<section id="gain"' not in text and '<section id="levels"' in text


def test_a_broken_model_gives_nulls_and_a_report(tmp_path, make_corpus, tokenizer):
    """Weights of NaN: no number is claimed, no file is invalid JSON, nothing raises."""
    corpus = make_corpus([("screenshot", 4, {})], root=tmp_path)
    models = {"large_salt": loaded(tokenizer, 0), "large_baseline": loaded(tokenizer, 1)}
    with torch.no_grad():
        models["large_salt"].model.head_weight.fill_(float("nan"))
    results = evaluate(tmp_path / "evaluate", corpus=corpus, models=models, config=CONFIG)
    assert results["models"]["large_salt"]["loss"] is None and results["media_gain"]["image"]["gain"] is None
    assert results["compare"]["equal_steps"]["outcome"] is None
    assert "NaN" not in (tmp_path / "evaluate" / "results.json").read_text()
    assert "NaN" not in (tmp_path / "evaluate" / "documents.jsonl").read_text()
    write_summary(tmp_path)
    write_report(tmp_path)


def test_summary_before_evaluation_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="evaluate stage first"):
        build_summary(tmp_path)
    with pytest.raises(ValueError, match="no model"):
        evaluate(tmp_path / "evaluate", corpus=None, models={}, config=CONFIG)
