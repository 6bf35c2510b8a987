"""Soft labels: the schedule switches hard, and real models learn with them at the cost that is billed."""

import pytest
import torch
from torch import nn

from brine.common.files import read_jsonl
from brine.data.batch import Batch
from brine.kernels.attention import Spans
from brine.model.config import ModelConfig
from brine.model.flops import forward_flops
from brine.model.transformer import Transformer
from brine.salt.cost import batch_flops
from brine.salt.distill import Distillation
from brine.training.config import TrainConfig
from brine.training.micro_batch import PackedSequenceSource
from brine.training.runtime import Runtime
from brine.training.trainer import Trainer
from tests.batches import batch_of

SMALL = ModelConfig(
    vocab_size=20, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, window=8,
    image_dim=12, audio_dim=6, video_dim=18,
)  # fmt: skip
LARGE = ModelConfig(
    vocab_size=20, dim=24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=48, window=8, global_every=2,
    image_dim=12, audio_dim=6, video_dim=18,
)  # fmt: skip


def packed(first: int, rows: int = 2, length: int = 16) -> Batch:
    """A batch of two documents a row, the first beginning with an image of two tokens."""
    generator = torch.Generator().manual_seed(first)
    start = torch.randint(0, 17, (rows, 1), generator=generator)
    token_ids = (start + torch.arange(length)) % 17
    token_ids[:, 1:3] = 19
    document = (torch.arange(length) >= 10).int().expand(rows, -1).contiguous()
    block = torch.zeros(rows, length, dtype=torch.int32)
    block[:, 1:3] = 1
    labels = torch.roll(token_ids, -1, dims=1)
    labels[:, [0, 1, 9, length - 1]] = -100
    index = (torch.arange(rows)[:, None] * length + torch.tensor([1, 2])).flatten()
    return batch_of(
        token_ids, labels, segment=document, block=block,
        position=torch.arange(length).float()[None, :, None].expand(rows, -1, 3).contiguous(),
        modality_context=torch.where(document == 0, 1, 0).to(torch.uint8),
        media={"image": (torch.randn(2 * rows, 12, generator=generator), index)},
    )  # fmt: skip


def rows() -> PackedSequenceSource:
    return PackedSequenceSource(
        open=lambda start: (packed(first) for first in range(start, 4096, 2)), num_sequences=4096
    )


def model(config: ModelConfig, seed: int) -> Transformer:
    return Transformer(config, generator=torch.Generator().manual_seed(seed))


def run(folder, *, config=LARGE, steps=30, distillation=None, cost_category="student"):
    trained = model(config, 1)
    settings = TrainConfig(
        model=config, num_steps=steps, global_batch_size=2, micro_batch_size=2, learning_rate=1e-2, warmup_steps=2,
        checkpoint_every=15, log_every=5,
    )  # fmt: skip
    result = Trainer(
        settings, model=trained, sequences=rows(), folder=folder, runtime=Runtime(), kinds=("count",), quiet=True,
        distillation=distillation, cost_category=cost_category,
    ).run()  # fmt: skip
    return trained, result


@pytest.mark.slow
def test_small_model_teaches_a_large_one(tmp_path):
    """End to end on the real transformer: train small, then large with its labels for the first half."""
    small, cost = run(tmp_path / "small", config=SMALL, cost_category="teacher_training")
    assert cost.compute_cost.flops["teacher_training"] > 0 == cost.compute_cost.flops["student"]
    before = [parameter.clone() for parameter in small.parameters()]
    teaching = Distillation(small, kd_steps=15, distill_weight=0.5, temperature=2.0)
    _, salt = run(tmp_path / "salt", distillation=teaching)
    _, baseline = run(tmp_path / "baseline")
    lines = read_jsonl(tmp_path / "salt" / "metrics.jsonl")
    assert [line["distill_weight"] for line in lines] == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    # in stage 2 what is trained on is the plain loss again
    assert lines[-1]["objective"] == pytest.approx(lines[-1]["loss"], rel=1e-6)
    assert lines[0]["objective"] != pytest.approx(lines[0]["loss"], rel=1e-2)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert set(lines[0]["modality_context"]) == {"none", "image"}
    # the student's bill is the baseline's; the teacher's forward passes come on top
    assert salt.compute_cost.flops["student"] == baseline.compute_cost.flops["student"]
    assert salt.compute_cost.flops["teacher_forward"] == 15 * batch_flops(small, packed(0).inputs)
    assert baseline.compute_cost.flops["teacher_forward"] == 0
    # frozen: no gradient, no update
    assert all(parameter.grad is None or not parameter.requires_grad for parameter in small.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_cost_counts_what_is_inside_the_spans():
    batch = packed(0)
    local = Spans.packed(batch.document, block=batch.inputs.block, window=8).area()
    whole = Spans.packed(batch.document).area()
    expected = forward_flops(LARGE, num_tokens=32, local_pairs=local, global_pairs=whole, num_patches={"image": 4})
    assert batch_flops(model(LARGE, 0), batch.inputs) == expected
    assert whole < 2 * (16 * 17 // 2)


def test_switch_is_a_step():
    teaching = Distillation(nn.Linear(1, 1), kd_steps=3, distill_weight=0.4)
    assert [teaching.distill_weight_at(step) for step in range(5)] == [0.4, 0.4, 0.4, 0.0, 0.0]
    assert not teaching.teacher.weight.requires_grad and not teaching.teacher.training


@pytest.mark.parametrize("wrong", [{"kd_steps": -1}, {"distill_weight": 1.2}, {"temperature": 0.0}])
def test_meaningless_distillation_is_refused(wrong):
    with pytest.raises(ValueError, match="give steps >= 0"):
        Distillation(nn.Linear(1, 1), **{"kd_steps": 3, "distill_weight": 0.4, **wrong})
