"""The whole model: what each token may depend on, and that no way of running it changes the answer."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from brine.inference.cache import KeyValueCache
from brine.inference.prompt import batch_prompts
from brine.model.config import ModelConfig
from brine.model.flops import forward_flops, matrix_parameters, num_causal_pairs
from brine.model.inputs import TENSORS, Inputs
from brine.model.transformer import Transformer


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def split_inputs(inputs, *lengths):
    """Cut the arguments of a forward over one row into chunks of these lengths."""
    start = 0
    for length in lengths:
        cut = slice(start, start + length)
        part = (getattr(inputs, name)[:, cut] for name in TENSORS)
        media = {}
        for name, (patches, media_index) in inputs.media.items():
            inside = (media_index >= start) & (media_index < start + length)
            media[name] = (patches[inside], media_index[inside] - start)
        yield Inputs(*part, media)
        start += length
    assert start == inputs.token_ids.shape[1]


def test_hidden_has_the_shape_and_dtype_promised(make_model, make_document):
    inputs = batch_prompts([make_document(1), make_document(2)])
    hidden = make_model()(inputs)
    assert hidden.shape == (*inputs.token_ids.shape, 48) and hidden.dtype == torch.float64


@pytest.mark.parametrize("keep_all_keys", [False, True], ids=["window-kept", "all-kept"])
@pytest.mark.parametrize("chunks", [(45,), (12, 24), (13, 8), (21, 1, 1)], ids=str)
def test_cached_equals_uncached(make_model, make_document, keep_all_keys, chunks):
    """In chunks that hold each media block whole, then token by token far past the window."""
    sequence = make_document(3, tail=30)
    inputs = batch_prompts([sequence])
    model = make_model()
    length = inputs.token_ids.shape[1]
    # chunks end outside blocks: 5 text, 1 + 6 + 1 image, 1 + 7 + 1 sound, 1 + 12 + 1 video
    lengths = [*chunks, 36 - sum(chunks)] if sum(chunks) < 36 else [*chunks]
    lengths += [1] * (length - sum(lengths))
    cache = KeyValueCache(model.config, keep_all_keys=keep_all_keys)
    with torch.no_grad():
        pieces = [model(part, cache=cache) for part in split_inputs(inputs, *lengths)]
        close(torch.cat(pieces, dim=1), model(inputs))
    assert cache.num_tokens == length


def test_cache_drops_what_local_layers_no_longer_see(make_model, make_document):
    model = make_model(num_layers=2)
    sequence = make_document(4, picture=0, sound=0, film=0, tail=395)
    cache = KeyValueCache(model.config)
    with torch.no_grad():
        for part in split_inputs(batch_prompts([sequence]), 200, *[4] * 50):
            model(part, cache=cache)
    local, long = cache.layers
    assert local.keys.shape[1] < 100 and long.keys.shape[1] >= 400


def test_cache_refuses_half_a_media_block(make_model, make_document):
    """Rows computed without the rest of their block cannot be repaired, so this must not pass in silence."""
    model = make_model()
    cache = KeyValueCache(model.config)
    # 5 text tokens, the opening token, and 3 of 6 patches
    first, second = split_inputs(batch_prompts([make_document(5)]), 9, 33)
    model(first, cache=cache)
    with pytest.raises(ValueError, match="all tokens of a block in one forward"):
        model(second, cache=cache)


def test_packed_documents_equal_documents_alone(make_model, make_document):
    """Two documents and padding in one row, each as if alone: nothing leaks, whatever the layer."""
    model = make_model()
    one, two = make_document(6), make_document(7, head=3, tail=9)
    alone = [batch_prompts([one]), batch_prompts([two])]
    lengths = [len(one), len(two)]
    pad = 4
    packed = {}
    for name in TENSORS:
        parts = [getattr(part, name) for part in alone]
        if name == "segment":
            parts = [parts[0] * 0 + 7, parts[1] * 0 + 8]
        fill = -1 if name == "segment" else 0
        packed[name] = torch.cat([*parts, torch.full((1, pad, *parts[0].shape[2:]), fill, dtype=parts[0].dtype)], dim=1)
    media = {
        name: (
            torch.cat([part.media[name][0] for part in alone]),
            torch.cat([alone[0].media[name][1], alone[1].media[name][1] + lengths[0]]),
        )
        for name in ("image", "audio", "video")
    }
    hidden = model(Inputs(**packed, media=media))
    close(hidden[:, : lengths[0]], model(alone[0]))
    close(hidden[:, lengths[0] : sum(lengths)], model(alone[1]))
    assert hidden.isfinite().all()


@pytest.mark.parametrize("global_every, sees_ahead", [(1, False), (2, True)], ids=["all-global", "some-local"])
def test_blocks_see_ahead_on_local_layers_only(make_model, make_document, global_every, sees_ahead):
    model = make_model(global_every=global_every)
    inputs = batch_prompts([make_document(8)])
    before = model(inputs)
    patches, media_index = inputs.media["image"]
    patches = patches.clone()
    # another image, not another brightness: the LayerNorm takes that away
    patches[-1] = patches[-1].flip(0)
    inputs.media["image"] = (patches, media_index)
    moved = (model(inputs) - before).abs().amax(-1)[0] > 1e-9
    last = int(media_index[-1])
    assert bool(moved[media_index[:-1]].all()) == sees_ahead and bool(moved[media_index[:-1]].any()) == sees_ahead
    # text before the image never learns of it, everything behind it does
    assert not moved[: int(media_index[0])].any() and moved[last:].all()


def test_local_layers_end_at_the_window(make_model, make_document):
    """With local layers only, a change travels window - 1 tokens per layer and no further."""
    model = make_model(num_layers=3, global_every=3, window=4)
    # the last layer is global by rule; look at the stream before it
    seen = {}
    model.blocks[1].resid_out.register_forward_hook(lambda module, args, out: seen.update(out=out))
    inputs = batch_prompts([make_document(9, picture=0, sound=0, film=0, tail=20)])
    model(inputs)
    before = seen["out"]
    inputs.token_ids[0, 2] += 1
    model(inputs)
    moved = (seen["out"] - before).abs().amax(-1)[0] > 1e-9
    assert moved.nonzero().flatten().tolist() == list(range(2, 2 + 2 * 3 + 1))


def test_gradient_reaches_every_parameter(make_model, make_document):
    model = make_model()
    inputs = batch_prompts([make_document(10)])
    logits = model(inputs) @ model.head_weight.T
    torch.nn.functional.cross_entropy(logits[0, :-1], inputs.token_ids[0, 1:]).backward()
    dead = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert dead == []


def test_padding_slots_are_dropped(make_model, make_document):
    """Media padded to a budget (slots at B * T) give the same hidden states and the same gradients."""
    model = make_model()
    inputs = batch_prompts([make_document(11), make_document(12)])
    results = []
    for padding in (0, 5):
        padded = {
            name: (
                torch.cat([patches, torch.full((padding, patches.shape[1]), 9.0)]),
                torch.cat([media_index, torch.full((padding,), inputs.token_ids.numel())]),
            )
            for name, (patches, media_index) in inputs.media.items()
        }
        model.zero_grad()
        hidden = model(inputs.with_media(padded))
        hidden.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        results.append([hidden, *gradients])
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(plain, padded, rtol=1e-12, atol=1e-9)


def test_unknown_media_are_named(make_model, make_document):
    model, inputs = make_model(), batch_prompts([make_document(13)])
    with pytest.raises(ValueError, match="smell"):
        model(inputs.with_media({"smell": inputs.media["image"]}))
    with pytest.raises(ValueError, match="audio_dim"):
        model(inputs.with_media({"audio": inputs.media["image"]}))


def forward_and_gradients(model, inputs, *, autocast):
    """Hidden states and the gradients of every parameter that has one."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        hidden = model(inputs)
    hidden.square().mean().backward()
    return [hidden.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def compiled_twin(model, **options):
    """The same weights in a model whose blocks are compiled, without a graph break."""
    twin = Transformer(model.config)
    twin.load_state_dict(model.state_dict())
    for block in twin.blocks:
        block.compile(fullgraph=True, dynamic=False, **options)
    assert list(twin.state_dict()) == list(model.state_dict())
    return twin


@pytest.mark.slow
def test_traced_blocks_equal_eager_ones(config, make_document):
    """What the compiler sees of a block is the block: fp32, without code generation."""
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    inputs = batch_prompts([make_document(14), make_document(15, tail=9)])
    traced = forward_and_gradients(compiled_twin(model, backend="aot_eager"), inputs, autocast=False)
    for plain, other in zip(forward_and_gradients(model, inputs, autocast=False), traced, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_in_bf16_is_as_exact_as_eager(config, make_document):
    """Rounding differs where the compiler keeps fp32 between operations; the error against fp64 must not grow."""
    # one local and one global layer: both kinds run through one compiled block
    small = replace(config, num_layers=2)
    model = Transformer(small, generator=torch.Generator().manual_seed(0))
    exact = Transformer(small).double()
    exact.load_state_dict(model.state_dict())
    inputs = batch_prompts([make_document(14), make_document(15, tail=9)])
    truth = forward_and_gradients(exact, inputs, autocast=False)
    eager = forward_and_gradients(model, inputs, autocast=True)
    compiled = forward_and_gradients(compiled_twin(model), inputs, autocast=True)
    assert eager[0].dtype == compiled[0].dtype == torch.float32
    for right, plain, fast in zip(truth, eager, compiled, strict=True):
        assert (fast.double() - right).norm() <= 2 * (plain.double() - right).norm() + 1e-3 * right.norm()


def test_autocast_keeps_the_stream_and_norms_in_fp32(config, make_document):
    model = Transformer(config)
    seen = {}
    for name in ("resid_mid", "attn.q", "attn.v", "mlp.act"):
        model.blocks[0].get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out.dtype})
        )
    norm = {}
    model.blocks[0].attn_norm.register_forward_hook(lambda module, args, out: norm.update(dtype=out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch_prompts([make_document(16)]))
    low, full = torch.bfloat16, torch.float32
    assert seen == {"resid_mid": full, "attn.q": low, "attn.v": low, "mlp.act": low} and norm == {"dtype": full}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_first_loss_is_that_of_guessing(config, make_document, tied):
    config = replace(config, vocab_size=512, tie_embeddings=tied, dim=128)
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    assert model.head_weight.shape == (512, 128)
    inputs = batch_prompts([make_document(seed) for seed in range(8)])
    logits = model(inputs) @ model.head_weight.T
    # the text only: slots are no targets
    text = (inputs.block[:, 1:] == 0) & (inputs.segment[:, :-1] == 0)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][text], inputs.token_ids[:, 1:][text])
    assert abs(loss.item() - math.log(512)) < 0.15


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_num_parameters_counts_each_once(config, tied):
    model = Transformer(replace(config, tie_embeddings=tied))
    assert model.num_parameters() == sum(value.numel() for value in model.state_dict().values())
    norms = 4 * (2 * 48 + 2 * 16) + 48
    # the token table is a matrix only where it is the head too
    embedding = sum(value.numel() for value in model.embed.parameters()) - tied * model.embed.tokens.weight.numel()
    assert model.num_parameters() - embedding == matrix_parameters(model.config) + norms


