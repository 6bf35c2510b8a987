"""Self-training: words of a tiny model, their confidence against brute force, and what is kept of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.config import EncodeConfig
from data.document import Text
from data.readers import read_manifest
from data.tokenizer import END_ID, train_tokenizer
from model import ModelConfig, Transformer, load, save_model
from model.prompt import batch_prompts
from salt.pseudo import PseudoConfig, confidences, pseudo_label
from training.ledger import Ledger

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
        model.head_weight[END_ID] *= 2.4
    save_model(folder, model, encode_config=ENCODE, tokenizer=tokenizer)
    return load(folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """24 pictures without words, and documents that are to be passed over or cannot be asked."""
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
        {"id": "worded", "content": [{"type": "text", "text": "What? ", "learn": False}, picture,
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
    place, ids, total = inputs["position"][0, -1].max(), [], 0.0
    while len(ids) < MAX_TOKENS:
        logits = (loaded.model(**inputs)[0, -1] @ loaded.model.head_weight.T).double()
        allowed = logits.clone()
        allowed[[n for n in range(11) if n != END_ID]] = -torch.inf
        allowed[loaded.tokenizer.vocab_size :] = -torch.inf
        token = int(allowed.argmax())
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
        if token == END_ID:
            break
        place = place + 1
        zero = torch.zeros(1, 1, dtype=torch.int32)
        more = {
            "token_ids": torch.tensor([[token]]),
            "position": place.expand(1, 1, 3),
            "document": zero,
            "block": zero,
        }
        inputs |= {name: torch.cat([inputs[name], value], dim=1) for name, value in more.items()}
    return ids, total / len(ids)


def test_words_and_confidence_equal_brute_force(loaded, manifest):
    out = manifest.parent / "all.jsonl"
    ledger = Ledger()
    config = PseudoConfig(min_confidence=MIN, max_tokens=MAX_TOKENS, batch_size=5)
    counts = pseudo_label(loaded, manifest, out, config=config, ledger=ledger)
    judged = {line["id"]: line for line in lines_of(out.with_name("all.judged.jsonl"))}
    whys = set()
    for n in range(24):
        ids, confidence = brute_force(loaded, manifest.parent / f"media/{n}.png")
        found = judged[f"p{n}-pseudo"]
        assert found["words"] == loaded.tokenizer.decode(ids) and found["tokens"] == len(ids)
        assert found["confidence"] == pytest.approx(confidence, abs=1e-4)
        if ids[-1] != END_ID:
            expected = "unfinished"
        elif not found["words"].strip():
            expected = "empty"
        elif "\ufffd" in found["words"]:
            expected = "broken"
        else:
            expected = "" if confidence >= MIN else "unsure"
        assert found["why"] == expected and found["kept"] == (not expected)
        whys.add(expected)
    assert {"", "unfinished", "unsure"} <= whys, "the model should give answers of every sort"
    assert "gone.png" in judged["gone-pseudo"]["why"] and judged["gone-pseudo"]["confidence"] is None
    passed_over = {"held_out": 1, "has_text": 1, "no_media": 1, "quarantined": 1}
    assert {name: counts[name] for name in passed_over} == passed_over
    assert counts["read"] == 29 and counts["asked"] == 25 == len(judged)
    assert counts["kept"] == sum(line["kept"] for line in judged.values())
    assert ledger.flops["labelling"] > 0 and sum(ledger.flops.values()) == ledger.flops["labelling"]


def test_labelled_manifest_is_read_like_any_other(loaded, manifest):
    """The kept documents are whole: words as target behind the medium, files found from a folder above."""
    out = manifest.parent.parent / "labelled.jsonl"
    counts = pseudo_label(loaded, manifest, out, config=PseudoConfig(min_confidence=MIN, max_tokens=MAX_TOKENS))
    documents = list(read_manifest(out))
    judged = out.with_name("labelled.judged.jsonl")
    kept = [line for line in lines_of(judged) if line["kept"]]
    assert len(documents) == len(kept) == counts["kept"] > 0
    for document, line in zip(documents, kept, strict=True):
        number = int(document.id.removeprefix("p").removesuffix("-pseudo"))
        assert document.kind == "photo-pseudo" and document.level == number % 2 and document.source == "made"
        picture, words = document.parts
        assert words == Text(line["words"], learn=True)
        assert (out.parent / picture.path).resolve() == manifest.parent / f"media/{number}.png"
    column = confidences(judged, [*(document.id for document in documents), "another"])
    assert column[:-1].tolist() == [line["confidence"] for line in kept] and np.isnan(column[-1])
    summary = json.loads(out.with_name("labelled.summary.json").read_text())
    assert summary["counts"] == counts and summary["config"]["max_tokens"] == MAX_TOKENS


def test_text_is_replaced_by_choice_and_twice_is_the_same(loaded, manifest):
    files = []
    for name in ("one", "two"):
        out = manifest.parent / f"{name}.jsonl"
        config = PseudoConfig(min_confidence=-99.0, max_tokens=MAX_TOKENS, replace_text=True)
        counts = pseudo_label(loaded, manifest, out, config=config)
        assert "has_text" not in counts and counts["asked"] == 26 and "unsure" not in counts
        files.append([out.read_bytes(), out.with_name(f"{name}.judged.jsonl").read_bytes()])
    assert files[0] == files[1]
    judged = {line["id"]: line for line in lines_of(manifest.parent / "one.judged.jsonl")}
    assert "old words" not in judged["worded-pseudo"]["words"]
    for document in read_manifest(manifest.parent / "one.jsonl"):
        if document.id == "worded-pseudo":
            assert document.parts[0] == Text("What? ", learn=False) and len(document.parts) == 3


def test_what_cannot_be_is_refused(loaded, manifest, tmp_path):
    with pytest.raises(ValueError, match="must lie in"):
        pseudo_label(loaded, manifest, tmp_path / "elsewhere.jsonl")
    with pytest.raises(ValueError, match="give another name"):
        pseudo_label(loaded, manifest, manifest)
    with pytest.raises(ValueError, match="at most 0"):
        PseudoConfig(min_confidence=0.5)
    with pytest.raises(ValueError, match="does not exist"):
        pseudo_label(loaded, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out.jsonl"))
