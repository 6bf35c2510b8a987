"""The half hour on a GPU, without one: what dies, hangs or raises costs itself alone, and what was measured stays."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import corpus as gpu_corpus
from benchmarks.gpu import record as gpu_record
from benchmarks.gpu import stage as gpu_stage
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu import table as gpu_table
from benchmarks.gpu.record import ResultsLog, read
from benchmarks.gpu.stages import smoke as gpu_smoke
from benchmarks.gpu.stages import sweep as gpu_sweep
from benchmarks.gpu.stages import tests as gpu_tests
from benchmarks.kernels.masks import KINDS
from brine.synth import SynthCounts
from tests.paths import ROOT

STUB = """
import os, signal, sys, time
from benchmarks.gpu.stage import SuiteItem

def items(toy):
    return [SuiteItem("good"), SuiteItem("raises"), SuiteItem("dies"), SuiteItem("alone", fresh=True),
            SuiteItem("hangs", timeout_s=1.5), SuiteItem("late", least_s=1e6), SuiteItem("last"), SuiteItem("sleeps"),
            SuiteItem("never"), SuiteItem("breaks")]

def run(item, context):
    if item.name == "raises":
        context.record("before", number=1)
        raise RuntimeError("no such luck\\nsecond line")
    if item.name == "dies":
        for who in ("a", "bad", "c"):
            if who not in context.without:
                context.on_work(who)
                if who == "bad":
                    os.kill(os.getpid(), signal.SIGKILL)
                context.record(who, number=2)
        return
    if item.name == "breaks":
        # as a kernel that reads where it may not: what comes after fails too, in this process
        sys.modules["__main__"]._broken = lambda device: True
        for who in ("a", "bad", "c"):
            if who not in context.without:
                context.on_work(who)
                if who == "bad":
                    raise RuntimeError("an illegal memory access was encountered")
                context.record(who, number=3)
        return
    if item.name in ("hangs", "sleeps"):
        time.sleep(60)
    context.record(process=os.getpid())
