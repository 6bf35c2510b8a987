"""The GPU training benchmark without a GPU: its toy, what it would ask of a GPU, and what it makes of results."""

import argparse
from dataclasses import replace

import pytest
import torch

from benchmarks.training import train_gpu
from benchmarks.training.steps import random_batch
from brine.planner.memory import STAGING, RunSettings, memory
from brine.training.logging.device_specs import GPUS

GIB = 2**30


@pytest.mark.slow
def test_a_toy_run(tmp_path, last_line):
    given = ["--quick", "--device", "cpu", "--threads", "1", "--results", str(tmp_path / "none")]
    assert train_gpu.main(given) == 0
    (case,) = last_line()["cases"]
    assert not (tmp_path / "none").exists() and set(case["steps"]) == {"warm", "packed", "one"}
    # one document has more to look at than four
    assert case["steps"]["one"]["model_flops"] > case["steps"]["packed"]["model_flops"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so(capsys):
    assert train_gpu.main([]) == 2
    assert "--quick tries the script" in capsys.readouterr().err


@pytest.mark.parametrize(("host_gib", "backend"), [(96, "gluon"), (96, "triton"), (128, "auto"), (1800, "auto")])
def test_what_it_asks_of_a_gpu_fits(host_gib, backend):
    # the memory that a real H200 told
    sheet = replace(GPUS["h200"], memory_bytes=139.8 * GIB, host_memory_bytes=host_gib * GIB)
    found = train_gpu.settings(argparse.Namespace(quick=False), "cuda", sheet, backend=backend)
    assert list(found) == ["65536", "262144", "1048576", "longest"]
    assert found["longest"].case.seq_len > 2**20 and not found["longest"].one
    for setting in found.values():
        plan = memory(setting.case)
        assert plan.peak_bytes <= sheet.usable_bytes and setting.case.seq_len % train_gpu.DOCUMENT == 0
        assert sum(size for name, size in plan.host.items() if name != STAGING) <= sheet.usable_host_bytes


def test_rows_of_documents():
    batch = random_batch(RunSettings(train_gpu.TOY, 10, micro_batch_size=2), document_tokens=4)
    assert batch.document.tolist() == 2 * [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]]
    assert batch.inputs.position[1, :, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    whole = random_batch(RunSettings(train_gpu.TOY, 10, micro_batch_size=2, patches=(("image", 3), ("audio", 2))))
    assert whole.document.unique().tolist() == [0]
    assert whole.inputs.media["image"][1].tolist() == [0, 1, 2, 10, 11, 12] and whole.inputs.media["audio"][
        1
    ].tolist() == [
        3,
        4,
        13,
        14,
    ]
    assert whole.inputs.media["audio"][0].shape == (4, train_gpu.TOY.audio_dim)


@pytest.mark.slow
def test_targets_and_picture(tmp_path):
    def step(mfu, peak):
        return {"mfu": mfu, "allocated_gib": peak}

    results = [
        {"case": "1048576", "tokens": 2**20, "plan_gib": 100.0,
         "steps": {"warm": step(0.1, 101.0), "packed": step(0.2, 99.0), "one": step(0.35, 104.0)}},
        {"case": "longest", "tokens": 2**21, "plan_gib": 120.0,
         "steps": {"warm": step(0, 100.0), "packed": step(0, 90)}},
        {"case": "65536", "skipped": "its process ended with -9"},
    ]  # fmt: skip
    found = [(each["case"], round(each["measured"], 3), each["met"]) for each in train_gpu.targets(results)]
    assert found == [("1048576", 0.038, True), ("1048576", 0.35, True), ("longest", 0.2, False)]
    train_gpu.plot({"cases": results, "hardware": {"processor": "p", "commit": "c"}}, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 1000
