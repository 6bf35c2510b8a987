"""The fuzz test at length: thousands of broken media files through decoding servers, and what came of each.

    python -m benchmarks.data.fuzz --cases 5000 --seed 0

The cases are those of `tests/data/fuzz_media.py` (whole files of every format, mutated; any case can be had again
from seed and number), with small real files among the seeds where `--real` has some. What must hold is said in
`tests/data/fuzz_run.py`: nothing crashes, hangs or grows, refusals name file and reason, and what is accepted is
finite, of the length that the length functions say, and never a cut file as whole.

One line is appended to `benchmarks/results/data_fuzz.jsonl`: cases by format and outcome, the commonest reasons, what
was killed or died, problems in full, the slowest case, memory of the servers, hardware, versions, commit. The exit
status is 1 when there is a problem. Times are no benchmark: they bound what a bad file can cost. 5,000 cases take
about 3 minutes on two idle cores. `--first` starts elsewhere in the series, `--quick` tries 100 and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.harness import records as harness
from brine.training.logging.metrics import append_line

NAME = "data_fuzz"
LIBRARIES = ("av", "pillow", "soundfile", "torchaudio", "numpy")
HELPERS = harness.ROOT / "tests" / "data"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    made = harness.BenchmarkParser(
        prog=f"python -m {harness.MODULES[NAME]}",
        description="Mutated media files through decoding servers: crashes, hangs, growth, wrong successes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--cases", type=int, default=5000, help="how many")
    made.add_argument("--seed", type=int, default=0, help="which series")
    made.add_argument("--first", type=int, default=0, help="number of the first case")
    made.add_argument("--servers", type=int, default=2, help="decoding servers")
    made.add_argument("--real", type=Path, default=harness.ROOT.parent / "shared" / "real", help="folder of real media")
    made.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the record")
    made.add_argument("--quick", action="store_true", help="100 cases; writes nothing")
    options = made.parse_args(arguments)
    if options.quick:
        options.cases = 100
    return options


def versions() -> dict[str, str | None]:
    """Versions of the libraries that decode."""
    import soundfile

    found: dict[str, str | None] = {"libsndfile": soundfile.__libsndfile_version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def record_of(report, options: argparse.Namespace, seeds: dict, seconds: float, load: float) -> dict[str, Any]:
    """The record."""
    outcomes: dict[str, dict[str, int]] = {}
    for (form, outcome), count in sorted(report.outcomes.items()):
        outcomes.setdefault(form, {})[outcome] = count
    hardware = machine.hardware("cpu", 1, load)
    hardware["versions"] |= versions()
    return {
        "benchmark": NAME,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python -m", harness.MODULES[NAME], *options.argv]),
        "quick": options.quick,
        "hardware": hardware,
        "seed": options.seed,
        "first": options.first,
        "cases": options.cases,
        "seeds": len(seeds),
        "real_seeds": sum(name.startswith("real-") for name in seeds),
        "servers": options.servers,
        "outcomes": outcomes,
        "reasons": dict(report.reasons.most_common(40)),
        "died": report.deaths,
        "problems": report.problems,
        "slowest_s": round(report.slowest_s, 3),
        "slowest_case": report.slowest_case,
        "peak_mib": round(report.peak_mib, 1),
        "growth_mib": round(report.growth_mib, 1),
        "seconds": round(seconds, 1),
    }


def table(outcomes: dict[str, dict[str, int]]) -> str:
    """Formats and what became of them."""
    names = ("accepted", "refused", "killed", "died")
    lines = [f"{'format':<10}" + "".join(f"{name:>10}" for name in names)]
    lines += [
        f"{form:<10}" + "".join(f"{counts.get(name, 0):>10}" for name in names) for form, counts in outcomes.items()
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases -> exit status, 1 when something happened that must not."""
    options = parse(arguments)
    # the mutator and its checks belong to the tests, and decoding servers find them there too
    from tests.data import fuzz_media, fuzz_run

    load, began = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="brine-fuzz-") as name:
        folder = Path(name)
        seeds = fuzz_media.seeds(folder) | fuzz_media.real_seeds(options.real)
        cases = range(options.first, options.first + options.cases)

        def progress(done: int, report) -> None:
            print(
                f"{done:>6} media cases  {len(report.problems)} problems  {time.perf_counter() - began:.0f} s",
                flush=True,
            )

        work = folder / "work"
        work.mkdir()
        report = fuzz_run.run(seeds, options.seed, cases, work, num_servers=options.servers, progress=progress)
    record = record_of(report, options, seeds, time.perf_counter() - began, load)
    print(table(record["outcomes"]))
    for problem in report.problems:
        print(f"problem: {problem}")
    if not options.quick:
        options.results.mkdir(parents=True, exist_ok=True)
        append_line(options.results / f"{NAME}.jsonl", record)
    print(json.dumps(record), flush=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
