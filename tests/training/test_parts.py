"""Configs, schedule, optimiser groups, ledger, metrics, console and runtime, each on its own."""

import json
import math
import subprocess
from itertools import pairwise

import pytest
import torch

from brine.common.files import deciding, read_jsonl
from brine.common.formatting import Console, StatusLine, count, duration, progress_bar
from brine.model.device import supports_bfloat16
from brine.training import runtime as runtime_module
from brine.training.config import RuntimeConfig, TrainConfig, learning_rate
from brine.training.gradients import FlatGradients
from brine.training.logging.compute_cost import COST_CATEGORIES, CostAccounting
from brine.training.logging.device_specs import MEASURED, PeakFlops
from brine.training.logging.metrics import RunLog, TensorBoardSink, append_line, flat_numbers, repair_lines
from brine.training.logging.progress import Throughput
from brine.training.optimizer import Optimizer, parameter_groups
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, apply_runtime, resolve_runtime
from tests.training.tiny_run import TinyModel, tiny_config, tiny_train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0 must be positive"),
        ({"optimizer": "sgd"}, "choose one of adamw, muon"),
        ({"schedule": "step"}, "choose one of linear, cosine"),
        ({"warmup_steps": 12}, "warm up for fewer steps"),
        ({"global_batch_size": 5}, "not a multiple of micro_batch_size = 2"),
        ({"final_lr_fraction": 1.5}, r"must lie in \[0, 1\]"),
        ({"beta2": 1.0}, r"must lie in \[0, 1\)"),
        ({"learning_rate": float("nan")}, "must be positive"),
    ],
)
def test_train_config_tells_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": "yes"}, "true, false or auto"),
        ({"dtype": "fp16"}, "choose one of"),
        ({"num_threads": -1}, "give 1"),
    ],
)
def test_runtime_config_tells_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        RuntimeConfig(**changes)


def test_compile_may_come_from_a_command_line():
    assert [RuntimeConfig(compile=word).compile for word in ("true", "False", "auto")] == [True, False, "auto"]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_rises_and_decays_to_its_end(schedule):
    config = TrainConfig(num_steps=101, warmup_steps=10, learning_rate=0.5, final_lr_fraction=0.1, schedule=schedule)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[10] == 0.5
    assert rates[100] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    # halfway the two agree
    assert rates[55] == pytest.approx(0.5 * (0.1 + 0.9 * 0.5))


def test_muon_takes_the_matrices_of_the_blocks_and_norms_do_not_decay():
    model = TinyModel()
    parameters = dict(model.named_parameters())
    names = {id(value): name for name, value in parameters.items()}

    def members(config):
        groups = parameter_groups(parameters, config)
        return {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}, groups

    found, groups = members(tiny_config(optimizer="muon", weight_decay=0.3))
    assert found["muon"] == {"blocks.0.weight", "blocks.1.weight"}
    assert found["decay"] == {"tokens.weight", "head.weight"}
    assert found["no_decay"] == {"blocks.0.bias", "blocks.1.bias", "norm.weight", "norm.bias"}
    assert [groups[key]["weight_decay"] for key in ("decay", "no_decay", "muon")] == [0.3, 0.0, 0.3]
    found, _ = members(tiny_config())
    assert found["muon"] == set() and "blocks.0.weight" in found["decay"]


def test_gradient_buffer_is_every_gradient():
    model = TinyModel().double()
    gradients = FlatGradients(dict(model.named_parameters()))
    loss = sum((p * torch.arange(p.numel()).view_as(p)).sum() for p in model.parameters())
    loss.backward()
    squares = sum(float(p.grad.square().sum()) for p in model.parameters())
    assert float(gradients.norm()) == pytest.approx(math.sqrt(squares), rel=1e-12)
    gradients.scale(0.5)
    assert float(model.head.weight.grad[0, 2]) == 1.0
    gradients.zero()
    assert all(not p.grad.any() for p in model.parameters())


