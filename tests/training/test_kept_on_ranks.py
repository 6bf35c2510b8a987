"""On two ranks as on one: what is trained is kept, both ranks leave with 2 where it would not be, and more steps fit on.

Two processes go through five commands together, each in a process group of its own, as five calls of torchrun would.
"""

import contextlib
import dataclasses
import io
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from test_extend import recipe, weights
from tiny_run import final_bytes, timeless

import train
from recipes.launch import Launch

STAGE = "large_baseline"


def commands(folder: Path) -> dict[str, Launch]:
    """Name -> what is asked for, in order: a run, two changed fields, more steps, and as many from the start."""
    short, long = recipe(folder / "manifest.jsonl", 6), recipe(folder / "manifest.jsonl", 9)
    other = dataclasses.replace(short, corpus=dataclasses.replace(short.corpus, vocab_size=270))
    whole = dataclasses.replace(long, name="whole")
    # the last two need what the two before them must have left alone
    return {
        "short": Launch(short, runs=folder),
        "more steps": Launch(long, runs=folder),
        "other corpus": Launch(other, runs=folder),
        "extend": Launch(long, runs=folder, extend=True),
        "whole": Launch(whole, runs=folder),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rank(rank: int, ports: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    # what is measured is not what this is about
    train._Run.report = lambda line: None
    told = {}
    for port, (name, launch) in zip(ports, commands(Path(folder)).items(), strict=True):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        train.parse = lambda argv, launch=launch: launch
        before, start = contents(Path(folder) / "run") if rank == 0 else {}, time.monotonic()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = train.main([])
        after = contents(Path(folder) / "run") if rank == 0 else {}
        lost = [path for path in before if path != "lock" and after.get(path) != before[path]]
        told[name] = {"code": code, "said": said.getvalue(), "seconds": time.monotonic() - start, "lost": lost}
        told[name]["new"] = sorted(after.keys() - before.keys() - {"lock"})
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, list[dict]]:
    """(folder, what each of two ranks was told by each command)."""
    folder = tmp_path_factory.mktemp("ranks")
    lines = [
        {"id": f"d{number}", "kind": "page", "split": ("validation", *["train"] * 7)[number % 8],
         "content": [{"type": "text", "text": f"page {number} of a small book about numbers"}]}
        for number in range(24)
    ]  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in commands(folder)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in free]
    running = mp.start_processes(_rank, (ports, str(folder)), nprocs=2, start_method="spawn", join=False)
    end = time.monotonic() + 120
    try:
        while not running.join(timeout=max(0.1, end - time.monotonic())):
            assert time.monotonic() < end, "a rank hangs"
    finally:
        for process in running.processes:
            process.kill()
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("more steps", ("num_steps: 6 -> 9", "--name NEW", "--extend", f"--redo {STAGE}")),
        ("other corpus", (f"{STAGE} is trained already", "vocab_size: 267 -> 270")),
    ],
    ids=["more-steps", "other-corpus"],
)
def test_a_changed_field_is_refused_on_both_ranks(told, command, words):
    """Nothing is deleted or changed, and the rank that decides nothing does not wait for the other's time-out."""
    _, ranks = told
    assert [rank["short"]["code"] for rank in ranks] == [0, 0]
    assert [rank[command]["code"] for rank in ranks] == [2, 2]
    assert all(word in ranks[0][command]["said"] for word in words)
    for rank in ranks:
        assert rank[command]["said"].startswith("error: ") and rank[command]["said"].count("\n") == 1
        assert rank[command]["seconds"] < 30 and rank[command]["lost"] == rank[command]["new"] == []


def test_extended_on_two_ranks_equals_planned_longer(told):
    """Weights, optimiser and metrics, bit for bit; the shorter run stays beside it."""
    folder, ranks = told
    assert [rank[name]["code"] for rank in ranks for name in ("extend", "whole")] == [0, 0, 0, 0]
    extended, whole = folder / "run" / STAGE, folder / "whole" / STAGE
    assert weights(extended) == weights(whole) and timeless(extended) == timeless(whole)
    assert final_bytes(extended) == final_bytes(whole)
    assert (folder / "run" / f"{STAGE}.old-1" / "done").exists()
    assert weights(folder / "run" / f"{STAGE}.old-1") != weights(whole)