"""


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """Runs one stage made of STUB, in this process as far as the parent goes -> (exit code, lines)."""
    (tmp_path / "stub_stage.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        gpu_suite, "find_facts", lambda record, device: record.save_machine_info({"device": "cpu"}) or {}
    )
    monkeypatch.setattr(gpu_suite, "_on_signal", lambda state: None)

    def run(*more: str):
        out = tmp_path / "out"
        words = ["--stage", "smoke", "--module", "stub_stage", "--out", str(out), "--work", str(tmp_path / "work")]
        return gpu.main([*words, *more]), read(out)

    return run


@pytest.mark.slow
def test_what_fails_costs_itself_alone(stubbed):
    named = ("good", "raises", "dies", "alone", "hangs", "late", "last")
    code, lines = stubbed("--minutes", "2", "--items", *named)
    assert code == 0
    told = {}
    for line in lines:
        told.setdefault(line["case"], []).append(line)
        assert line["where"] == {"device": "cpu"}
    assert told["raises before"][0]["number"] == 1
    # the traceback's last line and the place
    (raised,) = told["raises"]
    assert raised["error"].startswith("RuntimeError: no such luck") and "stub" not in raised["at"]
    # the implementation that killed its process is named and left out, and the item is done again without it
    (died,) = told["dies"]
    assert died["at_work"] == "bad" and "ended with -9" in died["error"]
    assert [len(told[f"dies {implementation_name}"]) for implementation_name in ("a", "c")] == [
        2,
        1,
    ] and "dies bad" not in told
    assert "longer than 2 s" in told["hangs"][0]["error"] and any("in run" in x for x in told["hangs"][0]["hung_at"])
    assert "skipped" in told["late"][0]
    processes = {name: told[name][0]["process"] for name in ("good", "alone", "last")}
    assert len(set(processes.values())) == 3
    assert lines[-1]["case"] == "command" and lines[-1]["items"] == 4 and told["stage"][-1]["ended"]


def test_what_broke_the_gpu_is_left_out_too(stubbed):
    """The item counted as done, and its other implementations were never tried."""
    code, lines = stubbed("--minutes", "1", "--items", "breaks")
    assert code == 0 and lines[-1]["items"] == 1
    told = [line["case"] for line in lines if line["case"].startswith("breaks ")]
    assert told == ["breaks a", "breaks a", "breaks c"]
    assert [line["at_work"] for line in lines if "at_work" in line] == ["bad"]


def test_what_raised_or_was_skipped_did_not_run_well(stubbed):
    code, lines = stubbed("--minutes", "1", "--items", "raises", "late")
    assert code == 1 and lines[-1]["items"] == 0


@pytest.mark.slow
def test_a_backend_that_kills_under_one_mask_is_tried_under_the_others(tmp_path):
    """Whoever was at work had no name, so one death dropped all that the item had not yet done."""
    words, stage = [], gpu_stage.STAGES["smoke"]
    context = gpu_stage.StageContext(
        stage.name, True, "cpu", tmp_path, tmp_path, None, 0.0, 0.0, time.time() + 600,
        gpu_stage.SuiteItem("check-auto", 90), on_work=words.append,
    )  # fmt: skip
    gpu_smoke.check("auto", context)
    names = [f"auto {kind}-D16" for kind in KINDS]
    assert words == names and len(measured(tmp_path)) == len(KINDS)
    context.without, words[:] = frozenset({names[1]}), []
    gpu_smoke.check("auto", context)
    assert words == names[:1] + names[2:]
    # another that hangs would take the time of what comes after
    context.end, words[:] = time.time() + 80, []
    gpu_smoke.check("auto", context)
    assert not words and "skipped" in measured(tmp_path)[-1]


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    """Each of them was a traceback, some after minutes of work."""
    (tmp_path / "file").write_text("no tar, no results\n")
    (tmp_path / "cut.tar.xz").write_bytes(b"\xfd7zXZ\x00\x00")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "file", "something")
    run = ["--stage", "tests", "--toy", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(gpu_suite, "find_facts", lambda record, device: {"device": "cpu"})
    monkeypatch.setattr(gpu_corpus, "LIBRARIES", ("json", "no_such_library"))
    for arguments, why in (
        ([*run, "--out", str(tmp_path / "file")], "file is no folder to write results into"),
        ([*run, "--out", "/proc/nope"], "/proc/nope is no folder to write"),
        ([*run, "--work", str(tmp_path / "file" / "below")], "below is no folder to write"),
        ([*run, "--corpus", str(tmp_path / "none.tar.xz")], "none.tar.xz: No such file or directory"),
        ([*run, "--corpus", str(tmp_path / "file")], "file is no corpus: .*--pack-corpus FILE. makes one"),
        ([*run, "--corpus", str(tmp_path / "cut.tar.xz")], "cut.tar.xz is no corpus"),
        ([*run, "--corpus", str(tmp_path / "other.tar")], "other.tar is no corpus"),
        ([*run, "--corpus", str(tmp_path)], "holds no finished corpus"),
        ([*run, "--minutes", "-3"], "--minutes -3: give the command more than none"),
        ([*run, "--items", "toy", "zzz"], "no item has 'zzz' in its name: there are toy$"),
        (["--stage", "zzz"], "no stage 'zzz': choose from smoke"),
        (["--plot", str(tmp_path / "none")], "none: No such file or directory"),
        (["--plot", str(tmp_path / "file")], "file, line 1: no line of a results file"),
        (["--write-table", str(tmp_path / "none")], "none: No such file or directory"),
        (["--write-table", str(tmp_path)], "results.jsonl: No such file or directory"),
        (["--pack-corpus", str(tmp_path / "c.tar.xz")], "needs no_such_library: run `uv sync --group corpus`"),
        (["--pack-corpus", str(tmp_path / "none" / "c.tar.xz")], "No such file or directory"),
        (["--pack-corpus", str(tmp_path)], "is a folder: name a file"),
    ):
        assert gpu.main(arguments) == 2, arguments
        told = capsys.readouterr().err
        assert re.fullmatch(rf"error: [^\n]*{why}[^\n]*\n", told), told
    # nothing was started, and nothing lies about
    assert {path.name for path in tmp_path.iterdir()} == {"file", "cut.tar.xz", "other.tar", "work", "out"}


@pytest.mark.slow
def test_a_list_may_be_read_in_part():
    listing = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "--list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    listing.stdout.close()
    with listing.stderr:
        assert (listing.stderr.read(), listing.wait(120)) == (b"", 0)


def test_a_stage_that_cannot_be_imported_is_a_line(stubbed):
    code, lines = stubbed("--module", "no_such_module")
    assert code == 1
    (error,) = [line["error"] for line in lines if "error" in line]
    assert error == "ModuleNotFoundError: No module named 'no_such_module'"


@pytest.mark.slow
def test_the_end_of_the_time_is_told(stubbed):
    _, lines = stubbed("--minutes", str((gpu_suite.MARGIN_S + 5.0) / 60), "--items", "sleeps", "never")
    hung, rest = [line for line in lines if "error" in line or "skipped" in line]
    assert hung["case"] == "sleeps" and hung["error"] == gpu_suite.STAGE_OVER and rest["items"] == ["never"]


def test_stages_that_do_not_fit_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "find_facts", lambda record, device: {"device": "cuda"})
    monkeypatch.setattr(gpu_suite, "_on_signal", lambda state: None)
    assert gpu.main(["--minutes", "0.1", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]) == 1
    lines = [line for line in read(tmp_path / "out") if "skipped" in line]
    assert [line["stage"] for line in lines] == list(gpu_stage.STAGES)
    assert sum(stage.minutes > 9 for stage in gpu_stage.STAGES.values()) == 0


@pytest.mark.slow
def test_a_rehearsal_killed_midway_leaves_whole_lines(tmp_path):
    """The real children, toy sizes; the parent gets a SIGKILL after the first case, and nothing stays behind."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", "attention", "loss", "--toy", "--device", "cpu"]
    command += ["--minutes", "5", "--out", str(out), "--work", str(tmp_path / "work")]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"BRINE_COMMIT": "abc"})
    end = time.monotonic() + 240
    while not (lines := [line for line in measured(out) if "implementations" in line]):
        assert parent.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    child = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert lines[0]["where"]["commit"] == "abc" and lines[0]["where"]["versions"]["torch"]
    assert lines[0]["implementations"]["brine"]["seconds"]["backward"]["median"] > 0
    assert lines[0]["implementations"]["brine-triton"]["skipped"]
    # every line is whole, though nobody was asked to stop
    assert all(set(line) >= {"time", "stage", "case", "where"} for line in read(out))
    while any(Path(f"/proc/{each}").exists() for each in child):
        assert time.monotonic() < end
        time.sleep(0.1)


