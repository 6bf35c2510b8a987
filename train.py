"""The line: corpus -> small -> (select) -> large with SALT, large without -> evaluate -> report, in one command.

    uv run train.py                                   the recipe `demo`
    uv run train.py demo --large.learning-rate 1e-3   any field of a recipe can be overridden
    uv run train.py real --corpus.manifest PATH       train on your own folder, manifest, tar, table or built corpus
    torchrun --nproc-per-node 2 train.py demo         the same on two ranks

Each stage is a method of `_Run` below and writes `runs/<name>/<stage>/`; `training.stages.Line` decides what is done
already. A killed line is started again with the same command and goes on. Nothing is decided here that a recipe does
not say: this file hands the recipe's parts to the rooms, in order.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from data.closed_pipe import until_closed
from data.filters.rounds import Rounds
from data.filters.rules import apply
from data.formats import check_there, open_source
from data.left_out import find_left_out, require_targets
from data.length_schedule import LengthSchedule
from data.loader import Loader
from data.media_record import changed_media
from data.mixture import Mixture
from data.plan import Plan
from data.plan_pieces import plan_in_pieces, same_beginning
from data.readers import texts_of
from data.store import EncodedCorpus, build_corpus, is_corpus, open_corpus
from data.tally import aside_text
from data.tokenizer import train_tokenizer
from data.turns import roles_in
from data.workbench import build_workbench
from data.workbench.source import read_source, source_hash
from evals.evaluate import evaluate
from evals.loss import held_out_split
from evals.loss import require_targets as require_held_out_targets
from evals.report import write_report
from evals.summary import write_summary
from evals.validation import Validator
from model import Transformer, load
from model.load import LoadedModel, save_model
from recipes.forecast import forecast
from recipes.launch import in_words, parse
from recipes.recipe import TRAINED, Recipe
from recipes.trained import (
    STORE,
    absent_names,
    check_kept,
    check_origin,
    config_of,
    inputs_of,
    settings_of,
    shorter,
    trained_names,
)
from salt.config import SelectionConfig
from salt.distill import Distillation
from salt.select import require_kept, score_documents
from training import out_of_memory
from training.aside import BEGUN, DONE
from training.checkpoint import load_weights
from training.config import TrainConfig
from training.distributed import RankLostError, World, close_world, start_world
from training.environment import environment, peak_rss_gib
from training.extend import carry, check_longer, checkpoint_to_extend
from training.files import differences, file_digest, read_json, write_json
from training.ledger import Ledger
from training.loop import train
from training.metrics import require_tensorboard, viewers
from training.parallel import split_world, whole_weights
from training.processes import Interrupted
from training.rows import RowSource
from training.runtime import Runtime, apply_runtime, resolve_runtime
from training.stages import Line, Stage, unchanged_if_kept

logger = logging.getLogger("brine")

RECORDS = ("runtime.json", "recipe.json", "environment.json", "left_out.json", "stayed.json")
"""What the run folder says of the run itself."""


@until_closed
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake in the request, 130 interrupted."""
    launch = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # other ranks do what rank 0 says, and need not say it again
    others = os.environ.get("RANK", "0") != "0"
    logging.getLogger("brine").setLevel(logging.DEBUG if launch.debug else logging.WARNING if others else logging.INFO)
    try:
        if launch.recipe.corpus.manifest is not None:
            # before anything slow: the trial compilation alone takes a minute
            check_there(launch.recipe.corpus.manifest)
        if launch.dry_run:
            print(forecast(launch.recipe), flush=True)
        else:
            run_line(launch.recipe, runs=launch.runs, track=launch.track, extend=launch.extend, redo=launch.redo)
        return 0
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, RankLostError, TimeoutError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            error = f"the disk is full ({error}): free some space; the same command goes on from the last checkpoint"
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            error = (
                f"out of memory ({error}): what is finished is kept, and the same command goes on with this stage; "
                "fewer rows at a time take less (micro_rows of small or large, evals.rows_per_batch)"
            )
        if launch.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        close_world()


