"""Running out of memory is told with what was asked, what there is, what would help, and that the checkpoint stands."""

import re

import pytest
import torch

from brine.model.config import ModelConfig
from brine.planner import out_of_memory
from brine.planner.out_of_memory import (
    GIB,
    InsufficientMemoryError,
    MemoryInfo,
    asked_bytes,
    explain,
    explain_out_of_memory,
    is_out_of_memory,
)
from brine.training.config import TrainConfig
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime
from tests.training.tiny_run import tiny_config, tiny_train

MODEL = ModelConfig(
    vocab_size=32000, dim=2048, num_layers=16, num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=8192, window=1024,
    global_every=4,
)  # fmt: skip
CONFIG = TrainConfig(model=MODEL, num_steps=10, warmup_steps=1, global_batch_size=16, micro_batch_size=8)
GPU = Runtime(device="cuda", dtype="bfloat16", compile=True)
DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ...")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to "
                    "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)")  # fmt: skip


def message(error, folder, *, config=CONFIG, runtime=GPU, world=None, gib=80.0, **options) -> str:
    info = MemoryInfo(gib * GIB, 1.5 * GIB, 0.97 * gib * GIB)
    return explain(
        error, config=config, runtime=runtime, world=world or World(), folder=folder, info=info,
        **({"seq_len": 8192} | options),
    )  # fmt: skip


def options_of(text: str) -> dict[str, tuple[float, str]]:
    """option -> (GiB, verdict)."""
    found = re.findall(r"^  (\S.*?) +([\d.]+) GiB  \((.*)\)$", text, re.M)
    return {option: (float(size), fit_note) for option, size, fit_note in found}


def test_a_full_card_is_told_with_what_would_help(tmp_path):
    text = message(DEVICE, tmp_path)
    assert "on the GPU: tried to allocate 2.50 GiB; 1.5 of 80.0 GiB are free, 77.6 was the peak so far" in text
    found = options_of(text)
    order = [
        "--large.micro-batch-size 4",
        "--runtime.activation-checkpointing selective",
        "--runtime.activation-checkpointing full",
        "--runtime.activation-checkpointing offload",
        "--runtime.mlp-tile-tokens 4096",
        "torchrun --nproc-per-node 2 ... --runtime.context-parallel 2",
        "torchrun --nproc-per-node 2 ... --runtime.dp-shard 2",
    ]
    assert list(found) == [option for option in order if option in found] and len(found) >= 5
    sizes = [size for size, _ in found.values()]
    now = float(re.search(r"Estimated for these settings: ([\d.]+)", text)[1])
    assert all(size < now for size in sizes)
    assert all(fit_note == ("fits" if size <= 80 * 0.94 else "not enough alone") for size, fit_note in found.values())
    assert "No checkpoint was written yet" in text


def test_the_largest_micro_batch_that_fits_is_named(tmp_path):
    assert options_of(message(DEVICE, tmp_path))["--large.micro-batch-size 4"][1] == "fits"
    assert options_of(message(DEVICE, tmp_path, gib=4.0))["--large.micro-batch-size 1"][1] == "not enough alone"


@pytest.mark.slow
def test_the_checkpoint_stands_and_what_begins_anew_comes_last(tmp_path):
    tiny_train(tmp_path, config=tiny_config())
    text = message(DEVICE, tmp_path, model_name="small")
    *_, last = found = options_of(text)
    assert last == "--small.micro-batch-size 4" and "begins" in found[last][1]
    assert "The checkpoint of step 12 stands" in text


def test_ranks_are_told_by_number_and_share_more(tmp_path):
    world = World(rank=3, size=4, context_parallel=2)
    runtime = Runtime(device="cuda", dtype="bfloat16", activation_checkpointing="full")
    text = message(DEVICE, tmp_path, world=world, runtime=runtime)
    assert text.startswith("out of memory on rank 3's GPU")
    assert {"--runtime.context-parallel 4", "--runtime.dp-shard 4"} <= set(options_of(text))
    assert "--runtime.activation-checkpointing full" not in text and "torchrun" not in text


def test_pinned_memory_is_the_hosts(tmp_path):
    runtime = Runtime(device="cuda", dtype="bfloat16", compile=True, activation_checkpointing="offload")
    text = message(HOST, tmp_path, runtime=runtime, gib=64.0, seq_len=2**17)
    assert "on the host: tried to allocate 4.00 GiB" in text
    assert {"--runtime.activation-checkpointing selective", "--runtime.activation-checkpointing full"} <= set(
        options_of(text)
    )


def test_a_cpu_offloads_nothing(tmp_path):
    text = message(MemoryError(), tmp_path, runtime=Runtime(), gib=16.0)
    assert "on the host: tried to allocate more" in text and "offload" not in text


def test_a_model_that_no_setting_helps_is_told(tmp_path):
    one = TrainConfig(model=MODEL, num_steps=2, warmup_steps=1, global_batch_size=1, micro_batch_size=1)
    runtime = Runtime(device="cuda", dtype="bfloat16", activation_checkpointing="full", mlp_tile_tokens=64)
    text = message(DEVICE, tmp_path, config=one, runtime=runtime, world=World(size=1), seq_len=64, gib=4.0)
    assert "not enough alone" in text or "No setting makes room" in text


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (DEVICE, 2.5 * GIB),
        (HOST, 2**32),
        (MemoryError("Unable to allocate 74.5 GiB for an array with shape (10, 10)"), 74.5 * GIB),
        (RuntimeError("CUDA error: out of memory"), None),
    ],
)
def test_errors_of_allocators_are_known(error, size):
    assert is_out_of_memory(error) and asked_bytes(error) == size


def test_other_errors_go_through_and_these_become_one_that_is_told(tmp_path, monkeypatch):
    options = {"config": CONFIG, "runtime": Runtime(), "world": World(), "folder": tmp_path, "seq_len": 512}
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explain_out_of_memory(**options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setattr(out_of_memory, "_memory_info", lambda on_host: MemoryInfo(GIB, 0.0, GIB))
    with (
        pytest.raises(InsufficientMemoryError, match=r"tried to allocate 4.00 GiB; 0.0 of 1.0 GiB are free"),
        explain_out_of_memory(**options),
    ):
        raise HOST