def test_optimizer_state_of_a_stranger_is_refused():
    optimizer = Optimizer(TinyModel(), tiny_config())
    with pytest.raises(ValueError, match="adamw/nobody/exp_avg, which does not match this run"):
        optimizer.prepare_state({"adamw/nobody/exp_avg": (1,)})
    with pytest.raises(ValueError, match=r"has shape \(3,\), the parameter has \(32, 16\)"):
        optimizer.prepare_state({"adamw/head.weight/exp_avg": (3,)})


def test_ledger_adds_up(tmp_path):
    compute_cost = CostAccounting()
    compute_cost.add_cost("student", flops=10**18 + 1, seconds=2.0)
    compute_cost.add_cost("teacher_forward", flops=5, seconds=0.5)
    compute_cost.add_cost("scoring", flops=7)
    # exact far beyond a double's integers
    assert compute_cost.total_flops() == 10**18 + 13 and compute_cost.total_seconds() == 2.5
    compute_cost.save(tmp_path / "ledger.json")
    stored, read = json.loads((tmp_path / "ledger.json").read_text()), CostAccounting()
    assert stored == compute_cost.to_dict() and set(stored) == set(COST_CATEGORIES)
    read.take(stored)
    assert read.flops == compute_cost.flops and read.seconds == compute_cost.seconds
    with pytest.raises(ValueError, match="unknown cost category 'rent': choose one of student"):
        compute_cost.add_cost("rent", flops=1)
    with pytest.raises(ValueError, match="to student: give no negative amount"):
        compute_cost.add_cost("student", flops=-1)


def test_teacher_training_goes_on_its_own_account(tmp_path):
    result = tiny_train(tmp_path, cost_category="teacher_training")
    assert result.compute_cost.flops["student"] == 0 < result.compute_cost.flops["teacher_training"]
    stored = json.loads((tmp_path / "ledger.json").read_text())
    assert {name: entry["flops"] for name, entry in stored.items()} == result.compute_cost.flops


def test_metrics_beyond_a_step_are_dropped_and_events_stay(tmp_path):
    record = RunLog(tmp_path)
    for step in (2, 4, 6):
        record.metrics({"step": step, "loss": 1.0 / step})
        record.metrics({"step": step, "validation": {"loss": math.nan}})
        record.event("passed", step=step)
    assert record.truncate(4) == 2
    assert record.truncate(4, validation=False) == 1
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [2, 2, 4]
    assert read_jsonl(tmp_path / "metrics.jsonl")[1]["validation"] == {"loss": None}
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 3


def test_a_line_ends_where_a_line_of_json_ends(tmp_path):
    """A transcript with U+2028, which str.splitlines takes for an end of line, was lost; half a line is passed over."""
    (tmp_path / "lines.jsonl").write_text('{"text": "a\u2028b"}\n{"text": "ha', encoding="utf-8")
    assert read_jsonl(tmp_path / "lines.jsonl") == [{"text": "a\u2028b"}]


