"""The packings have the distribution that they claim, and the same seed gives the same packing to everybody."""

import numpy as np
import pytest
import torch

from benchmarks.harness.llama_peer import dense_mask
from benchmarks.kernels.masks import (
    KINDS,
    SEED,
    decode_prompts,
    document_ids,
    document_lengths,
    image_blocks,
    make_mask,
)
from brine.kernels.attention import Spans

pytestmark = pytest.mark.slow


def test_document_lengths_are_log_normal_and_fill_the_row():
    lengths = document_lengths(4_000_000, seed=1)
    assert sum(lengths) == 4_000_000
    drawn = np.array(lengths[:-1])
    assert drawn.min() >= 64 and drawn.max() <= 32768
    assert 1900 < np.median(drawn) < 2200
    assert 0.93 < np.log(drawn).std() < 1.05


def test_image_blocks_cover_half_inside_their_documents():
    lengths = document_lengths(500_000, seed=2)
    block, document = image_blocks(lengths, seed=2), document_ids(lengths)
    assert 0.47 < float((block > 0).float().mean()) < 0.53
    names, sizes = block[block > 0].unique_consecutive(return_counts=True)
    # a block is one run, in one document, and shorter than the least size only at a document's end
    assert len(names.unique()) == len(names)
    assert sizes.max() <= 1024
    assert sizes.min() >= 256
    for name in names[:50]:
        assert document[block == name].unique().numel() == 1
    touching = (block[:, 1:] != block[:, :-1]) & (block[:, 1:] > 0) & (block[:, :-1] > 0)
    assert not touching.any()


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_packing(kind):
    first, second, other = (make_mask(kind, 8192, seed=seed) for seed in (SEED, SEED, SEED + 1))
    assert torch.equal(first.spans.lo, second.spans.lo) and torch.equal(first.spans.hi, second.spans.hi)
    assert first.lengths == second.lengths
    changed = not (torch.equal(first.spans.lo, other.spans.lo) and torch.equal(first.spans.hi, other.spans.hi))
    assert changed == (kind not in ("causal", "window"))
    assert first.share == pytest.approx(float(first.spans.dense().float().mean()))


def test_window_and_documents_are_what_an_implementation_is_told():
    assert int((make_mask("window", 4096).spans.hi - make_mask("window", 4096).spans.lo).max()) == 1024
    assert make_mask("images512", 1100).lengths == (512, 512, 76)
    assert sum(make_mask("packed", 20_000).lengths) == 20_000


def test_decode_prompts_are_unequal_and_the_longest_fills_the_cache():
    prompts = decode_prompts(1000, seed=SEED)
    assert len(set(prompts)) > 4 and max(prompts) == 1000 and min(prompts) >= 250


def test_the_training_peer_sees_the_same_mask():
    document = torch.stack([document_ids([5, 1, 9])[0], document_ids([15])[0]])
    assert torch.equal(dense_mask(document)[:, 0], Spans.packed(document).dense())
