"""The same bytes whatever the threads and processes; the same numbers on other machines, held against stored ones.

`golden.json` holds hashes of ids, places and plan, which must be equal everywhere, and sums and single values of pixels
and mel, which must be equal within 1e-4. After a deliberate change, `python tests/data/corpus/test_determinism.py`
(from the repository's root, with it on PYTHONPATH) writes it anew. Video is left out of the stored part: its files come
from an encoder whose versions differ.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from brine.data.batch import counter_generator, make_batch
from brine.data.config import EncodeConfig
from brine.data.corpus.readers import read_manifest
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.document import MODALITIES
from brine.data.encode import encode
from brine.data.media.audio import mel_tokens, resample
from brine.data.packing.plan import PackingPlan
from brine.data.sequence import FIELDS, TOKEN_FIELDS
from brine.data.tokenizer import Tokenizer, train_tokenizer
from brine.model.embed import floats
from tests.data.media_files import line, manifest, noise
from tests.data.resume_worker import Speckle
from tests.paths import ROOT

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("golden.json")
WORDS = "def area(width, height):\n    return width * height  # naïve, ½ of it\n"
# a machine that is busy may be slow, and must not lose a document for it
CONFIG = EncodeConfig(max_image_tokens=48, max_audio_s=10.0, decode_timeout_s=300.0)


@pytest.fixture
def threads():
    """Sets torch's threads; puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tone(seconds: float, rate: int) -> np.ndarray:
    """(n,) float32: a rising tone over noise, in whole steps of 16 bits."""
    time_s = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s) + (noise(3, len(time_s)) / 255.0 - 0.5) * 0.1
    return (np.round(wave * 32767) / 32768).astype(np.float32)


def golden_corpus(folder: Path) -> EncodedCorpus:
    """Texts, lossless images (kept, enlarged, scaled down) and sounds (of two rates), encoded."""
    media = folder / "made" / "media"
    media.mkdir(parents=True)
    lines = []
    for number, (width, height) in enumerate(((40, 25), (96, 128), (9, 30), (200, 130))):
        shade = np.add.outer(np.arange(height) * 2, np.arange(width))[..., None] + np.arange(3) * 40
        pixels = (shade % 256).astype(np.uint8) ^ (noise(number, height, width, 3) & 15)
        Image.fromarray(pixels).save(media / f"{number}.png")
        lines.append(line(f"shot-{number}", {"image": f"media/{number}.png"}, WORDS[number:40], kind="screenshot"))
        rate = (16000, 22050)[number % 2]
        soundfile.write(media / f"{number}.wav", tone(0.5 + 0.7 * number, rate), rate, subtype="PCM_16")
        lines.append(line(f"word-{number}", {"audio": f"media/{number}.wav"}, WORDS[:20], kind="narration"))
        lines.append(line(f"text-{number}", WORDS * (1 + 2 * number), kind="text"))
    lines.append(line("page", WORDS, {"image": "media/1.png"}, WORDS * 6, {"audio": "media/2.wav"}, "end", kind="page"))
    tokenizer = train_tokenizer([WORDS * 10], 300)
    path = manifest(folder / "made", lines)
    corpus = build_corpus(path, folder / "corpus", tokenizer=tokenizer, config=CONFIG, num_workers=1)
    assert len(corpus) == len(lines)
    return corpus


def golden_plan(corpus: EncodedCorpus) -> PackingPlan:
    budget = {"image": 96, "audio": 120, "video": 0}
    return PackingPlan.build(corpus, seq_len=160, media_budget=budget, epochs=3, seed=5, blank_fraction=0.2)


