"""Run folders and documents for the tests of the commands of the evals package."""

import json

import PIL.Image
import torch

from brine.data.config import EncodeConfig
from brine.data.tokenizer import train_tokenizer
from brine.inference.load import save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer

ENCODE = EncodeConfig(patch_size=4, mel_bins=16)
KINDS = {"pic": 6, "note": 5}


def make_run(folder, *, seeds=(0,), vocab_size=280):
    """A run folder with finished models of random weights."""
    tokenizer = train_tokenizer(["a heron by the water, " * 3] * 4, vocab_size)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16,
        image_dim=ENCODE.image_dim, audio_dim=ENCODE.audio_dim, video_dim=ENCODE.video_dim,
    )  # fmt: skip
    for seed, stage in zip(seeds, ("large_baseline", "small"), strict=False):
        model = Transformer(config, generator=torch.Generator().manual_seed(seed))
        save_model(folder / stage / "model", model, encode_config=ENCODE, tokenizer=tokenizer)
    evals = {"documents_per_cell": 3, "seq_len": 128, "bootstrap_resamples": 100, "targets": {"image_gain": 0.9}}
    (folder / "recipe.json").write_text(json.dumps({"name": folder.name, "evals": evals}))
    return folder


def make_documents(folder):
    """Images with words, and words, of all splits, and one that cannot be used."""
    folder.mkdir()
    lines = []
    for number in range(sum(KINDS.values())):
        text = {"type": "text", "text": f"a heron by water number {number} " + "and again " * (number % 3)}
        content = [text]
        if number < KINDS["pic"]:
            PIL.Image.new("RGB", (12, 8), (number * 40, 90, 9)).save(folder / f"{number}.png")
            content = [{"type": "image", "image": f"{number}.png"}, text]
        kind = "pic" if number < KINDS["pic"] else "note"
        split = ("train", "validation", "test")[number % 3]
        lines.append({"id": f"d{number}", "kind": kind, "split": split, "content": content})
    lines.append({"id": "gone", "kind": "pic", "content": [{"type": "image", "image": "gone.png"}]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


ARGUMENTS = ["--workers", "1", "--device", "cpu", "--dtype", "float32"]


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])
