"""Long contexts in small: 16,384 tokens of all modalities read, put down, taken up again, trained on, written after."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks.context import long_cases, long_context, long_prompt
from benchmarks.context.long_cases import LongContextCase, LongPrefill
from brine.data.document import MODALITIES
from brine.data.tokenizer import EOS_ID, MEDIA_END_ID, MEDIA_START_ID

pytestmark = pytest.mark.slow

TOKENS = 16_384


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with toy material and a prompt of 16,384 tokens."""
    folder = tmp_path_factory.mktemp("work")
    torch.set_num_threads(1)
    corpus = long_prompt.make_material(folder / "material", quick=True)
    long_prompt.write_prompt(corpus, TOKENS, folder / f"prompt-{TOKENS}")
    return folder


@pytest.fixture
def prompt(work):
    return long_prompt.open_prompt(work / f"prompt-{TOKENS}")


@pytest.fixture
def options(work):
    """What the script's options are in a case's own process."""
    torch.set_num_threads(1)
    return argparse.Namespace(model="", prefill_tokens=2048, save_minutes=10.0, steps=1)


def test_prompts_are_one_multimodal_document(work, prompt):
    assert len(prompt) == TOKENS and EOS_ID not in prompt.token_ids
    assert all(long_prompt.mixture(prompt)[name] > 100 for name in (*MODALITIES, "text"))
    for name in MODALITIES:
        assert np.count_nonzero(prompt.token_ids == MEDIA_START_ID[name]) == np.count_nonzero(
            prompt.token_ids == MEDIA_END_ID[name]
        )
        # bytes stay on the disk until a chunk asks for them
        assert isinstance(getattr(prompt, name), np.memmap)
    # no two blocks share a number, though documents come several times
    starts = np.flatnonzero((np.diff(prompt.block, prepend=0) != 0) & (prompt.block > 0))
    numbers = prompt.block[starts]
    assert len(numbers) > 30 and numbers.tolist() == list(range(1, len(numbers) + 1))
    text = prompt.block == 0
    assert (np.diff(prompt.position[text].max(1)) > 0).all()
    corpus = long_prompt.EncodedCorpus.open(work / "material" / "encoded")
    again = long_prompt.write_prompt(corpus, TOKENS, work / "again")
    assert again.crc32() == prompt.crc32()


def test_reading_killed_and_started_again_ends_in_the_same_bits(prompt, tmp_path, options):
    case = LongContextCase("prefill", TOKENS, tiny=True)

    def begin(folder):
        return LongPrefill(case, prompt, tmp_path / folder, prefill_tokens=options.prefill_tokens)

    whole = begin("whole")
    whole.read(save_every_s=1e9)
    written = whole.write()
    counts = []

    def die_in_the_fourth_chunk(count):
        counts.append(count)
        if len(counts) == 4:
            raise KeyboardInterrupt

    first = begin("killed")
    with pytest.raises(KeyboardInterrupt):
        first.read(save_every_s=0.0, on_prefill=die_in_the_fourth_chunk)
    again = begin("killed")
    # the fourth chunk was read, but not saved
    assert again.prefill.num_prefilled == sum(counts[:3])
    again.read(save_every_s=0.0)
    rewritten = again.write()
    assert rewritten["logits_crc32"] == written["logits_crc32"] and rewritten["tokens"] == written["tokens"]
    result = again.result(rewritten)
    assert result["sessions"] == 2 and result["chunks"] == whole.result(written)["chunks"] == len(whole.prefill.ends)
    assert [line["read"] for line in again.lines] == whole.prefill.ends


