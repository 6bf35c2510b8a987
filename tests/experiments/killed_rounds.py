"""`brine experiments round` that kills its own process group, at boundaries between steps and at moments within them.

    python -m tests.experiments.killed_rounds SCHEDULE round LINE ...

SCHEDULE is a JSON file {"1 teacher": 0.0, "1 teacher+": 0.7}: so many seconds after this boundary of this round the
group dies by SIGKILL, once for each entry, that with "+" at a later call: the file SCHEDULE.spent says which have been.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.paths import ROOT

TIMEOUT_S = 600


def spent_of(schedule: Path) -> Path:
    """The file of the entries that have killed."""
    return schedule.with_name(f"{schedule.name}.spent")


def die(schedule: Path, key: str) -> None:
    """Take note of the entry, then kill the process group."""
    with open(spent_of(schedule), "a", encoding="utf-8") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.killpg(0, signal.SIGKILL)


def main(schedule: Path, argv: list[str]) -> int:
    """Run the command with a kill armed at each boundary that the schedule names."""
    from brine.experiments import cli
    from brine.experiments.rounds import driver

    kills = json.loads(schedule.read_text())
    spent = spent_of(schedule).read_text().splitlines() if spent_of(schedule).exists() else []
    original = driver.LineRun.__init__

    def armed(self, *args, **options):
        def after(step: str) -> None:
            key = f"{len(list(self.folder.glob('round_*')))} {step}"
            with open(schedule.with_name(f"{schedule.name}.times"), "a", encoding="utf-8") as file:
                file.write(json.dumps([key, time.time()]) + "\n")
            for name in (key, f"{key}+"):
                if name in kills and name not in spent:
                    if not kills[name]:
                        die(schedule, name)
                    spent.append(name)
                    timer = threading.Timer(kills[name], die, (schedule, name))
                    timer.daemon = True
                    timer.start()

        original(self, *args, **options, after=after)

    driver.LineRun.__init__ = armed  # type: ignore[method-assign]
    return cli.main(argv)


def run_killed(schedule: Path, kills: dict[str, float], arguments: list[str], *, last: str = "") -> int:
    """Call the command, each time in a process group of its own, until it ends by itself, or is killed by the entry
    `last`; returns how often it was killed. Raises AssertionError where it fails, or is never done."""
    schedule.write_text(json.dumps(kills))
    deaths = 0
    while True:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(schedule.with_name(f"{schedule.name}.log"), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.experiments.killed_rounds", str(schedule), *arguments], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=TIMEOUT_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if code != -signal.SIGKILL:
            assert code == 0, schedule.with_name(f"{schedule.name}.log").read_text()[-3000:]
            return deaths
        deaths += 1
        if last and last in spent_of(schedule).read_text().splitlines():
            return deaths
        assert deaths <= len(kills), "killed more often than was asked for"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
