"""Power of the gate, by simulation, and `docs/gate_power.png`.

    python -m benchmarks.statistics.gate                      two minutes on one core
    python -m benchmarks.statistics.gate --image docs/gate_power.png

Lines of models are those of `benchmarks.statistics.candidates`: 8 and 20 guards, half of them correlated, 3 and 5
confirmation seeds, 5 equal trainings of the champion; candidates equal in every case on the average, or different in
single cases. The rules and formulas are `brine.registry.gate`'s, on arrays of many problems; `decide` itself, on the
same made-up measurements, answers 200 candidates of each cell, and must agree with them one by one.

    passed        equal guards and a primary that is better by 8 standard deviations of one training
    refused       one guard worse by twice its margin, the primary better: refused, and that guard named
    null          nothing better: promoted

Targets: at least 80 %, at least 95 %, at most 5 %. The curves show what a regression of any size, and a primary that
is better by less, get.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import records as harness
from benchmarks.harness.machine import hardware
from benchmarks.statistics.candidates import Candidates, GateDesign, draw, guards_failed, primary_better
from brine.registry.gate import decide
from brine.training.logging.metrics import append_line

NAME = "gate"
GUARDS, SEEDS, TRAININGS = (8, 20), (3, 5), 5
GAIN = 8.0
"""Of a truly better primary, in standard deviations of one training."""
REGRESSIONS = tuple(np.arange(0, 3.01, 0.25).tolist())
GAINS = tuple(np.arange(0, 10.1, 0.5).tolist())
BATCH = 200
"""Candidates that are computed at once, and the number that `decide` answers."""
PASSED, REFUSED, NULL = 0.80, 0.95, 0.05


def regressed(design: GateDesign) -> tuple[int, int]:
    """The guards that get worse: a correlated one and an independent one."""
    return 0, design.guards - 1


def rates(design: GateDesign, *, batches: int, seed: int = 0) -> dict[str, Any]:
    """Everything about one design, over `batches` of 200 candidates."""
    rng = np.random.default_rng([seed, design.guards, design.seeds, design.trainings])
    sums: dict[str, Any] = dict.fromkeys(("passed", "null", "significant", "beyond_margin"), 0.0)
    sums |= {"refused": np.zeros(len(REGRESSIONS)), "better": np.zeros(len(GAINS))}
    margins = []
    for _ in range(batches):
        found = draw(design, BATCH, rng)
        significant, beyond = guards_failed(found)
        kept = ~(significant | beyond).any(axis=1)
        sums["significant"] += significant.any(axis=1).mean()
        sums["beyond_margin"] += beyond.any(axis=1).mean()
        sums["null"] += (kept & primary_better(found)).mean()
        sums["passed"] += (kept & primary_better(found.better_by(GAIN))).mean()
        sums["better"] += np.array([primary_better(found.better_by(gain)).mean() for gain in GAINS])
        sums["refused"] += np.array([named(found, size) for size in REGRESSIONS])
        margins.append(np.median(found.margins))
    found = {name: np.round(value / batches, 4).tolist() for name, value in sums.items()}
    return {
        "case": f"G{design.guards}-S{design.seeds}-K{design.trainings}-cases{design.case_variance:g}",
        "guards": design.guards, "seeds": design.seeds, "trainings": design.trainings,
        "case_variance": design.case_variance, "candidates": batches * BATCH, "median_margin": float(np.mean(margins)),
    } | found  # fmt: skip


def named(found: Candidates, size: float) -> float:
    """Share of candidates refused by the name of the guard that is worse by `size` margins."""
    shares = []
    for guard in regressed(found.design):
        significant, beyond = guards_failed(found.worse_by(guard, size))
        shares.append((significant | beyond)[:, guard].mean())
    return float(np.mean(shares))


def decided(design: GateDesign, *, problems: int = BATCH, seed: int = 1) -> dict[str, Any]:
    """Shares of `decide` itself over `problems` candidates of each sort, and how often it differs from the arrays'."""
    rng = np.random.default_rng([seed, design.guards, design.seeds])
    equal = draw(design, problems, rng)
    guard = regressed(design)[1]
    sorts = {"null": equal, "passed": equal.better_by(GAIN), "refused": equal.better_by(GAIN).worse_by(guard, 2.0)}
    found: dict[str, Any] = {"candidates": problems, "disagreements": 0}
    for name, candidates in sorts.items():
        significant, beyond = guards_failed(candidates)
        expected = ~(significant | beyond).any(axis=1) & primary_better(candidates)
        count = 0
        for problem in range(problems):
            ours, theirs = candidates.runs(problem)
            names = [each for each in ours[0] if each != "primary"]
            margins = dict(zip(names, candidates.margins[problem].tolist(), strict=True))
            decision = decide(ours, theirs[: design.seeds], primary="primary", guards=names, margins=margins)
            found["disagreements"] += int(decision.passed != expected[problem])
            count += f"guard-{guard}" in decision.failed_guards if name == "refused" else decision.passed
        found[name] = count / problems
    return found


