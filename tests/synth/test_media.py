"""What the levels promise about images, speech and videos, checked on the decoded files."""

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from brine.synth.kinds.levels import SCREENSHOT, VIDEO_REGION
from brine.synth.render.code_image import draw_code
from brine.synth.render.video import encode, frames

LEVELS = (1, 2, 3, 4)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def video_of(path) -> tuple[np.ndarray, np.ndarray | None]:
    """(frames, sound samples) of an MP4 file, with what its streams say checked."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert video.average_rate == 10
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])
        sound = None
        if container.streams.audio:
            container.seek(0)
            audio = container.streams.audio[0]
            assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16000, 1)
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio)])
    return shown, sound


def plain_line(text: str) -> np.ndarray:
    """The level-1 image of a line."""
    look = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": -1}
    return np.asarray(draw_code({"language": "text", "lines": [text], **look}).image)


def test_screenshot_level_1_is_one_line_on_the_patch_grid(corpus):
    for item in corpus.of("screenshot", 1):
        text = item["content"][1]["text"]
        image = pixels(corpus.medium(item))
        assert text == text.strip()
        assert 12 <= len(text) <= 32
        assert image.shape == (16, 16 * -(-len(text) * 8 // 16), 3)
        # black on white, each character in its own 8 x 16 cell: the cell decides what is drawn in it
        assert (image.min(), image.max()) == (0, 255)
        for index, char in enumerate(text):
            cell = image[:, 8 * index : 8 * index + 8]
            assert np.array_equal(cell, plain_line(char)[:, :8])


@pytest.mark.parametrize("level", LEVELS)
def test_screenshot_is_its_text(corpus, level):
    """One image part and then exactly the lines of the image, within the level's bounds."""
    region = SCREENSHOT[level]
    for item in corpus.of("screenshot", level):
        assert [part["type"] for part in item["content"]] == ["image", "text"]
        lines = item["content"][1]["text"].split("\n")
        assert region.lines[0] <= len(lines) <= region.lines[1]
        assert region.chars[0] <= max(len(line) for line in lines) <= region.chars[1]
        assert all(line == line.rstrip() and line.isascii() for line in lines)
        height, width, _ = pixels(corpus.medium(item)).shape
        assert height % 16 == width % 16 == 0
        assert height >= 16 * len(lines) * 12 // 16 and width >= 6 * max(len(line) for line in lines)
        # an image fits 1,024 tokens of 16 x 16 pixels without being scaled down
        assert height * width <= 1024 * 256


def test_screenshot_levels_grow_in_variety(corpus):
    backgrounds = {
        level: {tuple(pixels(corpus.medium(item))[-1, -1]) for item in corpus.of("screenshot", level)}
        for level in LEVELS
    }
    assert backgrounds[1] == {(255, 255, 255)}
    assert len(backgrounds[1]) < len(backgrounds[2]) < len(backgrounds[4])


def test_draw_code_loses_no_character():
    """What a lexer makes of code may differ, the characters drawn may not."""
    code = ["def f(x):", "    return '\\n' + x  # end", "<b>&amp;</b> {{ y }}"]
    look = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": 0}
    expected = np.asarray(draw_code({"language": "text", "lines": code, **look}).image)
    for language in ("python", "c", "go", "typescript", "html", "markdown", "rst", "toml", "php"):
        assert np.array_equal(np.asarray(draw_code({"language": language, "lines": code, **look}).image), expected)


def test_narration_level_1_says_one_to_three_words(corpus):
    words = set()
    for item in corpus.of("narration", 1):
        parts = item["content"][1]["text"].split(" ")
        assert 1 <= len(parts) <= 3
        assert all(3 <= len(part) <= 10 and part.isalpha() and part == part.lower() for part in parts)
        words |= set(parts)
    assert len(words) <= corpus.config.narration_vocab_size


@pytest.mark.parametrize("level", LEVELS)
def test_narration_is_16_khz_mono_and_trimmed(corpus, level):
    for item in corpus.of("narration", level):
        assert [part["type"] for part in item["content"]] == ["audio", "text"]
        assert soundfile.info(corpus.medium(item)).format == "FLAC"
        samples, rate = soundfile.read(corpus.medium(item), dtype="int16")
        assert (rate, samples.ndim) == (16000, 1)
        loud = np.abs(samples.astype(int))
        heard = np.flatnonzero(loud > 0.01 * loud.max())
        # 40 ms before and after, no more
        assert heard[0] == 640 and len(samples) - 1 - heard[-1] == 640
        assert 0.2 < len(samples) / rate < 15


