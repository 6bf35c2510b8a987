"""The last stages: evaluation of every trained model on held-out documents, then summary and report.

Models that an earlier command trained in the same run folder take part as long as they are what this recipe would
train.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brine.evals.evaluate import evaluate
from brine.evals.report.page import write_report
from brine.evals.run_files import format_summary, write_summary
from brine.inference.load import LoadedModel, load
from brine.pipeline.model_stages import (
    SELECT_REVISION,
    TRAIN_REVISION,
    selection_settings,
    stage_inputs,
    stage_settings,
    train_config_of,
)
from brine.pipeline.recipe import MODEL_STAGES
from brine.pipeline.stages.stage_store import logger
from brine.training.logging.environment import peak_rss_gib

if TYPE_CHECKING:
    from brine.pipeline.run import Pipeline

EVALUATE_REVISION = 1
"""Of the code of the stage `evaluate`: raise it where equal models and settings give other results."""


def report(run: Pipeline) -> None:
    """Evaluate what was trained, then write summary.json and report.html; rank 0 only."""
    reuse_trained(run)
    names = [name for name in MODEL_STAGES if name in run.store.done]

    def build(folder: Path) -> None:
        evaluate(
            folder, corpus=run.data, models={name: load_trained_model(run, name) for name in names},
            config=run.recipe.evals, stages=tuple(run.store.done), compute_dtype=run.runtime.compute_dtype,
        )  # fmt: skip

    output_names = ("results.json", "documents.jsonl", "transcripts.jsonl", "media")
    run.stage(
        "evaluate", build, config=run.recipe.evals, inputs=names, output_names=output_names, revision=EVALUATE_REVISION
    )
    if not run.world.is_main:
        return
    summary = write_summary(run.folder, wall_s=run.wall_s(), peak_rss_gib=peak_rss_gib(run.folder))
    logger.info("\n%s", format_summary(summary))
    for name, reason in run.store.kept_stale.items():
        logger.warning("%s: %s", name, reason)
    logger.info("report: %s", write_report(run.folder, config=run.recipe.evals))


def reuse_trained(run: Pipeline) -> None:
    """Take over finished stages of arms that this command leaves out, where they are what this recipe would train."""
    recipe, excluded = run.recipe, []
    for name in (name for name in MODEL_STAGES if name not in run.store.done):
        if name == "large_salt" and recipe.salt.selection:
            select = {"config": selection_settings(recipe), "inputs": [*run.corpus_stages, "small"]}
            _reuse(run, "select", **select, revision=SELECT_REVISION)
        settings = stage_settings(recipe, name, config=train_config_of(recipe, name), runtime=run.runtime)
        inputs = stage_inputs(recipe, name, corpus_stages=run.corpus_stages)
        same = _reuse(run, name, config=settings, inputs=inputs, revision=TRAIN_REVISION)
        if not same and run.store.begun(name):
            excluded.append(name)
    if excluded and run.world.is_main:
        logger.warning(
            "%s: an earlier command trained it with other settings or documents, or did not finish it; it is left out "
            "of evaluation and report, and its folder is kept",
            " and ".join(excluded),
        )


def _reuse(run: Pipeline, name: str, **key) -> bool:
    found = run.store.reuse(name, **key)
    if found:
        run.stages.append(run.store.done[name])
    return found


def load_trained_model(run: Pipeline, name: str) -> LoadedModel:
    """The model of a finished stage, on the run's device and backends. Raises ValueError where its weights are gone."""
    folder, runtime = run.folder / name, run.runtime
    if not any((folder / "model").glob("*.safetensors")):
        raise ValueError(
            f"{folder / 'model'} has no weights any more: put them back, or give --rerun {name} to train it again"
        )
    return load(
        folder, device=runtime.device, attention_backend=runtime.attention_backend, loss_backend=runtime.loss_backend
    )
