"""A benchmark of one kernel: implementations of an operation, case by case, on the CPU or a GPU.

On CUDA each case runs in its own process. Compilers can abort and kernels can poison the context, and neither can
be caught: when such a process dies, the implementation that was at work is left out with the reason, and the case is
run again without it. On the CPU cases share one process.

A kernel's benchmark is a module with

    NAME, SUMMARY, COPIES      of its record, for `--help`, and whether the roofline includes the best copy
    TESTS                      device -> files of tests that have to pass first
    cases_of(options, device)  cases with a `name` and a `dtype`, one of `DTYPES`
    verify(device, backend)    called on CUDA before anything is measured; raises TestsFailedError
    measure_case(case, device, options, on_stage)    result: every implementation's time in this process
    measure_here(case, device, options, on_stage)    the same, with what is measured on the CPU alone
    add_rates(result, roofline), show(result), targets(cases, results), plot(record, path)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu.record import backend_choices
from benchmarks.harness import machine
from benchmarks.harness import records as harness
from benchmarks.harness.correctness import TestsFailedError, verified
from benchmarks.harness.implementations import Implementation, benchmark_implementations

Result = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(benchmark: ModuleType, arguments: list[str] | None) -> int:
    """Options, tests, cases, record -> exit status."""
    made = harness.parser(benchmark.NAME, benchmark.SUMMARY)
    harness.device_options(made)
    options = made.parse_args(arguments)
    device = harness.prepare(options)
    cases = {case.name: case for case in benchmark.cases_of(options, device)}
    if options.child:
        print(json.dumps(benchmark.measure_case(cases[options.child], device, options, child_stage(options))))
        return 0
    names = harness.select(list(cases), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    try:
        record = harness.begin(benchmark.NAME, options, device, benchmark.TESTS[device])
        if device == "cuda" and options.tests != "none":
            verified(record, options, lambda: benchmark.verify(device, options.backend))
    except TestsFailedError as error:
        return harness.print_refusal(benchmark.NAME, error)
    dtypes = {case.dtype: DTYPES[case.dtype] for case in cases.values()}
    roofline = record["roofline"] = machine.roofline(device, dtypes, options.quick, copies=benchmark.COPIES)

    def measure(name: str, on_stage: Callable[[str], None]) -> Result:
        if device == "cuda" and not options.quick:
            result = run_isolated(harness.MODULES[benchmark.NAME], name, options, device)
        else:
            result = benchmark.measure_here(cases[name], device, options, on_stage)
        if "implementations" in result:
            benchmark.add_rates(result, roofline)
        return result

    record["cases"] = harness.run_cases(
        names, measure, benchmark.show, minutes=options.minutes,
        keep=lambda result: harness.save_case(record, options, result),
    )  # fmt: skip
    record["targets"] = benchmark.targets(list(cases.values()), record["cases"])
    return harness.finish(record, options, benchmark.plot)


def time_implementations(
    builders: Mapping[str, Callable[[Any], Implementation]],
    problem: Any,
    device: str,
    options: argparse.Namespace,
    on_stage: Callable[[str], None],
    **limits: Any,
) -> Result:
    """Each implementation's times of a problem, with what the kernels logged and chose; limits: of `timing_limits`."""
    skipped = set(options.without.split(","))
    chosen = {name: lambda build=build: build(problem) for name, build in builders.items() if name not in skipped}
    timing_limits = harness.timing_limits(options, **limits)
    found = benchmark_implementations(chosen, device=device, timing_limits=timing_limits, on_stage=on_stage)
    return {"implementations": found, "log": harness.captured_logs(), "backends": backend_choices()}


def show_implementations(head: str, result: Result, columns: Callable[[Result], dict[str, str]]) -> str:
    """A table of a case's implementations, and why some were left out."""
    rows, notes = [], []
    for name, implementation in result["implementations"].items():
        if "skipped" in implementation:
            notes.append(f"  {name} left out: {implementation['skipped']}")
        else:
            over = implementation.get("over", {}).get("total")
            rows.append(
                {"": name} | columns(implementation) | {"time over ours": f"{over['median']:.2f}" if over else ""}
            )
    return "\n".join([head, harness.table(rows), *notes])


def run_isolated(module: str, case: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Run one case in its own processes until one ends well."""
    skipped = {name: {"skipped": "asked for"} for name in options.without.split(",") if name}
    arguments = ["--device", device, "--backend", options.backend, "--threads", str(options.threads)]
    for name in ("budget_s", "min_rounds"):
        if getattr(options, name) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    arguments += ["--no-peak"] * options.no_peak
    while True:
        timeout_s = harness.case_timeout_s(options)
        with tempfile.TemporaryDirectory() as folder:
            stage = Path(folder) / "stage"
            command = [sys.executable, "-m", module, *arguments, "--child", case]
            command += ["--without", ",".join(skipped), "--stage", str(stage)]
            try:
                done = subprocess.run(
                    command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=False
                )
                reason = f"its process ended with {done.returncode}"
            except subprocess.TimeoutExpired:
                done, reason = None, f"its case took longer than {timeout_s:.0f} s"
            culprit = stage.read_text().strip() if stage.exists() else ""
        if done is not None and done.returncode == 0:
            result = json.loads(done.stdout.splitlines()[-1])
            result["implementations"] |= skipped
            return result
        if not culprit or culprit in skipped:
            return {"case": case, "skipped": reason}
        skipped[culprit] = {"skipped": reason}


def child_stage(options: argparse.Namespace) -> Callable[[str], None]:
    """For a case's own process: note who is at work where the parent will look."""
    return lambda name: Path(options.stage).write_text(name) if options.stage else None


def where(record: Result) -> str:
    """GPU or processor, and the commit, for the title of an image."""
    hardware = record["hardware"]
    return f"{hardware.get('gpu', {}).get('name', hardware['processor'])}, {hardware['commit']}"
