"""Each script's toy run: valid JSON on the last line with what a reader needs, and images that can be drawn."""

import math
import sys

import pytest
import torch

from benchmarks.harness import correctness as gate
from benchmarks.harness.implementations import OURS, Implementation
from benchmarks.kernels import attention, linear_loss
from benchmarks.training import train_cpu
from benchmarks.training.train_cpu_brine import BrineTrainer

pytestmark = pytest.mark.slow

REQUIRED = {"benchmark", "time", "command", "quick", "tests", "hardware", "roofline", "cases", "targets"}
# stands in for both sides of the training benchmark: answers at once, and fails where it is told to
STUB = """
import json, math, sys
speed, failing = float(sys.argv[1]), sys.argv[2]
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"load": {"parameters": 7, "versions": {}}, "case": {"losses": [math.log(64)], "note": "stub"},
              "steps": {"seconds": speed, "losses": [4.0]}, "end": {"peak_rss_bytes": 1}}[asked["do"]]
    if asked.get("name") == failing:
        print("the library said", file=sys.stderr)
        sys.exit(3)
    print(json.dumps(answer), flush=True)
"""


@pytest.mark.slow
def test_attention(tmp_path, last_line):
    given = [
        "--quick",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--without",
        "flex",
        "--cases",
        "causal",
        "images",
        "decode",
    ]
    assert attention.main([*given, "--results", str(tmp_path / "none")]) == 0
    record = last_line()
    assert set(record) >= REQUIRED and record["quick"] and not (tmp_path / "none").exists()
    causal, images, decode = record["cases"]
    ours, peer = causal["implementations"][OURS], causal["implementations"]["sdpa-flash"]
    assert set(ours["seconds"]) == {"forward", "backward", "total"} == set(peer["over"]) == set(ours["tflops"])
    assert causal["area_share"] == pytest.approx(0.5, abs=0.01)
    assert causal["forward_flops"] == 4 * causal["area"] * 16 * 2
    assert peer["difference"] < 1e-3 and "skipped" in causal["implementations"]["sdpa-mask"]
    assert images["implementations"]["sdpa-mask"]["difference"] < 1e-3
    assert set(decode["implementations"][OURS]["gb_per_s"]) == {"total"}
    assert [target["target"] for target in record["targets"]] == [0.95, 10.0]
    attention.plot(record, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 1000


@pytest.mark.slow
def test_attention_memory_counts_bytes_a_token():
    grown = [{"case": "m", "tokens": t, "memory": {"growth_bytes": t * b}} for t, b in ((32, 10), (64, 9), (128, 10.5))]
    (target,) = attention.targets([], grown)
    assert target["measured"] == pytest.approx(1.05) and target["met"]
    run = attention.memory_call(
        tiny=True, num_tokens=1, heads=[2, 1], dim=16, dtype="fp32", kind="window", backend="auto"
    )
    assert [tuple(x.shape) for x in run()] == [(1, 2048, 2, 16), (1, 2048, 1, 16), (1, 2048, 1, 16)]


def test_ours_is_held_against_the_specification_on_the_device():
    attention.verify("cpu", "auto", num_tokens=150, dims=(16,))
    linear_loss.verify("cpu", "auto")
    truth = linear_loss.plain(linear_loss.make_problem(linear_loss.quick_cases()[0], "cpu"))
    with pytest.raises(gate.TestsFailedError, match="the result is off by 1 "):
        gate.agree("plain", Implementation(lambda: 2 * truth.forward()), Implementation(truth.forward), 0.1)


def test_every_full_case_has_a_name_of_its_own():
    for cases in (attention.cpu_cases(), attention.cuda_cases(), linear_loss.cpu_cases(), linear_loss.cuda_cases()):
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.slow
def test_linear_loss(tmp_path, last_line):
    given = ["--quick", "--device", "cpu", "--threads", "1", "--cases", "z-", "distill-"]
    assert linear_loss.main([*given, "--results", str(tmp_path / "none")]) == 0
    record = last_line()
    assert set(record) >= REQUIRED and not (tmp_path / "none").exists()
    assert [case["terms"] for case in record["cases"]] == ["z", "z", "distill", "distill"]
    for case in record["cases"]:
        assert case["implementations"]["plain"]["difference"] < 0.01
        assert case["implementations"]["liger"]["skipped"] == "needs a GPU"
        assert case["implementations"][OURS]["share_of_roofline"] > 0
    case = record["cases"][0]
    case["implementations"][OURS]["extra_bytes"], case["implementations"]["plain"]["extra_bytes"] = 10, 100
    time, memory = linear_loss.targets(linear_loss.quick_cases(), [case])
    assert memory["measured"] == 0.1 and memory["met"] and time["target"] == 1.35
    linear_loss.plot(record, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_linear_loss_memory_runs_each_implementation():
    shape = {"terms": "plain", "num_tokens": 8, "width": 4, "vocabulary": 9, "dtype": "bf16", "backend": "auto"}
    for implementation in (OURS, "plain"):
        d_hidden, d_weight = linear_loss.memory_call(tiny=False, implementation=implementation, **shape)()
        assert d_hidden.shape == (8, 4) and d_weight.shape == (9, 4)


@pytest.fixture
def stubs(monkeypatch, tmp_path):
    """Both sides of the training benchmark replaced; gives a function that tells the peer at which case to die."""

    def install(failing: str = "never") -> None:
        def start(folder, python, skipped):
            return {
                name: train_cpu.WorkerProcess(
                    [sys.executable, "-c", STUB, str(speed), at], cwd=tmp_path, log=tmp_path / name
                )
                for name, speed, at in ((OURS, 2.0, "never"), (train_cpu.PEER, 3.0, failing))
            }

        monkeypatch.setattr(train_cpu, "start_children", start)

    return install


def test_train_cpu(stubs, tmp_path, last_line):
    stubs()
    assert train_cpu.main(["--quick", "--threads", "1", "--results", str(tmp_path / "none")]) == 0
    record = last_line()
    assert set(record) >= REQUIRED | {"dtype", "setting"} and not (tmp_path / "none").exists()
    assert [(t["case"], t["measured"], t["met"]) for t in record["targets"]] == [
        ("unpacked", 1.5, True),
        ("packed", 1.5, True),
    ]
    ours = record["cases"][0]["implementations"][OURS]
    assert ours["plausible"] and ours["tokens_per_s"]["median"] == 48.0
    assert record["cases"][0]["step_flops"] > record["cases"][1]["step_flops"] > 0
    train_cpu.plot(record, tmp_path / "train.png")
    assert (tmp_path / "train.png").stat().st_size > 1000


def test_train_cpu_goes_on_without_a_peer_that_dies(stubs, tmp_path, last_line):
    stubs(failing="packed")
    assert train_cpu.main(["--quick", "--threads", "1", "--results", str(tmp_path / "none")]) == 0
    record = last_line()
    assert record["skipped"] == {"llama": "packed: ended with 3: the library said"}
    assert [target["case"] for target in record["targets"]] == ["unpacked"]
    assert "tokens_per_s" in record["cases"][1]["implementations"][OURS]


def test_train_cpu_batches_are_equal_for_equal_seeds():
    first, second = train_cpu.make_batches(train_cpu.QUICK), train_cpu.make_batches(train_cpu.QUICK)
    for case in train_cpu.TARGETS:
        for one, two in zip(first[case], second[case], strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one)
            ends = (one["document"].diff(dim=1) != 0).nonzero()
            assert all(one["labels"][b, i] == -100 for b, i in ends)
            assert int((one["labels"] < 0).sum()) == len(ends) + len(one["labels"])
    assert any(batch["document"].max() > 0 for batch in first["packed"])


def test_our_side_trains(tmp_path):
    from dataclasses import asdict

    setting = train_cpu.QUICK
    torch.save(train_cpu.make_batches(setting), tmp_path / "batches.pt")
    spec = {
        "shape": asdict(setting.shape), "batch_size": setting.batch_size, "seq_len": setting.seq_len,
        "dtype": "float32", "compile": False, "threads": 1, "batches": str(tmp_path / "batches.pt"), "seed": 1,
        "learning_rate": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8, "grad_clip": 1.0,
    }  # fmt: skip
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        trainer = BrineTrainer(spec)
        assert trainer.case("packed")
        losses = [float(trainer.step()) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
    assert all(abs(loss - math.log(64)) < 0.5 for loss in losses)
