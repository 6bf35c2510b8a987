"""Stopping and resuming: whatever the ranks, workers and corpus, the same global rows, bit for bit."""

import itertools
import time
from pathlib import Path

import pytest

from brine.data.loader import Loader
from brine.data.packing.plan import PackingPlan
from tests.data.resume_worker import Speckle, alive, descendants, open_corpus, row_hashes, serve
from tests.forked import forks

pytestmark = pytest.mark.slow

ROWS_PER_STEP, STEPS = 8, 4
SEED = 11
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def plan(corpus) -> PackingPlan:
    budget = {"image": 128, "audio": 160, "video": 256}
    return PackingPlan.build(
        corpus, seq_len=400, media_budget=budget, num_sequences=ROWS_PER_STEP * STEPS, seed=3, blank_fraction=0.2
    )


@pytest.fixture(scope="module")
def whole(corpus, plan) -> list[tuple[int, str]]:
    """(row, hash) of a run that was never stopped, on one rank without workers."""
    rows = []
    for batch in Loader(corpus, plan, local_batch_size=ROWS_PER_STEP, transform=Speckle(SEED)):
        rows += row_hashes(batch).items()
    assert [row for row, _ in rows] == list(range(ROWS_PER_STEP * STEPS))
    # a few rows of nothing but text come twice
    assert len({digest for _, digest in rows}) > len(rows) // 2
    return rows


def stopped(corpus, plan, world_sizes, num_workers=0) -> list[tuple[int, str]]:
    """(row, hash) of a run on as many ranks as named, one after the other; rank 0 alone has the workers."""
    rows, state = [], 0
    for number, world_size in enumerate(world_sizes):
        loaders = [
            Loader(
                corpus,
                plan,
                local_batch_size=ROWS_PER_STEP // world_size,
                start_sequence=state,
                rank=rank,
                world_size=world_size,
                num_workers=0 if rank else num_workers,
                transform=Speckle(SEED),
            )
            for rank in range(world_size)
        ]
        # stopped after one step, though workers have made more by then
        steps = 1 if number < len(world_sizes) - 1 else STEPS
        for batches in itertools.islice(zip(*loaders, strict=True), steps):
            for batch in batches:
                rows += row_hashes(batch).items()
        assert len({loader.state for loader in loaders}) == 1
        state = loaders[0].state
    return rows


@pytest.mark.parametrize(
    "world_sizes", list(itertools.product((1, 2, 4), repeat=3)), ids=lambda sizes: "-".join(map(str, sizes))
)
def test_resume_matrix(corpus, plan, whole, world_sizes):
    assert stopped(corpus, plan, world_sizes) == whole


@pytest.mark.parametrize("world_sizes", [(1, 4, 2), (2, 1, 4)], ids=["1-4-2", "2-1-4"])
def test_resume_while_decoding(corpus, plan, whole, world_sizes):
    decoding = open_corpus(corpus.folder, decoding=True)
    try:
        assert stopped(decoding, plan, world_sizes) == whole
    finally:
        decoding.close()


def test_resume_with_workers(corpus, plan, whole):
    """One stop, as each lot of workers takes seconds to start; two stops are the matrix above."""
    assert stopped(corpus, plan, (4, 2), num_workers=2) == whole


def test_resume_with_workers_that_decode(corpus, plan, whole):
    """Two stops with workers that decode, and four ranks, are below."""
    decoding = open_corpus(corpus.folder, decoding=True)
    try:
        assert stopped(decoding, plan, (2, 1), num_workers=2) == whole
    finally:
        decoding.close()


class _Ranks:
    """Ranks as processes of their own that take one step when asked."""

    def __init__(self, corpus, plan_path: Path, *, world_size: int, start_sequence: int, decoding=False, num_workers=0):
        asked = {
            "corpus": str(corpus.folder),
            "plan": str(plan_path),
            "decoding": decoding,
            "world_size": world_size,
            "global_batch_size": ROWS_PER_STEP,
            "start_sequence": start_sequence,
            "num_workers": num_workers,
            "transform": SEED,
        }
        self.processes, self.connections = [], []
        for rank in range(world_size):
            ours, theirs = forks().Pipe()
            process = forks().Process(target=serve, args=(theirs, asked | {"rank": rank}))
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def step(self) -> tuple[int, list[tuple[int, str]]]:
        for connection in self.connections:
            connection.send("step")
        assert all(connection.poll(120) for connection in self.connections)
        states, rows = zip(*(connection.recv() for connection in self.connections), strict=True)
        assert len(set(states)) == 1
        return states[0], [pair for each in rows for pair in each.items()]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(60)


@needs_proc
def test_killed_ranks_leave_nothing_behind_and_resume(corpus, plan, whole, tmp_path):
    """One rank whose two workers decode, then four ranks, then two, each lot killed with -9 in the middle."""
    plan.save(tmp_path / "plan.npz")
    rows, state = [], 0
    for world_size, options in ((1, {"decoding": True, "num_workers": 2}), (4, {}), (2, {})):
        ranks = _Ranks(corpus, tmp_path / "plan.npz", world_size=world_size, start_sequence=state, **options)
        try:
            for _ in range(1 if state < 2 * ROWS_PER_STEP else STEPS - 2):
                state, fresh = ranks.step()
                rows += fresh
            below = descendants(ranks.processes[0].pid)
            # two workers, a decoding server of each, and the tracker that spawning brings
            assert len([pid for pid in below if alive(pid)]) >= (4 if options else 0)
        finally:
            ranks.kill()
        until = time.monotonic() + 20
        while left := [pid for pid in below if alive(pid)]:
            assert time.monotonic() < until, f"{len(left)} processes outlive the rank that was killed"
            time.sleep(0.05)
    assert rows == whole and state == len(plan)
