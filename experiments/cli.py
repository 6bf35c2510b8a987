"""Command lines of `brine experiments plan|run|status|report|compare|explain|retry|cancel NAME`.

NAME is an experiment's name among the runs, an entry point `brine.experiments`, or the path of a Python file. `plan`
and the first `run` read the experiment's function; afterwards the frozen plan alone counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from brine.common.command_line import command, parse
from brine.common.files import differences
from brine.common.formatting import counted
from brine.common.tables import as_text, table
from brine.experiments import batch
from brine.experiments.engines.options import EngineOptions
from brine.experiments.planning.freeze import find_experiment, freeze
from brine.experiments.planning.plan import PLAN_FILE, ExperimentPlan, load_plan
from brine.experiments.planning.settings import parse_recipe, recipe_digest
from brine.experiments.progress import LiveTable, format_status
from brine.experiments.report import write_report
from brine.experiments.rounds.command import RoundRequest
from brine.experiments.table import build_table, format_table, write_table
from brine.training.logging.metrics import make_sinks, require_sink

Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
Names = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TRIAL")]


@dataclass(frozen=True, kw_only=True)
class ExperimentRequest:
    """An experiment among the runs."""

    experiment: Name
    """Name of an experiment, or the path of its Python file."""
    runs: Path = Path("runs")
    """Folder that holds the runs and experiments."""

    def folder(self) -> Path:
        """The experiment's folder, whether or not it is there."""
        name = Path(self.experiment).stem if self.experiment.endswith(".py") else self.experiment
        return self.runs.absolute() / name

    def plan(self) -> ExperimentPlan:
        """The frozen plan. Raises ValueError where there is none."""
        return load_plan(self.folder())


@dataclass(frozen=True, kw_only=True)
class ExperimentPlanRequest(ExperimentRequest):
    """Freeze the plan of an experiment: every trial as a whole recipe, and a snapshot of the code that trials will
    import. Nothing is trained. A plan that is there is kept, and one that differs is refused."""

    name: str | None = None
    """Name of the plan; that of the experiment's function or file if not given."""
    threads: int | None = None
    """CPU threads of every trial, 1 if not given; part of the plan, since they change the last bits of the weights."""
    gpus: int | None = None
    """GPUs of every trial; if not given, as the recipe's device needs."""

    def run(self) -> None:
        """Print the plan. Raises ValueError for a wrong request."""
        print(describe(self.freeze()))

    def freeze(self) -> ExperimentPlan:
        """Freeze the plan, or find it."""
        found, experiment = find_experiment(self.experiment)
        name = self.name or (Path(self.experiment).stem if self.experiment.endswith(".py") else found)
        threads = 1 if self.threads is None else self.threads
        return freeze(name, experiment, runs=self.runs, threads=threads, gpus=self.gpus)


@dataclass(frozen=True, kw_only=True)
class ExperimentRunRequest(EngineOptions, ExperimentPlanRequest):
    """Run the trials of an experiment, planning it first where it has no plan; the same command continues after Ctrl-C
    or a kill."""

    tracker: str | None = None
    """Sink that also takes the metrics, such as "tensorboard"."""

    def run(self) -> None:
        """Run, then print the table. Raises ValueError for a wrong request or trials that failed."""
        open_engine = self.engine_opener()
        if self.tracker is not None:
            require_sink(self.tracker)
        plan = self.find_plan()
        running = batch.BatchRun(
            plan, open_engine(plan.folder), engine_name=self.engine, tracker=self.tracker, display=LiveTable()
        )
        try:
            running.run()
        except batch.TrialsFailedError:
            show_table(running.plan, tracker=self.tracker)
            raise
        show_table(running.plan, tracker=self.tracker)

    def find_plan(self) -> ExperimentPlan:
        """The plan of a name as it was frozen; of a file, which must still say the same, or the one that is made of it.

        Raises ValueError for a file that says something else by now, and for options that the plan does not have."""
        if self.name is not None or self.experiment.endswith(".py") or not (self.folder() / PLAN_FILE).is_file():
            return self.freeze()
        plan = self.plan()
        for name, asked in (("threads", self.threads), ("gpus", self.gpus)):
            if asked is not None and asked != plan.head[name]:
                raise ValueError(
                    f"--{name} {asked}: the plan of {plan.name} has {plan.head[name]}; plan it under another name"
                )
        return plan


@dataclass(frozen=True, kw_only=True)
class ExperimentStatusRequest(ExperimentRequest):
    """Show where every trial stands."""

    def run(self) -> None:
        """Print the table of trials."""
        plan = self.plan()
        running = [trial.name for trial in plan.trials if batch.is_at_work(plan, trial)]
        print(format_status(plan, running=running))


@dataclass(frozen=True, kw_only=True)
class ExperimentCompareRequest(ExperimentRequest):
    """Print the table of what is finished, and write it to table.json."""

    measures: tuple[str, ...] = ()
    """Measures whose means are shown; the primary and the guards if not given."""

    def run(self) -> None:
        """Print the table."""
        print(format_table(write_table(self.plan()), measures=self.measures))


@dataclass(frozen=True, kw_only=True)
class ExperimentExplainRequest(ExperimentRequest):
    """Say how two trials or settings differ, field by field; without names, how each setting differs from the first."""

    names: Names = ()
    """Two trials or settings."""

    def run(self) -> None:
        """Print the differences. Raises ValueError for names that are not two."""
        plan = self.plan()
        if len(self.names) not in (0, 2):
            raise ValueError(f"give two trials or settings, not {len(self.names)}, or none")
        if self.names:
            print("\n".join(explain(plan, *self.names)) or "they train the same")
            return
        for name in list(plan.settings)[1:]:
            lines = explain(plan, plan.reference, name)
            print(f"{plan.reference} -> {name}\n  " + ("\n  ".join(lines) or "they train the same"))


