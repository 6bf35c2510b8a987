"""A stored folder is made once, found by its key, continued after a death, and waited for."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from brine.common.content_store import ContentStore, store_key
from tests.paths import ROOT

KEY = store_key({"vocab_size": 300}, {"corpus": "abc"}, revision=1)


def test_built_once_and_read_only(tmp_path):
    store, calls = ContentStore(tmp_path), []

    def build(folder):
        calls.append(folder)
        (folder / "data").mkdir()
        (folder / "data" / "a.txt").write_text("x")
        return {"documents": 3}

    first, again = store.get_or_build("encoded", KEY, build), store.get_or_build("encoded", KEY, build)
    assert first == again == store.find("encoded", KEY) and len(calls) == 1
    assert ContentStore.result(first) == {"documents": 3}
    assert not (first / "data" / "a.txt").stat().st_mode & 0o222


@pytest.mark.parametrize(
    "other",
    [
        store_key({"vocab_size": 301}, {"corpus": "abc"}, revision=1),
        store_key({"vocab_size": 300}, {"corpus": "abd"}, revision=1),
        store_key({"vocab_size": 300}, {"corpus": "abc"}, revision=2),
    ],
    ids=["configuration", "input", "revision"],
)
def test_every_part_of_the_key_counts(tmp_path, other):
    store = ContentStore(tmp_path)
    store.get_or_build("encoded", KEY, lambda folder: None)
    assert store.find("encoded", other) is None and store.path("encoded", other) != store.path("encoded", KEY)


def test_an_error_leaves_it_unfinished_and_the_next_call_continues(tmp_path):
    store = ContentStore(tmp_path)

    def fail(folder):
        (folder / "part").write_text("half")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        store.get_or_build("encoded", KEY, fail)
    assert store.find("encoded", KEY) is None
    found = store.get_or_build("encoded", KEY, lambda folder: {"had": (folder / "part").read_text()})
    assert ContentStore.result(found) == {"had": "half"}


def test_another_process_waits_and_takes_over_from_a_killed_one(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from brine.common.content_store import ContentStore\n"
        f"ContentStore(Path({str(tmp_path)!r})).get_or_build('encoded', {KEY!r}, "
        "lambda folder: (print('building', flush=True), time.sleep(60)))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
    )
    assert child.stdout.readline() == "building\n"
    found = []
    waiting = threading.Thread(
        target=lambda: found.append(ContentStore(tmp_path).get_or_build("encoded", KEY, lambda folder: {"by": "us"}))
    )
    waiting.start()
    time.sleep(0.5)
    assert not found
    child.send_signal(signal.SIGKILL)
    child.wait()
    waiting.join(timeout=10)
    assert ContentStore.result(found[0]) == {"by": "us"}
