"""Answers on the stand-in are those of the CPU: reading in chunks, decoding alone and together, sampling, needles,
completions, and the commands that do it, each on the device that it finds or is told.
"""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks.context.long_cases import LongContextCase, measure
from benchmarks.context.long_prompt import write_prompt
from brine.data.files.source_files import SourceFile
from brine.evals.needle import run as needle
from brine.evals.needle.prefix_decoder import PrefixDecoder
from brine.evals.repository import run as repository
from brine.evals.repository.run import completion_fn_of
from brine.inference import decode, generate, prefill
from brine.inference.cache import KeyValueCache
from brine.inference.load import load, save_model
from brine.inference.prefill import ChunkedPrefill, prefill_prompts
from brine.kernels.attention import Spans
from brine.model.device import device_of
from brine.salt.pseudo_label import mean_log_probabilities
from tests.standin.media_rows import ENCODE, MemoryCorpus, byte_tokenizer, model_of
from tests.standin.stand_in import NAME, StandIn, count_waits

MOST = 6


@pytest.fixture(scope="module")
def prompts():
    corpus = MemoryCorpus(8)
    return [one.slice(0, len(one) - 3) for one in corpus.sequences]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with one finished model, whose head speaks up: answers must not hang on the last bit."""
    run = tmp_path_factory.mktemp("run")
    model = model_of(seed=5)
    with torch.no_grad():
        model.head_weight.mul_(12.0)
    save_model(run / "small" / "model", model.double(), encode_config=ENCODE, tokenizer=byte_tokenizer())
    return run


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch):
    """Answers go by `brine.inference.static.decoder`, which is a card's way, without graphs."""
    monkeypatch.setattr(decode, "uses_static_decoder", lambda model: device_of(model).type != "cpu")


@pytest.fixture
def both(folder):
    """The model on the CPU and on the device, in float64."""
    found = [load(folder, device=device) for device in ("cpu", NAME)]
    for one in found:
        one.model.double()
    return found


def test_auto_is_the_card_and_the_weights_lie_there(card, folder):
    loaded = load(folder, device="auto")
    assert all(isinstance(one, StandIn) for one in (*loaded.model.parameters(), *loaded.model.buffers()))
    assert load(folder, device="cpu").model.head_weight.device.type == "cpu"


@pytest.mark.parametrize("prefill_tokens", [7, 1000])
def test_prompts_are_answered_together_as_on_the_cpu(both, prompts, prefill_tokens):
    vocab_size = both[0].tokenizer.vocab_size
    cpu, there = (
        decode.generate_batch(
            one.model, prompts, MOST, batch_size=3, vocab_size=vocab_size, prefill_tokens=prefill_tokens
        )
        for one in both
    )
    assert there == cpu and any(cpu)


def test_what_is_drawn_follows_the_seed_and_the_device_has_its_own_generator(both, prompts):
    def drawn(one, seed):
        return list(decode.stream_tokens(one.model, prompts[0], max_tokens=MOST, temperature=1.0, top_p=0.9, seed=seed))

    first = drawn(both[1], 3)
    torch.rand(3, device=NAME)
    assert drawn(both[1], 3) == first == drawn(both[0], 3) and drawn(both[1], 4) != first


class BenchmarkSession:
    """`safetensors.safe_open`, which knows CUDA but not every device of torch: opens on the CPU, and what it gives is
    brought to the device that was asked for."""

    def __init__(self, path, framework, device):
        self.device, self.file = device, safe_open(path, framework=framework)

    def __enter__(self):
        return self.file.__enter__() and self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def get_tensor(self, name):
        return self.file.get_tensor(name).to(self.device)


