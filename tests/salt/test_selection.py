"""Selection: scores equal a brute-force reading of the rule, and the choice follows them."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from brine.model.config import ModelConfig
from brine.salt.config import SaltConfig
from brine.salt.cost import batch_flops
from brine.salt.selection import DocumentScores, require_selected, score_documents, token_losses
from brine.training.logging.compute_cost import CostAccounting
from tests.batches import batch_of

VOCAB, WIDTH, ROW = 24, 8, 20


class SequencePlan(SimpleNamespace):
    """A plan: rows of (document, start, stop, blank)."""

    def chunks(self, index):
        return self.rows[index]


class Lookup(nn.Module):
    """Hidden state of a token: its row in a table."""

    def __init__(self):
        super().__init__()
        self.config = ModelConfig(vocab_size=VOCAB, dim=WIDTH)
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.head_weight = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))

    def forward(self, inputs):
        return self.table[inputs.token_ids]


def batch(tokens, labels, first=0):
    return batch_of(tokens, labels, sequence_index=tuple(range(first, first + len(tokens))))


@pytest.fixture
def pool():
    """Three rows: document 7 is cut over two of them, 9 has few targets, the rest is padding."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCAB, (3, ROW), generator=generator)
    labels = torch.randint(0, VOCAB, (3, ROW), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = -100
    plan = SequencePlan(rows=[
        [(7, 0, 12, 0), (2, 0, 8, 0)],
        [(7, 11, 20, 0), (9, 0, 5, 0)],
        [(4, 0, 17, 1)],
    ])  # fmt: skip
    labels[1, 9:13] = -100
    labels[1, 14:] = -100
    labels[2, 17:] = -100
    return Lookup(), plan, tokens, labels


@torch.no_grad()
def brute_force(model, plan, tokens, labels, top_k, min_learnable_tokens):
    """Document -> (score, learnable, targets), token by token."""
    found = {}
    for r, pieces in enumerate(plan.rows):
        place = 0
        for document, start, stop, _ in pieces:
            for i in range(place, place + stop - start):
                entry = found.setdefault(document, ([], [0]))
                if labels[r, i] < 0:
                    continue
                entry[1][0] += 1
                logits = model.head_weight @ model.table[tokens[r, i]]
                if int(labels[r, i]) in logits.topk(top_k).indices.tolist():
                    entry[0].append(float(-torch.log_softmax(logits, -1)[labels[r, i]]))
            place += stop - start
    return {
        document: (np.median(kept) if len(kept) >= min_learnable_tokens else -np.inf, len(kept), total[0])
        for document, (kept, total) in found.items()
    }


@pytest.mark.parametrize("top_k", [1, 10, VOCAB], ids="top{}".format)
def test_scores_equal_brute_force(pool, top_k):
    model, plan, tokens, labels = pool
    compute_cost = CostAccounting()
    batches = [batch(tokens[:2], labels[:2]), batch(tokens[2:], labels[2:], first=2)]
    scores = score_documents(
        model, plan=plan, batches=batches, top_k=top_k, min_learnable_tokens=2, compute_cost=compute_cost
    )
    expected = brute_force(model, plan, tokens, labels, top_k, 2)
    assert scores.document.tolist() == [2, 4, 7, 9]
    for i, document in enumerate(scores.document.tolist()):
        score, learnable, targets = expected[document]
        assert (scores.num_learnable[i], scores.num_targets[i]) == (learnable, targets)
        assert scores.score[i] == pytest.approx(score, rel=1e-5)
    # one forward pass over three rows, nothing else
    assert compute_cost.flops == {
        **CostAccounting().flops,
        "scoring": sum(batch_flops(model, each.inputs) for each in batches),
    }


def test_masked_tokens_are_dropped_and_not_zeroed():
    """Of five tokens three are learnable: their median counts, not that of five with two zeros."""
    scores = DocumentScores(*(np.asarray(x) for x in ([0], [0.0], [0], [0])))
    assert scores.reason(0, kept=True) == "among the highest median losses"
    weight = torch.eye(6) * 4
    hidden = torch.eye(6)[:5]
    labels = torch.tensor([0, 1, 2, 5, 5])
    loss, learnable = token_losses(hidden, weight, labels, top_k=1)
    assert learnable.tolist() == [True, True, True, False, False]
    assert loss[3] > 4 > loss[0]
    model = Lookup()
    model.table, model.head_weight = nn.Parameter(torch.eye(6)), nn.Parameter(weight)
    plan = SequencePlan(rows=[[(0, 0, 5, 0)]])
    found = score_documents(model, plan=plan, batches=[batch(torch.arange(5)[None], labels[None])], top_k=1,
                            min_learnable_tokens=3)  # fmt: skip
    assert found.score[0] == pytest.approx(float(loss[0]))


@pytest.mark.parametrize("chunk_tokens", [1, 3, 64])
def test_token_losses_are_exact_in_any_chunks(chunk_tokens):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(17, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCAB, (17,), generator=generator)
    labels[4] = -100
    loss, learnable = token_losses(hidden, weight, labels, top_k=5, chunk_tokens=chunk_tokens)
    logits = hidden @ weight.T
    for i in range(17):
        if i == 4:
            assert (loss[i], learnable[i]) == (0, False)
            continue
        torch.testing.assert_close(loss[i], -torch.log_softmax(logits[i], -1)[labels[i]])
        assert learnable[i] == (labels[i] in logits[i].topk(5).indices)


def test_equal_logits_leave_k_in_the_top_k():
    _, learnable = token_losses(torch.ones(6, 1), torch.ones(6, 1), torch.arange(6), top_k=2)
    assert learnable.tolist() == [True, True, False, False, False, False]


def test_diverged_model_finds_nothing_learnable():
    _, learnable = token_losses(torch.full((2, 1), torch.nan), torch.ones(6, 1), torch.tensor([0, 1]), top_k=2)
    assert not learnable.any()


def test_highest_are_kept_until_the_share_is_reached():
    scores = DocumentScores(
        document=np.arange(6),
        score=np.array([1.0, 3.0, -np.inf, 2.0, 3.0, 0.5]),
        num_learnable=np.array([9, 9, 1, 9, 9, 9]),
        num_targets=np.array([10, 10, 10, 10, 10, 10]),
    )
    assert np.flatnonzero(scores.select_documents(keep=0.5)).tolist() == [1, 3, 4]
    # never one that has nothing learnable, however much is asked for
    assert np.flatnonzero(scores.select_documents(keep=1.0)).tolist() == [0, 1, 3, 4, 5]
    kinds = np.array([0, 1, 0, 0, 1, 1])
    assert np.flatnonzero(scores.select_documents(keep=0.3, kind=kinds)).tolist() == [1, 3]
    uneven = dataclasses.replace(scores, num_targets=np.array([10, 1, 10, 1, 1, 10]))
    assert np.flatnonzero(uneven.select_documents(keep=0.09)).tolist() == [1, 3, 4]
    with pytest.raises(ValueError, match=r"keep = 0 must lie in \(0, 1\]"):
        scores.select_documents(keep=0)


def test_a_choice_that_keeps_nothing_is_told_with_the_remedy():
    """Filters and weights were named that nobody had asked for."""
    scores = DocumentScores(np.arange(3), np.full(3, -np.inf), np.zeros(3, np.int64), np.ones(3, np.int64))
    kept = scores.select_documents(keep=0.5)
    with pytest.raises(
        ValueError, match=r"keeps none of 3 documents: none has salt\.min_learnable_tokens = 4 .*--salt\.top-k"
    ):
        require_selected(kept, min_learnable_tokens=4)
    require_selected(np.array([False, True]), min_learnable_tokens=4)


def test_what_was_kept_and_why_is_written(tmp_path):
    scores = DocumentScores(np.array([3, 8]), np.array([1.5, -np.inf]), np.array([20, 1]), np.array([30, 30]))
    kept = scores.select_documents(keep=1.0)
    ids = [f"{number}.py" for number in range(9)]
    scores.save(tmp_path, kept=kept, ids=ids)
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [(line["id"], line["kept"], line["score"]) for line in lines] == [("3.py", True, 1.5), ("8.py", False, None)]
    assert lines[1]["reason"] == "only 1 learnable tokens of 30"
    arrays = np.load(tmp_path / "scores.npz", allow_pickle=False)
    assert arrays["kept"].tolist() == [True, False] and arrays["score"].tolist() == [1.5, -np.inf]
    first = (tmp_path / "scores.npz").read_bytes()
    scores.save(tmp_path, kept=kept, ids=ids)
    assert (tmp_path / "scores.npz").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.npz", "selection.jsonl"]


def test_plan_of_other_rows_is_refused(pool):
    model, _, tokens, labels = pool
    with pytest.raises(ValueError, match="sequence 0 of the plan holds 99 tokens, its batch 20"):
        score_documents(model, plan=SequencePlan(rows=[[(1, 0, 99, 0)]]), batches=[batch(tokens[:1], labels[:1])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill_weight": 1.5}, r"distill_weight = 1.5 must lie in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature = 0.0 must be positive"),
        ({"selection_fraction": 0.0}, r"must lie in \(0, 1\]"),
        ({"top_k": 0}, "give at least 1"),
        ({"kd_steps": -1}, "or None to use kd_fraction"),
    ],
)
def test_salt_config_tells_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        SaltConfig(**changes)


def test_lengths_of_the_first_stage():
    assert SaltConfig(kd_fraction=0.25).num_kd_steps(1000) == 250
    assert SaltConfig(kd_steps=400).num_kd_steps(300) == 300
    assert SaltConfig(scoring_checkpoint_fraction=0.125).scoring_step(400) == 50
