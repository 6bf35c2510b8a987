"""Coverage of intervals over seeds and cases, by simulation.

    python -m benchmarks.statistics.intervals                     10 minutes on one core
    python -m benchmarks.statistics.intervals --problems 1000     a first look

Cells are those of `benchmarks.statistics.crossed`: 3, 5 and 8 seeds, 50 and 400 cases, seed shares of the variance of
the estimate from 0 to 0.9, interaction shares 0, 0.5 and 0.95, sizes of cases equal, log-normal and Pareto; differences
of bits per byte, gains whose denominators differ, and seeds that are not paired.

Targets: the 95 % interval covers 0.93 to 0.98 from 5 seeds on and at least 0.91 with 3; a setting against itself has a
verdict in at most 5 %. Where the truth is 5.0 % (the interval is exact at the edges of the grid), a simulation is above
5 % half of the time, so a cell is allowed three standard errors of its own number of problems, which the record has,
and none are allowed to the mean over the cells of one number of seeds.

Beside it, on the same problems: Satterthwaite's quantile on the same variance, and plain two-way clustering. One more
table, without a target: case effects that are exponential, so that the interval over cases is not exact either.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import records as harness
from benchmarks.harness.machine import hardware
from benchmarks.statistics.crossed import FORMS, SIZES, CrossedDesign, simulate
from brine.training.logging.metrics import append_line

NAME = "intervals"
SEEDS, CASES = (3, 5, 8), (50, 400)
SEED_SHARES, INTERACTION_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9), (0.0, 0.5, 0.95)
COVERAGE = {3: (0.91, 1.0), 5: (0.93, 0.98), 8: (0.93, 0.98)}
FALSE_VERDICTS = 0.05


def designs(seeds: tuple[int, ...] = SEEDS, *, skewed: bool = False) -> list[CrossedDesign]:
    """The cells, each for all shares of the seeds."""
    return [
        CrossedDesign(count, cases, interaction_share=share, sizes=sizes, form=form, skewed=skewed)
        for form in (FORMS[:1] if skewed else FORMS)
        for count in seeds
        for cases in CASES
        for sizes in SIZES
        for share in INTERACTION_SHARES
    ]


def targets(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked of the cells of each number of seeds, at the worst cell."""
    lines = []
    for seeds in sorted({cell["seeds"] for cell in found}):
        cells = [cell for cell in found if cell["seeds"] == seeds]
        least, most = COVERAGE[seeds]
        low, high = (pick(cells, key=lambda cell: cell["covered"]) for pick in (min, max))
        name = f"{seeds} seeds, {{}}"
        lines += harness.target(name.format(low["case"]), "least coverage", low["covered"], "at least", least)
        lines += harness.target(name.format(high["case"]), "most coverage", high["covered"], "at most", most)
        error = math.sqrt(FALSE_VERDICTS * (1 - FALSE_VERDICTS) / low["problems"])
        wanted = FALSE_VERDICTS + 3 * error
        what = f"false verdicts, 5 % and three standard errors of {low['problems']:,} problems"
        lines += harness.target(name.format(low["case"]), what, 1 - low["covered"], "at most", wanted)
        mean = 1 - float(np.mean([cell["covered"] for cell in cells]))
        lines += harness.target(name.format("all cells"), "mean false verdicts", mean, "at most", FALSE_VERDICTS)
    return lines


def summary(found: list[dict[str, Any]]) -> str:
    """Least and most coverage of each method, by seeds and form."""
    rows = []
    for form in dict.fromkeys(cell["form"] for cell in found):
        for seeds in sorted({cell["seeds"] for cell in found}):
            cells = [cell for cell in found if (cell["form"], cell["seeds"]) == (form, seeds)]
            row = {"form": form, "seeds": str(seeds), "cells": str(len(cells))}
            for name, head in (("covered", "interval"), ("covered_satterthwaite", "Satterthwaite"),
                               ("covered_two_way", "plain two-way")):  # fmt: skip
                values = [cell[name] for cell in cells]
                row[head] = f"{min(values):.3f} to {max(values):.3f}"
            rows.append(row)
    return harness.table(rows)


def compact(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells for the record: one entry for all shares of the seeds, coverages in their order."""
    methods = ("covered", "covered_satterthwaite", "covered_two_way")
    entries: dict[str, dict[str, Any]] = {}
    for cell in found:
        name = cell["case"].replace(f"seed{cell['seed_share']:g}-", "")
        kept = ("seeds", "cases", "interaction_share", "sizes", "form")
        entry = entries.setdefault(
            name, {"case": name} | {key: cell[key] for key in kept} | {key: [] for key in methods}
        )
        for key in methods:
            entry[key].append(round(cell[key], 4))
    return list(entries.values())


def main(arguments: list[str] | None = None) -> int:
    """Run the cells -> exit status, 1 where a target is missed."""
    made = harness.BenchmarkParser(prog=f"python -m {harness.MODULES[NAME]}", description=__doc__.splitlines()[0])
    made.add_argument("--problems", type=int, default=10_000, help="of each cell")
    made.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS, help="seeds of training")
    made.add_argument("--seed", type=int, default=0, help="of the random numbers")
    made.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the record")
    made.add_argument("--quick", action="store_true", help="200 problems and 3 seeds; writes nothing")
    options = made.parse_args(arguments)
    if options.quick:
        options.problems, options.seeds = 200, [3]
    load, began = os.getloadavg()[0], time.perf_counter()
    found, skewed = [], []
    for kept, cells in ((found, designs(tuple(options.seeds))), (skewed, designs(tuple(options.seeds), skewed=True))):
        for design in cells:
            kept += simulate(design, problems=options.problems, seed=options.seed, seed_shares=SEED_SHARES)
        print(("with skewed case effects\n" if kept is skewed else "") + summary(kept), flush=True)
    record = {
        "benchmark": NAME, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python -m", harness.MODULES[NAME], *options.argv]), "quick": options.quick,
        "hardware": hardware("cpu", 1, load), "seconds": round(time.perf_counter() - began, 1),
        "problems": options.problems, "seed_shares": SEED_SHARES, "cases": compact(found), "skewed": compact(skewed),
        "targets": targets(found),
    }  # fmt: skip
    for line in record["targets"]:
        print(f"{'met   ' if line['met'] else 'missed'} {line['case']}: {line['what']} {line['measured']:.4f}, "
              f"{line['relation']} {line['target']:.4f}")  # fmt: skip
    if not options.quick:
        options.results.mkdir(parents=True, exist_ok=True)
        append_line(options.results / f"{NAME}.jsonl", record)
    print(json.dumps(record), flush=True)
    return 0 if options.quick or all(line["met"] for line in record["targets"]) else 1


if __name__ == "__main__":
    sys.exit(harness.command(main))