def test_a_reading_that_was_saved_goes_on_on_the_device(both, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(prefill, "safe_open", BenchmarkSession)
    whole = [prefill_prompts(one.model, prompts[3:4], prefill_tokens=6) for one in both]
    torch.testing.assert_close(whole[1].hidden.cpu(), whole[0].hidden, rtol=1e-10, atol=1e-10)
    first = ChunkedPrefill(both[1].model, prompts[3], prefill_tokens=6)
    first.prefill_chunk()
    first.save(tmp_path / "reading")
    again = ChunkedPrefill(both[1].model, prompts[3], prefill_tokens=6)
    again.resume(tmp_path / "reading")
    while again.prefill_chunk():
        pass
    assert torch.equal(again.prefilled().hidden, whole[1].hidden)


def test_a_context_is_read_once_and_asked_often(both, prompts):
    answers, likelihoods = [], []
    for one in both:
        reader = PrefixDecoder(one.model, prompts[1])
        answers.append(reader.generate_greedy([prompts[0], prompts[4]], max_tokens=MOST))
        likelihoods.append(reader.log_likelihood([prompts[0]], [[50, 60, 70]]))
    assert answers[1] == answers[0] and likelihoods[1] == pytest.approx(likelihoods[0])


def test_completions_and_pseudo_labels_are_scored_there(both, prompts):
    ids = both[0].tokenizer.encode("def roast(meal):\n    return")
    said = [completion_fn_of(one)(ids, [100, 101]) for one in both]
    assert said[1][0] == said[0][0] and said[1][1] == pytest.approx(said[0][1])
    scores = [
        mean_log_probabilities(one, prompts[:4], [[105, 106], [70], [80, 90, 50], [60]], batch_size=3) for one in both
    ]
    np.testing.assert_allclose(scores[1][0], scores[0][0])


def test_a_token_waits_for_itself_and_for_nothing_else(both, prompts):
    """The one read is the chosen token's, which the host must know to write it down and to stop."""
    tokens = decode.stream_tokens(both[1].model, prompts[0], max_tokens=12)
    next(tokens)
    with count_waits() as waits:
        found = list(tokens)
    assert waits.total <= len(found) + 1, str(waits)


def test_a_chunk_of_a_prompt_waits_once_at_most(both):
    """For the answer to whether it goes on where the one before ended; its masks are right without being checked."""
    cache = KeyValueCache(both[1].model.config)
    document, block = torch.zeros(2, 2, 40, dtype=torch.int32)
    block[:, 3:9] = block[:, 30:38] = 1
    document[0, :4] = -1
    for first, stop in ((0, 9), (9, 20), (20, 40)):
        ids = [x[:, first:stop].to(NAME) for x in (document, block)]
        with count_waits() as waits:
            local, long = cache.extend(*ids)
        assert waits.total == (first > 0), str(waits)
        for spans in (local, long):
            # as spans that come from outside are checked
            Spans(*spans.host(), spans.num_keys)


def test_the_benchmark_of_long_contexts_runs_there(folder, tmp_path):
    """It had neither --device nor --dtype, and a model on the host alone."""
    corpus = MemoryCorpus(8)
    options = argparse.Namespace(model=str(folder), prefill_tokens=16, save_minutes=9.0, steps=2)
    found = {}
    for case in (
        LongContextCase("prefill", 90),
        LongContextCase("train", 60, checkpoint=True),
        LongContextCase("generate", 6),
    ):
        for length in case.prompt_tokens:
            write_prompt(corpus, length, tmp_path / f"prompt-{length}")
        for device in ("cpu", NAME):
            here = replace(case, device=device, dtype="float32")
            found[case.kind, device] = measure(here, tmp_path, options)
            assert found[case.kind, device]["device"] == device and (tmp_path / here.kept / "result.json").is_file()
    assert found["prefill", NAME]["write"]["tokens"] == found["prefill", "cpu"]["write"]["tokens"]
    losses = [[step["loss"] for step in found["train", device]["steps"]] for device in (NAME, "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][1] < losses[0][0]
    assert found["generate", NAME]["points"][-1]["written"] == 6


def test_the_commands_run_on_the_card_by_themselves(card, folder, tmp_path, capsys, monkeypatch):
    source = [
        SourceFile("cook/__init__.py", "python", "from .oven import roast\n"),
        SourceFile("cook/oven.py", "python", "DEGREES = 200\n\n\ndef roast(meal):\n    return meal, DEGREES\n"),
        SourceFile("cook/menu.py", "python", "from . import oven\n\n\ndef serve():\n    return oven.DEGREES\n"),
        SourceFile("sail/boat.py", "python", "def hoist():\n    return 'sail'\n" * 20),
        SourceFile("sail/wind.py", "python", "def blow():\n    return 'wind'\n" * 20),
    ]
    devices = []
    loading = load
    for module in (generate, needle, repository):
        monkeypatch.setattr(module, "load", lambda *a, **k: devices.append(k.get("device", "cpu")) or loading(*a, **k))
    for module in (needle, repository):
        monkeypatch.setattr(module, "read_source", lambda *a, **k: (source, {}))
    assert generate.main([str(folder), "--prompt", "def ", "--max-tokens", "3", "--temperature", "1"]) == 0
    words = ["--lengths", "300", "--trials", "2"]
    assert needle.main([str(folder), *words, "--modality", "text,image", "--needles", "2"]) == 0
    assert repository.main([str(folder), *words]) == 0
    assert [torch.device(one).type for one in devices] == [NAME, NAME, NAME]
    assert len(json.loads((folder / "needle" / "results.json").read_text())["cells"]) == 2
    assert "Traceback" not in capsys.readouterr().err
