"""The selection stage: the documents of SALT's stage 1, chosen by the losses of the early small model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from brine.data.packing.plan import PackingPlan
from brine.model.transformer import Transformer
from brine.pipeline.model_stages import selection_settings
from brine.salt.selection import require_selected, score_documents
from brine.training.checkpoint.checkpoint import load_weights
from brine.training.logging.compute_cost import CostAccounting

if TYPE_CHECKING:
    from brine.pipeline.run import Pipeline


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
        scores.save(folder, kept=kept)
        compute_cost.save(folder / "ledger.json")
        return {"kept": scores.document[kept].tolist()}

    stage = run.stage(
        "select", build, config=selection_settings(run.recipe), inputs=[*run.corpus_stages, "small"],
        output_names=("scores.npz", "selection.jsonl", "ledger.json"),
    )  # fmt: skip
    return stage.result["kept"]
