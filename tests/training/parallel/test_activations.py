"""What is computed again is the same: gradients to the bit, and as much kept as each mode says."""

import dataclasses
import importlib

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from brine.kernels.linear_loss import linear_cross_entropy
from brine.model.config import ModelConfig
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer
from brine.training.config import RuntimeConfig
from brine.training.parallel.activations import (
    ac_groups_of,
    checkpoint_blocks,
    is_large_activation,
    offloading,
    tile_mlps,
)
from brine.training.runtime import compile_blocks
from tests.training.late_copy_engine import LateLink

TOKENS = 48
SHAPE = ModelConfig(
    vocab_size=40, dim=24, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=12, mlp_dim=40, window=8,
    global_every=2, image_dim=12, audio_dim=8, video_dim=10,
)  # fmt: skip


def step(
    mode: str, tile: int = 0, *, compiled: bool = False, layers: int = 1, shape: ModelConfig = SHAPE, link=None
) -> tuple[torch.Tensor, list[torch.Tensor], dict[int, torch.Tensor]]:
    """Loss, gradients, and the tensors that the forward pass kept beside the parameters, each storage once."""
    model = Transformer(shape, generator=torch.Generator().manual_seed(0)).double()
    tile_mlps(model, tile, compiled=compiled)
    checkpoint_blocks(model, mode, layers=layers)
    if compiled:
        compile_blocks(model)
    generator = torch.Generator().manual_seed(1)
    token_ids, labels = torch.randint(40, (2, 2, TOKENS), generator=generator)
    position = torch.arange(float(TOKENS)).view(1, TOKENS, 1).expand(2, TOKENS, 3).contiguous()
    document = torch.zeros(2, TOKENS, dtype=torch.int32)
    own, kept = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), offloading(model, mode, link=link):
        hidden = model(Inputs(token_ids, position, document, torch.zeros_like(document)))
    loss = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, labels.flatten())
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()], kept


def num_bytes(kept: dict[int, torch.Tensor]) -> int:
    """Of their storages."""
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def wide(kept: dict[int, torch.Tensor], shape: ModelConfig) -> tuple[int, int]:
    """How many of them are streams, and how many what attention gave: what offloading sends to the host."""
    found = [tensor.dim() for tensor in kept.values() if is_large_activation(tensor, shape)]
    return found.count(3), found.count(4)


@pytest.fixture(scope="module")
def plain():
    return step("none")


@pytest.fixture
def attended(monkeypatch):
    """Grows by one with every forward pass of attention."""
    # the package's `attention` is its function
    cpu = importlib.import_module("brine.kernels.attention.cpu.tiled")
    calls, forward = [], cpu.forward

    def counted(*inputs, **options):
        calls.append(None)
        return forward(*inputs, **options)

    monkeypatch.setattr(cpu, "forward", counted)
    return calls


@pytest.mark.parametrize("mode", ["selective", "full", "offload"])
def test_gradients_are_the_same_bits(mode, plain):
    loss, gradients, kept = step(mode)
    assert torch.equal(loss, plain[0])
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain[1], strict=True))
    assert num_bytes(kept) < num_bytes(plain[2]) / 2


@pytest.mark.parametrize("tile", [7, 16, TOKENS, 1000])
def test_tiled_mlps_give_the_same_gradients(tile, plain):
    loss, gradients, _ = step("none", tile)
    assert torch.equal(loss, plain[0])
    for one, other in zip(gradients, plain[1], strict=True):
        # a weight's gradient is summed tile by tile
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("mode", "forwards"), [("none", 4), ("selective", 6), ("full", 8), ("offload", 6)])
def test_attention_of_global_layers_is_done_once(mode, forwards, attended):
    """Two of four layers are global: with the selective mode only the local two are done again."""
    step(mode)
    assert len(attended) == forwards


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_layers_that_share_an_input_keep_one(mode, attended):
    """Six local layers and a global one: with three to an input, three inputs are kept in place of seven, and each
    local layer but the last of its three, whose input is enough, is gone through twice more."""
    shape = dataclasses.replace(SHAPE, num_layers=7, global_every=7)
    loss, gradients, alone = step(mode, shape=shape)
    again = len(attended)
    shared_loss, shared_gradients, shared = step(mode, layers=3, shape=shape)
    assert torch.equal(loss, shared_loss)
    assert all(torch.equal(one, other) for one, other in zip(gradients, shared_gradients, strict=True))
    # the input of the last norm is one more
    assert wide(alone, shape)[0] - wide(shared, shape)[0] == 4
    assert len(attended) - again == again + 4


