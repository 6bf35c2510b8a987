"""One small corpus of every kind, built once: 35 documents, decoded by two servers."""

import shutil

import pytest

from brine.data.config import EncodeConfig
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.tokenizer import Tokenizer, train_tokenizer
from tests.data.media_files import film, line, manifest, picture, sound
from tests.data.media_formats import made

WORDS = "the quick brown fox imports numpy as np and returns self.value from a dictionary of lists "


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([WORDS * 20], 300)


@pytest.fixture(scope="session")
def config() -> EncodeConfig:
    return EncodeConfig(max_image_tokens=64, max_video_tokens=256, max_video_s=30.0, max_audio_s=10.0)


@pytest.fixture(scope="session")
def manifest_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    lines = []
    for number in range(10):
        split = "validation" if number == 9 else "train"
        fields = {"split": split, "level": number % 3, "source": "made"}
        picture(root / f"media/{number}.png", 20 + 13 * number, 16 + 7 * number, seed=number)
        lines.append(
            line(f"shot-{number}", {"image": f"media/{number}.png"}, WORDS[: 10 + number], kind="screenshot", **fields)
        )
        sound(root / f"media/{number}.wav", 0.2 + 0.3 * number, rate=8000 if number % 2 else 22050, seed=number)
        lines.append(
            line(f"word-{number}", {"audio": f"media/{number}.wav"}, WORDS[5 : 20 + number], kind="narration", **fields)
        )
        lines.append(line(f"text-{number}", WORDS * (1 + number), kind="text", **fields))
        if number % 3 == 0:
            film(root / f"media/{number}.mp4", 1.5 + 0.5 * number, tone_s=1.0 if number else 0.0)
            lines.append(
                line(f"film-{number}", {"video": f"media/{number}.mp4"}, WORDS[:12], kind="recording", **fields)
            )
    lines.append(
        line(
            "page",
            "See ",
            {"image": "media/3.png"},
            "hear ",
            {"audio": "media/4.wav"},
            WORDS * 4,
            {"video": "media/3.mp4"},
            "end",
            kind="page",
        )
    )
    return manifest(root, lines)


@pytest.fixture(scope="session")
def corpus(manifest_path, tmp_path_factory, tokenizer, config) -> EncodedCorpus:
    folder = tmp_path_factory.mktemp("encoded") / "corpus"
    return build_corpus(manifest_path, folder, tokenizer=tokenizer, config=config, num_workers=2, shard_documents=8)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder with one image, one sound and one video."""
    root = tmp_path_factory.mktemp("material")
    picture(root / "m/a.png", 40, 24)
    picture(root / "m/b.png", 20, 20, seed=1)
    sound(root / "m/s.wav", 0.4)
    film(root / "m/v.mp4", 1.0)
    return root


@pytest.fixture()
def room(material, tmp_path):
    """The same in a folder that a test may write to."""
    return shutil.copytree(material, tmp_path / "room")


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    pytest.importorskip("av", reason="PyAV makes the films")
    return made(tmp_path_factory.mktemp("films"))
