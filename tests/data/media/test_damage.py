"""Media files that are cut short, that claim too much or that unfold to it: each is noticed."""

import io
import struct
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from brine.data.config import EncodeConfig
from brine.data.document import DocumentError
from brine.data.media.completeness import check_complete
from brine.data.media.images import decode_image
from tests.data.media_formats import RED, WHITE, mp3, png, png_chunk, saved, tone

CONFIG = EncodeConfig(max_audio_s=10.0, max_video_s=20.0)


def test_check_whole_knows_a_cut(tmp_path, films):
    """Every kind loses its last bytes, a twentieth and its second half, and each is noticed; whole files pass."""
    frames = [Pillow.new("RGB", (40, 30), color) for color in (RED, WHITE)]
    many = {"save_all": True, "append_images": frames[1:]}
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    whole = {
        "png": saved(noise, "PNG"),
        "jpeg": saved(noise, "JPEG"),
        "progressive.jpeg": saved(noise, "JPEG", progressive=True),
        "gif": saved(frames[0], "GIF", **many),
        "webp": saved(noise, "WEBP"),
        # without the padding behind its last page
        "tiff": saved(frames[0], "TIFF", **many).rstrip(b"\0"),
        "lzw.tiff": saved(noise, "TIFF", compression="tiff_lzw"),
        "mp3": mp3(0.5),
        **{name: films[name][0].read_bytes() for name in ("plain.mp4", "uneven.mkv", "vp9.webm")},
    }
    for form, subtype in (
        ("WAV", "PCM_16"),
        ("WAV", "PCM_U8"),
        ("RF64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
    ):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(8000, 0.1001)[:, 0], 8000, format=form, subtype=subtype)
        whole[f"{subtype}.{form.lower()}"] = buffer.getvalue()
    for subtype in ("VORBIS", "OPUS"):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(16000, 0.5), 16000, format="OGG", subtype=subtype)
        whole[f"{subtype}.ogg"] = buffer.getvalue()
    for name, content in whole.items():
        path = tmp_path / name
        path.write_bytes(content)
        check_complete(path)
        # nobody misses the last bytes of a TIFF (padding, or the resolution), nor the padding byte of an odd WAV
        least = 20 if name.endswith("tiff") else 2 if name == "PCM_U8.wav" else 1
        for length in (len(content) - least, len(content) * 19 // 20, len(content) // 2):
            path.write_bytes(content[:length])
            with pytest.raises(DocumentError, match="truncated"):
                check_complete(path)


def test_bombs_and_claims_are_refused(tmp_path):
    """Little files that claim or unfold to much: each is refused with a reason, in little memory."""
    from brine.data.media.audio import read_samples

    vast = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    text = png_chunk(b"zTXt", b"note\0\0" + zlib.compress(b"a" * 2**26))
    international = png_chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b"a" * 2**26))
    tower = Pillow.new("1", (8000, 8000))
    pages = [Pillow.new("1", (1, 1))] * 200
    for name, content, words in (
        ("vast.png", b"\x89PNG\r\n\x1a\n" + vast + png_chunk(b"IDAT", b""), "far over max_pixels"),
        ("text.png", png(1, 1, 8, 0, [b"\0"], extra=text), "broken image"),
        ("text-2.png", png(1, 1, 8, 0, [b"\0"], extra=international), "broken image"),
        ("unfolds.tiff", saved(tower, "TIFF", compression="tiff_deflate"), "over max_pixels"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DocumentError, match=words):
            decode_image(tmp_path / name, CONFIG)
    (tmp_path / "pages.tiff").write_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert decode_image(tmp_path / "pages.tiff", CONFIG).grid == (1, 1)
    frame = saved(Pillow.new("L", (1, 1), 7), "GIF")
    body = frame[frame.index(b"\x2c") : -1]
    (tmp_path / "many.gif").write_bytes(frame[:-1] + body * 100_000 + b";")
    assert (decode_image(tmp_path / "many.gif", CONFIG).patches == 7).all()
    soundfile.write(tmp_path / "x.wav", tone(8000, 0.5), 8000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    for size in (2**32 - 9, 2**31):
        content[4:8] = content[40:44] = struct.pack("<I", size)
        (tmp_path / "claims.wav").write_bytes(content)
        with pytest.raises(DocumentError, match="truncated"):
            read_samples(tmp_path / "claims.wav", 10.0)
