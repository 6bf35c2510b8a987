"""Media beyond WAV, PNG and MP4: read with the clock of a WAV of the same sound, or refused with what to convert to.

M4A, AAC, AMR, WMA, Opus in WebM and videos given as a sound were refused; AVIF and JPEG 2000 were; and a reason named
no remedy. Files are made by PyAV and Pillow on the spot.
"""

from fractions import Fraction

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from brine.data.config import EncodeConfig
from brine.data.document import Audio, DocumentError, Image, Video
from brine.data.files.extensions import SUPPORTED, UNSUPPORTED, conversion_hint, media_type_of
from brine.data.media.decode import decode_part
from brine.data.media.images import decode_image
from tests.data.media_formats import BLUE, RED, STEADY, film, grey_of, saved

pytestmark = pytest.mark.slow

av = pytest.importorskip("av", reason="PyAV makes the sounds")

CONFIG = EncodeConfig(max_audio_s=10.0, max_video_s=20.0)
SOUNDS = {
    # codec, container, rate
    "aac.m4a": ("aac", "ipod", 44100),
    "aac-16k.m4a": ("aac", "mp4", 16000),
    "alac.m4a": ("alac", "ipod", 48000),
    "alac.caf": ("alac", "caf", 44100),
    "pcm.caf": ("pcm_s16le", "caf", 22050),
    "adts.aac": ("aac", "adts", 48000),
    "adts-44k.aac": ("aac", "adts", 44100),
    "narrow.amr": ("libopencore_amrnb", "amr", 8000),
    "amr.3gp": ("libopencore_amrnb", "3gp", 8000),
    "wma.wma": ("wmav2", "asf", 44100),
    "opus.webm": ("libopus", "webm", 48000),
    "opus.mka": ("libopus", "matroska", 48000),
    "opus.mp4": ("libopus", "mp4", 48000),
    "flac.mka": ("flac", "matroska", 44100),
    "flac.ogg": ("flac", "ogg", 44100),
    "aac.mka": ("aac", "matroska", 32000),
    "mp3.mp4": ("mp3", "mp4", 44100),
    "aac.ts": ("aac", "mpegts", 48000),
    "aac.flv": ("aac", "flv", 44100),
    "pcm.avi": ("pcm_s16le", "avi", 16000),
}
HIDE = ("adts.aac", "adts-44k.aac", "narrow.amr", "aac.ts")
"""Made so that a cut between two packets cannot be seen."""


def burst(rate: int, seconds: float = 2.37) -> np.ndarray:
    """(n,) float32: a tone from 0.5 s to 1.5 s, silence around it."""
    times = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * times) * ((times >= 0.5) & (times < 1.5))).astype(np.float32)


def encoded(path, codec: str, container: str, rate: int, *, start_s: float = 0.0):
    wave = burst(rate)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        if codec.startswith("wma"):
            stream.bit_rate = 64000
        size = stream.codec_context.frame_size or 1024
        convert = av.AudioResampler(stream.codec_context.format.name, "mono", rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(start_s * rate), Fraction(1, rate)
        for piece in (*convert.resample(frame), *convert.resample(None)):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_is_that_of_a_wav(tmp_path, name):
    """As many tokens as the WAV has, give or take one; the tone begins and ends where it did; a cut is noticed."""
    from brine.data.media.audio import decode_audio, read_samples

    codec, container, rate = SOUNDS[name]
    path = encoded(tmp_path / name, codec, container, rate)
    soundfile.write(tmp_path / "x.wav", burst(rate), rate)
    exact = decode_audio(tmp_path / "x.wav", CONFIG)
    assert abs(len(decode_audio(path, CONFIG)) - len(exact)) <= 1
    samples, read_rate = read_samples(path, 10.0)
    loud = np.flatnonzero(np.abs(samples) > 0.15) / read_rate
    # FFmpeg's decoder of WMA takes off the two frames of Microsoft's encoder, its own encoder puts one in front
    near = 0.05 if name.endswith("wma") else 0.025
    assert [loud[0], loud[-1]] == pytest.approx([0.5, 1.5], abs=near)
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) * 19 // 20, len(content) // 2):
        (tmp_path / "cut").write_bytes(content[:length])
        if name in HIDE:
            continue
        with pytest.raises(DocumentError, match="truncated"):
            read_samples(tmp_path / "cut", 10.0)
    if name in HIDE:
        (tmp_path / "cut").write_bytes(content[:-1])
        with pytest.raises(DocumentError, match="truncated"):
            read_samples(tmp_path / "cut", 10.0)


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "ts"])
def test_the_sound_of_a_film_given_as_a_sound(tmp_path, container):
    """From its own first sample, however late it starts in the video; a silent video says that it is one."""
    from brine.data.media.audio import read_samples

    path = film(tmp_path / f"x.{container}", STEADY, codec="mpeg4", sound=(0.0 if container == "avi" else 3.0, 1.0))
    samples, rate = read_samples(path, 10.0)
    assert len(samples) / rate == pytest.approx(1.0, abs=0.07) and np.abs(samples).max() > 0.4
    silent = film(tmp_path / f"silent.{container}", STEADY, codec="mpeg4")
    with pytest.raises(DocumentError, match="silent video, so give it as video"):
        read_samples(silent, 10.0)


