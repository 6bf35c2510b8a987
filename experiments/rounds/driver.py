"""Runs the rounds of a line: inputs, teacher, audit, labels, self-play, watch, trainings, comparison, gate.

    runs/<line>/line.json               what the line is; a later call that differs is refused
    runs/<line>/round_01/inputs.json    what the round is made from, and which model teaches it
                         teacher.json
                         teacher/       the run that trained the small model
                         data/, before/ sources of the round, and those without what the round brought
                         gate/          measurements of what the gate was asked about
                         round.json     what came out; written last
    runs/<line>-r01/                    the experiment of the round, with its table and page

Every step is known by what it is made from, so that a line that was killed anywhere gives the same digests, and a round
in which nothing is new links to what the last one made. What a round brought is left out of later ones where it made
the primary measure worse, or where the watch found its words collapsed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore, file_lock
from brine.common.files import differences, file_digest, finite, read_json, to_plain, write_json
from brine.common.formatting import counted
from brine.data.formats.corpus_source import CorpusSource
from brine.data.tokenizer import Tokenizer
from brine.evals.seed_interval import seed_difference
from brine.evals.suites.suite import Suite
from brine.experiments.batch import BatchRun
from brine.experiments.engines.engine import Engine
from brine.experiments.experiment import Experiment, Listed, Seeds
from brine.experiments.planning.freeze import again_with_seed, freeze
from brine.experiments.planning.plan import SCREEN, TRIAL_FILE, ExperimentPlan, load_plan
from brine.experiments.planning.settings import parse_recipe
from brine.experiments.report import write_report
from brine.experiments.rounds.gate import ask_gate, why_not_askable
from brine.experiments.rounds.inputs import RoundInputs, pin_inputs
from brine.experiments.rounds.line import FEEDBACK, PSEUDO, SELF_PLAY, WORDS, RoundLine
from brine.experiments.rounds.steps import MANIFEST, TOKENIZER, RoundSteps
from brine.experiments.rounds.teacher import find_teacher
from brine.experiments.rounds.trained_data import trained_data
from brine.experiments.table import ResultTable, write_table
from brine.experiments.trials.ending import DIVERGED, FINISHED
from brine.inference.load import LoadedModel
from brine.pipeline.run import STORE_FOLDER, run_pipeline
from brine.planner.out_of_memory import explain_out_of_memory
from brine.salt.round_data import DataPool, round_sources

LINE_FILE, ROUND_FILE = "line.json", "round.json"
BETTER, WORSE, NOT_COMPARABLE = "better", "worse", "not comparable"
NOTHING_NEW = "nothing is new"
CAP_TOLERANCE = 0.01
"""By which the share of pseudo targets may be above the cap by counting otherwise than training does."""
logger = logging.getLogger("brine.rounds")
Sources = tuple[CorpusSource, ...]


class LineRun:
    """One call that runs rounds of a line. after: called with the name of each step that is done."""

    def __init__(
        self, name: str, line: RoundLine, *, runs: Path, open_engine: Callable[[Path], Engine],
        engine_name: str = "local", after: Callable[[str], None] = lambda step: None,
    ):  # fmt: skip
        """open_engine: makes the engine of an experiment's folder, which distributes the trainings that are compared;
        the teacher and what it does run in this process."""
        self.name, self.line, self.runs = name, line, Path(runs).absolute()
        self.folder, self.open_engine, self.engine_name = self.runs / name, open_engine, engine_name
        self.after = after
        self.steps = RoundSteps(line, ContentStore(self.runs / STORE_FOLDER))

    def run(self, rounds: int) -> list[dict[str, Any]]:
        """Run rounds until there are so many, or the line stops; returns what came out of each.

        Raises ValueError for a line that differs from the one in the folder, and for trainings that failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / "lock", what=f"the line {self.name}", timeout_s=0.0):
            self._freeze()
            found: list[dict[str, Any]] = []
            for number in range(1, rounds + 1):
                if why := self.stop_reason(found):
                    logger.info("%s: %s", self.name, why)
                    break
                found.append(self.round(number, found))
            return found

    def _freeze(self) -> None:
        before = read_json(self.folder / LINE_FILE)
        if before is None:
            if any(self.folder.glob("round_*")) or (self.folder / "recipe.json").exists():
                raise ValueError(f"{self.folder} holds something else than a line of rounds: choose another name")
            write_json(self.folder / LINE_FILE, finite(to_plain(self.line)))
        elif changes := differences(before, self.line):
            raise ValueError(
                f"{self.folder / LINE_FILE} differs ({'; '.join(changes[:4])}): a line stays as it was begun, so give "
                "the changed one another name"
            )

    def stop_reason(self, found: list[dict[str, Any]]) -> str:
        """Why no further round is run, or ""."""
        if found and found[-1]["collapsed"]:
            return f"the words of round {found[-1]['round']} collapsed ({found[-1]['collapsed'][0]}): the line stops"
        last = found[-self.line.patience :]
        # the first round has nothing to gain on
        if len(found) > self.line.patience and all(each["last"].get("outcome") != BETTER for each in last):
            return f"{self.line.patience} rounds without gain: the line stops"
        return ""

    def round(self, number: int, earlier: list[dict[str, Any]]) -> dict[str, Any]:
        """One round; found again where it is done."""
        folder = self.folder / f"round_{number:02d}"
        if isinstance(done := read_json(folder / ROUND_FILE), dict):
            return done
        folder.mkdir(exist_ok=True)
        last = earlier[-1] if earlier else None
        rejected = [] if last is None else last.get("rejected", [])
        known_feedback = None if last is None else last.get("feedback")
        inputs = pin_inputs(self.steps, self.folder, number, rejected=rejected, kept=known_feedback)
        self.after("inputs")
        tokenizer, known = inputs.words / TOKENIZER, _known_pools(last)
        kept = inputs.kept
        before = self._sources(folder / "before", inputs, known, feedback=kept)
        refused = why_not_askable(self.line)
        if refused:
            logger.warning("round %d: the gate is not going to be asked: %s", number, refused)
        teacher, described = None, None
        if inputs.unlabelled is not None or self.line.self_play is not None:
            teacher, described = find_teacher(self.line, folder, lambda: self._train_small(folder, before, tokenizer))
        self.after("teacher")
        pools, record = self._new_words(number, teacher, inputs, known, last)
        record |= {"teacher": described, "unreadable": inputs.unreadable}
        now = self._sources(folder / "data", inputs, pools, feedback=inputs.feedback)
        self.after("data")
        is_new = _digests(now) != _digests(before)
        plan = self._train(number, before, now, tokenizer, inputs.suite)
        self.after("trainings")
        record |= self._compare(plan, last, is_new=is_new)
        record |= {"data": self._trained_data(plan)}
        self.after("comparison")
        if self.line.registry is not None and not refused:
            plan = self._confirm(plan, record["setting"])
            self.after("confirmation")
        stays = record["brought"].get("outcome") not in (WORSE, NOT_COMPARABLE)
        new_feedback = self.steps.contents(inputs.feedback) - self.steps.contents(kept) if not stays else set()
        feedback = inputs.feedback if stays else kept
        record |= {
            "pools": pools if stays else known, "accepted": stays and not record["collapsed"],
            "feedback": None if feedback is None else str(feedback.relative_to(self.steps.store.root)),
            "rejected": sorted({*rejected, *new_feedback}),
        }  # fmt: skip
        record["gate"] = ask_gate(
            self.line, plan, record["setting"], suite=inputs.suite.folder, folder=folder, refused=refused
        )
        self.after("gate")
        write_json(folder / ROUND_FILE, finite(to_plain(record)))
        self.after("round")
        return read_json(folder / ROUND_FILE)

    def _sources(
        self, folder: Path, inputs: RoundInputs, pools: dict[str, list[str]], *, feedback: Path | None
    ) -> Sources:
        """The sources of a training: words of people, and of models below the cap."""
        given = [DataPool(WORDS, inputs.words / MANIFEST, self.line.consent, sampling=self.line.sampling(WORDS))]
        if feedback is not None:
            sampling = self.line.sampling(FEEDBACK)
            given.append(DataPool(FEEDBACK, feedback / MANIFEST, "user-train", sampling=sampling))
        for name, paths in sorted(pools.items()):
            for number, path in enumerate(paths, start=1):
                called = name if len(paths) == 1 else f"{name}-{number}"
                given.append(DataPool(called, Path(path), "pseudo", sampling=self.line.sampling(called)))
        found = round_sources(
            given, folder, pseudo_share=self.line.pseudo_share, tokenizer=Tokenizer.load(inputs.words / TOKENIZER),
            held_out=inputs.held_out,
        )  # fmt: skip
        return tuple(CorpusSource(each.name, each.path, each.weight, each.consent) for each in found)

    def _train_small(self, folder: Path, sources: Sources, tokenizer: Path) -> Path:
        """The run of the round's small model."""
        return run_pipeline(
            self.line.teacher_recipe("teacher", sources, tokenizer), runs=folder, store=self.runs / STORE_FOLDER,
            explain_out_of_memory=explain_out_of_memory,
        )  # fmt: skip

    def _new_words(
        self, number: int, teacher: LoadedModel | None, inputs: RoundInputs, known: dict[str, list[str]],
        last: dict[str, Any] | None,
    ) -> tuple[dict[str, list[str]], dict[str, Any]]:  # fmt: skip
        """The pools with what the teacher brings, and the record of it."""
        pools = {name: list(paths) for name, paths in known.items()}
        record: dict[str, Any] = {"round": number, "audit": None, "asked": None, "watch": {}, "collapsed": []}
        if teacher is None:
            return pools, record
        if inputs.unlabelled is not None:
            audit, audit_digest = self.steps.audit(teacher, inputs.words)
            self.after("audit")
            earlier = Path(known[PSEUDO][0]) if known.get(PSEUDO) else None
            pool, asked = self.steps.relabel(
                teacher, inputs.unlabelled, audit=audit, audit_digest=audit_digest, number=number, earlier=earlier,
                held_out=inputs.held_out,
            )  # fmt: skip
            record |= {"audit": audit.min_confidence, "asked": asked}
            if last is not None and last["asked"] == asked and earlier is not None:
                # the same teacher would say the same of the same documents
                pool = earlier
            else:
                record["watch"] = self.steps.watch(pool, words=inputs.words, number=number)
            record["collapsed"] = [
                f"{kind}: {breach}"
                for kind, found in record["watch"].items()
                if found["stops"]
                for breach in found["breaches"]
            ]
            if not record["collapsed"]:
                # else nothing is trained on them, and the round is the line's last
                pools[PSEUDO] = [str(pool)]
            self.after("labels")
        played = [Path(each) for each in known.get(SELF_PLAY, ())]
        pool_of_play = self.steps.play(
            teacher, number=number, earlier=played, held_out=inputs.held_out, source_digest=inputs.play_source
        )
        if pool_of_play is not None:
            pools[SELF_PLAY] = [*known.get(SELF_PLAY, ()), str(pool_of_play)]
            self.after("self-play")
        return pools, record

    def _train(self, number: int, before: Sources, now: Sources, tokenizer: Path, suite: Suite) -> ExperimentPlan:
        """The trainings of a round: with what it brought, and without."""
        line, name = self.line, f"{self.name}-r{number:02d}"
        is_new = _digests(now) != _digests(before)
        experiment = Experiment(
            question=f"Do the words of round {number} help?",
            expects="the primary measure does not get worse; what the round brought stays only then",
            base=line.recipe(name, before, tokenizer),
            axes=Listed([{}, self._changes(before, now)] if is_new else [{}]),
            seeds=Seeds(screen=line.seeds),
            suite=str(suite.folder.absolute()),
        )
        return self._run_trials(freeze(name, experiment, runs=self.runs, threads=line.threads))

    def _changes(self, before: Sources, now: Sources) -> dict[str, Any]:
        """What differs in the recipe of the arm with what a round brought."""
        mixture = self.line.mixture(now)
        same = mixture == self.line.mixture(before)
        return {"corpus.sources": now} | ({} if same else {"packing.mixture": mixture})

    def _run_trials(self, plan: ExperimentPlan) -> ExperimentPlan:
        """Run what has not ended. Raises ValueError while a trial is failed or cancelled: a round that compared what is
        left would leave out for good what was never tried."""
        if _unfinished(plan):
            running = BatchRun(plan, self.open_engine(plan.folder), engine_name=self.engine_name)
            running.run()
            plan = running.plan
        if left := _unfinished(plan):
            raise ValueError(
                f"{plan.name}: {', '.join(left[:5])} did not end with a result, and the round waits for it: "
                f"`brine experiments retry {plan.name}` puts it back into the queue, then give this command again"
            )
        return plan

    def _confirm(self, plan: ExperimentPlan, setting: str) -> ExperimentPlan:
        """The plan with the chosen arm trained under the confirmation seeds."""
        first = next(trial for trial in plan.trials if trial.setting == setting)
        plan = self._run_trials(plan.append([again_with_seed(first, seed) for seed in self.line.confirm]))
        write_report(plan.folder, write_table(plan))
        return plan

    def _trained_data(self, plan: ExperimentPlan) -> dict[str, Any]:
        """What each arm was trained on, by setting; a share of pseudo targets above the cap is told."""
        found = {}
        for setting in plan.settings:
            trial = next(each for each in plan.trials if each.setting == setting)
            found[setting] = trained_data(plan.trial_folder(trial), parse_recipe(trial.recipe))
            if (share := found[setting]["pseudo_share"]) > self.line.pseudo_share + CAP_TOLERANCE:
                logger.warning(
                    "%s: %.3f of the targets of setting %s are words of models, more than pseudo_share = %g: the cap "
                    "is counted before filters and weights of kinds", plan.name, share, setting, self.line.pseudo_share,
                )  # fmt: skip
        return found

    def _compare(self, plan: ExperimentPlan, last: dict[str, Any] | None, *, is_new: bool) -> dict[str, Any]:
        """What the round brought, and against the last round; by the suite's primary measure."""
        write_report(plan.folder, write_table(plan))
        results, primary = ResultTable(plan), plan.head["primary"]
        settings = list(plan.settings)
        setting = settings[-1]
        brought: dict[str, Any] = {"outcome": "undecided", "note": NOTHING_NEW}
        if is_new:
            brought = results.difference(setting, settings[0], primary, SCREEN) or {"outcome": NOT_COMPARABLE}
            diverged = [results.outcomes(name, SCREEN).get(DIVERGED, 0) for name in (settings[0], setting)]
            if diverged[0] != diverged[1]:
                # a diverged seed ranks last
                seeds = counted(len(self.line.seeds), "seed")
                note = f"{diverged[1]} of {seeds} diverged, {diverged[0]} without the new data"
                brought = {"outcome": WORSE if diverged[1] > diverged[0] else BETTER, "note": note}
        # where the round made it worse, what it brought is left out, and the training without stands for the round
        kept = settings[0] if brought["outcome"] in (WORSE, NOT_COMPARABLE) else setting
        against: dict[str, Any] = {"outcome": "first round"}
        if last is not None:
            former = ResultTable(load_plan(self.runs / last["experiment"]))
            sides = [
                [result.measurement(trial, primary, SCREEN) for trial in result.trials_of(name, SCREEN)]
                for result, name in ((results, kept), (former, last["setting"]))
            ]
            against = {"outcome": NOT_COMPARABLE}
            if all(each is not None for side in sides for each in side) and len(sides[0]) == len(sides[1]):
                against = seed_difference(*sides).to_dict()
        weights = [results.records[trial.name].get("weights") for trial in results.trials_of(kept, SCREEN)]
        return {
            "experiment": plan.name, "setting": kept, "primary": primary, "value": results.mean(kept, primary),
            "brought": brought, "last": against, "weights": weights,
        }  # fmt: skip


def _known_pools(last: dict[str, Any] | None) -> dict[str, list[str]]:
    return {} if last is None else {name: list(paths) for name, paths in last["pools"].items()}


def _unfinished(plan: ExperimentPlan) -> list[str]:
    """Trials of a plan that are neither done nor diverged, as "02-seed1 (failed)"."""
    records = {trial.name: read_json(plan.trial_folder(trial) / TRIAL_FILE) or {} for trial in plan.trials}
    outcomes = {name: record.get("outcome", "not finished") for name, record in records.items()}
    return [f"{name} ({outcome})" for name, outcome in outcomes.items() if outcome not in (FINISHED, DIVERGED)]


def _digests(sources: Sources) -> list[tuple[str, str, float]]:
    """Sources by name, content and weight."""
    return [(each.name, file_digest(each.path), each.weight) for each in sources if each.path is not None]
