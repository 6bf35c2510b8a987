"""Soft labels: the schedule switches hard, and real models learn with them at the cost that is billed."""

import pytest
import torch
from torch import nn

from kernels import Spans
from model.config import ModelConfig
from model.flops import forward_flops
from model.transformer import Transformer
from salt.cost import batch_flops
from salt.distill import Distillation
from training.config import TrainConfig
from training.loop import train
from training.metrics import read_lines
from training.rows import RowSource
from training.runtime import Runtime

SMALL = ModelConfig(
    vocab_size=20, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, window=8,
    image_dim=12, audio_dim=6, video_dim=18,
)  # fmt: skip
LARGE = ModelConfig(
    vocab_size=20, dim=24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=48, window=8, global_every=2,
    image_dim=12, audio_dim=6, video_dim=18,
)  # fmt: skip


class Packed:
    """A batch of two documents a row, the first beginning with a picture of two tokens."""

    def __init__(self, first: int, rows: int = 2, length: int = 16):
        generator = torch.Generator().manual_seed(first)
        start = torch.randint(0, 17, (rows, 1), generator=generator)
        self.token_ids = (start + torch.arange(length)) % 17
        self.token_ids[:, 1:3] = 19
        self.document = (torch.arange(length) >= 10).int().expand(rows, -1).contiguous()
        self.block = torch.zeros(rows, length, dtype=torch.int32)
        self.block[:, 1:3] = 1
        self.position = torch.arange(length).float()[None, :, None].expand(rows, -1, 3).contiguous()
        self.labels = torch.roll(self.token_ids, -1, dims=1)
        self.labels[:, [0, 1, 9, length - 1]] = -100
        self.kind = torch.zeros(rows, length, dtype=torch.int16)
        self.segment = self.document
        self.context = torch.where(self.document == 0, 1, 0).to(torch.uint8)
        slots = (torch.arange(rows)[:, None] * length + torch.tensor([1, 2])).flatten()
        self.media = {"image": (torch.randn(2 * rows, 12, generator=generator), slots)}

        self.target_index = (self.labels.flatten() >= 0).nonzero().flatten()
        self.mixture = {"text": rows * (length - 2), "image": 2 * rows}

    def to(self, device, non_blocking=False):
        assert torch.device(device).type == "cpu"
        return self


def rows() -> RowSource:
    return RowSource(open=lambda start: (Packed(first) for first in range(start, 4096, 2)), num_rows=4096)


def model(config: ModelConfig, seed: int) -> Transformer:
    return Transformer(config, generator=torch.Generator().manual_seed(seed))


def run(folder, *, config=LARGE, steps=30, distillation=None, account="student"):
    trained = model(config, 1)
    settings = TrainConfig(
        model=config, num_steps=steps, rows_per_step=2, micro_rows=2, learning_rate=1e-2, warmup_steps=2,
        checkpoint_every=15, log_every=5,
    )  # fmt: skip
    result = train(
        settings, model=trained, rows=rows(), folder=folder, runtime=Runtime(), kinds=("count",), quiet=True,
        distillation=distillation, account=account,
    )  # fmt: skip
    return trained, result


def test_small_model_teaches_a_large_one(tmp_path):
    """End to end on the real transformer: train small, then large with its labels for the first half."""
    small, cost = run(tmp_path / "small", config=SMALL, account="teacher_training")
    assert cost.ledger.flops["teacher_training"] > 0 == cost.ledger.flops["student"]
    before = [parameter.clone() for parameter in small.parameters()]
    teaching = Distillation(small, kd_steps=15, weight=0.5, temperature=2.0)
    _, salt = run(tmp_path / "salt", distillation=teaching)
    _, baseline = run(tmp_path / "baseline")
    lines = list(read_lines(tmp_path / "salt" / "metrics.jsonl"))
    assert [line["distill_weight"] for line in lines] == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    # in stage 2 what is trained on is the plain loss again
    assert lines[-1]["objective"] == pytest.approx(lines[-1]["loss"], rel=1e-6)
    assert lines[0]["objective"] != pytest.approx(lines[0]["loss"], rel=1e-2)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert set(lines[0]["context"]) == {"none", "image"}
    # the student's bill is the baseline's; the teacher's forward passes come on top
    assert salt.ledger.flops["student"] == baseline.ledger.flops["student"]
    assert salt.ledger.flops["teacher_forward"] == 15 * batch_flops(small, Packed(0))
    assert baseline.ledger.flops["teacher_forward"] == 0
    # frozen: no gradient, no update
    assert all(parameter.grad is None or not parameter.requires_grad for parameter in small.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_cost_counts_what_is_inside_the_spans():
    batch = Packed(0)
    local = Spans.packed(batch.document, block=batch.block, window=8).area()
    whole = Spans.packed(batch.document).area()
    expected = forward_flops(LARGE, num_tokens=32, local_area=local, global_area=whole, num_patches={"image": 4})
    assert batch_flops(model(LARGE, 0), batch) == expected
    assert whole < 2 * (16 * 17 // 2)


def test_switch_is_a_step():
    teaching = Distillation(nn.Linear(1, 1), kd_steps=3, weight=0.4)
    assert [teaching.weight_at(step) for step in range(5)] == [0.4, 0.4, 0.4, 0.0, 0.0]
    assert not teaching.teacher.weight.requires_grad and not teaching.teacher.training


@pytest.mark.parametrize("wrong", [{"kd_steps": -1}, {"weight": 1.2}, {"temperature": 0.0}])
def test_meaningless_distillation_is_refused(wrong):
    with pytest.raises(ValueError, match="give steps >= 0"):
        Distillation(nn.Linear(1, 1), **{"kd_steps": 3, "weight": 0.4, **wrong})