def test_bounds_of_sound_in_a_container(tmp_path):
    """Seconds are counted while decoding, and from the sound's own start."""
    from brine.data.media.audio import read_samples

    path = encoded(tmp_path / "x.m4a", "aac", "ipod", 44100)
    with pytest.raises(DocumentError, match="limit"):
        read_samples(path, 1.0)
    with pytest.raises(DocumentError, match=r"2\.4 s is over the limit of 2 s"):
        read_samples(path, 2.0)
    late = encoded(tmp_path / "late.mka", "aac", "matroska", 44100, start_s=300.0)
    assert len(read_samples(late, 10.0)[0]) == pytest.approx(2.37 * 44100, abs=1024)


VIDEOS = {
    "x.wmv": ("wmv2", "asf"),
    "x.asf": ("msmpeg4", "asf"),
    "x.3gp": ("mpeg4", "3gp"),
    "x.m2ts": ("mpeg4", "m2ts"),
    "x.ts": ("libx264", "mpegts"),
    "x.f4v": ("libx264", "f4v"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_video_containers(tmp_path, name):
    """The frames that were put in, half a second apart; a file that lost its end is refused."""
    from brine.data.media.frames import open_frames

    codec, container = VIDEOS[name]
    path = tmp_path / name
    options = {"mpegts_m2ts_mode": "1"} if container == "m2ts" else {}
    with av.open(str(path), "w", format="mpegts" if container == "m2ts" else container, options=options) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            pixels = np.full((48, 64, 3), grey_of(number), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    frames = open_frames(path, CONFIG)
    assert len(frames.times_s) == 20 and frames.end_s == pytest.approx(2.0, abs=0.06)
    greys = [float(frame[-4:, -4:].mean()) for frame in frames.fetch([0, 5, 10, 15])]
    np.testing.assert_allclose(greys, [grey_of(number) for number in (0, 5, 10, 15)], atol=6)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DocumentError, match="truncated"):
        open_frames(path, CONFIG)


@pytest.mark.parametrize(
    ("form", "options"),
    [("AVIF", {"quality": 95}), ("JPEG2000", {}), ("JPEG2000", {"no_jp2": True}), ("JPEG2000", {"irreversible": True})],
    ids=["avif", "jp2", "j2k", "lossy-jp2"],
)
@pytest.mark.parametrize("ending", ["", ".png"])
def test_picture_formats(tmp_path, form, options, ending):
    """The two halves' colours, whatever the ending; a file without its last bytes or its half is refused."""
    picture = Pillow.new("RGB", (32, 16), RED)
    picture.paste(BLUE, (16, 0, 32, 16))
    content = saved(picture, form, **options)
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    decoded = decode_image(path, CONFIG)
    assert decoded.grid == (1, 2)
    colors = decoded.patches.reshape(2, -1, 3).astype(float).mean(axis=1)
    np.testing.assert_allclose(colors, [RED, BLUE], atol=12)
    for length in (len(content) - 2, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(DocumentError, match=r"truncated|broken"):
            decode_image(path, CONFIG)
    with pytest.raises(DocumentError, match="over max_pixels"):
        path.write_bytes(content)
        decode_image(path, EncodeConfig(max_pixels=100))


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600)
NOT_READ = [
    (Image, HEIC, "it is a HEIC image, so convert it to PNG"),
    (Image, b"\xff\x0a" + bytes(50), "it is a JPEG XL image, so convert it to PNG (`djxl"),
    (Image, b"8BPS\0\1" + bytes(50), "it is a Photoshop image, so convert it to PNG"),
    (Image, b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "it is an SVG drawing, so draw it as PNG"),
    (Image, b"%PDF-1.7\n" + bytes(50), "it is a PDF document, so draw its pages as PNG"),
    (Image, b"<!DOCTYPE html><title>404</title>", "it is a web page, so download the media file itself"),
    (Image, b"RIFF\x10\0\0\0WAVEfmt " + bytes(50), "it is a WAV audio file, so give it as audio"),
    (Image, b"\0\0\0\x18ftypM4A \0\0\0\0" + bytes(50), "it is an M4A audio file, so give it as audio"),
    (Image, b"\x1a\x45\xdf\xa3" + bytes(50), "it is a Matroska or WebM file, so give it as video"),
    (Image, bytes(100), "convert it to PNG"),
    (Audio, b"\x89PNG\r\n\x1a\n" + bytes(50), "it is a PNG image, so give it as image"),
    (Audio, HEIC, "it is a HEIC image, so convert it to PNG"),
    (Audio, b"MThd\0\0\0\6" + bytes(50), "which holds notes and no audio, so play it into a WAV"),
    (Audio, b"MAC \x96\x0f" + bytes(50), "an APE audio file, so convert it to WAV (`ffmpeg"),
    (Audio, b".ra\xfd" + bytes(50), "a RealAudio audio file, so convert it to WAV"),
    (Audio, b"words " * 40, "convert it to WAV"),
    (Video, b".RMF\0\0\0\x12" + bytes(50), "a RealMedia video, so convert it to MP4 (`ffmpeg"),
    (Video, b"GIF89a" + bytes(50), "it is a GIF image, so give it as image"),
    (Video, b"fLaC" + bytes(50), "it is a FLAC audio file, so give it as audio"),
    (Video, b"\x06\x0e\x2b\x34" + bytes(50), "an MXF video, so convert it to MP4"),
    (Video, b"words " * 200, "convert it to MP4"),
]


@pytest.mark.parametrize(
    ("part", "content", "words"), NOT_READ, ids=[f"{part.__name__}-{words[:28]}" for part, _, words in NOT_READ]
)
def test_a_refusal_says_what_it_is_and_what_to_do(tmp_path, part, content, words):
    (tmp_path / "medium.png").write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        decode_part(part("medium.png"), tmp_path, CONFIG)
    assert "medium.png" in str(caught.value) and words in str(caught.value)


def test_a_format_without_a_mark_is_named_by_its_ending(tmp_path):
    (tmp_path / "x.tga").write_bytes(bytes(18) + b"pixels")
    with pytest.raises(DocumentError, match=r"file 'x.tga': .*convert it to PNG"):
        decode_part(Image("x.tga"), tmp_path, CONFIG)


def test_endings():
    """No ending is both read and not read; each remedy ends a sentence; case and folders do not matter."""
    assert not SUPPORTED.keys() & UNSUPPORTED.keys()
    for ending in (*SUPPORTED, *UNSUPPORTED):
        assert ending == ending.lower().strip(".") and ending
    assert all(remedy[0].islower() and not remedy.endswith(".") for remedy in UNSUPPORTED.values())
    for path, medium in {"a/B.M4A": Audio, "x.avif": Image, "x.JP2": Image, "x.wmv": Video, "x.caf": Audio}.items():
        assert media_type_of(path) is medium and conversion_hint(path) is None
    for path, words in {
        "a/heron.HEIC": "PNG",
        "x.svg": "PNG",
        "x.cr2": "PNG",
        "x.pdf": "pdftotext",
        "x.ra": "WAV",
        "x.mid": "WAV",
        "x.rm": "MP4",
    }.items():
        assert media_type_of(path) is None and words in conversion_hint(path)
    for path in ("index.ts", "types.mts", "notes.txt", "heic", "code.py", ""):
        assert media_type_of(path) is None and conversion_hint(path) is None
