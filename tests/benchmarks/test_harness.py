"""The fair part: turns, agreement, refusal where tests fail, and records that only ever grow."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks.harness import comparison, machine
from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.implementations import OURS, Implementation, TimingLimits, benchmark_implementations
from benchmarks.harness.measure import SkippedError, summarize, time_interleaved
from benchmarks.harness.memory import peak_growth
from benchmarks.kernels import attention, linear_loss
from benchmarks.training import train_gpu
from brine.kernels import attention as api
from brine.kernels.selection.choice_log import reset_backend_choices

DYING = """
import json, sys
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "bad" not in given["--without"].split(","):
    Path(given["--stage"]).write_text("bad")
    raise SystemExit(7)
print(json.dumps({"case": given["--child"], "implementations": {"good": {}}}))
"""

TARGET = """
import os, torch

def call(*, tiny, numbers):
    if numbers < 0:
        raise KeyError(numbers)
    # two blocks for a moment, one to stay
    size = 1 if tiny else numbers * (1 + int(os.environ.get("RANK", 0)))

    def run():
        kept = torch.ones(size)
        return [kept + torch.ones(size).mul_(2)]

    return run
"""


def test_implementations_run_in_turn_and_a_failing_one_is_left_out():
    seen = []

    def sample(name, seconds):
        def run():
            seen.append(name)
            if name == "b" and seen.count("b") == 3:
                raise RuntimeError("out of memory\nlong trace")
            return {"total": seconds * (1 + seen.count(name))}

        return run

    turns = time_interleaved(
        {n: sample(n, s) for n, s in (("a", 1e-3), ("b", 1.0), ("c", 2e-3))}, budget_s=0.0, min_rounds=3
    )
    rounds = [sorted(seen[at : at + 3]) for at in (0, 3, 6)]
    assert rounds == [["a", "b", "c"]] * 3 and sorted(seen[9:]) == ["a", "c"]
    assert seen[3:6] != seen[6:9], "a place in the round must not be one implementation's"
    assert turns.failures == {"b": "RuntimeError: out of memory"}
    summary = summarize(turns.times, reference="a")
    # both slow down together, so within a round the ratio stays
    assert summary["c"]["over"]["total"] == pytest.approx({"median": 2.0, "p20": 2.0, "p80": 2.0})
    assert summary["c"]["rounds"] == 3 and "over" not in summary["a"]


@pytest.mark.slow
def test_an_implementation_that_computes_something_else_is_left_out():
    x = torch.ones(3, requires_grad=True)

    def missing():
        raise SkippedError("not installed")

    builders = {
        OURS: lambda: Implementation(lambda: 2 * x, (x,), torch.ones(3)),
        "same": lambda: Implementation(lambda: x + x, (x,), torch.ones(3)),
        "wrong": lambda: Implementation(lambda: 3 * x, (x,), torch.ones(3)),
        "missing": missing,
    }
    results = benchmark_implementations(
        builders, device="cpu", timing_limits=TimingLimits(budget_s=0.0, min_rounds=2, max_rounds=2, tolerance=1e-3)
    )
    assert results["same"]["difference"] == 0 and results["same"]["rounds"] == 2
    assert "not the same operation" in results["wrong"]["skipped"]
    assert results["missing"] == {"skipped": "not installed"}


def test_a_dying_process_costs_one_implementation(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    options = argparse.Namespace(
        without="other",
        backend="auto",
        threads=1,
        case_timeout_s=60.0,
        budget_s=None,
        min_rounds=3,
        no_peak=False,
        end=1e12,
    )
    result = comparison.run_isolated("dying", "c", options, "cpu")
    assert result["implementations"] == {
        "good": {},
        "other": {"skipped": "asked for"},
        "bad": {"skipped": "its process ended with 7"},
    }


@pytest.mark.slow
def test_failing_tests_refuse_the_report(tmp_path, monkeypatch, last_line):
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False, 'the kernel is wrong'\n")
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    monkeypatch.setattr(linear_loss, "TESTS", {"cpu": ("test_it.py",)})
    monkeypatch.setattr(linear_loss, "measure_case", lambda *_: pytest.fail("measured something"))
    assert linear_loss.main(["--device", "cpu", "--results", str(tmp_path / "results")]) == 1
    line = last_line()
    assert line["benchmark"] == "linear_loss" and "test_it.py" in line["refused"]
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(linear_loss, "TESTS", {"cpu": ("test_other*.py",)})
    assert linear_loss.main(["--device", "cpu", "--results", str(tmp_path / "results")]) == 1
    assert "found no tests" in last_line()["refused"]


@pytest.mark.slow
def test_what_the_tests_said_stands_in_the_record(tmp_path):
    """`--tests report` measures what fails its tests, and `none` what was not tested: neither without saying so."""
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False\n")
    pattern = (str((tmp_path / "test_it.py").relative_to("/")),)
    options = argparse.Namespace(quick=False, threads=1, argv=[], tests="report")
    gate_root, gate.ROOT = gate.ROOT, Path("/")
    try:
        found = harness.begin("toy", options, "cpu", pattern)["tests"]
        assert found["passed"] is False and "1 failed" in found["said"]
        options.tests = "none"
        assert harness.begin("toy", options, "cpu", pattern)["tests"] is None
        options.tests = "gate"
        with pytest.raises(gate.TestsFailedError):
            harness.begin("toy", options, "cpu", pattern)
    finally:
        gate.ROOT = gate_root
    assert harness.parser("toy", "").parse_args([]).tests == "gate"


def test_a_case_is_on_disk_as_soon_as_it_ends(tmp_path, capsys):
    options = argparse.Namespace(quick=False, results=tmp_path)
    record = {"benchmark": "toy", "time": "2026-01-02T03:04:05Z", "hardware": {"device": "cpu"}, "targets": []}

    def run(name, on_stage):
        if name == "b":
            raise SystemExit("killed")
        return {"case": name}

    with pytest.raises(SystemExit):
        harness.run_cases(["a", "b"], run, str, keep=lambda result: harness.save_case(record, options, result))
    (partial,) = tmp_path.iterdir()
    head, case = (json.loads(line) for line in partial.read_text().splitlines())
    assert head["hardware"] == {"device": "cpu"} and case == {"case": "a"}
    harness.finish(record, options, lambda record, path: None)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.jsonl"]


def test_what_auto_chose_is_part_of_the_result(monkeypatch):
    """The kernels' loggers had been renamed, and records went without."""
    reset_backend_choices()
    options = harness.parser("toy", "").parse_args(["--quick", "--cases", "a b"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    harness.prepare(options)
    harness.captured_logs()
    x = torch.randn(1, 5, 1, 8)
    api.attention(x, x, x, api.Spans.packed(torch.zeros(1, 5, dtype=torch.int32)))
    assert any("attention" in line and "cpu" in line for line in harness.captured_logs())
    assert options.argv == ["--quick", "--cases", "a b"]


def test_rules_come_from_the_command_line():
    made = harness.parser("toy", "")
    harness.device_options(made)
    options = made.parse_args(["--budget-s", "2", "--no-peak"])
    found = harness.timing_limits(options, tolerance=0.1, budget_s=60.0, max_rounds=9)
    assert (found.budget_s, found.min_rounds, found.max_rounds, found.peak) == (
        2.0,
        TimingLimits().min_rounds,
        9,
        False,
    )
    assert harness.timing_limits(made.parse_args(["--quick"]), tolerance=0.1).max_rounds == 2
    # no case is given longer than the command has left
    options.end, options.case_timeout_s = harness.time.monotonic() + 20, 300.0
    assert harness.case_timeout_s(options) < 21


def test_records_append_and_never_clobber(tmp_path, capsys):
    path = tmp_path / "toy.jsonl"
    path.write_text('{"older": 1}\n')
    options = argparse.Namespace(quick=False, results=tmp_path)
    record = {
        "benchmark": "toy",
        "time": "2026-01-02T03:04:05Z",
        "targets": harness.target("c", "speed", 2.0, "at least", 1.0),
    }
    record["hardware"] = {"device": "cpu"}
    drawn = []
    for number in range(2):
        assert (
            harness.finish(record | {"number": number}, options, lambda r, p: drawn.append((r["number"], p.name))) == 0
        )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"older": 1} and [line["number"] for line in lines[1:]] == [0, 1]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == lines[-1]
    assert drawn == [(0, "toy-cpu.png"), (1, "toy-cpu.png")]
    assert record["targets"][0]["met"] and harness.target("c", "x", None, "at most", 1.0) == []


def test_a_record_names_no_folder_of_a_machine(tmp_path):
    options = argparse.Namespace(quick=True, threads=1, argv=["--results", str(tmp_path / "found"), "--cases", "a/b"])
    record = harness.begin("toy", options, "cpu", ())
    assert record["command"] == "python -m benchmarks.toy --results found --cases a/b"


def test_hardware_names_versions_and_commit():
    found = machine.hardware("cpu", 2, 0.25)
    assert {"processor", "cores", "threads", "commit", "dirty", "versions", "load_before", "python"} <= set(found)
    assert found["versions"]["torch"] == torch.__version__ and found["load_before"] == 0.25


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_memory_is_what_the_call_held_at_most(tmp_path, monkeypatch):
    """In processes of its own: what other tests have left in the allocator would be taken again unseen."""
    (tmp_path / "memory_target.py").write_text(TARGET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    grown = peak_growth("memory_target:call", {"numbers": 2**23})
    assert grown["kept_bytes"] == 2**25 and grown["method"] == "VmHWM"
    # the kernel counts pages in batches
    assert 3 * 2**25 - 2**20 <= grown["growth_bytes"] < 3 * 2**25 + 2**24
    # of two ranks the one that grew more, here the second, is told
    grown = peak_growth("memory_target:call", {"numbers": 2**22}, ranks=2)
    assert grown["kept_bytes"] == 2**25
    assert "ended with 1: KeyError" in peak_growth("memory_target:call", {"numbers": -1})["skipped"]


def test_cases_are_picked_by_word():
    assert harness.select(["causal-1", "window-1"], ["win"]) == ["window-1"]
    with pytest.raises(ValueError, match="--list"):
        harness.select(["causal-1"], ["none"])


@pytest.mark.parametrize("script", [attention, linear_loss, train_gpu])
def test_a_mistake_in_the_command_line_is_one_line(script, monkeypatch, capsys):
    """Both were tracebacks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, why in (
        (["--device", "cuda"], "device = 'cuda', but torch sees no GPU"),
        (["--device", "cpu", "--quick", "--cases", "none"], "no case has one of none in its name; --list shows them"),
    ):
        assert harness.command(lambda words=words: script.main([*words, "--threads", "1"])) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {why}") and said.count("\n") == 1


def test_every_script_tells_mistakes_so():
    folder, begins = Path(harness.__file__).parents[1], ("harness.prepare(", "comparison.run(")
    scripts = [path for path in folder.rglob("*.py") if any(words in path.read_text() for words in begins)]
    scripts = [path for path in scripts if path.parent.name != "harness"]
    assert len(scripts) > 7
    # the command that a record names is one that can be run
    modules = {".".join(("benchmarks", *path.relative_to(folder).with_suffix("").parts)) for path in scripts}
    assert modules <= set(harness.MODULES.values())
    assert all(importlib.util.find_spec(module) for module in harness.MODULES.values())
    for path in scripts:
        assert path.read_text().rstrip().endswith("sys.exit(harness.command(main))"), path.name
