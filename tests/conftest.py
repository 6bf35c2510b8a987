"""A model that is tiny in every number but has both kinds of layer and all modalities, and documents to read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brine.data.config import EncodeConfig
from brine.data.sequence import FIELDS, EncodedDocument
from brine.data.tokenizer import MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID, train_tokenizer
from brine.inference.load import save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from tests.acceptance.record import pytest_runtest_logreport, pytest_sessionfinish

__all__ = ["pytest_runtest_logreport", "pytest_sessionfinish"]

ENCODE = EncodeConfig(patch_size=4, mel_bins=16)
CONFIG = ModelConfig(
    vocab_size=300,
    dim=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=64,
    window=8,
    global_every=2,
    image_dim=ENCODE.image_dim,
    audio_dim=ENCODE.audio_dim,
    video_dim=ENCODE.video_dim,
)


SLOW_FIXTURES = {"corpus", "planned"}
"""Fixtures that take seconds to build."""


def pytest_collection_modifyitems(items):
    """What asks for such a fixture is slow with it; `tests/acceptance` runs by `-m acceptance` alone."""
    for item in items:
        if item.path.parent.name == "acceptance":
            item.add_marker(pytest.mark.acceptance)
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tensors here are too small to share: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config():
    """4 layers, 2 of them global, a window of 8 that media blocks reach and overrun."""
    return CONFIG


def build(config=CONFIG, *, seed=0, **changes):
    """A model in fp64, so that equalities are those of mathematics, with no parameter at its special first value."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(replace(config, **changes), generator=generator).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # gains of 1 and biases of 0 hide mistakes
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
        # a head that speaks up: answers of an untrained model should not hang on the last bit
        model.head_weight.mul_(8.0)
    return model


@pytest.fixture
def make_model():
    """Factory of fp64 models; see `build`."""
    return build


def document(seed=0, *, head=5, picture=6, sound=7, film=12, tail=6):
    """A sequence of text, an image, a sound and a video (each left out at 0) and text again, with random contents."""
    rng = np.random.default_rng(seed)
    tokens, position, block, place, blocks = [], [], [], 0, 0
    counts = {"image": picture, "audio": sound, "video": film}

    def text(count):
        nonlocal place
        tokens.extend(rng.integers(20, 267, count))
        position.extend([place + i] * 3 for i in range(count))
        block.extend([0] * count)
        place += count

    def boundary(token):
        text(1)
        tokens[-1] = token

    text(head)
    for name, count in counts.items():
        if not count:
            continue
        boundary(MEDIA_START_ID[name])
        blocks += 1
        for i in range(count):
            tokens.append(MEDIA_TOKEN_ID[name])
            position.append([place, place + i // 3, place + i % 3] if name != "audio" else [place + i] * 3)
            block.append(blocks)
        place += count
        boundary(MEDIA_END_ID[name])
    text(tail)
    fields = {
        "token_ids": np.array(tokens),
        "position": np.array(position),
        "block": np.array(block),
        "loss_mask": np.ones(len(tokens)),
        "modality_context": np.zeros(len(tokens)),
        "image": rng.integers(0, 256, (picture, CONFIG.image_dim)),
        "audio": rng.uniform(-1, 1, (sound, CONFIG.audio_dim)),
        "video": rng.integers(0, 256, (film, CONFIG.video_dim)),
    }
    return EncodedDocument(**{name: value.astype(FIELDS[name]) for name, value in fields.items()}).validate()


@pytest.fixture
def make_document():
    """Factory of encoded documents; see `document`."""
    return document


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A run folder with one finished stage, as training leaves it."""
    run = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(["def f(x):\n    return x  # größer\n"] * 4, 280)
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.head_weight.mul_(12.0)
    save_model(run / "large_salt" / "model", model, encode_config=ENCODE, tokenizer=tokenizer)
    return run