def run_line(
    recipe: Recipe, *, runs: Path = Path("runs"), track: str | None = None, extend: bool = False,
    redo: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """All stages of a recipe; returns the run folder. Stages that are done are skipped; those in `redo` are trained
    again, those with more steps go on where `extend` says so, and what they were is renamed.

    Raises ValueError for what the user can mend, Interrupted when a signal asked to stop, after saving.
    """
    if track is not None:
        # before anything is renamed or trained
        require_tensorboard()
    asked = recipe.runtime
    device = "cuda" if asked.device != "cpu" and torch.cuda.is_available() else "cpu"
    world = start_world(device=device, timeout_s=asked.timeout_s)
    world = split_world(world, context=asked.context, shard=asked.shard, device=device)
    folder = Path(runs) / recipe.name
    with (
        Line(folder, world=world, redo=redo, absent=absent_names(recipe)) as line,
        unchanged_if_kept(folder / name for name in RECORDS),
    ):
        runtime = resolve_runtime(recipe.runtime, folder=folder) if world.is_main else None
        world.barrier()
        # the others read what rank 0 settled
        runtime = runtime or resolve_runtime(recipe.runtime, folder=folder)
        apply_runtime(runtime, local_world_size=world.local_size)
        _Run(recipe, line, world, runtime, track, extend).go()
    return folder


class _Run:
    """One pass over the line. Methods are stages, in the order of `go`."""

    def __init__(self, recipe: Recipe, line: Line, world: World, runtime: Runtime, track: str | None, extend: bool):
        self.recipe, self.line, self.world, self.runtime, self.track = recipe, line, world, runtime, track
        self.extend = extend
        self.folder = line.folder
        self.start = time.perf_counter()
        self.stages: list[Stage] = []
        self.origin = ["encoded"]

    def go(self) -> None:
        """Everything; rank 0 alone builds, evaluates and reports."""
        check_kept(self.recipe, line=self.line, runtime=self.runtime, extend=self.extend)
        manifest, inputs = self.corpus()
        settings = {"encode": self.recipe.corpus.encode, "vocab_size": self.recipe.corpus.vocab_size}
        built = is_corpus(manifest)
        encoded = self.stage(
            "encoded", lambda folder: self.encode(folder, manifest), config=settings, inputs=inputs, stays=not built,
            own=(STORE, "quarantine.jsonl"),
        )  # fmt: skip
        self.data = open_corpus(manifest if built else encoded.folder / STORE)
        self.tokenizer = self.data.tokenizer
        self.recipe = self.recipe.resolved(self.tokenizer.vocab_size)
        if self.recipe.corpus.filters:
            filters = self.recipe.corpus.filters
            self.stage("filtered", self.filter, config=filters, inputs=["encoded"], own=["rounds.txt"])
            self.origin = ["encoded", "filtered"]
        self.documents = Rounds.open(self.data).kept() if built or self.recipe.corpus.filters else None
        self.check_rows()
        if self.world.is_main:
            write_json(self.folder / "recipe.json", self.recipe)
            write_json(self.folder / "environment.json", environment(self.runtime, self.world))
            write_json(self.folder / "stayed.json", self.line.stayed)
        selects = self.recipe.salt.selection and "salt" in self.recipe.arms
        for name in trained_names(self.recipe):
            kept = self.select() if selects and name == "large_salt" else None
            self.train_model(name, kept=kept)
        self.report()

    def stage(self, name: str, build, **options) -> Stage:
        """One stage of the line, remembered for the wall clock."""
        self.stages.append(self.line.stage(name, build, **options))
        return self.stages[-1]

    def corpus(self) -> tuple[Path, dict[str, str]]:
        """Path of the documents to train on, and digest of their origin; makes a workbench corpus if none are given."""
        config = self.recipe.corpus
        if config.manifest is not None and is_corpus(config.manifest):
            if config.filters:
                raise ValueError(f"corpus.filters: {config.manifest} is built; use `python -m data filter` on it")
            corpus = EncodedCorpus.open(config.manifest)
            self.check_media(corpus)
            # media become tokens as they did there, and so must those of a prompt
            self.recipe = dataclasses.replace(
                self.recipe,
                corpus=dataclasses.replace(config, encode=corpus.config, vocab_size=corpus.tokenizer.vocab_size),
            )
            return config.manifest, {"corpus": corpus.fingerprint, "rounds": Rounds.open(corpus).digest}
        if config.manifest is not None:
            source = open_source(config.manifest, max_file_mib=config.encode.max_file_mib)
            inputs = {"manifest": source.fingerprint(media=False)}
            check_origin(self.line, source.path, digest=inputs["manifest"])
            return config.manifest, inputs | self.media_inputs(source.root, inputs)
        bench = dataclasses.replace(config.workbench, source=config.source)
        files, _ = read_source(bench.source, min_file_bytes=bench.min_file_bytes, max_file_kib=bench.max_file_kib)
        check_origin(self.line, None, digest=source_hash(files), source=config.source)

        def build(folder: Path) -> dict:
            summary = build_workbench(bench, folder)
            return {"fingerprint": file_digest(folder / "manifest.jsonl"), "documents": summary["documents"]}

        stage = self.stage(
            "corpus", build, config=bench, inputs={"source": source_hash(files)}, stays=True,
            own=("manifest.jsonl", "summary.json", "media", ".partial"),
        )  # fmt: skip
        inputs = {"corpus": stage.digest}
        return stage.folder / "manifest.jsonl", inputs | self.media_inputs(stage.folder.resolve(), inputs)

    def check_media(self, corpus: EncodedCorpus) -> None:
        """Tell that media changed since a built corpus was; refuse where it must decode them and too many did."""
        trouble = None
        if self.world.is_main and corpus.root.exists():
            changes = changed_media(corpus.folder, corpus.root, max_file_mib=corpus.config.max_file_mib)
            build = f"`python -m data build` with the folder {corpus.folder} encodes them again"
            if changes and corpus.meta["identity"]["keep_media"]:
                logger.warning("corpus: %s. Training goes on with what was encoded then; %s", changes, build)
            elif changes:
                logger.warning(
                    "corpus: %s. Training leaves their documents out, validation stops at one that it needs; %s",
                    changes,
                    build,
                )
            if not corpus.meta["identity"]["keep_media"] and changes.share > self.recipe.rows.max_left_out:
                trouble = f"corpus: {changes}, over rows.max_left_out {self.recipe.rows.max_left_out:g}; {build}"
        if trouble := self.world.broadcast(trouble):
            raise ValueError(trouble)

    def media_inputs(self, root: Path, inputs: dict[str, str]) -> dict[str, str]:
        """What the encoded stage depends on beside its inputs: nothing at first, and then which media changed.

        A change names the state of the media, under which the stage is done again; while nothing changes, they keep
        the name under which it was begun.
        """
        folder, named = self.folder / "encoded", {}
        if self.world.is_main:
            begun = (read_json(folder / BEGUN) or {}).get("inputs") or {}
            named = {"media": begun["media"]} if "media" in begun else {}
            # a stage that was cut off, or another's, looks at its media as it goes on
            if (folder / DONE).exists() and begun.keys() == (inputs | named).keys():
                changes = changed_media(folder / STORE, root, max_file_mib=self.recipe.corpus.encode.max_file_mib)
                if changes:
                    logger.info("encoded: %s", changes)
                    named = {"media": changes.digest} if begun == inputs | named else named
        return self.world.broadcast(named)

    def encode(self, folder: Path, manifest: Path) -> dict:
        """Tokenizer from the training split's text, then every document as tokens and patches, unless that was done."""
        config = self.recipe.corpus
        if is_corpus(manifest):
            corpus = EncodedCorpus.open(manifest)
        else:
            source = open_source(manifest, max_file_mib=config.encode.max_file_mib)
            tokenizer = train_tokenizer(texts_of(source.documents()), config.vocab_size)
            corpus = build_corpus(
                source,
                folder / STORE,
                tokenizer=tokenizer,
                config=config.encode,
                num_workers=config.workbench.workers,
                progress=True,
            )
            for line in source.told():
                logger.info("%s", line)
        if records := corpus.quarantine():
            logger.warning("%s: see %s", aside_text(records), folder / "quarantine.jsonl")
        shutil.copyfile(corpus.folder / "quarantine.jsonl", folder / "quarantine.jsonl")
        return {
            "documents": corpus.num_documents,
            "quarantined": len(corpus.quarantine()),
            "fingerprint": corpus.fingerprint,
        }

    def filter(self, folder: Path) -> dict:
        """The recipe's filter rounds, from the first one on."""
        rounds = Rounds.open(self.data)
        while len(rounds):
            rounds.undo()
        config = self.recipe.corpus
        rounds = apply(self.data, config.filters, num_workers=config.workbench.workers, progress=True)
        logger.info("%s", rounds.report())
        (folder / "rounds.txt").write_text(rounds.report() + "\n", encoding="utf-8")
        return {"kept": int(rounds.kept().sum()), "fingerprint": rounds.digest}

    def check_rows(self) -> None:
        """Tell what fits no row; refuse what leaves nothing to learn, or less than the recipe asks for."""
        rows = self.recipe.rows
        found = find_left_out(
            self.data, row_tokens=rows.row_tokens, media_budget=rows.media_budget, documents=self.documents
        )
        if self.world.is_main:
            logger.info("rows: %s", found.text())
            write_json(self.folder / "left_out.json", found.to_json())
        require_targets(self.data, found, documents=self.documents, most=rows.max_left_out)
        # evaluation would refuse it when all is trained, or find nothing to measure
        split = held_out_split(self.data, self.recipe.evals)
        if not any(map(self.line.begun, trained_names(self.recipe))):
            require_held_out_targets(self.data, split)

    def plan(self, config: TrainConfig, *, documents=None, num_rows: int | None = None) -> Plan:
        """The rows of a training run: documents of the training split that filters left, or those in `documents`."""
        rows = self.recipe.rows
        mixture = Mixture.parse(rows.mixture)
        # a run that may go on with more steps must begin with the same rows then
        build = plan_in_pieces if config.schedule == "wsd" and mixture.constant else Plan.build
        return build(
            self.data,
            split="train",
            row_tokens=rows.row_tokens,
            media_budget=rows.media_budget,
            num_rows=num_rows or config.num_steps * config.rows_per_step,
            seed=self.recipe.seed,
            blank_fraction=rows.blank_fraction,
            kind_weights=self.kind_weights(),
            mixture=mixture,
            # by the rows of the whole run: those of selected documents are only its beginning
            lengths=LengthSchedule.parse(rows.length_schedule).by_row(config.num_steps * config.rows_per_step),
            documents=self.documents if documents is None else documents,
        )

    def kind_weights(self) -> dict[str, float]:
        """The recipe's weights for the kinds that this corpus has."""
        weights = {kind: weight for kind, weight in self.recipe.rows.kind_weights if kind in self.data.kinds}
        if absent := sorted({kind for kind, _ in self.recipe.rows.kind_weights} - set(weights)):
            logger.info("rows.kind_weights names kinds that are not in the corpus: %s", ", ".join(absent))
        return weights

    def loader(self, plan: Plan, config: TrainConfig, start_row: int = 0) -> Loader:
        """This rank's micro-batches of a plan from a row on."""
        return Loader(
            self.data,
            plan,
            rows_per_batch=config.micro_rows_on(self.world.replicas),
            start_row=start_row,
            rank=self.world.replica,
            world_size=self.world.replicas,
            num_workers=self.runtime.loader_workers,
            pin_memory=self.runtime.device == "cuda",
        )

    def train_model(self, name: str, *, kept=None) -> None:
        """One training stage: the small model, the large one with its help, or the large one alone."""
        config, salt = config_of(self.recipe, name), name == "large_salt"
        account = "teacher_training" if name == "small" else "student"

        def build(folder: Path) -> dict:
            # its weights are drawn from the run's seed once it is known where they belong
            model = Transformer(config.model, empty=True)
            plan = self.plan(config)
            distillation = self.distillation(config) if salt else None
            first = (
                self.plan(config, documents=kept, num_rows=config.rows_per_step * distillation.kd_steps)
                if kept is not None and distillation.kd_steps
                else None
            )

            def open_rows(start: int):
                # selected documents fill the rows of stage 1, and only those
                if first is not None and start < len(first):
                    yield from self.loader(first, config, start)
                    start = len(first)
                yield from self.loader(plan, config, start)

            sinks = viewers(folder, tensorboard=self.track is not None) if self.world.is_main else ()
            validate = Validator(self.data, self.tokenizer, self.recipe.evals, compute_dtype=self.runtime.compute_dtype)
            with out_of_memory.told(
                config=config,
                runtime=self.runtime,
                world=self.world,
                folder=folder,
                row_tokens=self.recipe.rows.row_tokens,
                arm="small" if name == "small" else "large",
                patches=tuple((name, most) for name, most in self.recipe.rows.media_budget.items() if most),
            ):
                result = train(
                    config,
                    model=model,
                    rows=RowSource(open=open_rows, num_rows=len(plan)),
                    folder=folder,
                    runtime=self.runtime,
                    name=name,
                    account=account,
                    kinds=tuple(self.data.kinds),
                    distillation=distillation,
                    validate=validate,
                    world=self.world,
                    sinks=sinks,
                )
            weights = whole_weights(model)
            if self.world.is_main:
                rows, seen = self.recipe.rows, LengthSchedule.parse(self.recipe.rows.length_schedule)
                # a document sees itself alone, so that no more can be seen than the longest has
                longest = int(self.data.num_tokens[plan.visits() > 0].max())
                save_model(
                    folder / "model", model, encode_config=self.data.config, tokenizer=self.tokenizer, weights=weights,
                    trained_tokens=min(longest, seen.longest_in(rows.row_tokens, len(plan))),
                    trained_roles=roles_in(self.data, np.flatnonzero(plan.visits() > 0)),
                )  # fmt: skip
            return {
                "step": result.step,
                "loss": result.loss,
                "fingerprint": file_digest(folder / "model" / "model.safetensors") if self.world.is_main else None,
            }

        self.stage(
            name,
            build,
            config=settings_of(self.recipe, name, config=config, runtime=self.runtime),
            inputs=inputs_of(self.recipe, name, origin=self.origin),
            everywhere=True,
            precious=True,
            own=("events.jsonl", "ledger.json", "checkpoints", "model", "tensorboard"),
            extend=(lambda old, fresh: self.carry(name, config, old, fresh)) if self.extend else None,
        )

    def carry(self, name: str, config: TrainConfig, old: Path, fresh: Path) -> None:
        """What a longer run of a stage goes on from. Raises ValueError where it would not have been the same so far."""
        begun = read_json(old / BEGUN)["config"]
        settings = settings_of(self.recipe, name, config=config, runtime=self.runtime)
        changes = differences(begun, settings, name="config")
        before = shorter(self.recipe, name, begun=begun, changes=changes)
        check_longer(before, config)
        found = checkpoint_to_extend(old, config=before)
        if not same_beginning(self.plan(before), self.plan(config), num_rows=found.state["row"]):
            raise ValueError(f"its first {found.state['row']} rows would not be those that it was trained on")
        carry(old, fresh, checkpoint=found, num_steps=config.num_steps)

    def distillation(self, config: TrainConfig) -> Distillation:
        """The trained small model as the large one's teacher."""
        salt, teacher = self.recipe.salt, self.trained("small").model
        return Distillation(teacher, salt.kd_steps_of(config.num_steps), salt.weight, salt.temperature)

    def selecting(self) -> dict:
        """What decides which documents are selected."""
        return {"salt": SelectionConfig.of(self.recipe.salt), "rows": self.recipe.rows}

    def select(self):
        """Documents for stage 1: those whose learnable tokens the early small model finds hardest."""
        salt, small = self.recipe.salt, self.recipe.small

        def build(folder: Path) -> dict:
            step = salt.early_step_of(small.num_steps)
            model = Transformer(small.model)
            load_weights(self.folder / "small" / "checkpoints" / f"step_{step:08d}", model=model)
            model.to(self.runtime.device).attention_backend = self.runtime.attention_backend
            plan = Plan.build(
                self.data,
                split="train",
                row_tokens=self.recipe.rows.row_tokens,
                media_budget=self.recipe.rows.media_budget,
                epochs=1,
                seed=self.recipe.seed,
                documents=self.documents,
            )
            ledger = Ledger()
            with torch.no_grad():
                scores = score_documents(
                    model,
                    plan=plan,
                    batches=Loader(
                        self.data, plan, rows_per_batch=1, num_workers=self.runtime.loader_workers,
                        pin_memory=self.runtime.device == "cuda",
                    ),
                    top_k=salt.top_k,
                    min_learnable=salt.min_learnable,
                    compute_dtype=self.runtime.compute_dtype,
                    ledger=ledger,
                )  # fmt: skip
            kind = self.data.kind[scores.document] if salt.selection_per_kind else None
            kept = scores.choose(keep=salt.selection_keep, kind=kind)
            require_kept(kept, min_learnable=salt.min_learnable)
            scores.save(folder, kept=kept)
            ledger.save(folder / "ledger.json")
            return {"kept": scores.document[kept].tolist()}

        stage = self.stage(
            "select", build, config=self.selecting(), inputs=[*self.origin, "small"],
            own=("scores.npz", "selection.jsonl", "ledger.json"),
        )  # fmt: skip
        return stage.result["kept"]

    def adopt(self) -> None:
        """What an earlier command trained for arms that this one leaves out stays in evaluation and report, as long as
        it is what this recipe would train; what is not is named."""
        left_out = []
        for name in (name for name in TRAINED if name not in self.line.done):
            if name == "large_salt" and self.recipe.salt.selection:
                self.adopted("select", config=self.selecting(), inputs=[*self.origin, "small"])
            config = config_of(self.recipe, name)
            settings = settings_of(self.recipe, name, config=config, runtime=self.runtime)
            inputs = inputs_of(self.recipe, name, origin=self.origin)
            if not self.adopted(name, config=settings, inputs=inputs) and self.line.begun(name):
                left_out.append(name)
        if left_out and self.world.is_main:
            logger.warning(
                "%s: trained here by an earlier command with other settings or documents, or not to the end, and left "
                "out of evaluation and report; its folder stays as it is",
                " and ".join(left_out),
            )

    def adopted(self, name: str, **key) -> bool:
        """Whether a stage is there as this recipe would make it; it then belongs to the line."""
        found = self.line.adopt(name, **key)
        if found:
            self.stages.append(self.line.done[name])
        return found

    def report(self) -> None:
        """Evaluate what was trained, then summary.json and report.html; rank 0 only."""
        self.adopt()
        names = [name for name in TRAINED if name in self.line.done]

        def build(folder: Path) -> None:
            evaluate(
                folder,
                corpus=self.data,
                models={name: self.trained(name) for name in names},
                config=self.recipe.evals,
                stages=tuple(self.line.done),
                compute_dtype=self.runtime.compute_dtype,
            )

        own = ("results.json", "documents.jsonl", "transcripts.jsonl", "media")
        self.stage("evaluate", build, config=self.recipe.evals, inputs=names, own=own)
        if not self.world.is_main:
            return
        summary = write_summary(self.folder, wall_s=self.wall_s(), peak_rss_gib=peak_rss_gib(self.folder))
        logger.info("\n%s", in_words(summary))
        for name, told in self.line.stayed.items():
            logger.warning("%s: %s", name, told)
        logger.info("report: %s", write_report(self.folder, config=self.recipe.evals))

    def trained(self, name: str) -> LoadedModel:
        """The model of a finished stage, where and as this run computes. Raises ValueError where somebody took it."""
        folder = self.folder / name
        if not any((folder / "model").glob("*.safetensors")):
            raise ValueError(
                f"{folder / 'model'} holds no weights any more: put them back, or give --redo {name} to train it again"
            )
        return load(
            folder, device=self.runtime.device, attention_backend=self.runtime.attention_backend,
            loss_backend=self.runtime.loss_backend,
        )  # fmt: skip

    def wall_s(self) -> float:
        """Seconds that the whole line took, skipped stages at what they took when they were done."""
        skipped = sum(stage.wall_s for stage in self.stages if stage.skipped)
        return round(time.perf_counter() - self.start + skipped, 1)


if __name__ == "__main__":
    sys.exit(main())
