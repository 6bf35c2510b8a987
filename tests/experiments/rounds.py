"""A line of rounds that takes seconds: red and blue images with their names, some of them without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from brine.data.config import EncodeConfig
from brine.experiments.engines.local import LocalPool
from brine.experiments.rounds.driver import LineRun
from brine.experiments.rounds.line import RoundLine
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig
from brine.recipes.quick import quick
from brine.salt.audit import AuditConfig
from brine.salt.pseudo_label import PseudoLabelConfig
from brine.training.config import RuntimeConfig

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


def write_images(folder: Path, *, count: int, first: int, labelled: bool, mark: int = 0) -> Path:
    """A manifest of images; every fifth labelled one is held out. mark: makes each image another than all others."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + count):
        name = sorted(COLOURS)[number % 2]
        shade = np.full((16, 16, 3), COLOURS[name], np.uint8) + np.uint8(number % 30)
        if mark:
            shade[0, 0] = (mark, number // 256, number % 256)
        Image.fromarray(shade).save(folder / "media" / f"{number}.png")
        content: list[dict] = [{"type": "image", "image": f"media/{number}.png"}]
        content += [{"type": "text", "text": name}] if labelled else []
        split = "test" if labelled and number % 5 == 0 else "train"
        lines.append({"id": f"i{number}", "kind": "photo", "split": split, "content": content})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tiny_line(folder: Path, **changes) -> RoundLine:
    """Two seeds, a dozen steps, an audit that a model of nothing passes."""
    base = quick()
    model = ModelConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64, window=64)
    train = replace(
        base.large, model=model, num_steps=30, global_batch_size=4, micro_batch_size=4, warmup_steps=2,
        checkpoint_every=20, log_every=10, learning_rate=1e-2,
    )  # fmt: skip
    recipe = replace(
        base, large=replace(train, num_steps=12), small=train, arms=("baseline",),
        corpus=CorpusConfig(vocab_size=270, encode=EncodeConfig(max_image_tokens=16)),
        packing=PackingConfig(seq_len=64, image_budget=32, audio_budget=0, video_budget=0),
        evals=replace(base.evals, documents_per_cell=16, transcripts_per_cell=0, samples_per_cell=0, seq_len=64,
                      validation_per_cell=2, bootstrap_resamples=100),
        runtime=RuntimeConfig(compile=False, dtype="float32", device="cpu"),
    )  # fmt: skip
    options = {
        "base": recipe,
        "words": write_images(folder / "words", count=60, first=0, labelled=True),
        "unlabelled": write_images(folder / "more", count=20, first=100, labelled=False),
        "seeds": (0, 1),
        "audit": AuditConfig(fraction=0.4, aim=0.05, decides="characters", min_character_accuracy=0.2),
        "label": PseudoLabelConfig(min_confidence=-3.0, max_tokens=8),
    }
    return RoundLine(**options | changes)


def line_run(name: str, line: RoundLine, runs: Path, *, workers: int = 2, **options) -> LineRun:
    """A call that runs a line on this machine."""
    return LineRun(name, line, runs=runs, open_engine=lambda folder: LocalPool(workers), **options)


def write_line(path: Path, folder: Path, *, more: str = "") -> Path:
    """A file with the tiny line, as a user would write it. more: arguments of `tiny_line`."""
    text = (
        "from pathlib import Path\nfrom tests.experiments.rounds import *\n"
        "from brine.salt.self_play.config import SelfPlayConfig\n\n\n"
        f"def {path.stem}():\n    return tiny_line(Path({str(folder)!r}){', ' + more if more else ''})\n"
    )
    path.write_text(text, encoding="utf-8")
    return path
