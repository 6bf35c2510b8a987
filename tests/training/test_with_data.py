"""The loop on the real loader and transformer: rows of a real plan, scores of real documents, a damaged document."""

import json

import numpy as np
import pytest
import torch

from brine.common.files import read_jsonl
from brine.common.processes import StopSignal, TrainingInterrupted
from brine.data.batch import make_batch
from brine.data.corpus.store import CorruptDocumentError, EncodedCorpus, build_corpus
from brine.data.loader import Loader
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import train_tokenizer
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.salt.selection import score_documents
from brine.training.config import TrainConfig
from brine.training.guard import TrainingDivergedError
from brine.training.logging.compute_cost import CostAccounting
from brine.training.micro_batch import PackedSequenceSource
from brine.training.runtime import Runtime
from brine.training.trainer import Trainer
from tests.training.tiny_run import events, final_bytes

pytestmark = pytest.mark.slow

ROW = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty short texts, encoded."""
    base = tmp_path_factory.mktemp("corpus")
    texts = [f"def area_{i}(width, height):\n    return width * height + {i}\n" * (1 + i % 3) for i in range(40)]
    with open(base / "manifest.jsonl", "w") as file:
        for i, text in enumerate(texts):
            parts = [{"type": "text", "text": text, "loss_mask": True}]
            file.write(json.dumps({"id": f"doc{i}", "kind": ("code", "page")[i % 2], "content": parts}) + "\n")
    build_corpus(base / "manifest.jsonl", base / "encoded", tokenizer=train_tokenizer(texts, 300), num_workers=1)
    return base / "encoded"


def source(corpus, plan, config, num_workers=0):
    return PackedSequenceSource(
        open=lambda start: Loader(
            corpus, plan, local_batch_size=config.micro_batch_size_on(1), start_sequence=start, num_workers=num_workers
        ),
        num_sequences=len(plan),
    )


def model_config(corpus):
    return ModelConfig(
        vocab_size=corpus.tokenizer.vocab_size, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        mlp_dim=32, window=16, global_every=2,
    )  # fmt: skip


def rows_of(corpus):
    """Eight steps of four rows."""
    return PackingPlan.build(corpus, seq_len=ROW, num_sequences=32, seed=1)


def run(out, corpus, *, steps=8, num_workers=0, stop=None, **options):
    config = TrainConfig(
        model=model_config(corpus), num_steps=steps, global_batch_size=4, micro_batch_size=2, warmup_steps=1,
        learning_rate=1e-2, checkpoint_every=4, log_every=4,
    )  # fmt: skip
    plan = rows_of(corpus)
    model = Transformer(config.model, generator=torch.Generator().manual_seed(0))
    Trainer(config, model=model, sequences=source(corpus, plan, config, num_workers), folder=out, runtime=Runtime(),
            kinds=tuple(corpus.kinds), quiet=True, **options).run(stop)  # fmt: skip
    return model


def test_loop_learns_from_real_rows(folder, tmp_path):
    run(tmp_path, EncodedCorpus.open(folder))
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert set(lines[0]["kind"]) == {"code", "page"} and set(lines[0]["modality_context"]) == {"none"}
    assert sum(entry["targets"] for entry in lines[0]["kind"].values()) == lines[0]["targets"]
    assert lines[1]["tokens"] == 8 * 4 * ROW


def test_workers_change_no_bit(folder, tmp_path):
    """A worker was ahead of the step at which the run was stopped; weights and optimiser end as without one."""
    corpus = EncodedCorpus.open(folder)
    run(tmp_path / "alone", corpus)
    with pytest.raises(TrainingInterrupted), StopSignal() as stop:
        run(tmp_path / "helped", corpus, num_workers=1, stop=stop,
            on_step=lambda step: step == 3 and stop.request("the test"))  # fmt: skip
    run(tmp_path / "helped", corpus, num_workers=1)
    assert final_bytes(tmp_path / "helped") == final_bytes(tmp_path / "alone")
    assert [event["step"] for event in events(tmp_path / "helped", "resumed")] == [4]


def test_every_document_of_a_plan_is_scored(folder, tmp_path):
    """Documents that were cut over rows are scored once, from all their targets."""
    corpus = EncodedCorpus.open(folder)
    model = run(tmp_path, corpus)
    plan = PackingPlan.build(corpus, seq_len=ROW, epochs=1, blank_fraction=0.0)
    compute_cost = CostAccounting()
    # an odd number of rows a batch: the last batch is part padding
    loader = (make_batch(corpus, plan, range(first, first + 3)) for first in range(0, len(plan), 3))
    scores = score_documents(
        model, plan=plan, batches=loader, top_k=10, min_learnable_tokens=4, compute_cost=compute_cost
    )
    assert scores.document.tolist() == list(range(40))
    expected = [int(corpus.encoded_document(i).loss_mask[1:].sum()) for i in range(40)]
    assert scores.num_targets.tolist() == expected
    assert np.isfinite(scores.score).all() and compute_cost.flops["scoring"] > 0
    kept = scores.select_documents(keep=0.5, kind=corpus.kind)
    assert {int(kind) for kind in corpus.kind[kept]} == {0, 1}
    chosen = PackingPlan.build(corpus, seq_len=ROW, num_sequences=8, documents=scores.document[kept])
    assert set(chosen.document.tolist()) <= set(np.flatnonzero(kept).tolist())


def test_document_that_fails_at_load_is_recorded_and_training_goes_on(folder, tmp_path, monkeypatch):
    corpus = EncodedCorpus.open(folder)
    sequence = corpus.encoded_document

    def broken(number):
        if number % 4 == 0:
            raise CorruptDocumentError(f"document {number} does not match its checksum")
        return sequence(number)

    monkeypatch.setattr(corpus, "encoded_document", broken)
    run(tmp_path, corpus)
    planned = {int(number) for number in rows_of(corpus).document if number % 4 == 0}
    failed = [event for event in read_jsonl(tmp_path / "events.jsonl") if event["event"] == "document_load_failed"]
    assert planned and {event["document"] for event in failed} == planned
    assert "checksum" in failed[0]["reason"]


def test_a_run_that_loads_no_document_ends(folder, tmp_path, monkeypatch):
    """It went on to the last step with a loss of 0, and kept weights that had learned nothing."""
    corpus = EncodedCorpus.open(folder)

    def broken(number):
        raise CorruptDocumentError(f"document {number} does not match its checksum")

    monkeypatch.setattr(corpus, "encoded_document", broken)
    with pytest.raises(TrainingDivergedError, match=r"5 steps in a row had no target.*document_load_failed"):
        run(tmp_path, corpus)
    assert not (tmp_path / "model").exists()