def test_cases_tell_time_and_peak(work, options, monkeypatch):
    prefilled = long_cases.measure(LongContextCase("prefill", TOKENS, tiny=True), work, options)
    assert prefilled["mixture"]["text"] + sum(prefilled["mixture"][name] for name in MODALITIES) == TOKENS
    assert prefilled["peak_gib"] > prefilled["imports_gib"] > 0 and prefilled["read_tokens_per_s"] > 0
    # one global layer of width 8 in bfloat16, keys and values; the local one holds its window and the last chunk
    assert TOKENS * 32 <= prefilled["cache_gib"] * 2**30 <= TOKENS * 32 + 4096 * 32

    training = long_cases.measure(LongContextCase("train", TOKENS, tiny=True), work, options)
    assert [list(step["parts"]) for step in training["steps"]] == [list(long_cases.PARTS)]
    assert 4 < training["steps"][0]["loss"] < 8 and training["flops"] > 0
    # what ended is not measured twice
    monkeypatch.setattr(long_cases, "MEASURES", {})
    assert long_cases.measure(LongContextCase("train", TOKENS, tiny=True), work, options) == json.loads(
        json.dumps(training)
    )


def test_script_records_and_draws(work, options, monkeypatch, tmp_path, last_line):
    """The toy run with its cases in this process; results are kept until they are recorded."""
    options.steps = 3
    monkeypatch.setattr(long_context, "run_child", lambda case, _: long_cases.measure(case, work, options))
    monkeypatch.setattr(long_context, "prepare_prompts", lambda cases, _: None)
    corpus = long_prompt.EncodedCorpus.open(work / "material" / "encoded")
    for case in long_context.QUICK:
        for length in case.prompt_tokens:
            long_prompt.write_prompt(corpus, length, work / f"prompt-{length}")
    assert long_context.main(["--quick", "--threads", "1", "--results", str(tmp_path / "none")]) == 0
    record = last_line()
    assert not (tmp_path / "none").exists()
    assert [case["kind"] for case in record["cases"]] == ["prefill", "train", "generate"]
    assert [target["target"] for target in record["targets"]] == [10.0] * 3
    train, generate = record["cases"][1:]
    losses = [step["loss"] for step in train["steps"]]
    assert losses[2] < losses[1] < losses[0]
    assert generate["prompts"] == [50, 100, 200, 400] and generate["points"][-1]["written"] == 128
    assert max(point["local_keys"] for point in generate["points"]) <= long_cases.TINY.window + 400
    long_context.plot(record, tmp_path / "long.png")
    assert (tmp_path / "long.png").stat().st_size > 1000


def test_every_full_case_has_a_name_of_its_own():
    names = [case.name for case in long_context.CASES]
    assert len(set(names)) == len(names) and "prefill-1000000" in names and "train-131072" in names
    config = long_cases.make_model(LongContextCase("prefill", 1), "").config
    assert (config.dim, config.num_layers, config.num_global_layers) == (256, 6, 1)
    assert dataclasses.replace(LongContextCase("generate", 8), batch=4).name == "generate-8x4"
    # what a case has put down is not taken up by another device or in another precision
    case = LongContextCase("train", 8)
    others = [dataclasses.replace(case, **to) for to in ({"device": "cuda:1"}, {"dtype": "float32"})]
    assert [one.kept for one in (case, *others)] == ["train-8", "train-8-cuda1-bfloat16", "train-8-cpu-float32"]


def test_the_command_takes_a_device_and_a_dtype(monkeypatch, tmp_path, last_line):
    """As every command that runs a model; a case's own process gets them too."""
    asked = []

    def run(command, **options):
        asked.append(dict(zip(command[3::2], command[4::2], strict=False)))
        return argparse.Namespace(returncode=1)

    monkeypatch.setattr(long_context.subprocess, "run", run)
    monkeypatch.setattr(long_context, "prepare_prompts", lambda cases, _: None)
    monkeypatch.setattr(long_context.harness, "hardware", lambda *a: {})
    words = ["--quick", "--threads", "1", "--cases", "train", "--results", str(tmp_path)]
    long_context.main([*words, "--dtype", "float32", "--device", "cpu"])
    assert (asked[-1]["--device"], asked[-1]["--dtype"]) == ("cpu", "float32")
    long_context.main(words)
    assert (asked[-1]["--device"], asked[-1]["--dtype"]) == ("cpu", "bfloat16")
    with pytest.raises(ValueError, match="device = 'meta'"):
        long_context.main([*words, "--device", "meta"])
