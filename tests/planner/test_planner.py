"""The planner's byte counts against real modules, its sums against themselves, its messages against a reader."""

import json
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from brine.model.config import ModelConfig
from brine.model.flops import forward_flops, matrix_parameters
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer
from brine.planner import command
from brine.planner import memory as plan_memory
from brine.planner import search as planner
from brine.planner import step_time as plan_time
from brine.planner.memory import RunSettings, memory
from brine.planner.step_time import areas, step_time
from brine.recipes.registry import RECIPES
from brine.training.logging.device_specs import GPUS
from brine.training.parallel.activations import checkpoint_blocks, tile_mlps

TINY = ModelConfig(
    vocab_size=300, dim=48, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=80, window=16,
    global_every=8, image_dim=12, audio_dim=8, video_dim=24,
)  # fmt: skip
TOKENS = 128
LONG = RunSettings(RECIPES["long_1m"]().large.model, 2**18, compiled=True)


def saved_bytes(case: RunSettings) -> int:
    """Bytes that autograd saves in a real forward pass, each storage once, parameters left out."""
    model = Transformer(case.model)
    tile_mlps(model, case.mlp_tile_tokens, compiled=False)
    checkpoint_blocks(model, case.activation_checkpointing)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # the tensor is kept, so that no other takes its address
            found[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.zeros(1, TOKENS, dtype=torch.int32)
    position = torch.arange(TOKENS).float()[None, :, None].expand(1, TOKENS, 3)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16")
    with mixed, saved_tensors_hooks(pack, lambda tensor: tensor):
        model(Inputs(ids, position, ids, ids))
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("tile", [0, 32], ids=["whole", "tiles"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_blocks_keep_exactly_what_is_counted(mode, dtype, tile):
    """Three layers more keep three layers' bytes more; what lies outside of blocks falls out of the difference."""
    deep = RunSettings(TINY, TOKENS, activation_checkpointing=mode, mlp_tile_tokens=tile, dtype=dtype, device="cpu")
    flat = replace(deep, model=replace(TINY, num_layers=2))

    def counted(case):
        kept = plan_memory.saved_activation_bytes(case)
        # what a selective policy keeps is not in autograd's hands; both models have one global layer
        size = kept.pop("out of global layers", 0) + kept.pop("lse of global layers", 0)
        assert size == (TOKENS * 4 * (16 * case.low + 4) if mode == "selective" else 0)
        casts = plan_memory.cast_weights(case, case.model.num_layers) if mode == "none" else 0
        if tile and casts:
            casts -= case.low * case.model.num_layers * 3 * TINY.dim * TINY.mlp_dim
        # the CPU's attention makes its output one row longer than it is
        row = case.low * TINY.num_heads * TINY.head_dim * case.model.num_layers if mode == "none" else 0
        return sum(kept.values()) + casts + row

    assert saved_bytes(deep) - saved_bytes(flat) == counted(deep) - counted(flat)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("embedder", ["ln_linear_ln", "linear"])
def test_parameters_are_those_of_the_model(tied, embedder):
    config = replace(TINY, tie_embeddings=tied, embedder=embedder)
    model = Transformer(config)
    assert plan_memory.num_parameters(config) == model.num_parameters()
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    assert plan_memory.block_parameters(config) == block
    assert matrix_parameters(config) == config.num_layers * plan_memory.block_matrices(config) + 300 * 48


def test_tables_are_as_large_as_made():
    tables = Transformer(TINY).rotary(torch.zeros(1, TOKENS, 3))
    made = sum(part.numel() * part.element_size() for pair in tables for part in pair)
    assert plan_memory.rope_table_bytes(RunSettings(TINY, TOKENS)) == made


def test_model_flops_are_those_that_training_counts():
    local, everywhere = areas(LONG)
    billed = forward_flops(LONG.model, num_tokens=LONG.seq_len, local_pairs=local, global_pairs=everywhere)
    assert plan_time.model_flops(LONG, 2) == pytest.approx(6 * billed, rel=1e-12)


def test_terms_add_up():
    plan = planner.plan_run(LONG, RECIPES["long_1m"]().large, GPUS["h200"])
    found = plan.to_dict()
    assert sum(found["memory_bytes"].values()) == pytest.approx(found["peak_bytes"], abs=100)
    assert sum(found["time_s"].values()) == pytest.approx(found["step_s"], rel=1e-9)
    assert plan.memory.peak_bytes == max(
        sum(plan.memory.persistent.values()) + sum(added.values()) for added in plan.memory.peak_phases.values()
    )
    assert (
        found["gradient_accumulation_steps"] * found["micro_batch_size"] == RECIPES["long_1m"]().large.global_batch_size
    )


def test_what_flash_adds_up_in_is_counted():
    """dq in float32; dk and dv too where query heads share a key head."""
    heads, keys, dim = LONG.model.num_heads, LONG.model.num_kv_heads, LONG.model.head_dim
    assert heads > keys
    own = replace(LONG, model=replace(LONG.model, num_kv_heads=heads))
    assert plan_memory.flash_accumulator_bytes(own) == LONG.num_tokens * 4 * heads * dim
    assert plan_memory.flash_accumulator_bytes(LONG) == LONG.num_tokens * 4 * (heads + 2 * keys) * dim
    asked = replace(LONG, attention_backend="flash")
    others = [replace(LONG, attention_backend="triton"), replace(LONG, dtype="float32"), replace(LONG, device="cpu")]
    assert plan_memory.flash_accumulator_bytes(asked) == plan_memory.flash_accumulator_bytes(LONG)
    assert not any(map(plan_memory.flash_accumulator_bytes, others))
    ours, theirs = (memory(case).peak_phases["attention"] for case in (others[0], LONG))
    assert sum(theirs.values()) - sum(ours.values()) == pytest.approx(plan_memory.flash_accumulator_bytes(LONG))
    assert (
        theirs["flash backward accumulators"] == plan_memory.flash_accumulator_bytes(LONG)
        and "flash backward accumulators" not in ours
    )


def test_batches_that_wait_on_a_card_are_counted():
    """As `brine.data.prefetch` holds them: whole batches and their masks, patches as bytes, no tables."""
    patches = (("image", 1000),)
    model = replace(LONG.model, image_dim=768)
    here, bare = (memory(replace(LONG, model=model, patches=each)).persistent for each in (patches, ()))
    assert bare["prefetched batches"] == 2 * LONG.num_tokens * (plan_memory.BATCH_BYTES + plan_memory.SPAN_BYTES)
    assert here["prefetched batches"] - bare["prefetched batches"] == 2 * 1000 * 768
    assert "prefetched batches" not in memory(replace(LONG, device="cpu")).persistent


def test_memory_moves_the_way_it_should():
    def peak(**changes):
        return memory(replace(LONG, ranks=8, **changes)).peak_bytes

    assert peak(seq_len=2**19) > peak() > peak(context_parallel=2) > peak(context_parallel=8)
    assert (
        peak(activation_checkpointing="none")
        > peak(activation_checkpointing="selective")
        > peak(activation_checkpointing="full")
    )
    assert peak(activation_checkpointing="full") > peak(activation_checkpointing="offload")
    assert peak(compiled=False) > peak()
    assert peak(activation_checkpointing="full", mlp_tile_tokens=4096) < peak(activation_checkpointing="full")
    short = {"seq_len": 4096, "activation_checkpointing": "full"}
    assert peak(**short) > peak(**short, dp_shard=2) > peak(**short, dp_shard=8)
    assert peak(**short, optimizer="adamw") > peak(**short, optimizer="muon")


def test_time_moves_the_way_it_should():
    device = GPUS["h200"]

    def seconds(device=device, **changes):
        return step_time(replace(LONG, ranks=8, **changes), device).total_s

    assert seconds(activation_checkpointing="full") > seconds(activation_checkpointing="selective") > seconds()
    assert seconds(mlp_tile_tokens=4096) > seconds()
    assert seconds(seq_len=2**19) > 3 * seconds()
    assert seconds(GPUS["a100-80"]) > seconds() > seconds(GPUS["b200"])
    assert 0 < step_time(LONG, device).mfu(device) < 1


def test_the_best_plan_fits_and_nothing_that_fits_is_faster():
    recipe, device = RECIPES["long_1m"](), GPUS["h200"]
    best, plans = planner.search(replace(LONG, ranks=4), recipe.large, device, {})
    assert best.fits and not all(plan.fits for plan in plans)
    assert best.time.total_s == min(plan.time.total_s for plan in plans if plan.fits)
    held, _ = planner.search(
        replace(LONG, ranks=4), recipe.large, device, {"context_parallel": 4, "activation_checkpointing": "offload"}
    )
    assert (held.case.context_parallel, held.case.activation_checkpointing) == (4, "offload")


def test_the_longest_row_fits_and_a_little_more_does_not():
    recipe, device, held = RECIPES["long_1m"](), GPUS["h200"], {"activation_checkpointing": "full", "ac_group_size": 1}
    held |= {"mlp_tile_tokens": 4096}
    most = planner.longest_sequence(LONG, recipe.large, device, held)
    case = replace(LONG, **held)
    assert memory(replace(case, seq_len=most)).peak_bytes <= device.usable_bytes
    assert memory(replace(case, seq_len=int(most * 1.02))).peak_bytes > device.usable_bytes


def test_the_recipe_of_a_million_tokens_is_what_the_planner_finds(capsys):
    assert command.main(["long_1m", "--gpus", "1", "--gpu", "h200", "--json"]) == 0
    found, runtime = json.loads(capsys.readouterr().out), RECIPES["long_1m"]().runtime
    for name in planner.SEARCHED:
        assert found[name] == getattr(runtime, name)
    assert found["seq_len"] == 2**20 <= found["max_seq_len"]
    assert "not validated" in found["note"]


def test_one_gpu_of_a_known_type_is_the_default(capsys, monkeypatch):
    assert command.main(["long_1m"]) == 0 and "long_1m on 1 x h200" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert command.default_gpu() == "h100"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    assert command.default_gpu() == "h200"


def test_help_is_a_page(capsys):
    with pytest.raises(SystemExit):
        command.main(["long_1m", "--help"])
    page = capsys.readouterr().out
    assert page.count("\n") < 80 and "--gpus" in page and "--large.*" in page


def test_fields_of_the_recipe_are_overridden(capsys):
    options = ["long_1m", "--gpus", "8", "--gpu", "h200", "--json", "--activation-checkpointing", "full"]
    assert command.main([*options, "--large.model.num-layers", "36", "--large.global-batch-size", "8"]) == 0
    model = replace(RECIPES["long_1m"]().large.model, num_layers=36, vocab_size=32768)
    assert json.loads(capsys.readouterr().out)["parameters"] == plan_memory.num_parameters(model)
    assert command.main([*options, "--large.model.number-of-layers", "36"]) == 2
    assert "(did you mean --large.model.num-layers?)" in capsys.readouterr().err


@pytest.mark.slow
def test_ten_million_tokens_on_a_thousand_gpus(capsys):
    assert command.main(["long_1m", "--gpus", "1024", "--gpu", "b200", "--seq-len", "10000000"]) == 0
    said = capsys.readouterr().out
    assert "peak" in said and "MFU" in said and "limited by" in said and "not validated" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "choose one of demo"),
        (["demo", "--gpus", "0"], "give 1 to 1024"),
        (["demo", "--gpus", "4", "--context-parallel", "3"], "give a divisor"),
        (["demo", "--seq-len", "3"], "give 16 or more"),
        (["demo", "--global-batch-size", "0"], "give 1 or more"),
        (["demo", "--mlp-tile-tokens", "-1"], "or 0 for whole sequences"),
        (["demo", "--gpus", "7", "--context-parallel", "1"], "--global-batch-size"),
        (["long_1m", "--activation-checkpointing", "none"], "--activation-checkpointing offload"),
        (["long_1m", "--seq-len", "4000000"], "GPUs fit it"),
    ],
    ids=lambda value: "_".join(value[-2:]) if isinstance(value, list) else None,
)
def test_mistakes_end_in_a_remedy(arguments, words, capsys):
    options = [] if "--gpus" in arguments else ["--gpus", "1"]
    assert command.main([*arguments, *options, "--gpu", "h100" if "demo" in arguments else "h200"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and "Traceback" not in said