def test_runs_of_local_layers():
    shape = dataclasses.replace(SHAPE, num_layers=13, global_every=6)
    assert [list(run) for run in ac_groups_of(shape, range(13), 3)] == [
        [0, 1, 2], [3, 4], [5], [6, 7, 8], [9, 10], [11], [12]
    ]  # fmt: skip
    assert [list(run) for run in ac_groups_of(shape, range(2, 8), 9)] == [[2, 3, 4], [5], [6, 7]]
    assert ac_groups_of(shape, range(5), 1) == [range(layer, layer + 1) for layer in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "tile", "streams", "outs"), [("selective", 0, 6, 2), ("selective", 16, 8, 2), ("full", 16, 6, 0)]
)
def test_compiled_blocks_hand_autograd_what_is_offloaded(mode, tile, streams, outs):
    """Inputs of four layers, two tensors of the last norm, out of two global layers (offloading is selective), and with
    tiles the stream between their halves; and the compiler had what it was to compile."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert wide(step(mode, tile, compiled=True)[2], SHAPE) == (streams, outs)
    assert not counters["graph_break"]
    # blocks, local and global; first halves of both, and the tile; one first half and the tile
    graphs = {("selective", 0): 2, ("selective", 16): 3, ("full", 16): 2}
    assert counters["stats"]["unique_graphs"] == graphs[mode, tile]


OFFLOADED = {
    "whole": {}, "tiled": {"tile": 16}, "compiled": {"compiled": True}, "shared": {"layers": 2},
    "tiled-compiled": {"tile": 16, "compiled": True},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", OFFLOADED.values(), ids=OFFLOADED)
def test_what_waited_on_the_host_gives_the_same_gradients(options, plain):
    """Forced on a CPU. Compiled code asks for the strides that it saved: tiles are parts of a wider tensor."""
    link = LateLink()
    before = plain if not options else step("selective", **options)
    loss, gradients, _ = step("offload", link=link, **options)
    assert torch.equal(loss, before[0])
    assert all(torch.equal(one, other) for one, other in zip(gradients, before[1], strict=True))
    # inputs of the layers and two tensors of the last norm at the least; all but the last two come back, which had
    # not left
    stream = 2 * TOKENS * SHAPE.dim * 8
    assert link.sent >= 6 * stream
    assert 0 < link.sent - link.fetched <= 2 * stream


@pytest.mark.slow
def test_compiled_blocks_are_computed_again_too():
    """All at once: three local layers to an input, attention of the global one kept, tiles."""
    shape = dataclasses.replace(SHAPE, global_every=4)
    plain_loss, plain_gradients, _ = step("none", shape=shape)
    loss, gradients, _ = step("selective", 16, compiled=True, layers=3, shape=shape)
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=1e-12)
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("activation_checkpointing", "some", "choose one of none, selective, full, offload"),
        ("ac_group_size", 0, "or the number of layers that share one checkpoint"),
        ("ac_group_size", 2, "choose selective, full or offload"),
        ("mlp_tile_tokens", -1, "or 0 for whole sequences"),
        ("dp_shard", 0, "the ranks that share one"),
        ("timeout_s", 0.0, "must be positive"),
        ("profile", (3, 2), "the first and the last step"),
    ],
)
def test_settings_that_mean_nothing_are_told(field, value, told):
    with pytest.raises(ValueError, match=told):
        RuntimeConfig(**{field: value})