def measured(out: Path) -> list[dict]:
    """Lines so far, one being written left out."""
    path = out / gpu_record.RESULTS
    return [json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] if path.exists() else []


def test_a_report_cut_off_is_counted_all_the_same():
    report = """tests/a.py::test_one[x y] PASSED [ 10%]
[gw1] [ 20%] FAILED tests/a.py::test_two
[gw0] [ 30%] PASSED tests/b.py::test_three
tests/b.py::test_four SKIPPED (needs a GPU) [ 40%]
FAILED tests/a.py::test_two - AssertionError: off by 2
[gw1] [ 50%] ERR"""
    found = gpu_tests.outcomes(report)
    assert found["counts"] == {"passed": 2, "failed": 1, "skipped": 1}
    assert found["failing"] == ["tests/a.py::test_two: AssertionError: off by 2"]


def test_the_stage_runs_what_touches_the_gpu_each_case_by_itself():
    assert {item.name for item in gpu_tests.items(False)} == set(gpu_tests.LIMITS_S) < set(gpu_tests.GROUPS)
    stage = gpu_stage.STAGES["tests"]
    assert sum(gpu_tests.LIMITS_S.values()) <= 60 * stage.minutes
    found = {name: gpu_tests.files_of(name) for name in gpu_tests.GROUPS}
    assert all(found.values()) and "tests/gpu/test_one_gpu.py" in found["gpu"]
    # a file of kernel tests that can compute on a GPU says where it does
    sources = {path: path.read_text() for path in (ROOT / "tests" / "kernels").rglob("*.py")}
    there = {str(path.relative_to(ROOT)) for path, text in sources.items() if "DEVICE" in text and "def test_" in text}
    assert there == {*found["attention"], *found["loss"]}