def test_half_a_line_is_repaired(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    repair_lines(path)
    append_line(path, {"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_other_ranks_record_nothing():
    record = RunLog(None)
    record.metrics({"step": 1})
    record.event("nothing")
    assert record.truncate(0) == 0


def test_sinks_read_the_same_numbers(tmp_path):
    seen = []

    class Memory:
        def log(self, line):
            seen.append(line["step"])

        def purge(self, step):
            pass

        def finish(self):
            seen.append("finished")

    tiny_train(tmp_path, sinks=(Memory(),))
    assert seen == [3, 6, 9, 12, "finished"]
    assert dict(flat_numbers({"step": 3, "a": {"b": 1, "c": None}, "d": 2.5, "e": True})) == {"a/b": 1.0, "d": 2.5}


def test_missing_tensorboard_tells_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="uv sync --extra tensorboard"):
        TensorBoardSink(tmp_path)


def test_status_lines_align(capsys):
    def status(**changes):
        values = {
            "step": 1, "num_steps": 1000, "tokens": 8192, "loss": 6.25, "grad_norm": 0.5, "learning_rate": 3e-3,
            "tokens_per_s": 900.0, "mfu": 0.031, "memory_gib": 1.5, "data_wait_fraction": 0.01, "eta_s": 75.0,
        }  # fmt: skip
        return StatusLine(**{**values, **changes})

    short = status().line()
    long = status(step=999, tokens=123_456_789, loss=0.02, grad_norm=12.5, tokens_per_s=14_100.0, eta_s=4000.0).line()
    assert len(short) == len(long)
    assert all(short.index(word) == long.index(word) for word in ("loss", "norm", "lr", "tok/s", "MFU", "data", "left"))
    assert "123.46M" in long and "1:06:40" in long and "14.10k" in long
    console = Console("small", num_steps=10)
    console.status(status())
    console.close()
    assert short in capsys.readouterr().err
    assert (count(12), duration(59.6)) == ("12", "1:00")
    assert (duration(359_999), duration(360_000), duration(1e10)) == ("99:59:59", "4 days", "115,741 days")


def test_a_log_gets_few_lines_of_progress(capsys):
    """tqdm would write ten a second."""
    bar = progress_bar(range(30), desc="files", unit="file")
    assert len(list(bar)) == 30
    assert capsys.readouterr().err.count("files:") == 1
    assert list(progress_bar(range(3), quiet=True)) == [0, 1, 2] and not capsys.readouterr().err


def test_a_peak_that_was_beaten_is_measured_anew():
    pace = Throughput(Runtime(), num_steps=4, world=World(), peak=PeakFlops(1.0, MEASURED))
    pace.begin(step=0, tokens=0, flops=0)
    asked = {"step": 2, "tokens": 64, "flops": 10**9, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1}
    assert 0 < pace.status(**asked).mfu <= 1 and pace.peak.flops_per_s > 1.0


def test_runtime_is_settled_once_per_folder(tmp_path, monkeypatch):
    probes = []

    def probe(device):
        assert device == "cpu"
        probes.append(1)
        return len(probes) == 1, "a trial"

    monkeypatch.setattr(runtime_module, "compiler_works", probe)
    config = RuntimeConfig(device="cpu")
    first = resolve_runtime(config, folder=tmp_path)
    assert (first.compile, first.device, first.num_threads) == (True, "cpu", runtime_module.usable_cores())
    assert first.reasons["compile"] == "a trial" and "dtype" in first.reasons
    # the same request is not settled again, another one is
    assert resolve_runtime(config, folder=tmp_path) == first and len(probes) == 1
    assert not resolve_runtime(RuntimeConfig(device="cpu", num_threads=1), folder=tmp_path).compile
    assert "reasons" not in deciding(first)


def test_lost_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_module, "compiler_works", lambda device: (True, "a trial"))
    resolve_runtime(RuntimeConfig(device="cpu"), folder=tmp_path)
    monkeypatch.setattr(runtime_module, "find_compiler", lambda device: None)
    with pytest.raises(ValueError, match=r"no C\+\+ compiler is found now: install one, or pass --runtime\.compile"):
        resolve_runtime(RuntimeConfig(device="cpu"), folder=tmp_path)


def test_compiling_without_a_compiler(monkeypatch):
    monkeypatch.setattr(runtime_module, "find_compiler", lambda device: None)
    assert not resolve_runtime(RuntimeConfig(device="cpu")).compile
    with pytest.raises(ValueError, match=r"no C\+\+ compiler was found: install"):
        resolve_runtime(RuntimeConfig(device="cpu", compile=True))


def test_kernels_that_do_not_train_on_a_cpu_are_refused_before_anything_is_made(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    refused = [("attention_backend", name) for name in ("triton", "gluon", "flex", "flash")]
    for field, name in [*refused, ("loss_backend", "triton"), ("loss_backend", "liger")]:
        with pytest.raises(ValueError, match=f"--runtime.{field.replace('_', '-')} {name} trains on a GPU"):
            resolve_runtime(RuntimeConfig(device="cpu", compile=False, **{field: name}))
    asked = {"attention_backend": "cpu", "loss_backend": "chunked"}
    assert resolve_runtime(RuntimeConfig(device="cpu", compile=False, **asked)).loss_backend == "chunked"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="trains on a GPU"):
        resolve_runtime(RuntimeConfig(device="cpu", attention_backend="triton"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_runtime(RuntimeConfig(device="cpu", compile=False, attention_backend="triton"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my_kernels.fast", "No module named 'my_kernels'"),
        ("brine.common.formatting", "has no function unsupported_reason"),
    ],
)
def test_a_module_that_is_no_backend_is_refused_before_anything_is_made(name, problem):
    with pytest.raises(ValueError, match=f"{problem}.*the backends are auto, reference, cpu, .*or a module's name"):
        resolve_runtime(RuntimeConfig(device="cpu", compile=False, attention_backend=name))


@pytest.mark.parametrize("failure", ["time-out", "error"])
def test_broken_compiler_means_no_compilation(monkeypatch, failure):
    def run(command, **options):
        if failure == "time-out":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 1, "", "fatal error: Python.h: No such file")

    monkeypatch.setattr(runtime_module, "find_compiler", lambda device: "/usr/bin/g++")
    monkeypatch.setattr(runtime_module.subprocess, "run", run)
    works, reason = runtime_module.compiler_works(timeout_s=7)
    assert not works
    assert ("did not end in 7 s" if failure == "time-out" else "Python.h") in reason


def test_a_card_is_probed_by_what_runs_on_it(monkeypatch, tmp_path):
    """A machine without g++ compiles for its card; one without Python.h does not, and says so."""
    programs, gcc = [], tmp_path / "gcc"
    gcc.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    stderr = "\n".join([
        "main.c:1:10: fatal error: Python.h: No such file or directory",
        "torch._inductor.exc.InductorError: CalledProcessError: Command '['gcc']' returned non-zero exit status 1.",
        "Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace",
    ])  # fmt: skip
    code = 0

    def run(command, **options):
        programs.append(command[-1])
        return subprocess.CompletedProcess(command, code, "1.0", stderr)

    monkeypatch.setattr(runtime_module.subprocess, "run", run)
    works, reason = runtime_module.compiler_works("cuda")
    assert works and reason == f"a trial compilation for cuda with {gcc} worked"
    assert "device='cuda'" in programs[0] and "cumsum" not in programs[0]
    compile(programs[0], "probe", "exec")
    code = 1
    works, reason = runtime_module.compiler_works("cuda")
    assert not works and "failed: main.c:1:10: fatal error: Python.h" in reason
    stderr = "Traceback\nRuntimeError: Triton is not there\n\nadvice"
    assert "RuntimeError: Triton is not there" in runtime_module.compiler_works("cuda")[1]
    # the same machine cannot compile for its CPU, and is not asked to
    assert runtime_module.compiler_works("cpu") == (False, "no C++ compiler was found") and len(programs) == 3
    gcc.unlink()
    assert runtime_module.compiler_works("cuda") == (False, "no C compiler was found")


@pytest.mark.parametrize(("flags", "able"), [("sse avx512_bf16", True), ("amx_bf16", True), ("avx2 avx512f", False)])
def test_bfloat16_follows_the_processor(monkeypatch, flags, able):
    monkeypatch.setattr("brine.model.device._cpu_flags", lambda: set(flags.split()))
    assert supports_bfloat16("cpu")[0] is able


def test_apply_runtime_sets_the_switches():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        apply_runtime(Runtime(num_threads=4), local_world_size=2)
        assert torch.get_num_threads() == 2 and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = True
