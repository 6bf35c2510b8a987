"""What MFU is quoted against: cards by their drivers' names, a made-up card's clock, and what a run makes of it."""

import pytest
import torch

from brine.training.logging import device_specs as peak_module
from brine.training.logging.device_specs import (
    GPUS,
    MEASURED,
    NO_PEAK,
    PeakFlops,
    datasheet_of,
    datasheet_peak,
    find_peak,
    measure,
)
from brine.training.logging.environment import environment
from brine.training.logging.progress import Throughput
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime

SXM = {
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA B200": "b200",
}  # fmt: skip


@pytest.mark.parametrize("name", SXM)
def test_a_known_card_has_its_sheets_peak(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak_module, "measure", lambda device, dtype: 1.0)
    found, sheet = find_peak("cuda", "bfloat16"), GPUS[SXM[name]]
    assert found == PeakFlops(sheet.matmul_flops, f"data sheet of {sheet.name}") == datasheet_peak("cuda:0", "bfloat16")
    # sheets here are of bfloat16
    assert find_peak("cuda", "float32") == PeakFlops(1.0, MEASURED)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H20",
     "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090", "NVIDIA RTX A1000", ""],
)  # fmt: skip
def test_another_card_is_measured(name, monkeypatch):
    """A name that begins like a known one is no data sheet: half of such a card's MFU would be missing."""
    assert datasheet_of(name) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak_module, "measure", lambda device, dtype: 5e13)
    found = find_peak("cuda", "bfloat16")
    assert found == PeakFlops(5e13, MEASURED) and str(found) == "50.00TFLOP/s (measured)"


@pytest.mark.parametrize(
    ("flops_per_s", "fits", "size"), [(1e15, 8192, 8192), (1e15, 4096, 4096), (2e12, 8192, 4096), (2e11, 8192, 2048)]
)
def test_products_grow_while_there_is_time_and_memory(flops_per_s, fits, size, monkeypatch):
    sizes = []

    def product_s(device, dtype, side):
        if side > fits:
            raise torch.OutOfMemoryError
        sizes.append(side)
        return 2 * side**3 / flops_per_s

    monkeypatch.setattr(peak_module, "_product_s", product_s)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert measure("cuda", "bfloat16") == pytest.approx(flops_per_s)
    assert sizes[0] == 1024 and sizes[-1] == size


def test_a_product_is_timed_by_events_after_a_warm_up(monkeypatch):
    """The median of what the card's clock says; the host's is not asked, and waited for once, at the end."""
    log, calls = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(log)
            log.append("event")

        def elapsed_time(self, end):
            assert log[self.at : end.at + 1] == ["event", "product", "event"] and log[-1] == "wait"
            # one product in nine was disturbed
            return 700.0 if self.at == 5 else 7.0

    def mm(a, b, out):
        assert a.shape == b.shape == out.shape == (6, 6) and a.dtype == torch.bfloat16
        assert a.std() > 0 and not torch.equal(a, b)
        calls.append(1)
        log.append("product")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch, "mm", mm)
    state = torch.get_rng_state()
    assert peak_module._product_s(torch.device("cpu"), torch.bfloat16, 6) == 7e-3
    assert len(calls) == 11 and log[:2] == ["product"] * 2 and log.count("wait") == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_slow_processor_is_measured_by_small_matrices(monkeypatch):
    """A product of 1,024 took longer than all the time that a forecast may take."""
    now, sides = [0.0], []

    class Slow(torch.Tensor):
        def __matmul__(self, other):
            sides.append(len(self))
            now[0] += 2.0 * len(self) ** 3 / 1e9
            return self

    monkeypatch.setattr(peak_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "ones", lambda *size, **_: torch.zeros(size).as_subclass(Slow))
    assert peak_module._best_on_host(torch.device("cpu"), torch.float32) == pytest.approx(1e9)
    # 256 cubed takes 0.03 s, 512 cubed 0.27
    assert set(sides) == {128, 256, 512} and now[0] < 0.6


def status(pace: Throughput, flops: int):
    pace.begin(step=0, tokens=0, flops=0)
    return pace.status(step=2, tokens=64, flops=flops, loss=1.0, grad_norm=1.0, learning_rate=0.1)


@pytest.mark.parametrize(
    ("device", "source", "raised"),
    [("cpu", MEASURED, True), ("cuda", MEASURED, False), ("cuda", "data sheet of h200", False)],
)
def test_only_a_measured_peak_of_a_cpu_is_raised(device, source, raised, monkeypatch):
    """A console once raised every peak to what it saw, and showed an MFU near 100 % on any card."""
    monkeypatch.setattr("brine.training.logging.progress.peak_memory_gib", lambda device: 0.0)
    monkeypatch.setattr("brine.training.logging.progress.find_peak", lambda device, dtype: PeakFlops(3.0, MEASURED))
    pace = Throughput(Runtime(device=device), num_steps=4, world=World(), peak=PeakFlops(2.0, source))
    seen = status(pace, flops=10**12)
    assert (pace.peak.flops_per_s > 2.0) is raised
    assert seen.mfu == 1.0 if raised else seen.mfu > 1e6


def test_no_peak_no_utilisation():
    pace = Throughput(Runtime(), num_steps=4, world=World(), peak=NO_PEAK)
    assert status(pace, flops=10**12).mfu == 0.0 and pace.peak is NO_PEAK


def test_the_environment_names_the_peak(monkeypatch):
    assert environment(Runtime(), World())["mfu_peak"] == "measured when training begins"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    runtime = Runtime(device="cuda", dtype="bfloat16")
    assert environment(runtime, World())["mfu_peak"] == "989.50TFLOP/s (data sheet of h200)"
