"""Masks and rotary tables of a micro-batch: made once, shared by all who read them, and equal to what a model makes."""

import dataclasses

import pytest
import torch

from kernels import Spans
from model import ModelConfig, Transformer
from model.geometry import Geometry
from model.rotary import Rotary
from salt.cost import batch_flops
from salt.distill import Distillation
from training.config import TrainConfig
from training.distributed import World
from training.gradients import GradientBuffer
from training.micro_batch import micro_batches
from training.runtime import Runtime
from training.step import accumulate

SHAPE = ModelConfig(vocab_size=40, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, window=4,
                    global_every=2, image_dim=3, audio_dim=2, video_dim=2)  # fmt: skip


@dataclasses.dataclass
class Rows:
    """A micro-batch of one row: two documents, an image in the first, a place of padding."""

    token_ids: torch.Tensor
    position: torch.Tensor
    document: torch.Tensor
    segment: torch.Tensor
    block: torch.Tensor
    labels: torch.Tensor
    kind: torch.Tensor
    context: torch.Tensor
    media: dict

    @property
    def target_index(self):
        return (self.labels.flatten() >= 0).nonzero().flatten()

    @property
    def mixture(self):
        return {"text": 10, "image": 2, "padding": 1}

    def to(self, device, non_blocking=False):
        return self


def make_rows() -> Rows:
    ids = torch.arange(13)[None] % 40
    segment = torch.tensor([[0] * 7 + [1] * 5 + [-1]], dtype=torch.int32)
    block = torch.tensor([[0, 1, 1, 0, 0, 0, 0] + [0] * 6], dtype=torch.int32)
    labels = torch.where(segment >= 0, (ids + 1) % 40, -100)
    labels[:, [0, 1, 6, 11]] = -100
    return Rows(
        ids, torch.arange(13.0)[None, :, None].expand(1, 13, 3).contiguous(), segment, segment, block, labels,
        torch.zeros(1, 13, dtype=torch.int16), torch.zeros(1, 13, dtype=torch.uint8),
        {"image": (torch.ones(2, 3), torch.tensor([1, 2]))},
    )  # fmt: skip


@pytest.fixture
def made(monkeypatch):
    """Counts of masks and tables made."""
    counts = {"masks": 0, "tables": 0}
    packed, table = Spans.packed.__func__, Rotary._table

    def count_mask(cls, *args, **options):
        counts["masks"] += 1
        return packed(cls, *args, **options)

    def count_table(*args):
        counts["tables"] += 1
        return table(*args)

    monkeypatch.setattr(Spans, "packed", classmethod(count_mask))
    monkeypatch.setattr(Rotary, "_table", staticmethod(count_table))
    return counts


def step(student, teacher=None):
    """One micro-batch through the trainer's step; returns its numbers."""
    distillation = Distillation(teacher, kd_steps=1, weight=0.5) if teacher is not None else None
    rows = micro_batches([make_rows()], device="cpu", model=student, teacher=teacher)
    return accumulate(
        student, rows, step=0, config=TrainConfig(model=SHAPE), runtime=Runtime(), world=World(),
        gradients=GradientBuffer(dict(student.named_parameters())), num_batches=1, kinds=("page",),
        distillation=distillation, stop=False,
    ).read()  # fmt: skip


@pytest.mark.parametrize("shared", [True, False], ids=["alike", "other-window-and-base"])
def test_a_step_makes_each_mask_and_table_once(made, shared):
    """Student, teacher and FLOP accounting; a teacher of another shape adds only what differs."""
    shape = SHAPE if shared else dataclasses.replace(SHAPE, window=3, rope_theta_local=100.0)
    step(Transformer(SHAPE), Transformer(shape))
    assert made == ({"masks": 2, "tables": 2} if shared else {"masks": 3, "tables": 3})


def test_geometry_gives_what_the_model_makes_itself():
    model, rows = Transformer(SHAPE).double(), make_rows()
    inputs = (rows.token_ids, rows.position, rows.segment, rows.block, rows.media)
    geometry = Geometry.of(rows, model)
    assert torch.equal(model(*inputs), model(*inputs, geometry=geometry))
    local, everywhere = geometry.spans(SHAPE)
    assert torch.equal(local.lo, Spans.packed(rows.segment, block=rows.block, window=4).lo)
    assert torch.equal(everywhere.hi, Spans.packed(rows.segment).hi)
    for mine, own in zip(geometry.tables(model.rotary), model.rotary(rows.position), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, own, strict=True))


def test_flops_are_those_of_the_masks(made):
    model, rows = Transformer(SHAPE), make_rows()
    geometry = Geometry.of(rows, model)
    before = dict(made)
    assert batch_flops(model, rows, geometry) == batch_flops(model, rows)
    # with the geometry nothing was made, without it both masks
    assert made["masks"] == before["masks"] + 2


def test_masks_move_with_what_the_host_knows_of_them():
    geometry = Geometry.of(make_rows(), Transformer(SHAPE)).to("meta")
    local, everywhere = geometry.spans(SHAPE)
    assert local.lo.device.type == "meta" and local.kind == "block" and everywhere.kind == "causal"
    assert everywhere.area() == 7 * 8 // 2 + 5 * 6 // 2 + 1


def test_part_of_the_rows():
    geometry = Geometry.of(make_rows(), Transformer(SHAPE))
    rows = torch.tensor([2, 3, 9])
    part = geometry.at(geometry.segment[:, rows], geometry.block[:, rows], geometry.position[:, rows],
                       lambda spans: spans.onto(rows, range(13)))  # fmt: skip
    assert part.spans(SHAPE)[1].hi.tolist() == [[3, 4, 10]]
    tables = part.tables(Transformer(SHAPE).rotary)
    assert tables[0][0].shape == (1, 3, 1, 2, 4)
