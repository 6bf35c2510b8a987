"""Masks and rotary tables of a micro-batch: made once, shared by all who read them, and equal to what a model makes."""

import dataclasses

import pytest
import torch

from brine.data.batch import Batch
from brine.kernels.attention import Spans
from brine.model.config import ModelConfig
from brine.model.rotary import Rotary
from brine.model.transformer import Transformer
from brine.salt.cost import batch_flops
from brine.salt.distill import Distillation
from brine.training.config import TrainConfig
from brine.training.gradients import FlatGradients
from brine.training.micro_batch import micro_batches
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime
from brine.training.step import accumulate
from tests.batches import batch_of

SHAPE = ModelConfig(vocab_size=40, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, window=4,
                    global_every=2, image_dim=3, audio_dim=2, video_dim=2)  # fmt: skip


def make_rows() -> Batch:
    """A micro-batch of one sequence: two documents, an image in the first, a token of padding."""
    ids = torch.arange(13)[None] % 40
    segment = torch.tensor([[0] * 7 + [1] * 5 + [-1]], dtype=torch.int32)
    block = torch.tensor([[0, 1, 1, 0, 0, 0, 0] + [0] * 6], dtype=torch.int32)
    labels = torch.where(segment >= 0, (ids + 1) % 40, -100)
    labels[:, [0, 1, 6, 11]] = -100
    position = torch.arange(13.0)[None, :, None].expand(1, 13, 3).contiguous()
    media = {"image": (torch.ones(2, 3), torch.tensor([1, 2]))}
    return batch_of(ids, labels, segment=segment, position=position, block=block, media=media)


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
    distillation = Distillation(teacher, kd_steps=1, distill_weight=0.5) if teacher is not None else None
    rows = micro_batches([make_rows()], device="cpu", model=student, teacher=teacher)
    return accumulate(
        student, rows, step=0, config=TrainConfig(model=SHAPE), runtime=Runtime(), world=World(),
        gradients=FlatGradients(dict(student.named_parameters())), num_batches=1, kinds=("page",),
        distillation=distillation, stop=False,
    ).read()  # fmt: skip


@pytest.mark.parametrize("shared", [True, False], ids=["alike", "other-window-and-base"])
def test_a_step_makes_each_mask_and_table_once(made, shared):
    """Student, teacher and FLOP accounting; a teacher of another shape adds only what differs."""
    shape = SHAPE if shared else dataclasses.replace(SHAPE, window=3, rope_theta_local=100.0)
    step(Transformer(SHAPE), Transformer(shape))
    assert made == ({"masks": 2, "tables": 2} if shared else {"masks": 3, "tables": 3})


def test_masks_and_tables_are_those_of_the_ids():
    model, inputs = Transformer(SHAPE).double(), make_rows().inputs
    fresh = make_rows().inputs
    assert torch.equal(model(inputs.make_masks(SHAPE)), model(fresh))
    local, everywhere = inputs.spans(SHAPE)
    assert torch.equal(local.lo, Spans.packed(inputs.segment, block=inputs.block, window=4).lo)
    assert torch.equal(everywhere.hi, Spans.packed(inputs.segment).hi)
    for mine, own in zip(inputs.tables(model.rotary), model.rotary(inputs.position), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, own, strict=True))


def test_flops_are_those_of_the_masks(made):
    model, inputs = Transformer(SHAPE), make_rows().inputs.make_masks(SHAPE)
    before = dict(made)
    flops = batch_flops(model, inputs)
    # with the masks nothing was made, without them both
    assert made == before
    assert batch_flops(model, make_rows().inputs) == flops and made["masks"] == before["masks"] + 2


def test_masks_move_with_what_the_host_knows_of_them():
    inputs = make_rows().inputs.make_masks(SHAPE).to("meta")
    local, everywhere = inputs.spans(SHAPE)
    assert local.lo.device.type == "meta" and local.kind == "block" and everywhere.kind == "causal"
    assert everywhere.area() == 7 * 8 // 2 + 5 * 6 // 2 + 1


def test_other_patches_share_masks_and_tables(made):
    model, inputs = Transformer(SHAPE), make_rows().inputs
    model(inputs)
    before = dict(made)
    other = inputs.with_media({"image": (torch.zeros(2, 3), torch.tensor([1, 2]))})
    assert model(other).shape == (1, 13, 16) and made == before
    assert model(dataclasses.replace(inputs)).shape == (1, 13, 16) and made["masks"] == before["masks"] + 2


def test_part_of_the_rows():
    inputs, rows = make_rows().inputs.make_masks(SHAPE), torch.tensor([2, 3, 9])
    part = inputs.map(lambda x: x[:, rows], lambda spans: spans.restrict(rows, range(13)), media={})
    assert part.spans(SHAPE)[1].hi.tolist() == [[3, 4, 10]]
    tables = part.tables(Transformer(SHAPE).rotary)
    assert tables[0][0].shape == (1, 3, 1, 2, 4)
