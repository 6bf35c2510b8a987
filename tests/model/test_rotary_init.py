"""Positions and first weights."""

import math
import re
from dataclasses import replace

import pytest
import torch

from brine.model.init import init_weights
from brine.model.rotary import Rotary, frequency_axes, rotate
from brine.model.transformer import Transformer


def plain_rotary(x, place, theta):
    """One-dimensional rotary embedding in fp64, written out pair by pair. x: (T, D); place: (T,)."""
    half = x.shape[-1] // 2
    out = x.double().clone()
    for j in range(half):
        angle = place.double() * theta ** (-j / half)
        a, b = x[:, j].double(), x[:, j + half].double()
        out[:, j] = a * angle.cos() - b * angle.sin()
        out[:, j + half] = b * angle.cos() + a * angle.sin()
    return out


@pytest.mark.parametrize("offset", [0, 1_000_000], ids=["near", "a-million-on"])
def test_text_turns_as_in_one_dimension(config, offset):
    """t = h = w is ordinary rotary embedding, also where a plain fp32 product has lost a twentieth of a radian."""
    x = torch.randn(1, 20, 1, 16, generator=torch.Generator().manual_seed(0))
    place = offset + torch.arange(20.0)
    local, long = Rotary(config)(place[None, :, None].expand(1, 20, 3))
    for tables, theta in ((local, config.rope_theta_local), (long, config.rope_theta_global)):
        turned = rotate(x, *tables)
        assert turned.dtype == torch.float32
        truth = plain_rotary(x[0, :, 0], place, theta)
        assert (turned[0, :, 0].double() - truth).abs().max() < 1e-3


def test_scores_depend_on_differences_only(config):
    """Shifting both positions by the same (t, h, w) leaves q . k as it is; shifting one axis of one changes it."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 9, 1, 16, generator=generator, dtype=torch.float64)
    place = torch.randint(0, 50, (1, 9, 3), generator=generator).float()

    def scores(of_q, of_k):
        rotary = Rotary(config)
        return torch.einsum("bthd,bshd->bts", rotate(q, *rotary(of_q)[0]), rotate(k, *rotary(of_k)[0]))

    before = scores(place, place)
    shift = torch.tensor([300.0, 17.0, 4.5])
    torch.testing.assert_close(scores(place + shift, place + shift), before, rtol=0, atol=1e-4)
    for axis in range(3):
        one = torch.zeros(3)
        one[axis] = 1.0
        assert (scores(place + one, place) - before).abs().max() > 0.1


def test_frequencies_are_dealt_in_turn():
    assert frequency_axes((6, 5, 5)) == [0, 1, 2] * 5 + [0]
    assert frequency_axes((4, 2, 1)) == [0, 1, 2, 0, 1, 0, 0]


def test_positions_are_never_rounded_to_bf16(config):
    """Under autocast 257 and 256 would otherwise be one place."""
    place = torch.tensor([256.0, 257.0]).view(1, 2, 1).expand(1, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (cos, sin), _ = Rotary(config)(place)
    assert cos.dtype == sin.dtype == torch.float32
    assert not torch.equal(cos[0, 0], cos[0, 1])


def table_of_init():
    """Rows of the docstring's table: (pattern, distribution, rule)."""
    rows = re.findall(r"^    ([\w.*]+\.(?:weight|bias))\s+(normal|constant)\s+(.+?)\s*$", init_weights.__doc__, re.M)
    assert len(rows) == 17
    return rows


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_init_table_is_true(config, tied):
    """Every parameter is in the docstring's table exactly once, and has the value or spread that stands there."""
    # wide enough that a sample's spread is near the distribution's
    config = replace(config, dim=192, mlp_dim=256, tie_embeddings=tied, vocab_size=400)
    model = Transformer(config, generator=torch.Generator().manual_seed(2))
    names = {"E": config.dim, "H": config.num_heads, "D": config.head_dim, "M": config.mlp_dim, "L": config.num_layers}
    used = set()
    for name, parameter in model.named_parameters():
        rows = [row for row in table_of_init() if re.fullmatch(row[0].replace(".", r"\.").replace("*", r"\w+"), name)]
        assert len(rows) == 1, name
        pattern, distribution, rule = rows[0]
        used.add(pattern)
        value = parameter.detach().double()
        if distribution == "constant":
            number = 0.25 if tied and name == "norm.weight" else float(rule.split(",")[0])
            assert torch.equal(value, torch.full_like(value, number)), name
        else:
            expression = rule.split("  ")[0]
            std = eval(expression, {"sqrt": math.sqrt, "patch_dim": parameter.shape[-1], **names})
            # five standard errors of a sample's standard deviation
            assert abs(value.std().item() / std - 1) < 5 / math.sqrt(2 * value.numel()), name
            assert abs(value.mean().item()) < 5 * std / math.sqrt(value.numel()), name
    unused = {row[0] for row in table_of_init()} - used
    assert unused == ({"head.weight"} if tied else set())


def test_equal_generators_give_equal_weights(config):
    one, two, other = (Transformer(config, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.head_weight, other.head_weight)
    two.init_weights(torch.Generator().manual_seed(6))
    assert torch.equal(two.head_weight, other.head_weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_model_is_filled_like_any_other(config, dtype):
    whole = Transformer(config, generator=torch.Generator().manual_seed(1)).to(dtype)
    empty = Transformer(config, on_meta_device=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to(dtype).to_empty(device="cpu")
    empty.init_weights(torch.Generator().manual_seed(1))
    for name, value in empty.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_the_stream_neither_grows_nor_fades_at_first(config, make_document):
    """Root mean square near 1 on entry, for text and patches alike, and within a factor of 2 after all layers."""
    from brine.inference.prompt import batch_prompts

    model = Transformer(replace(config, num_layers=8, dim=128), generator=torch.Generator().manual_seed(3))
    seen = {}
    model.embed_out.register_forward_hook(lambda module, args, out: seen.update(first=out))
    model.blocks[-1].resid_out.register_forward_hook(lambda module, args, out: seen.update(last=out))
    inputs = batch_prompts([make_document(1, head=40, tail=40)])
    model(inputs)
    media = inputs.block[0] != 0
    for kind in (media, ~media):
        assert 0.9 < seen["first"][0, kind].square().mean().sqrt() < 1.1
    assert 0.8 < seen["last"].square().mean().sqrt() < 2.0