def test_flops_count_what_spans_let_through(config):
    length = 30
    ids = torch.zeros(1, length, dtype=torch.int32)
    local, long = (spans.area() for spans in Inputs(ids, torch.zeros(1, length, 3), ids, ids).spans(config))
    assert (local, long) == (num_causal_pairs(length, config.window), num_causal_pairs(length))
    by_hand = 2 * length * (matrix_parameters(config)) + 4 * 4 * 16 * (2 * local + 2 * long)
    assert forward_flops(config, num_tokens=length, local_pairs=local, global_pairs=long) == by_hand
    more = forward_flops(config, num_tokens=length, local_pairs=local, global_pairs=long, num_patches={"image": 2})
    assert more - by_hand == 2 * 2 * config.image_dim * config.dim


@pytest.mark.parametrize(
    "layers, every, expected", [(6, 6, [5]), (4, 6, [3]), (5, 2, [1, 3]), (12, 6, [5, 11])], ids=str
)
def test_which_layers_are_global(layers, every, expected):
    config = ModelConfig(num_layers=layers, global_every=every)
    assert [layer for layer in range(layers) if config.is_global(layer)] == expected
    assert config.num_global_layers == len(expected)


@pytest.mark.parametrize(
    "changes, hint",
    [
        ({"num_heads": 6, "num_kv_heads": 4}, "not a multiple of num_kv_heads"),
        ({"head_dim": 31}, "must be even"),
        ({"window": 0}, "None for no limit"),
        ({"embedder": "conv"}, "choose one of ln_linear_ln, linear"),
        ({"rope_sections": (4, 4, 4)}, "add up to head_dim / 2 = 16"),
        ({"num_layers": 0}, "must be positive"),
    ],
    ids=["heads", "head_dim", "window", "embedder", "sections", "layers"],
)
def test_impossible_configs_say_what_to_do(changes, hint):
    with pytest.raises(ValueError, match=hint):
        ModelConfig(**changes)


def test_linear_embedder_runs(config, make_document):
    model = Transformer(replace(config, embedder="linear"))
    assert not any("norm_in" in name or "norm_out" in name for name in model.state_dict())
    assert model(batch_prompts([make_document(17)])).isfinite().all()
