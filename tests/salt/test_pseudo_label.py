"""Self-training: words of a tiny model, their confidence against brute force, and what is kept of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from brine.data.config import EncodeConfig
from brine.data.corpus.readers import read_manifest
from brine.data.document import Text
from brine.data.tokenizer import EOS_ID, train_tokenizer
from brine.inference.load import load, save_model
from brine.inference.prompt import batch_prompts
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.salt.pseudo_label import PseudoLabelConfig, pseudo_label, read_confidences
from brine.training.logging.compute_cost import CostAccounting
from tests.batches import followed_by

ENCODE = EncodeConfig(patch_size=4, mel_bins=16)
CONFIG = ModelConfig(
    vocab_size=290, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, window=16,
    global_every=2, image_dim=ENCODE.image_dim, audio_dim=ENCODE.audio_dim, video_dim=ENCODE.video_dim,
)  # fmt: skip
MAX_TOKENS, MIN = 8, -0.85


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors here are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A random model whose answers end at different lengths."""
    folder = tmp_path_factory.mktemp("model") / "small"
    tokenizer = train_tokenizer(["the words of a model that knows nothing\n"] * 3, 280)
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        model.head_weight.mul_(14.0)
        # bytes of text only, so that most answers are whole characters, and an end token that is often likely
        model.head_weight[11 + 128 :] *= 0.3
        model.head_weight[EOS_ID] *= 2.4
    save_model(folder, model, encode_config=ENCODE, tokenizer=tokenizer)
    return load(folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """24 images without words, and documents that are to be passed over or cannot be asked."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "media").mkdir()
    lines = []
    for n in range(24):
        pixels = np.random.default_rng(n).integers(0, 256, (4 + 4 * (n % 3), 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"media/{n}.png")
        content = [{"type": "image", "image": f"media/{n}.png"}]
        lines.append({"id": f"p{n}", "kind": "photo", "level": n % 2, "source": "made", "content": content})
    picture = {"type": "image", "image": "media/0.png"}
    lines += [
        {"id": "worded", "content": [{"type": "text", "text": "What? ", "loss_mask": False}, picture,
                                     {"type": "text", "text": "old words"}]},
        {"id": "held", "split": "test", "content": [picture]},
        {"id": "text", "content": [{"type": "text", "text": "no medium"}]},
        {"id": "gone", "content": [{"type": "image", "image": "media/gone.png"}]},
        {"id": 7, "content": [picture]},
    ]  # fmt: skip
    path = root / "manifest.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def brute_force(loaded, picture) -> tuple[list[int], float]:
    """Greedy ids and their mean log-probability: a whole forward for each token, nothing batched."""
    prompt = loaded.encode([picture])
    inputs = batch_prompts([prompt])
    ids, total = [], 0.0
    while len(ids) < MAX_TOKENS:
        logits = (loaded.model(inputs)[0, -1] @ loaded.model.head_weight.T).double()
        allowed = logits.clone()
        allowed[[n for n in range(11) if n != EOS_ID]] = -torch.inf
        allowed[loaded.tokenizer.vocab_size :] = -torch.inf
        token = int(allowed.argmax())
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
        if token == EOS_ID:
            break
        inputs = followed_by(inputs, [token])
    return ids, total / len(ids)


@pytest.mark.slow
def test_words_and_confidence_equal_brute_force(loaded, manifest):
    out = manifest.parent / "all.jsonl"
    compute_cost = CostAccounting()
    config = PseudoLabelConfig(min_confidence=MIN, max_tokens=MAX_TOKENS, batch_size=5)
    counts = pseudo_label(loaded, manifest, out, config=config, compute_cost=compute_cost)
    predictions = {line["id"]: line for line in lines_of(out.with_name("all.predictions.jsonl"))}
    whys = set()
    for n in range(24):
        ids, confidence = brute_force(loaded, manifest.parent / f"media/{n}.png")
        found = predictions[f"p{n}-pseudo"]
        assert found["text"] == loaded.tokenizer.decode(ids) and found["tokens"] == len(ids)
        assert found["confidence"] == pytest.approx(confidence, abs=1e-4)
        if ids[-1] != EOS_ID:
            expected = "unfinished"
        elif not found["text"].strip():
            expected = "empty"
        elif "\ufffd" in found["text"]:
            expected = "broken"
        else:
            expected = "" if confidence >= MIN else "unsure"
        assert found["reason"] == expected and found["kept"] == (not expected)
        whys.add(expected)
    assert {"", "unfinished", "unsure"} <= whys, "the model should give answers of every sort"
    assert "gone.png" in predictions["gone-pseudo"]["reason"] and predictions["gone-pseudo"]["confidence"] is None
    passed_over = {"held_out": 1, "has_text": 1, "no_media": 1, "quarantined": 1}
    assert {name: counts[name] for name in passed_over} == passed_over
    assert counts["read"] == 29 and counts["prompted"] == 25 == len(predictions)
    assert counts["kept"] == sum(line["kept"] for line in predictions.values())
    assert compute_cost.flops["labelling"] > 0 and sum(compute_cost.flops.values()) == compute_cost.flops["labelling"]


def test_labelled_manifest_is_read_like_any_other(loaded, manifest):
    """The kept documents are whole: words as target behind the medium, files found from a folder above."""
    out = manifest.parent.parent / "labelled.jsonl"
    counts = pseudo_label(loaded, manifest, out, config=PseudoLabelConfig(min_confidence=MIN, max_tokens=MAX_TOKENS))
    documents = list(read_manifest(out))
    predictions = out.with_name("labelled.predictions.jsonl")
    kept = [line for line in lines_of(predictions) if line["kept"]]
    assert len(documents) == len(kept) == counts["kept"] > 0
    for document, line in zip(documents, kept, strict=True):
        number = int(document.id.removeprefix("p").removesuffix("-pseudo"))
        assert document.kind == "photo-pseudo" and document.level == number % 2 and document.source == "made"
        picture, text = document.parts
        assert text == Text(line["text"], loss_mask=True)
        assert (out.parent / picture.path).resolve() == manifest.parent / f"media/{number}.png"
    column = read_confidences(predictions, [*(document.id for document in documents), "another"])
    assert column[:-1].tolist() == [line["confidence"] for line in kept] and np.isnan(column[-1])
    summary = json.loads(out.with_name("labelled.summary.json").read_text())
    assert summary["counts"] == counts and summary["config"]["max_tokens"] == MAX_TOKENS


@pytest.mark.slow
def test_text_is_replaced_by_choice_and_twice_is_the_same(loaded, manifest):
    files = []
    for name in ("one", "two"):
        out = manifest.parent / f"{name}.jsonl"
        config = PseudoLabelConfig(min_confidence=-99.0, max_tokens=MAX_TOKENS, replace_text=True)
        counts = pseudo_label(loaded, manifest, out, config=config)
        assert "has_text" not in counts and counts["prompted"] == 26 and "unsure" not in counts
        files.append([out.read_bytes(), out.with_name(f"{name}.predictions.jsonl").read_bytes()])
    assert files[0] == files[1]
    predictions = {line["id"]: line for line in lines_of(manifest.parent / "one.predictions.jsonl")}
    assert "old words" not in predictions["worded-pseudo"]["text"]
    for document in read_manifest(manifest.parent / "one.jsonl"):
        if document.id == "worded-pseudo":
            assert document.parts[0] == Text("What? ", loss_mask=False) and len(document.parts) == 3


def test_what_cannot_be_is_refused(loaded, manifest, tmp_path):
    with pytest.raises(ValueError, match="must lie in"):
        pseudo_label(loaded, manifest, tmp_path / "elsewhere.jsonl")
    with pytest.raises(ValueError, match="give another name"):
        pseudo_label(loaded, manifest, manifest)
    with pytest.raises(ValueError, match="at most 0"):
        PseudoLabelConfig(min_confidence=0.5)
    with pytest.raises(ValueError, match="does not exist"):
        pseudo_label(loaded, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out.jsonl"))
