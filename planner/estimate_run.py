"""`brine train --dry-run`: parameters, tokens, FLOPs and estimated time of a recipe on this machine.

FLOPs are counted from shapes, and divided by the processor's peak of matmuls times the fraction of it that
models of that width reach. Seconds that do not follow from shapes (start, compilation, rendering) were measured once on
two idle cores, with the recipes `demo` and `quick`. It tells minutes from hours; other work on the machine, and what
activation checkpointing recomputes, are not counted.
"""

import time
from dataclasses import dataclass

import torch

from brine.common.formatting import count, duration
from brine.common.processes import usable_cores
from brine.model.config import ModelConfig
from brine.model.device import resolve_device, supports_bfloat16
from brine.model.flops import forward_flops, matrix_parameters, num_causal_pairs
from brine.pipeline.model_stages import model_stages_of
from brine.pipeline.recipe import Recipe
from brine.synth.config import KINDS, SynthCounts
from brine.training.config import RuntimeConfig, TrainConfig
from brine.training.logging.device_specs import MEASURED, find_peak
from brine.training.runtime import Runtime, check_backends, find_compiler

NARROW_MFU, WIDE_MFU = 0.33, 0.45
"""Model FLOP utilisation of models narrower than 192, and of the others."""
START_S = 24.0
"""Imports, and a trial compilation."""
COMPILE_S = 15.0
"""Compilation of a model's blocks; a second model of the same shape finds the code in torch's cache."""
CORPUS_S, SOURCE_FILE_S, ALL_FILES = 5.0, 0.01, 600
"""The tokenizer; reading one source file; files where the recipe does not limit them (the standard library)."""
IDLE_CPU_FRACTION = 0.8
"""Fraction of its threads' time that a measurement gets on an idle processor, at least."""
DECODE_STEP_S = 0.002
DOCUMENTS_PER_S = {"text": 500.0, "screenshot": 1500.0, "narration": 200.0, "recording": 120.0, "page": 60.0,
         "package": 60.0, "table": 120.0, "chart": 34.0, "screen": 140.0}  # fmt: skip
