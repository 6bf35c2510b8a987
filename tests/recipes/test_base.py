"""The recipe `base` on plain text: its size, its plan, two steps of a shrunken one on a folder and on JSON lines."""

import json

import pytest

from brine.planner import command as plan_command
from brine.planner.run_settings import num_parameters
from brine.recipes.base import base
from brine.train import main

SHRUNKEN = (
    "--corpus.vocab-size 300 --packing.seq-len 128 --packing.image-budget 0 --packing.audio-budget 0 "
    "--packing.video-budget 0 --large.num-steps 2 --large.global-batch-size 2 --large.micro-batch-size 1 "
    "--large.warmup-steps 1 --large.log-every 1 --large.model.dim 32 --large.model.num-layers 2 "
    "--large.model.num-heads 2 --large.model.num-kv-heads 1 --large.model.head-dim 16 --large.model.mlp-dim 48 "
    "--large.model.window 64 --evals.seq-len 128 --evals.bootstrap-resamples 100 --evals.max-new-tokens 8 "
    "--runtime.dtype float32 --runtime.compile False --runtime.num-threads 1 --runtime.device cpu"
)
PAGES = [f"Page {number}. The tide comes in and goes out; {number} boats wait.\n" * 4 for number in range(60)]


def test_the_sizes_are_those_of_the_docstring():
    recipe = base().resolved(32768)
    parameters, large = num_parameters(recipe.large.model), recipe.large
    assert 120e6 < parameters < 130e6
    tokens = large.num_steps * large.global_batch_size * recipe.packing.seq_len
    assert large.global_batch_size * recipe.packing.seq_len == 524_288
    assert tokens / parameters == pytest.approx(20, rel=0.05)


def test_it_fits_one_machine_of_eight_gpus(capsys):
    assert plan_command.main(["base", "--gpus", "8", "--gpu", "h100", "--dp-shard", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dp_shard"] == 8 and found["activation_checkpointing"] == "none"


def test_a_dry_run_tells_its_parameters_and_tokens(tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n")
    assert main(["base", "--corpus.manifest", str(path), "--dry-run", "--runtime.device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "2.62G tokens in 5000 steps" in said and "time depends on its documents" in said


def text_files(folder):
    folder.mkdir()
    for number, page in enumerate(PAGES):
        (folder / f"page{number}.txt").write_text(page)
    return folder


def json_lines(path):
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in PAGES))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("make", [text_files, json_lines])
def test_two_steps_on_plain_text(make, tmp_path, capsys):
    manifest = make(tmp_path / "texts.jsonl")
    arguments = ["base", "--runs", str(tmp_path / "runs"), "--corpus.manifest", str(manifest), *SHRUNKEN.split()]
    assert main(arguments) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "base"
    lines = map(json.loads, (run / "large_baseline" / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "loss" in line]
    summary = json.loads((run / "summary.json").read_text())
    assert steps == [1, 2] and summary["bits_per_byte"] > 0 and (run / "report.html").exists()
    assert json.loads((run / "excluded.json").read_text())["documents"] == 0
