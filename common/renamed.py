"""Names of settings and stored fields before version 0.2 and now, for `brine convert`, which rewrites older files.

A run folder or checkpoint that still has the previous names is rejected by `require_current_names`. Files that were
only renamed are read as they are (`current_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 2  # of checkpoints; those of before have no number
SETTINGS = {
    # packing and corpus
    "rows": "packing",
    "row_tokens": "seq_len",
    "max_left_out": "max_excluded_fraction",
    "workbench": "synth",
    "validation_share": "validation_fraction",
    "test_share": "test_fraction",
    "near_duplicate": "near_duplicate_threshold",
    "piece_bytes": "chunk_bytes",
    "package_kib": "package_text_kib",
    "num_name_parts": "narration_vocab_size",
    # training
    "rows_per_step": "global_batch_size",
    "micro_rows": "micro_batch_size",
    "keep_at": "keep_checkpoint_steps",
    "clean_steps": "rollback_margin_steps",
    "skip_steps": "rollback_skip_steps",
    "explosion_factor": "grad_norm_spike_factor",
    "spike_sigma": "loss_spike_sigma",
    "context_weights": "modality_context_weights",
    # runtime
    "context": "context_parallel",
    "shard": "dp_shard",
    "checkpointing": "activation_checkpointing",
    "checkpoint_layers": "ac_group_size",
    "mlp_tile": "mlp_tile_tokens",
    "loader_workers": "num_loader_workers",
    # salt and evaluation
    "weight": "distill_weight",
    "selection_keep": "selection_fraction",
    "early_fraction": "scoring_checkpoint_fraction",
    "min_learnable": "min_learnable_tokens",
    "rows_per_batch": "batch_size",
    "decode_batch": "decode_batch_size",
}
"""Fields of recipe.json, runtime.json, stage.json and done."""
INPUTS = {"rounds": "filter_log"}  # inputs of a stage, in stage.json and done
STATE = {"row": "sequence_index", "planned": "scheduled", "score": "val_loss", "ledger": "compute_cost"}
"""Fields of a checkpoint's state.json."""
METRICS = {"row": "sequence_index", "context": "modality_context", "data_wait": "data_wait_fraction"}
"""Fields of metrics.jsonl."""
EVENTS = {"row": "sequence_index", "skipped_rows": "skipped_sequences", "wall": "unix_time"}  # fields of events.jsonl
EVENT_NAMES = {"begun": "started", "document_failed": "document_load_failed"}
MODEL = {"trained_tokens": "trained_context_tokens"}  # fields of a saved model's config.json
SELECTION = {"why": "reason"}  # fields of selection.jsonl
CORPUS = {"reading": "reader_version"}  # fields of an encoded corpus's meta.json and building.json
CORPUS_COLUMNS = {"learn": "loss_mask", "context": "modality_context"}  # arrays of an encoded corpus
PLAN = {"row_tokens": "seq_len"}  # fields of a stored packing plan
EXCLUDED = {
    "of_documents": "total_documents",
    "of_tokens": "total_tokens",
    "row_tokens": "seq_len",
    "apart": "num_split_with_media",
}
"""Fields of excluded.json."""
FORMER_FILES = {
    "kept_stale.json": "stayed.json",
    "outputs.json": "made.json",
    "reader_notes.json": "told.json",
    "excluded.json": "left_out.json",
    "compute_cost.json": "ledger.json",
    "filter_log": "rounds",
}
"""Files and folders of runs, corpora and evaluations by their present name, with the former one."""


def current_file(path: Path) -> Path:
    """The path, or that of the file's former name where only this exists."""
    former = path.with_name(FORMER_FILES.get(path.name, path.name))
    return former if former.exists() and not path.exists() else path


def rename(value: Any, names: Mapping[str, str]) -> Any:
    """A copy of plain JSON with every key of `names` renamed, at any depth."""
    if isinstance(value, dict):
        return {names.get(key, key): rename(item, names) for key, item in value.items()}
    return [rename(item, names) for item in value] if isinstance(value, list) else value


def require_current_names(stage: Any, path: Path, *, convert: Path) -> None:
    """Raise ValueError where a stage's key was written before version 0.2; convert: the run folder to name."""
    config = stage.get("config") if isinstance(stage, dict) else None
    if isinstance(config, dict) and config.keys() & {"rows", "workbench", "row_tokens", "package_kib"}:
        raise older_format(path, convert)


def older_format(path: Path, convert: Path) -> ValueError:
    """The error for a file of an older format: one sentence with the remedy."""
    return ValueError(f"{path} was written by a version before 0.2: run `brine convert {convert}` first")
