"""Runs the rounds of a line: teacher, audit, labels, self-play, watch, sources, trainings, comparison, gate.

    runs/<line>/line.json               what the line is; a later call that differs is refused
    runs/<line>/round_01/teacher/       the run that trained the small model
                         data/, before/ sources of the round, and those without what the round brought
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
from brine.data.formats.corpus_source import CorpusSource
from brine.data.tokenizer import Tokenizer
from brine.evals.seed_interval import seed_difference
from brine.evals.suites.suite import Suite
from brine.experiments.batch import BatchRun
from brine.experiments.engines.engine import Engine
from brine.experiments.experiment import Experiment, Listed, Seeds
from brine.experiments.planning.freeze import freeze
from brine.experiments.planning.plan import SCREEN, TRIAL_FILE, ExperimentPlan, load_plan
from brine.experiments.report import write_report
from brine.experiments.rounds.gate import ask_gate
from brine.experiments.rounds.line import FEEDBACK, PSEUDO, SELF_PLAY, WORDS, RoundLine
from brine.experiments.rounds.steps import MANIFEST, TOKENIZER, RoundSteps
from brine.experiments.table import ResultTable, write_table
from brine.inference.load import LoadedModel, load
from brine.pipeline.run import STORE_FOLDER, run_pipeline
from brine.planner.out_of_memory import explain_out_of_memory
from brine.salt.round_data import DataPool, round_sources

LINE_FILE, ROUND_FILE = "line.json", "round.json"
BETTER, WORSE = "better", "worse"
NOTHING_NEW = "nothing is new"
logger = logging.getLogger("brine.rounds")
Sources = tuple[CorpusSource, ...]


class LineRun:
    """One call that runs rounds of a line. after: called with the name of each step that is done."""

    def __init__(
        self, name: str, line: RoundLine, *, runs: Path, open_engine: Callable[[Path], Engine],
        after: Callable[[str], None] = lambda step: None,
    ):  # fmt: skip
        """open_engine: makes the engine of an experiment's folder."""
        self.name, self.line, self.runs = name, line, Path(runs).absolute()
        self.folder, self.open_engine, self.after = self.runs / name, open_engine, after
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
        plain = finite(to_plain(self.line))
        before = read_json(self.folder / LINE_FILE)
        if before is None:
            if any(self.folder.glob("round_*")) or (self.folder / "recipe.json").exists():
                raise ValueError(f"{self.folder} holds something else than a line of rounds: choose another name")
            write_json(self.folder / LINE_FILE, plain)
        elif changes := differences(before, plain):
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
        words = self.steps.adopt_documents(self.line.words, stage="words", held_out=True)
        suite = self.steps.suite(words, self.folder / "suites")
        held_out = self.steps.held_out(words, suite)
        self.after("words")
        tokenizer, known = words / TOKENIZER, _known_pools(last)
        before = self._sources(folder / "before", words, known, held_out)
        teacher = self._teacher(number, before, tokenizer)
        self.after("teacher")
        pools, record = self._new_words(number, teacher, words, held_out, known, last)
        now = self._sources(folder / "data", words, pools, held_out)
        self.after("data")
        plan = self._train(number, before, now, tokenizer, suite)
        self.after("trainings")
        record |= self._compare(plan, last, is_new=_digests(now) != _digests(before))
        self.after("comparison")
        accepted = record["brought"].get("outcome") != WORSE and not record["collapsed"]
        record |= {"pools": pools if accepted else known, "accepted": accepted}
        record["gate"] = ask_gate(self.line, plan, record["setting"], folder=folder)
        self.after("gate")
        write_json(folder / ROUND_FILE, finite(to_plain(record)))
        self.after("round")
        return read_json(folder / ROUND_FILE)

    def _sources(self, folder: Path, words: Path, pools: dict[str, list[str]], held_out: frozenset[str]) -> Sources:
        """The sources of a training: words of people, and of models below the cap."""
        given = [DataPool(WORDS, words / MANIFEST, self.line.consent)]
        if self.line.feedback is not None:
            feedback = self.steps.adopt_documents(self.line.feedback, stage="feedback", held_out=False)
            given.append(DataPool(FEEDBACK, feedback / MANIFEST, "user-train"))
        for name, paths in sorted(pools.items()):
            given += [
                DataPool(name if len(paths) == 1 else f"{name}-{number}", Path(path), "pseudo")
                for number, path in enumerate(paths, start=1)
            ]
        found = round_sources(
            given, folder, pseudo_share=self.line.pseudo_share, tokenizer=Tokenizer.load(words / TOKENIZER),
            held_out=held_out,
        )  # fmt: skip
        return tuple(CorpusSource(each.name, each.path, each.weight, each.consent) for each in found)

    def _teacher(self, number: int, sources: Sources, tokenizer: Path) -> LoadedModel:
        recipe = self.line.teacher_recipe("teacher", sources, tokenizer)
        run = run_pipeline(
            recipe, runs=self.folder / f"round_{number:02d}", store=self.runs / STORE_FOLDER,
            explain_out_of_memory=explain_out_of_memory,
        )  # fmt: skip
        return load(run)

    def _new_words(
        self, number: int, teacher: LoadedModel, words: Path, held_out: frozenset[str],
        known: dict[str, list[str]], last: dict[str, Any] | None,
    ) -> tuple[dict[str, list[str]], dict[str, Any]]:  # fmt: skip
        """The pools with what the teacher brings, and the record of it."""
        pools = {name: list(paths) for name, paths in known.items()}
        record: dict[str, Any] = {"round": number, "audit": None, "asked": None, "watch": {}, "collapsed": []}
        if self.line.unlabelled is not None:
            unlabelled = self.steps.adopt_documents(self.line.unlabelled, stage="unlabelled", held_out=False)
            audit, audit_digest = self.steps.audit(teacher, words)
            self.after("audit")
            earlier = Path(known[PSEUDO][0]) if known.get(PSEUDO) else None
            pool, asked = self.steps.relabel(
                teacher, unlabelled, audit=audit, audit_digest=audit_digest, number=number, earlier=earlier,
                held_out=held_out,
            )  # fmt: skip
            record |= {"audit": audit.min_confidence, "asked": asked}
            if last is not None and last["asked"] == asked and earlier is not None:
                # the same teacher would say the same of the same documents
                pool = earlier
            else:
                record["watch"] = self.steps.watch(pool, words=words, number=number)
            record["collapsed"] = [
                f"{kind}: {breach}"
                for kind, found in record["watch"].items()
                if found["stops"]
                for breach in found["breaches"]
            ]
            pools[PSEUDO] = [str(pool)]
            self.after("labels")
        played = [Path(each) for each in known.get(SELF_PLAY, ())]
        if (pool := self.steps.play(teacher, number=number, earlier=played, held_out=held_out)) is not None:
            pools[SELF_PLAY] = [*known.get(SELF_PLAY, ()), str(pool)]
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
            axes=Listed([{}, {"corpus.sources": now}] if is_new else [{}]),
            seeds=Seeds(screen=line.seeds),
            suite=str(suite.folder.absolute()),
        )
        plan = freeze(name, experiment, runs=self.runs, threads=line.threads)
        if not all((plan.trial_folder(trial) / TRIAL_FILE).is_file() for trial in plan.trials):
            engine = self.open_engine(plan.folder)
            running = BatchRun(plan, engine, engine_name="local")
            running.run()
            plan = running.plan
        return plan

    def _compare(self, plan: ExperimentPlan, last: dict[str, Any] | None, *, is_new: bool) -> dict[str, Any]:
        """What the round brought, and against the last round; by the suite's primary measure."""
        write_report(plan.folder, write_table(plan))
        results, primary = ResultTable(plan), plan.head["primary"]
        settings = list(plan.settings)
        setting = settings[-1]
        brought: dict[str, Any] = {"outcome": "undecided", "note": NOTHING_NEW}
        if is_new:
            brought = results.difference(setting, settings[0], primary, SCREEN) or {"outcome": "not comparable"}
        against: dict[str, Any] = {"outcome": "first round"}
        if last is not None:
            former = ResultTable(load_plan(self.runs / last["experiment"]))
            sides = [
                [result.measurement(trial, primary, SCREEN) for trial in result.trials_of(name, SCREEN)]
                for result, name in ((results, setting), (former, last["setting"]))
            ]
            against = {"outcome": "not comparable"}
            if all(each is not None for side in sides for each in side) and len(sides[0]) == len(sides[1]):
                against = seed_difference(*sides).to_dict()
        # where the round made it worse, its words are left out, and what is compared later is the training without
        kept = settings[0] if brought["outcome"] == WORSE else setting
        weights = [results.records[trial.name].get("weights") for trial in results.trials_of(kept, SCREEN)]
        return {
            "experiment": plan.name, "setting": kept, "primary": primary, "value": results.mean(kept, primary),
            "brought": brought, "last": against, "weights": weights,
        }  # fmt: skip


def _known_pools(last: dict[str, Any] | None) -> dict[str, list[str]]:
    return {} if last is None else {name: list(paths) for name, paths in last["pools"].items()}


def _digests(sources: Sources) -> list[tuple[str, str, float]]:
    """Sources by name, content and weight."""
    return [(each.name, file_digest(each.path), each.weight) for each in sources if each.path is not None]