HANGING = """
import ctypes, pytest
from benchmarks.gpu import test_timeouts as gpu_limits

gpu_limits.LIMIT_S = 2.0


def test_first():
    pass


def test_hangs():
    # neither a signal nor an exception reaches this
    ctypes.PyDLL(None).sleep(60)


def test_loses_the_gpu():
    gpu_limits.lost_gpu = lambda: "an illegal memory access was encountered"
    raise AssertionError("as it was")


@pytest.mark.parametrize("number", range(4))
def test_goes_on(number):
    assert gpu_limits.lost_gpu() is None
"""


@pytest.mark.slow
def test_a_test_that_hangs_or_loses_the_gpu_costs_itself_alone(tmp_path):
    """In processes of pytest-xdist, of which others take over."""
    path = tmp_path / "test_hanging.py"
    path.write_text(HANGING)
    command = [*(sys.executable, "-m", "pytest", str(path), "-o", "addopts=", "-v", "-rfE", "-n", "2"), "--dist"]
    command += ["worksteal", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.test_timeouts"]
    environment = os.environ | gpu_tests.ENVIRONMENT
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    found = gpu_tests.outcomes(done.stdout)
    assert found["counts"] == {"passed": 5, "failed": 2}
    hangs, loses = sorted(found["failing"])
    assert "test_hangs: worker" in hangs and loses.endswith("test_loses_the_gpu: AssertionError: as it was")
    assert "in test_hangs" in done.stderr and "lost the GPU: an illegal memory access" in done.stderr


def test_the_least_bad_tile_of_a_mask_class_is_proposed():
    def line(mask, tile, median):
        told = {"stage": "sweep", "pass": "fwd", "dim": 64, "mask": mask, "tile": {"rows": tile}}
        return {**told, "seconds": {"median": median}}

    lines = [line("causal", 1, 1.0), line("window", 1, 3.0), line("causal", 2, 1.2), line("window", 2, 1.1)]
    # the fastest under one mask alone, and one that was not timed under both
    lines += [line("causal", 3, 0.1), line("narrow", 1, 5.0), {"stage": "sweep", "skipped": "no"}]
    found = gpu_sweep.best(lines)
    assert found["fwd", 64, False]["tile"] == {"rows": 2} and found["fwd", 64, True]["tile"] == {"rows": 1}


def test_winners_are_rows_of_a_table(tmp_path):
    def line(kind, tokens, **more):
        times = {"triton": 2e-3, "flash": 1e-3}
        implementations = {f"brine-{name}": {"seconds": {"total": {"median": s}}} for name, s in times.items()}
        where = {"gpu": "gpu", "commit": "abc", "capability": "9.0"}
        return {"stage": "attention", "case": f"{kind}-{tokens}", "time": "now", "kind": kind, "tokens": tokens,
                "dim": 128, "dtype": "bf16", "implementations": implementations, "where": where, **more}  # fmt: skip

    lines = [line("causal", 65536), line("packed", 32768), line("packed", 16384), line("multimodal", 16384)]
    lines += [line("window", 16384, toy=True), line("window", 1, where={"gpu": "gpu", "commit": None})]
    rows = {row["kind"]: row for row in gpu_table.rows_of(lines, "attention")}
    assert set(rows) == {"causal", "block"} and rows["causal"]["source"]["case"] == "packed-32768"
    assert rows["causal"]["ms"] == {"triton": 2.0, "flash": 1.0} and rows["causal"]["capability"] == (9, 0)
    # the backend "flash" is the package that was there, and torch's kernels are there as a peer
    peer = {"torch-varlen": {"seconds": {"total": {"median": 3e-3}}}}
    there = line("packed", 8, flash_package="flash-attn-4")
    there["implementations"] |= peer
    (row,) = gpu_table.rows_of([there], "attention")
    assert row["ms"] == {"triton": 2.0, "flash/flash-attn-4": 1.0, "flash/torch": 3.0}
    losses = [line("", tokens, stage="loss", terms="plain", dim=None, implementations={
        f"brine-{name}": {"seconds": {"total": {"median": s}}} for name, s in times.items()
    }) for tokens, times in ((8, {"triton": 1e-3, "liger": 4e-3}), (32, {"triton": 9e-3, "liger": 4e-3}))]  # fmt: skip
    (row,) = gpu_table.rows_of(losses, "loss")
    assert row["ms"] == pytest.approx({"triton": 3.0, "liger": 4.0}) and row["source"]["case"] == "-8, -32"
    record = ResultsLog(tmp_path)
    record.write(stage="attention", case="c", number=float("1.5"), path=tmp_path)
    assert gpu_table.write_table(tmp_path) == 1


def test_a_copy_without_git_knows_its_commit(tmp_path, monkeypatch):
    from brine.training.logging import environment

    monkeypatch.setattr(environment.brine, "__file__", str(tmp_path / "brine" / "__init__.py"))
    monkeypatch.delenv("BRINE_COMMIT", raising=False)
    assert environment.commit() is None
    (tmp_path / "COMMIT").write_text("0123456789ab\n")
    assert environment.commit() == "0123456789ab"
    monkeypatch.setenv("BRINE_COMMIT", "fedcba")
    assert environment.commit() == "fedcba"


@pytest.mark.slow
def test_a_corpus_is_packed_and_read_where_nothing_decodes(tmp_path):
    """Reading it imports no media library."""
    files = tmp_path / "source"
    files.mkdir()
    for module in (json, subprocess, sys.modules["textwrap"], sys.modules["argparse"], sys.modules["shlex"]):
        text = Path(module.__file__).read_bytes()
        (files / f"{module.__name__}.py").write_bytes(text)
    assert gpu_corpus.pack(tmp_path / "corpus.tar.xz", mib=1, toy=True, source=files) == 0
    folder = gpu_corpus.unpack(tmp_path / "corpus.tar.xz", tmp_path / "work")
    assert gpu_corpus.unpack(tmp_path / "corpus.tar.xz", tmp_path / "work") == folder
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('av', 'soundfile', 'tyro', 'datasketch')));"
        "from brine.data.corpus.store import open_corpus; corpus = open_corpus(sys.argv[1]);"
        "print(corpus.num_documents, sorted(corpus.kinds))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True)
    count, kinds = done.stdout.strip().split(" ", 1)
    assert int(count) > 20 and all(kind in kinds for kind in ("text", "screenshot", "narration", "recording"))


def test_counts_shrink_to_one_and_no_further():
    made = gpu_corpus.scaled(SynthCounts(text=70, screenshot=(100, 3, 0, 1)), 0.1)
    assert made == SynthCounts(text=7, screenshot=(10, 1, 0, 1)) and gpu_corpus.num_documents(made) == 19
