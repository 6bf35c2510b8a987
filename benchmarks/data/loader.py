"""Does data loading slow training down? The demo's large model on sequences from the loader, against one batch
repeated.

A round is `steps` optimizer steps on fresh sequences, loaded as `train.py` loads them (from the cache of patches, no
workers), then as many on one batch repeated, the last of those just loaded: sequences differ in what attention costs,
and so both halves of a round meet like work. The ratio of their rates is taken within rounds. A step is what the
training loop does between two lines of its log, made of the training package's own pieces.

The corpus is the demo's mix of kinds and levels at a fiftieth of its size, kept in a temporary folder and used again.
Making it takes a minute; sequences repeat its documents, which changes nothing here, as everything is in the page cache
in either case. Compilation, the first steps and the corpus are outside the clock.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.measure import spread
from brine.common.files import to_plain
from brine.data.config import EncodeConfig
from brine.data.corpus.readers import iter_texts, read_manifest
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.loader import Loader
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import train_tokenizer
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.recipes.demo import demo
from brine.synth import SynthConfig, SynthCounts, build_synth_corpus
from brine.training.config import TrainConfig
from brine.training.gradients import FlatGradients
from brine.training.micro_batch import micro_batches
from brine.training.optimizer import Optimizer
from brine.training.parallel.distributed import World
from brine.training.runtime import apply_runtime, compile_blocks, resolve_runtime
from brine.training.step import accumulate, clip

WARM_STEPS = 3
FEW = SynthCounts(text=1, screenshot=(2, 0, 0, 0), narration=(1, 0, 0, 0), recording=(1, 0, 0, 0), page=(0, 0, 0, 0))
FIFTIETH = SynthCounts(
    text=2, screenshot=(520, 14, 1, 0), narration=(100, 6, 1, 1), recording=(60, 2, 1, 0), page=(1, 1, 0, 0)
)


def setting(quick: bool) -> Recipe:
    """The demo with a smaller corpus; for `quick` a toy that holds text alone."""
    if not quick:
        recipe = demo()
        synth_config = SynthConfig(train=FIFTIETH, validation=FEW, test=FEW)
        return dataclasses.replace(recipe, corpus=dataclasses.replace(recipe.corpus, synth=synth_config))
    shape = ModelConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, window=None)
    train = TrainConfig(model=shape, global_batch_size=2, micro_batch_size=2)
    packing = PackingConfig(seq_len=64, image_budget=0, audio_budget=0, video_budget=0)
    return Recipe(corpus=CorpusConfig(vocab_size=270), packing=packing, small=train, large=train)


def open_corpus(recipe: Recipe, quick: bool) -> EncodedCorpus:
    """The corpus of a setting, made where it is not there yet. Raises ValueError where it cannot be made."""
    config = recipe.corpus
    name = hashlib.sha256(json.dumps(to_plain(config), sort_keys=True, default=str).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"brine-benchmark-data-{name}{'-quick' * quick}"
    manifest = folder / "made" / "manifest.jsonl"
    if quick:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"id": str(n), "content": [{"type": "text", "text": "a b c " * (5 + n)}]} for n in range(20)]
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    elif not manifest.is_file():
        build_synth_corpus(config.synth, manifest.parent, progress=False)
    tokenizer = train_tokenizer(iter_texts(read_manifest(manifest)), config.vocab_size)
    encode = EncodeConfig() if quick else config.encode
    return build_corpus(manifest, folder / "store", tokenizer=tokenizer, config=encode, num_workers=1)


class LoaderTrainer:
    """The large model of a recipe and one optimizer step of it."""

    def __init__(self, recipe: Recipe, *, num_kinds: int, threads: int):
        runtime = resolve_runtime(dataclasses.replace(recipe.runtime, num_threads=threads))
        apply_runtime(runtime)
        self.config, self.runtime, self.world = recipe.large, runtime, World()
        self.model = Transformer(self.config.model, generator=torch.Generator().manual_seed(self.config.seed)).train()
        if runtime.compile:
            compile_blocks(self.model)
        self.optimizer = Optimizer(self.model, self.config)
        self.gradients = FlatGradients(self.optimizer.parameters)
        self.kinds = tuple(str(number) for number in range(num_kinds))

    def step(self, batches: list) -> float:
        """One step on the micro-batches given; returns the seconds it waited for them."""
        result = accumulate(
            self.model,
            micro_batches(batches, device=self.runtime.device, model=self.model),
            step=0,
            config=self.config,
            runtime=self.runtime,
            world=self.world,
            gradients=self.gradients,
            num_batches=self.config.global_batch_size // self.config.micro_batch_size,
            kinds=self.kinds,
            distillation=None,
            stop=False,
        )
        clip(self.gradients, grad_norm=result.grad_norm, limit=self.config.grad_clip)
        # a rate of nearly nothing: weights that run away would change what the arithmetic costs
        self.optimizer.step(1e-9)
        return result.data_s


def measure(case: str, *, quick: bool, threads: int, rounds: int, steps: int) -> dict[str, Any]:
    """The case's part of the record. Raises ValueError where the corpus cannot be made."""
    recipe = setting(quick)
    corpus = open_corpus(recipe, quick)
    recipe = recipe.resolved(corpus.tokenizer.vocab_size)
    large = recipe.large
    if large.micro_batch_size != large.global_batch_size:
        raise ValueError("this case is written for steps of one batch: give micro_batch_size = global_batch_size")
    num_steps = WARM_STEPS + rounds * steps
    plan = PackingPlan.build(
        corpus,
        seq_len=recipe.packing.seq_len,
        media_budget=recipe.packing.media_budget,
        num_sequences=num_steps * large.global_batch_size,
        seed=recipe.seed,
        blank_fraction=recipe.packing.blank_fraction,
    )
    trainer = LoaderTrainer(recipe, num_kinds=len(corpus.kinds), threads=threads)
    batches = iter(Loader(corpus, plan, local_batch_size=large.global_batch_size))
    last: list = []

    def fresh():
        last[:] = [next(batches)]
        yield last[0]

    def half(source) -> tuple[float, float]:
        start, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            waited += trainer.step(source())
        return time.perf_counter() - start, waited

    for _ in range(WARM_STEPS):
        trainer.step(fresh())
    loaded_s, repeated_s, waits = [], [], []
    for _ in range(rounds):
        loaded, waited = half(fresh)
        repeated, _ = half(lambda: last)
        loaded_s.append(loaded / steps)
        repeated_s.append(repeated / steps)
        waits.append(waited / loaded)
    ratios = [repeated / loaded for loaded, repeated in zip(loaded_s, repeated_s, strict=True)]
    return {
        "case": case,
        "global_batch_size": large.global_batch_size,
        "seq_len": recipe.packing.seq_len,
        "parameters": trainer.model.num_parameters(),
        "threads": threads,
        "compile": trainer.runtime.compile,
        "dtype": trainer.runtime.dtype,
        "rounds": rounds,
        "steps_a_round": steps,
        "step_s": {"loader": spread(loaded_s), "one batch repeated": spread(repeated_s)},
        "data_wait_fraction": spread(waits),
        "rate_over_repeated": spread(ratios),
    }


def show(result: dict[str, Any]) -> str:
    """The case for the console."""
    step_s, ratio = result["step_s"], result["rate_over_repeated"]
    return (
        f"\n{result['case']}: {result['parameters']:,} parameters, "
        f"{result['global_batch_size']} packed sequences of {result['seq_len']} tokens\n"
        f"  a step takes {step_s['loader']['median']:.4f} s with the loader, "
        f"{step_s['one batch repeated']['median']:.4f} s on one batch repeated\n"
        f"  training rate with the loader over that: {ratio['median']:.3f} ({ratio['p20']:.3f} .. {ratio['p80']:.3f}); "
        f"waiting for data: {result['data_wait_fraction']['median']:.1%}"
    )