def targets(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked, of the arrays' rates and of `decide`."""
    lines = []
    for cell in found:
        twice = cell["refused"][REGRESSIONS.index(2.0)]
        for what, by_arrays, relation, wanted in (
            ("passed", cell["passed"], "at least", PASSED),
            ("refused", twice, "at least", REFUSED),
            ("null", cell["null"], "at most", NULL),
        ):
            name = f"{what} of {cell['candidates']:,}"
            lines += harness.target(cell["case"], name, by_arrays, relation, wanted)
            if "decide" in cell:
                name = f"{what} of {cell['decide']['candidates']} by decide()"
                lines += harness.target(cell["case"], name, cell["decide"][what], relation, wanted)
        if "decide" in cell:
            lines += harness.target(cell["case"], "disagreements", cell["decide"]["disagreements"], "at most", 0)
    return lines


def plot(found: list[dict[str, Any]], sizes: list[dict[str, Any]], path: Path) -> None:
    """Power over the size of a regression, over the primary's gain, and margins over the number of trainings."""
    figure = Figure(figsize=(12.6, 4.0), layout="constrained", dpi=110)
    left, middle, right = figure.subplots(1, 3)
    colours = {(8, 3): "#0f766e", (20, 3): "#5eb5aa", (8, 5): "#c2571a", (20, 5): "#f0a878"}
    for cell in (cell for cell in found if not cell["case_variance"]):
        style = {"color": colours[cell["guards"], cell["seeds"]], "marker": "o", "markersize": 3}
        left.plot(REGRESSIONS, cell["refused"], label=f"{cell['guards']} guards, {cell['seeds']} seeds", **style)
        if cell["guards"] == GUARDS[0]:
            middle.plot(GAINS, cell["better"], label=f"{cell['seeds']} seeds", **style)
    left.plot([2], [REFUSED], marker="_", markersize=16, color="#17211f", linestyle="none", label="target")
    left.set(title="Refused by the name of the guard", xlabel="regression of one guard, in margins")
    middle.plot([0], [NULL], marker="_", markersize=16, color="#17211f", linestyle="none", label="at most, at 0")
    middle.set(title="Primary better with its whole interval", xlabel="true gain, in sd of one training")
    for axes in (left, middle):
        axes.set(ylim=(-0.02, 1.02), ylabel="share of candidates")
    for guards, seeds in colours:
        cells = [cell for cell in sizes if (cell["guards"], cell["seeds"]) == (guards, seeds)]
        right.plot([cell["trainings"] for cell in cells], [cell["median_margin"] for cell in cells], marker="o",
                   markersize=3, color=colours[guards, seeds], label=f"{guards} guards, {seeds} seeds")  # fmt: skip
    right.set(title="Median margin", xlabel="equal trainings of the champion", ylabel="sd of one training")
    right.set(ylim=(0, None), xticks=(3, 5, 8, 12, 20))
    for axes in (left, middle, right):
        axes.title.set_fontsize(11)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def margin_sizes(*, seed: int = 2) -> list[dict[str, Any]]:
    """Median margins by number of trainings, in standard deviations of one training."""
    found = []
    for guards in GUARDS:
        for seeds in SEEDS:
            for trainings in (3, 4, 5, 6, 8, 12, 20):
                if trainings >= seeds:
                    design = GateDesign(guards, seeds, trainings, cases=2)
                    margins = draw(design, 500, np.random.default_rng(seed)).margins
                    found.append({"guards": guards, "seeds": seeds, "trainings": trainings,
                                  "median_margin": round(float(np.median(margins)), 3)})  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the cells -> exit status, 1 where a target is missed."""
    made = harness.BenchmarkParser(prog=f"python -m {harness.MODULES[NAME]}", description=__doc__.splitlines()[0])
    made.add_argument("--batches", type=int, default=20, help="batches of 200 candidates of each cell")
    made.add_argument("--seed", type=int, default=0, help="of the random numbers")
    made.add_argument("--image", type=Path, default=None, help="where to draw the curves, such as docs/gate_power.png")
    made.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the record")
    made.add_argument("--quick", action="store_true", help="one batch, 3 seeds, 20 by decide(); writes no record")
    options = made.parse_args(arguments)
    load, began = os.getloadavg()[0], time.perf_counter()
    found = []
    for guards in GUARDS:
        for seeds in SEEDS[:1] if options.quick else SEEDS:
            for variance in (0.0, 0.3):
                design = GateDesign(guards, seeds, TRAININGS, case_variance=variance)
                cell = rates(design, batches=1 if options.quick else options.batches, seed=options.seed)
                if not variance:
                    cell["decide"] = decided(design, problems=20 if options.quick else BATCH, seed=options.seed + 1)
                found.append(cell)
                shown = {name: cell[name] for name in ("passed", "null", "significant", "beyond_margin")}
                print(cell["case"], shown, "refused", cell["refused"][REGRESSIONS.index(2.0)], flush=True)
    sizes = margin_sizes()
    record = {
        "benchmark": NAME, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python -m", harness.MODULES[NAME], *options.argv]), "quick": options.quick,
        "hardware": hardware("cpu", 1, load), "seconds": round(time.perf_counter() - began, 1), "gain": GAIN,
        "regressions": REGRESSIONS, "gains": GAINS, "cases": found, "margins": sizes, "targets": targets(found),
    }  # fmt: skip
    for line in record["targets"]:
        print(f"{'met   ' if line['met'] else 'missed'} {line['case']}: {line['what']} {line['measured']:.4f}, "
              f"{line['relation']} {line['target']:g}")  # fmt: skip
    if options.image:
        plot(found, sizes, options.image)
    if not options.quick:
        options.results.mkdir(parents=True, exist_ok=True)
        append_line(options.results / f"{NAME}.jsonl", record)
    print(json.dumps(record), flush=True)
    return 0 if options.quick or all(line["met"] for line in record["targets"]) else 1


if __name__ == "__main__":
    sys.exit(harness.command(main))
