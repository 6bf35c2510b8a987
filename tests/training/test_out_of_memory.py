"""Running out of memory is told with what was asked, what there is, what would help, and that the checkpoint stands."""

import re

import pytest
import torch
from tiny_run import tiny_config, tiny_train

from model import ModelConfig
from training import out_of_memory
from training.config import TrainConfig
from training.distributed import World
from training.out_of_memory import GIB, NoRoomError, Room, asked_bytes, explain, is_out_of_memory, told
from training.runtime import Runtime

MODEL = ModelConfig(
    vocab_size=32000, dim=2048, num_layers=16, num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=8192, window=1024,
    global_every=4,
)  # fmt: skip
CONFIG = TrainConfig(model=MODEL, num_steps=10, warmup_steps=1, rows_per_step=16, micro_rows=8)
GPU = Runtime(device="cuda", dtype="bfloat16", compile=True)
DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ...")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to "
                    "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)")  # fmt: skip


def message(error, folder, *, config=CONFIG, runtime=GPU, world=None, gib=80.0, **options) -> str:
    room = Room(gib * GIB, 1.5 * GIB, 0.97 * gib * GIB)
    return explain(
        error, config=config, runtime=runtime, world=world or World(), folder=folder, room=room,
        **({"row_tokens": 8192} | options),
    )  # fmt: skip


def options_of(text: str) -> dict[str, tuple[float, str]]:
    """option -> (GiB, verdict)."""
    found = re.findall(r"^  (\S.*?) +([\d.]+) GiB  \((.*)\)$", text, re.M)
    return {option: (float(size), verdict) for option, size, verdict in found}


def test_a_full_card_is_told_with_what_would_help(tmp_path):
    text = message(DEVICE, tmp_path)
    assert "on the GPU: 2.50 GiB more was asked for; 1.5 of 80.0 GiB are free, 77.6 was the most held" in text
    found = options_of(text)
    order = [
        "--large.micro-rows 4", "--runtime.checkpointing selective", "--runtime.checkpointing full",
        "--runtime.checkpointing offload", "--runtime.mlp-tile 4096",
        "torchrun --nproc-per-node 2 ... --runtime.context 2", "torchrun --nproc-per-node 2 ... --runtime.shard 2",
    ]  # fmt: skip
    assert list(found) == [option for option in order if option in found] and len(found) >= 5
    sizes = [size for size, _ in found.values()]
    now = float(re.search(r"Estimated for these settings: ([\d.]+)", text)[1])
    assert all(size < now for size in sizes)
    assert all(verdict == ("fits" if size <= 80 * 0.94 else "not enough alone") for size, verdict in found.values())
    assert "No checkpoint was written yet" in text


def test_the_largest_micro_batch_that_fits_is_named(tmp_path):
    assert options_of(message(DEVICE, tmp_path))["--large.micro-rows 4"][1] == "fits"
    assert options_of(message(DEVICE, tmp_path, gib=4.0))["--large.micro-rows 1"][1] == "not enough alone"


def test_the_checkpoint_stands_and_what_begins_anew_comes_last(tmp_path):
    tiny_train(tmp_path, config=tiny_config())
    text = message(DEVICE, tmp_path, arm="small")
    *_, last = found = options_of(text)
    assert last == "--small.micro-rows 4" and "begins" in found[last][1]
    assert "The checkpoint of step 12 stands" in text


def test_ranks_are_told_by_number_and_share_more(tmp_path):
    world = World(rank=3, size=4, context=2)
    runtime = Runtime(device="cuda", dtype="bfloat16", checkpointing="full")
    text = message(DEVICE, tmp_path, world=world, runtime=runtime)
    assert text.startswith("out of memory on rank 3's GPU")
    assert {"--runtime.context 4", "--runtime.shard 4"} <= set(options_of(text))
    assert "--runtime.checkpointing full" not in text and "torchrun" not in text


def test_pinned_memory_is_the_hosts(tmp_path):
    runtime = Runtime(device="cuda", dtype="bfloat16", compile=True, checkpointing="offload")
    text = message(HOST, tmp_path, runtime=runtime, gib=64.0, row_tokens=2**17)
    assert "on the host: 4.00 GiB more" in text
    assert {"--runtime.checkpointing selective", "--runtime.checkpointing full"} <= set(options_of(text))


def test_a_cpu_offloads_nothing(tmp_path):
    text = message(MemoryError(), tmp_path, runtime=Runtime(), gib=16.0)
    assert "on the host: more was asked for" in text and "offload" not in text


def test_a_model_that_no_setting_helps_is_told(tmp_path):
    one = TrainConfig(model=MODEL, num_steps=2, warmup_steps=1, rows_per_step=1, micro_rows=1)
    runtime = Runtime(device="cuda", dtype="bfloat16", checkpointing="full", mlp_tile=64)
    text = message(DEVICE, tmp_path, config=one, runtime=runtime, world=World(size=1), row_tokens=64, gib=4.0)
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
    options = {"config": CONFIG, "runtime": Runtime(), "world": World(), "folder": tmp_path, "row_tokens": 512}
    with pytest.raises(RuntimeError, match="mat1 and mat2"), told(**options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setattr(out_of_memory, "_host_room", lambda: Room(GIB, 0.0, GIB))
    with pytest.raises(NoRoomError, match=r"4.00 GiB more was asked for; 0.0 of 1.0 GiB are free"), told(**options):
        raise HOST
