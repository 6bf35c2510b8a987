"""Documents of all four modalities, small enough to be made and encoded within a second or two, and models of them."""

import shutil

import torch

from brine.data.config import EncodeConfig
from brine.data.tokenizer import train_tokenizer
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.inference.load import save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from tests.data.media_files import film, line, manifest, picture, sound

ENCODE = EncodeConfig(patch_size=8, mel_bins=16)
SMALL = SuiteConfig(per_cell=4, timing=False)


def make_source(folder, *, count=12, first=0):
    """`count` documents each of images, sounds and notes, half as many films; every fourth is of the training split."""
    lines = []
    for number in range(first, first + count):
        text = f"a heron by the water, number {number}" + "!" * (number % 5)
        split = ("train", "test", "validation", "test")[number % 4]
        picture(folder / f"{number}.png", 17, 9, seed=number)
        sound(folder / f"{number}.wav", 0.2, seed=number)
        lines.append(line(f"pic {number}", {"image": f"{number}.png"}, text, kind="pic", level=1, split=split))
        lines.append(line(f"say {number}", "Listen: ", {"audio": f"{number}.wav"}, text, kind="say", split=split))
        lines.append(line(f"note {number}", f"note: {text}", kind="note", split=split))
        if number % 2:
            # the grey of its frames differs with its length
            film(folder / f"{number}.mp4", 0.5 + 0.1 * (number % 7), width=16, height=16)
            lines.append(line(f"film {number}", {"video": f"{number}.mp4"}, text, kind="film", split=split))
    manifest(folder, lines)
    return folder


def make_model(folder, *, seed=0, vocab_size=280, encode=ENCODE):
    """A run folder with one model of random weights."""
    tokenizer = train_tokenizer(["a heron by the water, number " * 3] * 4, vocab_size)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16,
        image_dim=encode.image_dim, audio_dim=encode.audio_dim, video_dim=encode.video_dim,
    )  # fmt: skip
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    save_model(folder / "large_baseline" / "model", model, encode_config=encode, tokenizer=tokenizer)
    return folder


def text_suite(root, texts, *, name="words", config=SMALL, kind="note", like=None):
    """A suite of plain texts, all held out."""
    source = root / "source"
    shutil.rmtree(source, ignore_errors=True)
    manifest(source, [line(f"t{number}", text, kind=kind, split="test") for number, text in enumerate(texts)])
    return make_suite(name, [source], config, root=root / "suites", like=like, workers=1)
