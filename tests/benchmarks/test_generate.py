"""The generation benchmark as a toy: lines for both ways of ours, and reasons where there is no peer."""

import json
import sys

import pytest

from benchmarks.context.generate import CASES, OURS, PEERS, SHAPE, TOY_CASES, main, step_bytes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("static", [False, True], ids=["host", "static"])
def test_every_implementation_leaves_a_line(tmp_path, capsys, monkeypatch, static):
    """With a peer that ends at once, and on the way that GPUs take (whose compiled one fails without a GPU)."""
    monkeypatch.setattr("benchmarks.context.generate.uses_static_decoder", lambda model: static)
    monkeypatch.setattr("benchmarks.context.generate.OURS", OURS[:1])
    arguments = ["--toy", "--device", "cpu", "--minutes", "0.01", "--threads", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--peer-python", str(tmp_path / "none")]) == 0
    text = (tmp_path / "generate.jsonl").read_text()
    assert text == capsys.readouterr().out
    lines = [json.loads(line) for line in text.splitlines()]
    first = [line for line in lines if line["case"] == TOY_CASES[0].name]
    assert [line["implementation"] for line in first] == [OURS[0], *PEERS]
    ours, *peers = first
    assert ours["p20"] <= ours["tokens_per_s"] <= ours["p80"] and ours["rounds"] >= 3
    assert ours["toy"] and ours["dtype"] == "float32" and not ours["graph"] and ours["backend_choices"]
    assert all("none" in line["skipped"] for line in peers)


@pytest.mark.slow
def test_a_peer_without_transformers_says_so(tmp_path, capsys):
    """The child is isolated, so it does not even see this project."""
    main(["--toy", "--device", "cpu", "--minutes", "0", "--threads", "1", "--peer-python", sys.executable])
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()][1]
    assert first["implementation"] == PEERS[0]
    assert "tokens_per_s" in first or "transformers" in first["skipped"]


def test_a_device_that_is_not_there_is_one_line(capsys):
    assert main(["--device", "meta"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: device = 'meta'") and said.count("\n") == 1


def test_bytes_of_a_step():
    """The billion-parameter shape reads about 1.6 GB of weights a step in bfloat16, and its keys and values."""
    alone, many, far = (step_bytes(SHAPE, case, 2) for case in CASES)
    assert 1.4e9 < alone < 1.8e9 < far
    assert many - alone == 15 * (512 + 128) * 2 * 16 * 8 * 128 * 2
