"""Batches moved ahead of their use: the same ones, in order, and on CUDA's streams in the right order of events."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from brine.data.document import MODALITIES
from brine.data.loader import Loader
from brine.data.packing.plan import PackingPlan
from brine.data.prefetch import DevicePrefetch


class Streams:
    """CUDA as the prefetcher sees it: notes what is enqueued where; the device's work is done when a test says so."""

    def __init__(self):
        self.log: list[str] = []
        self.done: set[int] = set()
        self.events: list[Event] = []
        self.current = [Stream(self, "computing")]


class Stream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def wait_event(self, event):
        self.streams.log.append(f"{self.name} waits for {event.what}")

    def wait_stream(self, other):
        self.streams.log.append(f"{self.name} waits for {other.name}")


class Event:
    def __init__(self, streams):
        self.streams, self.what = streams, ""
        self.number = len(streams.events)
        streams.events.append(self)

    def record(self, stream):
        self.what = f"{self.streams.log[-1]!r} of {stream.name}"

    def query(self):
        return self.number in self.streams.done


class Item:
    """A batch; moved, it is another that has its number."""

    def __init__(self, number, streams):
        self.number, self.streams = number, streams

    def to(self, device, *, non_blocking):
        assert non_blocking and torch.device(device).type == "cuda"
        self.streams.log.append(f"copy {self.number} on {self.streams.current[-1].name}")
        return Item(self.number, self.streams)


@pytest.fixture
def streams(monkeypatch):
    streams = Streams()

    @contextmanager
    def stream(chosen):
        streams.current.append(chosen)
        yield
        streams.current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(streams, "copying"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(streams))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.current[-1])
    return streams


def test_a_copy_is_enqueued_before_the_step_that_it_runs_beside(streams):
    for item in DevicePrefetch((Item(number, streams) for number in range(3)), "cuda"):
        streams.log.append(f"compute {item.number}")
    assert streams.log == [
        "copy 0 on copying",
        "copy 1 on copying",
        "computing waits for 'copy 0 on copying' of copying",
        "compute 0",
        "copy 2 on copying",
        "computing waits for 'copy 1 on copying' of copying",
        "compute 1",
        "computing waits for 'copy 2 on copying' of copying",
        "compute 2",
        "copying waits for computing",
    ]


@pytest.mark.slow
def test_memory_is_kept_until_the_device_has_used_it(streams):
    """The loop lets go of a batch long before the device has read it."""
    batches = iter(DevicePrefetch((Item(number, streams) for number in range(6)), "cuda"))
    lent = []
    for number in range(4):
        item = next(batches)
        streams.log.append(f"compute {number}")
        lent.append(weakref.ref(item))
        del item
    gc.collect()
    assert [one() is not None for one in lent] == [True] * 4
    used = {event.what: event.number for event in streams.events if "of computing" in event.what}
    assert list(used) == [f"'compute {number}' of computing" for number in range(3)]
    streams.done |= {used["'compute 0' of computing"], used["'compute 1' of computing"]}
    next(batches)
    gc.collect()
    assert [one() is not None for one in lent] == [False, False, True, True]
    batches.close()
    assert streams.log[-1] == "copying waits for computing"


def test_no_batches(streams):
    assert list(DevicePrefetch([], "cuda")) == [] and list(DevicePrefetch([], "cpu")) == []


@pytest.fixture(scope="module")
def plan(corpus) -> PackingPlan:
    return PackingPlan.build(corpus, seq_len=400, num_sequences=9, seed=4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_batches_are_the_loaders(corpus, plan, device):
    """In order, moved with what was counted, prepared; the state is that of the batch in hand."""
    expected = list(Loader(corpus, plan, local_batch_size=2))
    prepared = []
    moved = DevicePrefetch(
        Loader(corpus, plan, local_batch_size=2),
        device,
        prepare=lambda batch: prepared.append(batch.sequence_index) or batch,
    )
    assert moved.state == 0
    for number, (batch, whole) in enumerate(zip(moved, expected, strict=True), 1):
        assert batch.sequence_index == whole.sequence_index and len(prepared) == number and moved.state == 2 * number
        assert batch.inputs.token_ids.device.type == device and batch.num_targets == whole.num_targets
        if device == "cpu":
            pairs = [(batch.inputs.token_ids, whole.inputs.token_ids), (batch.target_index, whole.target_index)]
            pairs += zip(
                *(sum((one.inputs.media[name] for name in MODALITIES), ()) for one in (batch, whole)), strict=True
            )
            assert all(torch.equal(left, right) for left, right in pairs)


def test_state_is_that_of_the_batch_in_hand_while_the_loader_is_ahead(corpus, plan, streams, monkeypatch):
    monkeypatch.setattr(
        "brine.data.batch.Batch.to", lambda self, device, non_blocking: streams.log.append("copy") or self
    )
    loader = Loader(corpus, plan, local_batch_size=2)
    moved = DevicePrefetch(loader, "cuda")
    states = [(batch.sequence_index[0], moved.state, loader.state) for batch in moved]
    assert states == [(0, 2, 4), (2, 4, 6), (4, 6, 8), (6, 8, 8)]
    # resumed from where a stop left it
    again = DevicePrefetch(Loader(corpus, plan, local_batch_size=2, start_sequence=states[1][1]), "cuda")
    assert next(iter(again)).sequence_index == (4, 5)
