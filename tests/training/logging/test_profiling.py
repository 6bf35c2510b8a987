"""Phases of a step by a device's clock, which is made up here, and by the host's."""

import time

import pytest
import torch

from brine.training.logging.profiling import PhaseTimer


class Device:
    """A card that does what it was told when a test lets it; its clock has nothing to do with the host's."""

    def __init__(self):
        self.queue, self.clock_ms, self.waits = [], 0.0, 0

    def compute(self, milliseconds):
        self.queue.append(milliseconds)

    def run(self):
        for entry in self.queue:
            if isinstance(entry, Event):
                entry.at = self.clock_ms
            else:
                self.clock_ms += entry
        self.queue = []


class Event:
    def __init__(self, device):
        self.device, self.at = device, None

    def record(self, stream):
        assert stream == "the stream in use"
        self.device.queue.append(self)

    def synchronize(self):
        if self.at is None:
            self.device.waits += 1
            self.device.run()

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def card(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: enable_timing and Event(device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream in use")
    return device


def step(clock, card, teacher, student):
    with clock("busy"):
        for _ in range(2):
            with clock("teacher"):
                card.compute(teacher)
            card.compute(student)


def test_a_step_is_read_one_step_late_without_waiting(card):
    clock, found, before = PhaseTimer("cuda:0"), [], None
    for number in range(3):
        step(clock, card, teacher=10.0 + number, student=100.0)
        taken = clock.take()
        found.append({} if before is None else before.read())
        before = taken
        # what was enqueued now is done while the next step is enqueued
        card.run()
    assert found[0] == {} and card.waits == 0
    assert found[1] == pytest.approx({"teacher": 0.020, "busy": 0.220})
    assert found[2] == pytest.approx({"teacher": 0.022, "busy": 0.222})


def test_times_that_are_taken_belong_to_their_step_and_wait_only_when_read(card):
    clock = PhaseTimer(torch.device("cuda"))
    step(clock, card, teacher=10.0, student=5.0)
    first = clock.take()
    step(clock, card, teacher=20.0, student=5.0)
    second = clock.take()
    assert card.waits == 0 and clock.take().read() == {}
    assert second.read() == pytest.approx({"teacher": 0.040, "busy": 0.050}) and card.waits == 1
    assert first.read() == pytest.approx({"teacher": 0.020, "busy": 0.030}) and card.waits == 1
    assert first.read() == first.read()


def test_a_phase_that_raises_is_not_counted(card):
    clock = PhaseTimer("cuda")
    with pytest.raises(ValueError), clock("teacher"):
        raise ValueError
    assert clock.take().read() == {}


def test_the_host_has_a_clock_too(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = PhaseTimer("cpu")
    for _ in range(2):
        with clock("teacher"):
            now[0] += 1.5
        now[0] += 1.0
    assert clock.take().read() == pytest.approx({"teacher": 3.0}) and clock.take().read() == {}