@dataclass(frozen=True, kw_only=True)
class ExperimentReportRequest(ExperimentRequest):
    """Write the page of an experiment from what is finished."""

    def run(self) -> None:
        """Print the page's path."""
        plan = self.plan()
        print(json.dumps({"report": str(write_report(plan.folder, write_table(plan)))}))


@dataclass(frozen=True, kw_only=True)
class ExperimentRetryRequest(ExperimentRequest):
    """Put failed and cancelled trials back into the queue; `run` then continues, also with what follows from them."""

    names: Names = ()
    """Trials; all failed and cancelled ones if none is given."""

    def run(self) -> None:
        """Print the trials that will be tried again."""
        found = batch.retry(self.plan(), list(self.names))
        print(f"tried again by the next run: {', '.join(found) or 'none'}")


@dataclass(frozen=True, kw_only=True)
class ExperimentCancelRequest(ExperimentRequest):
    """Cancel trials: those at work save and end, and none is begun until `retry`. What follows from results is chosen
    without those that are named; without names nothing follows either."""

    names: Names = ()
    """Trials; all that have not ended, and what would follow, if none is given."""

    def run(self) -> None:
        """Print the trials that were cancelled."""
        found = batch.cancel(self.plan(), list(self.names))
        print(f"cancelled: {', '.join(found) or 'none'}")


VERBS: dict[str, type] = {
    "plan": ExperimentPlanRequest, "run": ExperimentRunRequest, "status": ExperimentStatusRequest,
    "report": ExperimentReportRequest, "compare": ExperimentCompareRequest, "explain": ExperimentExplainRequest,
    "retry": ExperimentRetryRequest, "cancel": ExperimentCancelRequest, "round": RoundRequest,
}  # fmt: skip


def describe(plan: ExperimentPlan) -> str:
    """A plan in a few lines: question, settings with their budgets, trials, code."""
    head = plan.head
    rows = [
        [name, each["label"], each["budget"]["large_steps"], f"{each['budget']['large_flops']:.3g}",
         f"{each['budget'].get('off_budget', 0):+.2%}" if "off_budget" in each["budget"] else ""]
        for name, each in plan.settings.items()
    ]  # fmt: skip
    resources = max(plan.trials, key=lambda trial: trial.resources["memory_gib"]).resources
    return "\n".join([
        f"question: {head['question']}", f"expected: {head['expects']}", "",
        as_text(table(("setting", "", "steps", "FLOPs", "off budget"), rows)),
        f"{counted(len(plan.trials), 'trial')} of {counted(int(resources['cores']), 'thread')}, "
        f"{counted(int(resources['gpus']), 'GPU')} and about {resources['memory_gib']:.1f} GiB each; "
        f"suite {head['suite']['name']}, primary {head['primary']}",
        f"code {head['code']['commit']} ({head['code']['digest']}); plan in {plan.folder}",
    ])  # fmt: skip


def explain(plan: ExperimentPlan, first: str, second: str) -> list[str]:
    """How two trials or settings of a plan differ, a line each; names and seeds only where trials are named."""
    recipes = []
    for name in (first, second):
        found = [trial for trial in plan.trials if trial.setting == name] or [plan.trial(name)]
        recipes.append(found[0].recipe)
    lines = differences(recipes[0], parse_recipe(recipes[1]))
    same = recipe_digest(parse_recipe(recipes[0])) == recipe_digest(parse_recipe(recipes[1]))
    return [] if same else [line for line in lines if not line.startswith("name: ")]


def show_table(plan: ExperimentPlan, *, tracker: str | None) -> None:
    """Print the table and write the page, and give the values to a sink, a step for each seed."""
    found = build_table(plan)
    print(format_table(found))
    print(f"page: {write_report(plan.folder, found)}")
    sinks = make_sinks(plan.folder, tracker)
    for sink in sinks:
        sink.purge(0)
        for number, seed in enumerate((*plan.head["seeds"]["screen"], *plan.head["seeds"]["confirm"])):
            values = {
                name: trial["values"] for name, entry in found["settings"].items() for phase in ("screen", "confirm")
                if (trial := entry.get(phase, {}).get("seeds", {}).get(str(seed))) is not None
            }  # fmt: skip
            sink.log({"step": number, **values})
        sink.finish()


def _read(argv: Sequence[str]) -> Any:
    """The request behind the arguments. Raises ValueError for an unknown verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: brine experiments VERB NAME ... (each has --help)\n")
        for verb, request in VERBS.items():
            said = " ".join((request.__doc__ or "").split()).partition(". ")[0].partition(":")[0]
            print(f"  {verb:<8} {said.rstrip('.')}")
        raise SystemExit(0)
    if argv[0] not in VERBS:
        raise ValueError(f"brine experiments has no verb {argv[0]!r}: it has {', '.join(VERBS)}")
    return parse(f"experiments {argv[0]}", VERBS[argv[0]], argv[1:])


_main: Callable[[Sequence[str] | None], int] = command(
    _read, interrupted="interrupted; the same command continues", out_of_memory="lower --workers"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 a wrong request or failed trials, 130 interrupted."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except SystemExit as stopped:
        return int(stopped.code or 0)
