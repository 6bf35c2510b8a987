"""On two ranks as on one: what is trained is kept, both leave with 2 where it would not be, and more steps fit on.

This process and another go through five commands together, each in a process group of its own, as five calls of
torchrun would.
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

from brine import train as command
from brine.pipeline import run as train
from brine.recipes.launch import LaunchConfig
from tests.forked import forks
from tests.training.checkpoint.test_extend import recipe, weights
from tests.training.tiny_run import final_bytes, timeless

pytestmark = pytest.mark.slow

STAGE = "large_baseline"


def commands(folder: Path) -> dict[str, LaunchConfig]:
    """Name -> what is asked for, in order: a run, two changed fields, more steps, and as many from the start."""
    runtime = dataclasses.replace(recipe(folder, 6).runtime, timeout_s=60.0)
    short, long = (recipe(folder / "manifest.jsonl", steps, runtime=runtime) for steps in (6, 9))
    other = dataclasses.replace(short, corpus=dataclasses.replace(short.corpus, vocab_size=270))
    whole = dataclasses.replace(long, name="whole")
    # the last two need what the two before them must have left alone
    return {
        "short": LaunchConfig(short, runs=folder),
        "more steps": LaunchConfig(long, runs=folder),
        "other corpus": LaunchConfig(other, runs=folder),
        "extend": LaunchConfig(long, runs=folder, extend=True),
        "whole": LaunchConfig(whole, runs=folder, store=folder / "other"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, those behind links to stages too."""
    paths = [Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def go(rank: int, ports: list[int], folder: str) -> None:
    """All commands as one of two ranks; what each said and did is written down."""
    from tests.data.encode_here import Here

    told = {}
    with pytest.MonkeyPatch.context() as patch:
        # neither decoding nor measuring is what this is about
        patch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
        patch.setattr(train.evaluate_stage, "report", lambda run: None)
        for port, (name, launch) in zip(ports, commands(Path(folder)).items(), strict=True):
            for key, value in (("RANK", rank), ("WORLD_SIZE", 2), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
                patch.setenv(key, str(value))
            patch.setattr(command, "parse", lambda argv, prog, launch=launch: launch)
            before, start = contents(Path(folder) / "run") if rank == 0 else {}, time.monotonic()
            with contextlib.redirect_stderr(io.StringIO()) as said:
                code = command.main([])
            after = contents(Path(folder) / "run") if rank == 0 else {}
            lost = [path for path in before if path != "lock" and after.get(path) != before[path]]
            told[name] = {"code": code, "said": said.getvalue(), "seconds": time.monotonic() - start, "lost": lost}
            told[name]["new"] = sorted(after.keys() - before.keys() - {"lock"})
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, list[dict]]:
    """(folder, what each of two ranks was told by each command). The first rank is this process."""
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
    threads = torch.get_num_threads()
    other = forks().Process(target=go, args=(1, ports, str(folder)))
    other.start()
    try:
        # a rank that does not come is waited for as long as the recipe says
        go(0, ports, str(folder))
        other.join(60)
        assert other.exitcode == 0, "rank 1 hangs, or ended otherwise"
    finally:
        other.kill()
        other.join()
        torch.set_num_threads(threads)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("more steps", ("num_steps: 6 -> 9", "--name NEW", "--extend", f"--rerun {STAGE}")),
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
    if command == "more steps":
        # one rank decided before anything was done, and the other was told why
        assert ranks[1][command]["said"] == ranks[0][command]["said"]
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
