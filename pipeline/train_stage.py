"""The training stages: the small model, the large one with SALT, the large one alone.

A stage packs the training split into sequences, trains to the end of its budget, and writes the model with what a
reader of it must know. `extend_stage` fills the folder of a run with more steps from one with fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from brine.common.files import differences, file_digest, read_json
from brine.data.corpus.statistics import roles_in
from brine.data.packing.extendable_plan import build_extendable_plan, same_prefix
from brine.data.packing.length_schedule import LengthSchedule
from brine.data.packing.plan import PackingPlan
from brine.evals.validation import Validator
from brine.inference.load import save_model
from brine.model.transformer import Transformer
from brine.pipeline import model_stages
from brine.pipeline.evaluate_stage import load_trained_model
from brine.pipeline.inputs.sources import mixture_of
from brine.pipeline.model_stages import train_config_of
from brine.pipeline.stages.stage_backup import STAGE_FILE
from brine.salt.distill import Distillation
from brine.salt.selection import require_selected, score_documents
from brine.training.checkpoint.checkpoint import load_weights
from brine.training.checkpoint.extend import check_extension, checkpoint_to_extend, link_checkpoints
from brine.training.config import TrainConfig
from brine.training.logging.compute_cost import CostAccounting
from brine.training.logging.environment import code_version
from brine.training.logging.metrics import make_sinks
from brine.training.micro_batch import PackedSequenceSource
from brine.training.parallel.parallelize import gather_state_dict
from brine.training.trainer import Trainer

if TYPE_CHECKING:
    from brine.data.batch import Batch
    from brine.pipeline.run import Pipeline


def train_model(run: Pipeline, name: str, *, selected: list[int] | None = None) -> None:
    """Run one training stage; selected: documents of its first part, where selection chose them."""
    recipe, world, runtime = run.recipe, run.world, run.runtime
    config = train_config_of(recipe, name)

    def build(folder: Path) -> dict:
        code = code_version()
        # weights are initialized from the run's seed once the parameters are on their device
        model = Transformer(config.model, on_meta_device=True)
        plan = build_plan(run, config)
        distillation = build_distillation(run, config) if name == "large_salt" else None
        shared = {"config": config, "runtime": runtime, "world": world, "folder": folder}
        patches = tuple((modality, most) for modality, most in recipe.packing.media_budget.items() if most)
        model_name, cost_category = ("small", "teacher_training") if name == "small" else ("large", "student")
        with run.explain_out_of_memory(
            **shared, seq_len=recipe.packing.seq_len, model_name=model_name, patches=patches
        ):
            result = Trainer(
                **shared,
                model=model,
                sequences=sequence_source(run, config, plan, selected=selected, distillation=distillation),
                name=name,
                cost_category=cost_category,
                kinds=tuple(run.data.kinds),
                distillation=distillation,
                initial=run.pinned.initial_of(name),
                validate=Validator(run.data, run.tokenizer, recipe.evals, compute_dtype=runtime.compute_dtype),
                sinks=make_sinks(folder, run.tracker) if world.is_main else (),
            ).run()
        weights, fingerprint = gather_state_dict(model), None
        if world.is_main:
            trained = plan.sample_counts() > 0
            schedule = LengthSchedule.parse(recipe.packing.length_schedule)
            # a document attends to itself alone: no context is longer than the longest document
            longest = min(
                int(run.data.num_tokens[trained].max()), schedule.max_segment_tokens(recipe.packing.seq_len, len(plan))
            )
            save_model(
                folder / "model", model, encode_config=run.data.config, tokenizer=run.tokenizer, weights=weights,
                trained_context_tokens=longest, trained_roles=roles_in(run.data, np.flatnonzero(trained)),
            )  # fmt: skip
            fingerprint = file_digest(folder / "model" / "model.safetensors")
        return {"step": result.step, "loss": result.loss, "fingerprint": fingerprint, "code": code}

    run.stage(
        name, build, config=model_stages.stage_settings(recipe, name, config=config, runtime=runtime),
        inputs=model_stages.stage_inputs(recipe, name, corpus_stages=run.corpus_stages), on_all_ranks=True,
        protected=True, revision=model_stages.TRAIN_REVISION,
        output_names=("metrics.jsonl", "events.jsonl", "compute_cost.json", "checkpoints", "model", "tensorboard"),
        extend=(lambda old, fresh: extend_stage(run, name, old, fresh)) if run.extend else None,
    )  # fmt: skip


def select(run: Pipeline) -> list[int]:
    """Documents whose learnable tokens the early small model finds hardest."""
    salt, small, packing, data = run.recipe.salt, run.recipe.small, run.recipe.packing, run.data

    def build(folder: Path) -> dict:
        step = salt.scoring_step(small.num_steps)
        model = Transformer(small.model)
        load_weights(run.folder / "small" / "checkpoints" / f"step_{step:08d}", model=model)
        model.to(run.runtime.device).attention_backend = run.runtime.attention_backend
        plan = PackingPlan.build(
            data, split="train", seq_len=packing.seq_len, media_budget=packing.media_budget, epochs=1,
            seed=run.recipe.seed, documents=run.documents,
        )  # fmt: skip
        compute_cost = CostAccounting()
        with torch.no_grad():
            scores = score_documents(
                model, plan=plan, batches=run.loader(plan, local_batch_size=1), top_k=salt.top_k,
                min_learnable_tokens=salt.min_learnable_tokens, compute_dtype=run.runtime.compute_dtype,
                compute_cost=compute_cost,
            )  # fmt: skip
        kind = data.kind[scores.document] if salt.selection_per_kind else None
        kept = scores.select_documents(keep=salt.selection_fraction, kind=kind)
        require_selected(kept, min_learnable_tokens=salt.min_learnable_tokens)
        scores.save(folder, kept=kept, ids=data.ids)
        compute_cost.save(folder / "compute_cost.json")
        return {"kept": scores.document[kept].tolist()}

    stage = run.stage(
        "select", build, config=model_stages.selection_settings(run.recipe), inputs=[*run.corpus_stages, "small"],
        revision=model_stages.SELECT_REVISION, output_names=("scores.npz", "selection.jsonl", "compute_cost.json"),
    )  # fmt: skip
    return stage.result["kept"]


def build_plan(run: Pipeline, config: TrainConfig, *, documents=None, num_sequences: int | None = None) -> PackingPlan:
    """The packed sequences of a training run: of `documents`, or of all that filters left in the training split."""
    packing, total = run.recipe.packing, config.num_steps * config.global_batch_size
    mixture = mixture_of(run.recipe.corpus, packing.mixture, run.data)
    # a run that may be extended must begin with the same sequences then
    build = build_extendable_plan if config.schedule == "wsd" and mixture.constant else PackingPlan.build
    # by the progress of the whole run, of which selected documents are only the beginning
    lengths = LengthSchedule.parse(packing.length_schedule).by_sequence(total)
    return build(
        run.data, split="train", seq_len=packing.seq_len, media_budget=packing.media_budget,
        num_sequences=num_sequences or total, seed=run.recipe.seed, blank_fraction=packing.blank_fraction,
        mixture=mixture, lengths=lengths, documents=run.documents if documents is None else documents,
    )  # fmt: skip


def sequence_source(
    run: Pipeline, config: TrainConfig, plan: PackingPlan, *, selected: list[int] | None,
    distillation: Distillation | None,
) -> PackedSequenceSource:  # fmt: skip
    """This rank's batches of a plan; selected documents fill the sequences of stage 1, and only those."""
    plans, world = [plan], run.world
    if selected is not None and distillation is not None and distillation.kd_steps:
        num_sequences = config.global_batch_size * distillation.kd_steps
        plans.insert(0, build_plan(run, config, documents=selected, num_sequences=num_sequences))

    def open_sequences(start: int) -> Iterator[Batch]:
        for each in plans:
            if start < len(each):
                yield from run.loader(
                    each, local_batch_size=config.micro_batch_size_on(world.dp_size), start_sequence=start,
                    rank=world.dp_rank, world_size=world.dp_size,
                )  # fmt: skip
                start = len(each)

    return PackedSequenceSource(open=open_sequences, num_sequences=len(plan))


def build_distillation(run: Pipeline, config: TrainConfig) -> Distillation:
    """The trained small model as the large one's teacher."""
    salt, teacher = run.recipe.salt, load_trained_model(run, "small").model
    return Distillation(teacher, salt.num_kd_steps(config.num_steps), salt.distill_weight, salt.temperature)


def extend_stage(run: Pipeline, name: str, old: Path, fresh: Path) -> None:
    """Fill `fresh` with what a longer run of the stage in `old` continues from. Raises ValueError where the longer run
    would have differed so far."""
    config = train_config_of(run.recipe, name)
    begun = read_json(old / STAGE_FILE)["config"]
    settings = model_stages.stage_settings(run.recipe, name, config=config, runtime=run.runtime)
    changes = differences(begun, settings, name="config")
    before = model_stages.config_before_extension(run.recipe, name, begun=begun, changes=changes)
    check_extension(before, config)
    found = checkpoint_to_extend(old, config=before)
    done = found.state["sequence_index"]
    if not same_prefix(build_plan(run, before), build_plan(run, config), num_sequences=done):
        raise ValueError(f"its first {done} sequences would not be those that it was trained on")
    link_checkpoints(old, fresh, checkpoint=found, num_steps=config.num_steps)