"""Documents of a kind rendered and encoded in a second on two cores."""
NEEDLE_DOCUMENTS_PER_S = 34.0


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a run: its time, and a description of its contents."""

    name: str
    seconds: float
    contents: str = ""


def estimate_run(recipe: Recipe) -> str:
    """A few lines for a person: what each stage holds and about how long it takes.

    Raises ValueError for a device or a backend that the run would refuse here.
    """
    runtime = _runtime(recipe.runtime)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    peak = find_peak(runtime.device, runtime.dtype)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    stages = estimate_stages(recipe, flops_per_s=peak.flops_per_s, compiled=runtime.compile)
    where = f"{runtime.num_threads} threads" if runtime.device == "cpu" else runtime.device
    lines = [f"recipe {recipe.name}: {where}, {runtime.dtype}"]
    for stage in stages:
        takes = f"about {duration(stage.seconds)}" if stage.seconds else "time depends on its documents"
        lines.append(f"  {stage.name:<15} {stage.contents}{': ' if stage.contents else ''}{takes}")
    timed = ", at the speed measured now" if peak.source == MEASURED else ""
    if timed and runtime.device == "cpu" and cpu_s < IDLE_CPU_FRACTION * wall_s * torch.get_num_threads():
        timed += " beside other processes (shorter on an idle machine)"
    return "\n".join([*lines, f"  {'in all':<15} about {duration(sum(stage.seconds for stage in stages))}{timed}"])


def estimate_stages(recipe: Recipe, *, flops_per_s: float, compiled: bool) -> list[StageEstimate]:
    """The stages that the recipe runs, in order; flops_per_s: peak of matmuls. 0 seconds: not known."""
    recipe = recipe.resolved(recipe.corpus.vocab_size)
    stages = [StageEstimate("start", START_S), _corpus(recipe)]
    names, compiled_models = model_stages_of(recipe), set()
    for name in names:
        train = recipe.small if name == "small" else recipe.large
        kd_steps = recipe.salt.num_kd_steps(train.num_steps) if name == "large_salt" else 0
        sequences, flops = train.num_steps * train.global_batch_size, 3 * sequence_flops(recipe, train.model)
        taught = kd_steps * train.global_batch_size * sequence_flops(recipe, recipe.small.model)
        seconds = sequences * flops / (flops_per_s * _utilisation(train.model))
        seconds += taught / (flops_per_s * _utilisation(recipe.small.model))
        seconds += COMPILE_S * (compiled and train.model not in compiled_models)
        compiled_models.add(train.model)
        tokens = count(sequences * recipe.packing.seq_len)
        contents = (
            f"{count(matrix_parameters(train.model))} matrix parameters, {tokens} tokens in {train.num_steps} steps, "
            f"{count(sequences * flops + taught)} FLOP"
        )
        stages.append(StageEstimate(name, seconds + _validation_s(recipe, train, flops_per_s), contents))
    return [*stages, StageEstimate("evaluation", _evaluation_s(recipe, names, flops_per_s))]


def _corpus(recipe: Recipe) -> StageEstimate:
    if recipe.corpus.manifest is not None:
        return StageEstimate("corpus", 0.0, str(recipe.corpus.manifest))
    if not recipe.corpus.uses_synth:
        return StageEstimate("corpus", 0.0, " + ".join(source.name for source in recipe.corpus.sources))
    synth = recipe.corpus.synth
    splits = [synth.counts(split) for split in ("train", "validation", "test")]
    numbers = {kind: sum(sum(split.by_level(kind).values()) for split in splits) for kind in KINDS}
    seconds = CORPUS_S + SOURCE_FILE_S * min(synth.max_files or ALL_FILES, ALL_FILES)
    seconds += sum(number / DOCUMENTS_PER_S.get(kind, NEEDLE_DOCUMENTS_PER_S) for kind, number in numbers.items())
    made = ", ".join(f"{count(number)} {kind}" for kind, number in numbers.items() if number)
    return StageEstimate("corpus", seconds, made)


def _cells(recipe: Recipe, split: str, per_cell: int) -> int:
    """Documents that a measurement takes of a split; of a given corpus one cell, since its cells are not known."""
    if recipe.corpus.manifest is not None or recipe.corpus.sources:
        return per_cell
    counts: SynthCounts = recipe.corpus.synth.counts(split)
    return sum(min(per_cell, number) for kind in KINDS for number in counts.by_level(kind).values())


def _validation_s(recipe: Recipe, train: TrainConfig, flops_per_s: float) -> float:
    times = max(1, train.num_steps // train.validate_every if train.validate_every else 1)
    passes = times * _cells(recipe, "validation", recipe.evals.validation_per_cell)
    return passes * sequence_flops(recipe, train.model) / (flops_per_s * _utilisation(train.model))


def _evaluation_s(recipe: Recipe, names: list[str], flops_per_s: float) -> float:
    """Every model reads the documents; the main one twice more without their media, and transcribes some."""
    evals, seconds = recipe.evals, 0.0
    documents = _cells(recipe, evals.split, evals.documents_per_cell)
    for name in names:
        model = recipe.small.model if name == "small" else recipe.large.model
        passes = documents * (3 if name == names[-1] else 1)
        seconds += passes * sequence_flops(recipe, model) / (flops_per_s * _utilisation(model))
    batches = -(-_cells(recipe, evals.split, evals.transcripts_per_cell) // evals.decode_batch_size)
    return seconds + batches * evals.max_new_tokens * DECODE_STEP_S


def sequence_flops(recipe: Recipe, model: ModelConfig) -> int:
    """FLOPs of one forward pass over a packed sequence: one document, with as many patches as a batch has space for."""
    length = recipe.packing.seq_len
    return forward_flops(
        model, num_tokens=length, local_pairs=num_causal_pairs(length, model.window),
        global_pairs=num_causal_pairs(length), num_patches=recipe.packing.media_budget,
    )  # fmt: skip


def _utilisation(model: ModelConfig) -> float:
    return NARROW_MFU if model.dim < 192 else WIDE_MFU


def _runtime(config: RuntimeConfig) -> Runtime:
    """Device, threads and precision as they will be; whether the compiler works is not tried here."""
    device = resolve_device(config.device).type
    check_backends(config, device)
    able, _ = supports_bfloat16(device)
    return Runtime(
        device=device,
        dtype=config.dtype if config.dtype != "auto" else "bfloat16" if able else "float32",
        compile=find_compiler(device) is not None if config.compile == "auto" else bool(config.compile),
        num_threads=config.num_threads or usable_cores(),
    )
