"""What is computed again is the same: gradients to the bit, and as much kept as each mode says."""

import importlib

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from kernels import linear_cross_entropy
from model import ModelConfig, Transformer
from training.activations import checkpoint_blocks, offloading, tile_mlps
from training.config import RuntimeConfig

TOKENS = 48
SHAPE = ModelConfig(
    vocab_size=40, dim=24, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=12, mlp_dim=40, window=8,
    global_every=2, image_dim=12, audio_dim=8, video_dim=10,
)  # fmt: skip


def step(mode: str, tile: int = 0, *, compiled: bool = False) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Loss, gradients, and bytes that the forward pass kept beside the parameters."""
    model = Transformer(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    tile_mlps(model, tile, compiled=compiled)
    checkpoint_blocks(model, mode)
    if compiled:
        for block in model.blocks:
            block.compile(dynamic=False)
    generator = torch.Generator().manual_seed(1)
    token_ids, labels = torch.randint(40, (2, 2, TOKENS), generator=generator)
    position = torch.arange(float(TOKENS)).view(1, TOKENS, 1).expand(2, TOKENS, 3).contiguous()
    document = torch.zeros(2, TOKENS, dtype=torch.int32)
    own, kept = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), offloading(model, mode, "cpu"):
        hidden = model(token_ids, position, document, torch.zeros_like(document))
    loss = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, labels.flatten())
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()], sum(kept.values())


@pytest.fixture(scope="module")
def plain():
    return step("none")


@pytest.mark.parametrize("mode", ["selective", "full", "offload"])
def test_gradients_are_the_same_bits(mode, plain):
    loss, gradients, kept = step(mode)
    assert torch.equal(loss, plain[0])
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain[1], strict=True))
    assert kept < plain[2] / 2


@pytest.mark.parametrize("tile", [7, 16, TOKENS, 1000])
def test_tiled_mlps_give_the_same_gradients(tile, plain):
    loss, gradients, _ = step("none", tile)
    assert torch.equal(loss, plain[0])
    for one, other in zip(gradients, plain[1], strict=True):
        # a weight's gradient is summed tile by tile
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("mode", "forwards"), [("none", 4), ("selective", 6), ("full", 8)])
def test_attention_of_global_layers_is_done_once(mode, forwards, monkeypatch):
    """Two of four layers are global: with the selective mode only the local two are done again."""
    # the package's `attention` is its function
    cpu = importlib.import_module("kernels.attention.cpu")
    calls, forward = [], cpu.forward

    def counted(*inputs, **options):
        calls.append(None)
        return forward(*inputs, **options)

    monkeypatch.setattr(cpu, "forward", counted)
    step(mode)
    assert len(calls) == forwards


def test_compiled_blocks_are_computed_again_too(plain):
    loss, gradients, _ = step("selective", 16, compiled=True)
    torch.testing.assert_close(loss, plain[0], rtol=0, atol=1e-12)
    for one, other in zip(gradients, plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("checkpointing", "some", "choose one of none, selective, full, offload"),
        ("mlp_tile", -1, "or 0 for whole rows"),
        ("shard", 0, "the ranks that share one"),
        ("timeout_s", 0.0, "must be positive"),
        ("profile", (3, 2), "the first and the last step"),
    ],
)
def test_settings_that_mean_nothing_are_told(field, value, told):
    with pytest.raises(ValueError, match=told):
        RuntimeConfig(**{field: value})