def measured(corpus: EncodedCorpus) -> dict:
    """What `golden.json` holds, of this machine."""
    plan, ids = golden_plan(corpus), hashlib.sha256()
    values = {name: [] for name in ("image", "audio")}
    for number in range(len(corpus)):
        sequence = corpus.encoded_document(number)
        for name in TOKEN_FIELDS:
            ids.update(getattr(sequence, name).tobytes())
        for name, found in values.items():
            found.append(floats(torch.tensor(getattr(sequence, name))).numpy().reshape(-1))
    content = b"".join(np.ascontiguousarray(getattr(plan, name)).astype(np.int64).tobytes() for name in _PLAN)
    joined = {name: np.concatenate(found).astype(np.float64) for name, found in values.items()}
    return {
        "ids": ids.hexdigest(),
        "plan": hashlib.sha256(content).hexdigest(),
        "rows": len(plan),
        **{
            name: {
                "count": len(found),
                "mean": float(found.mean()),
                "square": float(np.square(found).mean()),
                "every": [round(float(value), 6) for value in found[:: len(found) // 40]],
            }
            for name, found in joined.items()
        },
    }


_PLAN = ("document", "start", "stop", "blank", "offset")


def test_equal_to_stored_values(tmp_path):
    stored, found = json.loads(GOLDEN.read_text()), measured(golden_corpus(tmp_path))
    assert found["ids"] == stored["ids"]
    assert (found["rows"], found["plan"]) == (stored["rows"], stored["plan"])
    for name in ("image", "audio"):
        assert found[name]["count"] == stored[name]["count"]
        for key in ("mean", "square", "every"):
            np.testing.assert_allclose(found[name][key], stored[name][key], atol=1e-4, rtol=0, err_msg=f"{name} {key}")
        # a stored value that everything equals would hold nothing to account
        assert np.std(stored[name]["every"]) > 0.1


@pytest.mark.parametrize("rate", [16000, 22050, 8000, 11127])
@pytest.mark.parametrize("seconds", [0.05, 0.8, 7.77])
def test_mel_is_the_same_on_any_number_of_threads(threads, rate, seconds):
    """Resampling 22,050 Hz on three threads once gave other last bits than on one, and so did products of few rows."""
    found = []
    for count in (1, 2, 3, 4):
        threads(count)
        found.append(mel_tokens(resample(tone(seconds, rate), rate, CONFIG), CONFIG).tobytes())
    assert len(set(found)) == 1


def test_mel_equals_torchaudio_whole(config):
    """It is made in blocks; the transform is given the whole sound at once."""
    import torchaudio

    transform = torchaudio.transforms.MelSpectrogram(
        sample_rate=16000, n_fft=400, hop_length=160, n_mels=64, pad_mode="constant", mel_scale="slaney", norm=None
    )
    for num_samples in (1, 159, 160, 16000, 16000 * 9 + 77):
        samples = tone(9.5, 16000)[:num_samples]
        expected = (transform(torch.from_numpy(samples)).clamp(min=1e-6).log10() + 1) / 5
        found = mel_tokens(samples, config).reshape(-1, config.mel_bins)
        # a value between two of float16 may be rounded to either
        np.testing.assert_allclose(found[: num_samples // 160 + 1], expected.T.numpy(), atol=5e-4, rtol=0)
        assert (found[num_samples // 160 + 1 :] == -1).all()


def test_encode_is_the_same_under_any_threads_of_libraries(corpus, manifest_path, tmp_path):
    """Two processes with 1 and 3 threads everywhere give the bytes that the servers of the build gave."""
    corpus.tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps(corpus.config.to_dict()))
    found = []
    for count in ("1", "3"):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, count) | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, "encode", str(manifest_path), str(tmp_path), count]
        found.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in found]
    kept = {name: int(crc) for name, crc in zip(corpus.ids, corpus._index["crc32"], strict=True)}
    assert answers[0] == answers[1] and len(kept) == 35
    assert answers[0] == kept


def encode_here(path: Path, folder: Path, count: int) -> dict[str, int]:
    """Document id to checksum, encoded in this process with so many threads."""
    torch.set_num_threads(count)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    config = EncodeConfig.from_dict(json.loads((folder / "config.json").read_text()))
    documents = list(read_manifest(path, max_file_mib=config.max_file_mib))
    return {
        document.id: encode(document, root=path.parent, tokenizer=tokenizer, config=config).crc32()
        for document in documents
    }


def test_batches_are_the_same_on_any_number_of_threads(corpus, threads):
    plan = PackingPlan.build(corpus, seq_len=400, num_sequences=6, seed=1, blank_fraction=0.3)
    found = []
    for count in (1, 2):
        threads(count)
        batch = make_batch(corpus, plan, range(6), transform=Speckle(1))
        arrays = [batch.inputs.token_ids, batch.labels, batch.inputs.position]
        arrays += [tensor for name in MODALITIES for tensor in batch.inputs.media[name]]
        found.append(b"".join(array.numpy().tobytes() for array in arrays))
    assert found[0] == found[1]


def test_counters_alone_decide_a_draw():
    draws = {
        key: counter_generator(*key).integers(0, 2**63)
        for key in ((7, 1, 2), (7, 2, 1), (7, 1), (7, 1, 2, 0), (-7, 1, 2))
    }
    assert len(set(draws.values())) == len(draws)
    np.random.seed(0)
    assert counter_generator(7, 1, 2).integers(0, 2**63) == draws[7, 1, 2]
    # Philox is fixed by its paper, so this is the same on every machine
    assert counter_generator(7, 1, 2).bit_generator.random_raw(2).tolist() == [4954537912332152217, 6125512117656585270]


def test_checksums_cover_every_field(corpus):
    """Of what is compared bit for bit above: one changed value anywhere gives another checksum."""
    import dataclasses

    number = corpus.ids.index("page")
    sequence = corpus.encoded_document(number)
    seen = {sequence.crc32()}
    for name in FIELDS:
        changed = np.array(getattr(sequence, name))
        changed.reshape(-1).view(np.uint8)[0] ^= 1
        seen.add(dataclasses.replace(sequence, **{name: changed}).crc32())
    assert len(seen) == 1 + len(FIELDS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["encode"]:
        print(json.dumps(encode_here(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        with tempfile.TemporaryDirectory() as made:
            GOLDEN.write_text(json.dumps(measured(golden_corpus(Path(made))), indent=1) + "\n")