def test_recording_level_1_types_one_line_in_silence(corpus):
    for item in corpus.of("recording", 1):
        assert [part["type"] for part in item["content"]] == ["video", "text"]
        assert item["content"][0]["use_audio"] is False
        text = item["content"][1]["text"]
        shown, sound = video_of(corpus.medium(item))
        assert sound is None
        assert 12 <= len(text) <= 24 and text == text.strip()
        assert 20 <= len(shown) <= 30
        expected = plain_line(text).astype(int)
        assert shown.shape[1:] == expected.shape
        assert shown[0].min() > 200, "the first frame is empty"
        # from 60 % on the whole line stands, legible: H.264 may cost a few shades
        for frame in shown[round(0.6 * len(shown)) :]:
            assert np.abs(frame.astype(int) - expected).mean() < 3
        # what is typed grows from left to right
        columns = [np.flatnonzero((frame < 128).any(axis=(0, 2))) for frame in shown]
        ends = [int(column[-1]) if len(column) else -1 for column in columns]
        assert ends == sorted(ends)


@pytest.mark.parametrize("level", (2, 3, 4))
def test_recording_has_sound_on_the_clock_of_its_picture(corpus, level):
    for item in corpus.of("recording", level):
        assert item["content"][0]["use_audio"] is True
        shown, sound = video_of(corpus.medium(item))
        assert 2.0 <= len(shown) / 10 <= 8.0
        assert shown.shape[1] % 2 == shown.shape[2] % 2 == 0
        # the codec fills its last block of 1,024 samples
        assert 0 <= len(sound) - len(shown) * 1600 <= 1024
        assert np.abs(sound).max() > 0.05
        assert not np.array_equal(shown[0], shown[-1])


def test_recording_levels_are_their_text(corpus):
    for level in (2, 3):
        region = VIDEO_REGION[level]
        for item in corpus.of("recording", level):
            lines = item["content"][1]["text"].split("\n")
            assert region.lines[0] <= len(lines) <= region.lines[1]
            assert max(len(line) for line in lines) <= region.chars[1]
    for item in corpus.of("recording", 4):
        names = item["content"][1]["text"].split(" ")
        assert 2 <= len(names) <= 5
        assert len(set(names)) == len(names)
        assert all(name.isidentifier() for name in names)


def test_encode_puts_sound_and_picture_on_one_clock():
    """A flash at 0.5 s and a tone at 0.5 s come back at 0.5 s: the codec's lead-in is not heard."""
    film = np.zeros((20, 32, 64, 3), np.uint8)
    film[5:] = 255
    time = np.arange(32000)
    tone = np.where((time >= 8000) & (time < 12000), 20000 * np.sin(2 * np.pi * 440 * time / 16000), 0)
    data = encode(film, narration=tone.astype(np.int16))
    assert data == encode(film, narration=tone.astype(np.int16))
    import io

    shown, sound = video_of_bytes(io.BytesIO(data))
    assert [int(frame.mean()) > 128 for frame in shown] == [index >= 5 for index in range(20)]
    heard = np.flatnonzero(np.abs(sound) > 0.3)
    assert abs(int(heard[0]) - 8000) < 160 and abs(int(heard[-1]) - 12000) < 160


def video_of_bytes(stream):
    with av.open(stream) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        container.seek(0)
        return shown, np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_frames_scroll_from_the_first_line_to_the_last():
    lines = [f"line_{index} = {index}" for index in range(12)]
    look = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": -1}
    spec = {"mode": "scroll", "language": "python", "lines": lines, "visible_lines": 4, "motion_frames": 20, **look}
    shown = frames(spec, count=30)
    whole = np.asarray(draw_code(spec).image)
    assert shown.shape == (30, 64, whole.shape[1], 3)
    assert np.array_equal(shown[0], whole[:64])
    assert np.array_equal(shown[-1], whole[-64:])
    assert np.array_equal(shown[20], shown[-1])


def test_pages_interleave(corpus):
    for level in LEVELS:
        for item in corpus.of("page", level):
            types = [part["type"] for part in item["content"]]
            assert types[:5] == ["text", "image", "text", "audio", "text"]
            assert item["content"][0]["text"].startswith("# ")
            assert all(part.get("loss_mask", True) for part in item["content"])
    kinds = {part["type"] for item in corpus.of("page") for part in item["content"]}
    assert kinds == {"text", "image", "audio", "video"}


def test_text_documents_open_with_their_path(corpus):
    for item in corpus.of("text"):
        (part,) = item["content"]
        assert part["text"].split("\n", 1)[0] == item["source"]
        limit = corpus.config.package_text_kib * 1024 if "/package/" in item["id"] else corpus.config.chunk_bytes
        assert len(part["text"].encode()) <= limit
    longest = max(len(item["content"][0]["text"]) for item in corpus.of("text") if "/package/" in item["id"])
    assert longest > corpus.config.chunk_bytes
