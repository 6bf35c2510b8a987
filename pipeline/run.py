"""The pipeline of a recipe: corpus, small model, (selection,) large models, evaluation, report; in one command.

`run_pipeline` joins the ranks and locks the run folder; `Pipeline` runs the stages in order. Each stage (`corpus.py`,
`train_stage.py`, `evaluate_stage.py`) writes `runs/<name>/<stage>/`; `stage_store.StageStore`
decides which stages are done already. The same command resumes a run that was killed.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from brine.common.content_store import ContentStore
from brine.common.files import write_json
from brine.common.remote.object_store import check_local
from brine.data.corpus.excluded import find_excluded, require_targets
from brine.data.corpus.store import open_corpus
from brine.data.corpus.swap import FILTER_LOG
from brine.data.files.roots import MediaRoots
from brine.data.filters.filter_log import FilterLog
from brine.data.loader import Loader
from brine.data.packing.plan import PackingPlan
from brine.evals.loss import held_out_split
from brine.evals.loss import require_targets as require_held_out_targets
from brine.pipeline import corpus, evaluate_stage, train_stage
from brine.pipeline.inputs.pinned import Pinned, ResolveModel, pin, registered_model
from brine.pipeline.inputs.sources import encoded_settings
from brine.pipeline.model_stages import STORE, check_trained_stages, model_stages_of, untrained_stages_of
from brine.pipeline.recipe import Recipe
from brine.pipeline.stages.remote_stages import RemoteStages, check_remote
from brine.pipeline.stages.run_lock import on_main_rank, refusals_named
from brine.pipeline.stages.stage_backup import restore_if_refused
from brine.pipeline.stages.stage_store import PipelineStage, StageStore, logger
from brine.training.logging.environment import environment
from brine.training.logging.metrics import require_sink
from brine.training.parallel.distributed import World, init_distributed
from brine.training.parallel.parallelize import init_parallel_groups
from brine.training.runtime import Runtime, apply_runtime, resolve_runtime

RUN_RECORD_FILES = ("runtime.json", "recipe.json", "environment.json", "excluded.json", "kept_stale.json")
"""Files of the run folder that record the run itself."""
STORE_FOLDER = ".store"
"""Below the folder of all runs: the stages that they share."""
Explain = Callable[..., AbstractContextManager]


def run_pipeline(
    recipe: Recipe, *, runs: Path = Path("runs"), store: Path | None = None, tracker: str | None = None,
    extend: bool = False, rerun: tuple[str, ...] = (), explain_out_of_memory: Explain = lambda **_: nullcontext(),
    resolve_model: ResolveModel = registered_model, remote_store: str | None = None,
) -> Path:  # fmt: skip
    """Run all stages of a recipe and return the run folder. Finished stages are skipped, also those that another run
    has made in `store` (runs/.store); those in `rerun` are trained again and, with `extend`, those with more steps
    continue; their old folders are renamed. explain_out_of_memory: a context around each training that turns running
    out of memory into advice (`brine.planner.out_of_memory`). resolve_model: the folder of "champion", or of another
    model of a registry. remote_store: a URL where stages are looked up before they are built, and
    uploaded to. Raises ValueError for what the user can fix, TrainingInterrupted after a signal."""
    check_local(runs, name="runs")
    check_local(store, name="store")
    if tracker is not None:
        # before anything is renamed or trained
        require_sink(tracker)
    asked = recipe.runtime
    device = "cuda" if asked.device != "cpu" and torch.cuda.is_available() else "cpu"
    world = init_distributed(device=device, timeout_s=asked.timeout_s)
    world = init_parallel_groups(world, context_parallel=asked.context_parallel, dp_shard=asked.dp_shard, device=device)
    if remote_store is not None:
        on_main_rank(world, lambda: check_remote(remote_store))
    # before the run folder is made
    recipe, pinned = pin(recipe, resolve_model=resolve_model, world=world)
    folder, content = Path(runs) / recipe.name, ContentStore(store or Path(runs) / STORE_FOLDER)
    remote = RemoteStages(remote_store, content, folder, world=world) if remote_store is not None else None
    untrained = untrained_stages_of(recipe)
    with (
        refusals_named(recipe.name),
        StageStore(folder, world=world, rerun=rerun, untrained=untrained, content=content, remote=remote) as stages,
        restore_if_refused(folder / name for name in RUN_RECORD_FILES),
    ):
        runtime = resolve_runtime(recipe.runtime, folder=folder) if world.is_main else None
        world.barrier()
        # the other ranks read what rank 0 resolved
        runtime = runtime or resolve_runtime(recipe.runtime, folder=folder)
        apply_runtime(runtime, local_world_size=world.local_size)
        Pipeline(recipe, stages, world, runtime, tracker, extend, explain_out_of_memory, pinned).run()
        if remote is not None:
            on_main_rank(world, remote.finish)
    return folder


class Pipeline:
    """One pass over the stages, and what they share: recipe, ranks, runtime, and the encoded corpus once it is
    there."""

    def __init__(
        self, recipe: Recipe, store: StageStore, world: World, runtime: Runtime, tracker: str | None, extend: bool,
        explain_out_of_memory: Explain, pinned: Pinned | None = None,
    ):  # fmt: skip
        self.pinned = pinned or Pinned()
        self.recipe, self.store, self.world, self.runtime, self.tracker = recipe, store, world, runtime, tracker
        self.extend, self.explain_out_of_memory = extend, explain_out_of_memory
        self.folder = store.folder
        self.media_root: Path | MediaRoots | None = None
        self.documents_digest: str | None = None
        self.start = time.perf_counter()
        self.stages: list[PipelineStage] = []
        self.corpus_stages = ["encoded"]

    def run(self) -> None:
        """Run every stage; rank 0 alone builds the corpus, evaluates and reports."""
        check_trained_stages(self.recipe, store=self.store, runtime=self.runtime, extend=self.extend)
        self.open_documents()
        self.check_packing()
        if self.world.is_main:
            write_json(self.folder / "recipe.json", self.recipe)
            write_json(self.folder / "environment.json", environment(self.runtime, self.world))
            write_json(self.folder / "kept_stale.json", self.store.kept_stale)
        salt = self.recipe.salt
        uses_selection = salt.selection and "salt" in self.recipe.arms
        if salt.selection and not (uses_selection and salt.num_kd_steps(self.recipe.large.num_steps)):
            logger.warning("salt.selection has no effect: it chooses data of stage 1 (salt.kd_steps) of the arm salt")
        for name in model_stages_of(self.recipe):
            selected = train_stage.select(self) if uses_selection and name == "large_salt" else None
            train_stage.train_model(self, name, selected=selected)
        evaluate_stage.report(self)

    def open_documents(self) -> None:
        """Make, encode and filter the corpus, or open a built one; sets `data`, `tokenizer` and `documents`."""
        manifest, inputs = corpus.find_documents(self)
        config, built = self.recipe.corpus, corpus.is_built(manifest)
        settings = encoded_settings(config, None if built else self.pinned.tokenizer_digest)
        encoded = self.stage(
            "encoded", lambda folder: corpus.encode(self, folder, manifest, inputs), config=settings, inputs=inputs,
            revision=corpus.ENCODED_REVISION, keep_if_inputs_change=not built, output_names=(STORE, "quarantine.jsonl"),
        )  # fmt: skip
        self.data = open_corpus(manifest if built else encoded.folder / STORE)
        if self.media_root is not None:
            # another run may have encoded a copy of these documents at another path
            self.data.root = self.media_root
        self.tokenizer = self.data.tokenizer
        self.pinned.check_tokenizer(self.tokenizer)
        self.recipe = self.recipe.resolved(self.tokenizer.vocab_size)
        if config.filters:
            build = lambda folder: corpus.apply_filters(self, folder)  # noqa: E731
            self.stage(
                "filtered",
                build,
                config=config.filters,
                inputs=["encoded"],
                revision=corpus.FILTERED_REVISION,
                output_names=["filter_passes.txt", FILTER_LOG],
            )
            self.corpus_stages = ["encoded", "filtered"]
            self.documents = corpus.filter_log(self).kept_mask()
        else:
            self.documents = FilterLog.open(self.data).kept_mask() if built else None

    def check_packing(self) -> None:
        """Report documents that fit no sequence. Raises ValueError where no target, or too few documents, are left."""
        packing = self.recipe.packing
        found = find_excluded(
            self.data, seq_len=packing.seq_len, media_budget=packing.media_budget, documents=self.documents
        )
        if self.world.is_main:
            logger.info("packing: %s", found.text())
            write_json(self.folder / "excluded.json", found.to_json())
        require_targets(self.data, found, documents=self.documents, most=packing.max_excluded_fraction)
        # evaluation would refuse it after the training, or find nothing to measure
        split = held_out_split(self.data, self.recipe.evals)
        if not any(map(self.store.begun, model_stages_of(self.recipe))):
            require_held_out_targets(self.data, split)

    def stage(self, name: str, build: Callable, **options) -> PipelineStage:
        """Run one stage of the store; its time counts in `wall_s`."""
        self.stages.append(self.store.stage(name, build, **options))
        return self.stages[-1]

    def loader(self, plan: PackingPlan, **options) -> Loader:
        """Batches of a plan over the corpus, with this runtime's worker processes."""
        workers, pinned = self.runtime.num_loader_workers, self.runtime.device == "cuda"
        return Loader(self.data, plan, num_workers=workers, pin_memory=pinned, **options)

    def wall_s(self) -> float:
        """Seconds of the whole pipeline; a skipped stage counts with the time it took when it was done."""
        skipped = sum(stage.wall_s for stage in self.stages if stage.skipped)
        return round(time.perf_counter() - self.start + skipped, 1)
