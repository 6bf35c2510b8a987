"""Media that show or say nothing, made on the spot: from files through decoding to the verdict."""

import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from brine.data.config import EncodeConfig
from brine.data.corpus.store import CorpusError, DecodingCorpus, EncodedCorpus, build_corpus
from brine.data.filters.filter_log import FilterLog
from brine.data.filters.media import MediaQuality, contrast, iter_media, motion
from tests.data.media_files import film, line, manifest, noise, picture, sound

CONFIG = EncodeConfig(max_video_tokens=256, max_video_s=30.0)


def still(path, pixels: np.ndarray, *, moving: bool = False) -> None:
    """A video of 3 s that shows one image (H, W, 3), with a small square that moves when `moving`."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"threads": "1", "crf": "20"})
        video.height, video.width, video.pix_fmt = *pixels.shape[:2], "yuv420p"
        for number in range(12):
            frame = pixels.copy()
            if moving:
                frame[4:12, 2 * number : 2 * number + 8] = 255 - frame[4:12, 2 * number : 2 * number + 8]
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())


def wave(path, samples: np.ndarray) -> None:
    soundfile.write(path, np.clip(samples, -1, 1).astype(np.float32), 16000, subtype="PCM_16")


def write_media(root) -> None:
    """Every file of the corpus below; names say what is in it."""
    root.mkdir()
    white = np.full((64, 96, 3), 255, np.uint8)
    Image.fromarray(white).save(root / "white.png")
    Image.fromarray((white.astype(int) - noise(1, 64, 96, 1) % 3).astype(np.uint8)).save(root / "paper.jpg", quality=60)
    dotted = white.copy()
    dotted[30:34, 40:46] = 0
    Image.fromarray(dotted).save(root / "dotted.png")
    ramp = np.broadcast_to(np.linspace(0, 255, 96).astype(np.uint8)[None, :, None], white.shape)
    Image.fromarray(np.ascontiguousarray(ramp)).save(root / "ramp.png")
    picture(root / "noise.png", 96, 64, seed=1)
    time = np.arange(24000) / 16000
    wave(root / "zeros.wav", np.zeros(24000))
    wave(root / "hiss.wav", 1e-4 * np.random.default_rng(0).standard_normal(24000))
    wave(root / "quiet.wav", 0.003 * np.sin(2 * np.pi * 300 * time))
    wave(root / "full.wav", np.sin(2 * np.pi * 440 * time))
    wave(root / "driven.wav", 8 * np.sin(2 * np.pi * 440 * time) * (1 + 0.3 * np.sin(2 * np.pi * 3 * time)))
    # half a second of words in two of rest
    wave(root / "pause.wav", np.where(time < 0.4, 0.2 * np.sin(2 * np.pi * 200 * time), 0))
    sound(root / "sound.wav", 1.0)
    still(root / "frozen.mp4", noise(2, 64, 96, 3) // 4 + 96)
    still(root / "cursor.mp4", np.full((64, 96, 3), 200, np.uint8), moving=True)
    film(root / "grey.mp4", 3.0, tone_s=2.0)
    still(root / "blank.mp4", np.full((64, 96, 3), 40, np.uint8))


GOOD = ["dotted.png", "ramp.png", "noise.png", "quiet.wav", "full.wav", "pause.wav", "sound.wav", "cursor.mp4",
        "grey.mp4"]  # fmt: skip
BAD = {
    "white.png": "media item 1 of 1 is a blank image: contrast 0 is below 4",
    "paper.jpg": "media item 1 of 1 is a blank image: contrast ",
    "zeros.wav": "media item 1 of 1 is silence: silent_fraction 1 is above 0.98",
    "hiss.wav": "media item 1 of 1 is silence: silent_fraction 1 is above 0.98",
    "driven.wav": "media item 1 of 1 is saturated audio: saturated_fraction ",
    "frozen.mp4": "media item 1 of 1 is a frozen video: motion ",
    "blank.mp4": "media item 1 of 1 is a blank video: contrast ",
}


def part_of(name: str) -> dict:
    return {{"png": "image", "jpg": "image", "wav": "audio", "mp4": "video"}[name[-3:]]: name}


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("quality")
    write_media(root / "m")
    lines = [line(name, part_of(name), "words") for name in [*GOOD, *BAD]]
    lines += [
        line("mixed", part_of("noise.png"), "and", part_of("white.png"), "and", part_of("zeros.wav")),
        line("text", "no medium at all"),
        line("held out", part_of("white.png"), "words", split="validation"),
    ]
    manifest(root / "m", lines)
    options = {"tokenizer": tokenizer, "config": CONFIG, "num_workers": 1}
    return build_corpus(root / "m/manifest.jsonl", root / "c", **options)


@pytest.fixture()
def corpus(built, tmp_path):
    return EncodedCorpus.open(shutil.copytree(built.folder, tmp_path / "c"))


def test_empty_media_are_dropped_and_faint_ones_are_not(corpus):
    assert corpus.quarantine() == []
    filter_log = FilterLog.open(corpus)
    record = filter_log.add(MediaQuality())
    found = {entry["id"]: entry["reason"] for entry in filter_log.dropped(1)}
    assert set(found) == set(BAD)
    for name, reason in BAD.items():
        assert found[name].startswith(reason)
    assert record["inspected"] == len(GOOD) + len(BAD) + 1
    column = {
        name: filter_log.column(f"media_{name}")
        for name in ("contrast", "silent_fraction", "saturated_fraction", "motion")
    }
    at = corpus.ids.index
    assert column["contrast"][at("mixed")] == 0 and column["silent_fraction"][at("mixed")] == 1
    absent = [("contrast", "text"), ("contrast", "held out"), ("motion", "full.wav"), ("silent_fraction", "grey.mp4")]
    assert all(np.isnan(column[measure][at(name)]) for measure, name in absent)
    # a sine at full scale is loud, and not saturated; half of a sound may be rest
    assert column["saturated_fraction"][at("full.wav")] == 0 and column["saturated_fraction"][at("driven.wav")] > 0.5
    assert 0.6 < column["silent_fraction"][at("pause.wav")] < 0.8
    assert column["motion"][at("frozen.mp4")] < 2 < 4 < column["motion"][at("cursor.mp4")]


def test_one_bad_medium_drops_the_document_by_choice(corpus):
    filter_log = FilterLog.open(corpus)
    filter_log.add(MediaQuality(drop_when="any"))
    found = {entry["id"]: entry["reason"] for entry in filter_log.dropped(1)}
    assert set(found) == {*BAD, "mixed"} and found["mixed"].startswith("media item 2 of 3 is a blank image")


@pytest.mark.slow
def test_workers_do_not_change_a_byte(corpus):
    filter_log = FilterLog.open(corpus)
    files = []
    for workers in (1, 2):
        filter_log.add(MediaQuality(), num_workers=workers)
        files.append({str(p): p.read_bytes() for p in filter_log.folder.rglob("*") if p.is_file()})
        filter_log.undo()
    assert files[0] == files[1] and len(files[0]) == 7


def test_damaged_document_is_dropped_with_the_reason(corpus):
    shard = corpus.folder / "shards/00000/image.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 255
    shard.write_bytes(content)
    filter_log = FilterLog.open(EncodedCorpus.open(corpus.folder))
    filter_log.add(MediaQuality(splits=("train", "validation")))
    assert "cannot be read" in filter_log.dropped(1)[-1]["reason"] and filter_log.dropped(1)[-1]["id"] == "held out"


@pytest.mark.slow
def test_corpus_without_media_is_refused_unless_it_decodes(built, tmp_path, tokenizer):
    """Images alone, since servers that decode no sound start at once."""
    names = ["noise.png", "white.png", "dotted.png"]
    for name in names:
        shutil.copy(built.root / name, tmp_path / name)
    lines = manifest(tmp_path, [line(name, part_of(name), "words") for name in names])
    bare = build_corpus(lines, tmp_path / "c", tokenizer=tokenizer, config=CONFIG, num_workers=1, keep_media=False)
    with pytest.raises(CorpusError, match="open it with DecodingCorpus"):
        FilterLog.open(bare).add(MediaQuality())
    assert FilterLog.open(bare).kept_mask().all()
    decoding = DecodingCorpus(bare.folder)
    try:
        filter_log = FilterLog.open(decoding)
        filter_log.add(MediaQuality(), num_workers=2)
        assert [entry["id"] for entry in filter_log.dropped(1)] == ["white.png"]
    finally:
        decoding.close()


def test_media_are_told_apart_and_sound_tracks_left_out(corpus):
    names = {number: corpus.ids[number] for number in range(corpus.num_documents)}
    found = {names[n]: [name for name, _, _ in iter_media(corpus.encoded_document(n))] for n in names}
    assert found["mixed"] == ["image", "image", "audio"] and found["grey.mp4"] == ["video"] and found["text"] == []
    number = corpus.ids.index("mixed")
    sequence = corpus.encoded_document(number)
    pictures = [patches for name, patches, _ in iter_media(sequence) if name == "image"]
    assert np.array_equal(np.concatenate(pictures), sequence.image) and len(pictures[0]) == len(pictures[1]) == 24


def test_contrast_and_motion_worked_by_hand():
    flat = np.full((4, 12), 7, np.uint8)
    assert contrast(flat) == 0
    flat[3] = 17
    assert contrast(flat) == 10
    inside = np.zeros((1, 12), np.uint8)
    inside[0, 0] = 200
    # red of one pixel in four: mean 50, mean square 10,000
    assert contrast(inside) == pytest.approx(np.sqrt(10000 - 2500))
    # two tubelets of two frames of two patches of 12: one number of one patch changes from frame 2 to 3
    tubelets = np.zeros((4, 24), np.uint8)
    assert motion(tubelets, 2, 2) == 0
    tubelets[2:, 3] = 120
    tubelets[2:, 15] = 120
    assert motion(tubelets, 2, 2) == 10


def test_fields_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match='"any" or "all"'):
        MediaQuality(drop_when="most")
    with pytest.raises(ValueError, match=r"MediaQuality\.splits"):
        MediaQuality(splits="train")
