"""A corpus that is learned in seconds: what a tone is called can only be heard, what a text says can only be learned.

Trainings of it are real runs of the pipeline, and their measurements real losses on held-out documents.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from brine.common.files import file_digest, read_jsonl, write_json
from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig, EvalTargets
from brine.evals.evaluate_on import evaluate_on
from brine.evals.measurement import Measurement, save_measurements
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.pipeline.run import run_pipeline
from brine.training.config import TrainConfig
from brine.training.runtime import RuntimeConfig
from tests.registry.fakes import SPECS, FakeSuite

NAMES = {"uvula": 300, "ostrich": 900, "kettle": 2000, "anthem": 4000}
"""What a tone is called, and its Hz."""
LINE = "the cat saw a small red house and then it ran over our green field to see you "
RATE = 16000
SUITE = FakeSuite(
    name="tones", digest="7" * 64, measures=(SPECS[0], SPECS[2]), guards=("gain.audio",), primary="bits_per_byte"
)


def write_corpus(folder: Path, *, silent: bool = False, part: str = "train", count: int = 96, seed: int = 0) -> Path:
    """A manifest of `count` tones and half as many texts; silent: the tones are blanked, their names stay."""
    rng = np.random.default_rng([seed, len(part)])
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        name = list(NAMES)[number % len(NAMES)]
        time = np.arange(RATE // 4) / RATE
        wave = 0.5 * np.sin(2 * np.pi * (NAMES[name] * rng.uniform(0.97, 1.03) * time + rng.uniform()))
        soundfile.write(folder / f"{number}.wav", np.zeros_like(wave) if silent else wave, RATE)
        content = [{"type": "audio", "audio": f"{number}.wav"}, {"type": "text", "text": f" {name}\n"}]
        lines.append({"id": f"{part}-tone-{number}", "kind": "tone", "content": content})
    for number in range(count // 2):
        # one order of words, begun anywhere
        start = int(rng.integers(len(LINE)))
        text = (LINE * 3)[start : start + 2 * len(LINE)] + "\n"
        lines.append({"id": f"{part}-text-{number}", "kind": "text", "content": [{"type": "text", "text": text}]})
    for number, line in enumerate(lines):
        line["split"] = part if part != "train" or number % 16 else "validation"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.jsonl"


def train_tones(runs: Path, name: str, manifest: Path, *, seed: int, num_steps: int) -> Path:
    """A real run: corpus, one large model, evaluation; all seeds of training moved together."""
    model = ModelConfig(dim=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=24, mlp_dim=96, window=64)
    train = TrainConfig(
        model=model, num_steps=num_steps, global_batch_size=8, micro_batch_size=8, learning_rate=1e-2, warmup_steps=5,
        checkpoint_every=1000, validate_every=0, seed=seed,
    )  # fmt: skip
    recipe = Recipe(
        name=name, seed=seed, arms=("baseline",), small=train, large=train,
        corpus=CorpusConfig(
            manifest=manifest, vocab_size=320,
            encode=EncodeConfig(mel_bins=32, max_image_tokens=64, max_video_tokens=64, max_video_s=2.0),
        ),
        packing=PackingConfig(seq_len=128, image_budget=0, audio_budget=96, video_budget=0, blank_fraction=0.2),
        evals=EvalConfig(
            documents_per_cell=16, transcripts_per_cell=0, validation_per_cell=4, seq_len=128,
            targets=EvalTargets(None, None, None, None, None),
        ),
        runtime=RuntimeConfig(compile=False, dtype="float32", num_threads=1, device="cpu"),
    )  # fmt: skip
    return run_pipeline(recipe, runs=runs)


def measure_tones(run: Path, held_out: Path, folder: Path) -> Path:
    """Bits per byte and the gain of audio on held-out documents, in the form in which suites are measured."""
    import torch

    config = EvalConfig(
        documents_per_cell=128, transcripts_per_cell=0, seq_len=128, bootstrap_resamples=100,
        targets=EvalTargets(None, None, None, None, None),
    )  # fmt: skip
    evaluate_on(run, held_out, folder / "out", config, device=torch.device("cpu"), workers=1)
    lines = read_jsonl(folder / "out" / "evaluate" / "documents.jsonl")
    matched = {line["id"]: line for line in lines if line["condition"] == "matched"}
    blank = {line["id"]: line for line in lines if line["condition"] == "blank audio"}
    bits = [(name, line["loss"] / np.log(2), line["bytes"]) for name, line in matched.items()]
    gain = [(name, matched[name]["loss"], line["loss"]) for name, line in blank.items()]

    def measurement(spec, rows, keep):
        rows = [row for row in rows if keep(int(row[0].rpartition("-")[2]))]
        return Measurement(
            spec, tuple(row[0] for row in rows), np.array([row[1] for row in rows], float),
            np.array([row[2] for row in rows], float),
        )  # fmt: skip

    # disjoint halves of the held-out documents
    halves = {"dev": lambda number: number // 4 % 2 == 0, "gate": lambda number: number // 4 % 2 == 1}
    parts = {
        part: {
            "bits_per_byte": measurement(SPECS[0], bits, keep),
            "gain.audio": measurement(SPECS[2], gain, keep),
        }
        for part, keep in halves.items()
    }
    save_measurements(folder / "measurements.jsonl", parts)
    weights = file_digest(run / "large_baseline" / "model" / "model.safetensors")
    identity = {"name": SUITE.name, "version": SUITE.version, "digest": SUITE.digest}
    said = {"weights": weights, "suite": identity, "precision": "float32", "machine": "this", "revision": 1}
    write_json(folder / "result.json", said)
    return folder
