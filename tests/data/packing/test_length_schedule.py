"""Train short, extend: what is accepted, which rows it holds for, and what attention then sees."""

import dataclasses

import numpy as np
import pytest
import torch

from brine.data.batch import TENSOR_FIELDS, make_batch
from brine.data.document import MODALITIES
from brine.data.packing.length_schedule import LengthSchedule, segment_starts
from brine.data.packing.plan import PackingPlan
from brine.model.config import ModelConfig
from brine.model.inputs import TENSORS, Inputs
from brine.model.transformer import Transformer
from brine.pipeline.recipe import PackingConfig
from tests.batches import field

ROW = 160
BUDGET = {"image": 96, "audio": 96, "video": 160}


@pytest.fixture(scope="module")
def plans(corpus) -> tuple[PackingPlan, PackingPlan]:
    """The same rows with a schedule and without."""
    build = {"seq_len": ROW, "media_budget": BUDGET, "epochs": 2, "seed": 5}
    whole = PackingPlan.build(corpus, **build)
    return PackingPlan.build(
        corpus, lengths=LengthSchedule(((0, 24), (0.5, 64))).by_sequence(len(whole)), **build
    ), whole


@pytest.mark.parametrize(
    "entries, problem",
    [
        (("2048",), "must read PROGRESS:TOKENS"),
        (("0:2k",), "must read PROGRESS:TOKENS"),
        (("0.5:2048",), "must begin at 0"),
        (("0:2048", "1:4096"), "ascend below 1"),
        (("0:2048", "0.5:4096", "0.4:8192"), "ascend below 1"),
        (("0:2048", "0.5:2048"), "lengths must ascend"),
        (("0:8",), "from 16 tokens"),
        (("0:64", "0.5:1024"), "raise packing.seq_len, which is 512"),
    ],
)
def test_what_cannot_be_meant_is_refused(entries, problem):
    with pytest.raises(ValueError, match=problem):
        PackingConfig(seq_len=512, length_schedule=entries)


def test_steps_become_rows():
    schedule = LengthSchedule.parse(("0:32", "0.25:64", "0.3:128"))
    assert schedule.by_sequence(100) == ((0, 32), (25, 64), (30, 128))
    assert schedule.by_sequence(3) == ((0, 32), (1, 128)) and schedule.by_sequence(1) == ((0, 32),)
    assert LengthSchedule().by_sequence(100) == ()


@pytest.mark.parametrize(
    "split_points, limit, starts",
    [
        (range(101), 30, [0, 30, 60, 90]),
        (range(91), 30, [0, 30, 60]),
        (range(31), 30, [0]),
        # a medium from 10 to 70 stays whole, and what can be cut around it is
        ([*range(11), *range(70, 101)], 30, [0, 10, 70]),
        ([0, 70, 71, 90], 30, [0, 70]),
        ([0, 100], 30, [0]),
        (range(101), None, [0]),
    ],
)
def test_stretches_are_cut_where_they_may_be(split_points, limit, starts):
    assert segment_starts(np.array(split_points), limit).tolist() == starts


def test_rows_do_not_depend_on_the_schedule(plans, tmp_path):
    short, whole = plans
    for name in ("document", "start", "stop", "blank", "offset"):
        assert np.array_equal(getattr(short, name), getattr(whole, name))
    half = short.lengths[1][0]
    assert short.lengths == ((0, 24), (half, 64)) and abs(half - len(short) / 2) < 1
    assert [short.segment_tokens(row) for row in (0, half - 1, half, len(short) - 1)] == [24, 24, 64, 64]
    assert whole.segment_tokens(0) is None
    # a part of the plan keeps what its rows had, and so does a file
    part = short.slice(half - 2, half + 2)
    assert [part.segment_tokens(row) for row in range(4)] == [24, 24, 64, 64]
    assert short.slice(half + 1, half + 2).lengths == ((0, 64),)
    found = PackingPlan.load(short.save(tmp_path / "plan.npz"))
    assert found.digest() == short.digest() != whole.digest()
    assert found.segment_tokens(half) == 64


def test_segments_are_short_and_lose_no_target(corpus, plans):
    short, whole = plans
    num_cut = 0
    for row in range(len(short)):
        batch, same = make_batch(corpus, short, [row]), make_batch(corpus, whole, [row])
        for name in (*TENSORS, *TENSOR_FIELDS):
            assert name == "segment" or torch.equal(field(batch, name), field(same, name))
        document, segment, block = (field(batch, name)[0].numpy() for name in ("document", "segment", "block"))
        assert np.array_equal(segment < 0, document < 0) and segment.min() >= -1
        pairs = np.unique(np.stack([segment, document]), axis=1)
        assert pairs.shape[1] == len(np.unique(segment)), "a segment reaches over two documents"
        assert np.array_equal(np.diff(same.inputs.segment[0]) != 0, np.diff(document) != 0)
        num_cut += pairs.shape[1] - len(np.unique(document))
        for number in np.unique(segment[segment >= 0]):
            (inside,) = np.nonzero(segment == number)
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
            # what is longer than it may be is one medium with its marks
            has_medium = (block[inside] > 0).any()
            assert len(inside) <= short.segment_tokens(row) or has_medium
        blocks = np.unique(np.stack([block, segment])[:, block > 0], axis=1)
        assert blocks.shape[1] == len(np.unique(block[block > 0])), "a medium was cut"
    assert num_cut > 10


def test_attention_stays_within_segments(corpus, plans):
    short, _ = plans
    dims = {f"{name}_dim": corpus.config.dims[name] for name in MODALITIES}
    config = ModelConfig(
        vocab_size=512, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, window=20,
        global_every=2, **dims,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config).double()
    row = max(range(len(short)), key=lambda row: int(make_batch(corpus, short, [row]).inputs.segment.max()))
    inputs = make_batch(corpus, short, [row]).inputs
    inputs = dataclasses.replace(
        inputs, position=inputs.position.double(), media={m: (p.double(), s) for m, (p, s) in inputs.media.items()}
    )
    with torch.no_grad():
        together = model(inputs)
        for number in range(int(inputs.segment.max()) + 1):
            inside = (inputs.segment[0] == number).nonzero().flatten()
            first, last = int(inside[0]), int(inside[-1]) + 1
            media = {}
            for name, (patches, media_index) in inputs.media.items():
                own = (media_index >= first) & (media_index < last)
                media[name] = (patches[own], media_index[own] - first)
            fields = (getattr(inputs, name)[:, first:last] for name in TENSORS)
            alone = model(Inputs(*fields, media))
            assert torch.allclose(alone, together[:, first:last], rtol=0, atol=1e-10)
