"""What is right for every image format: pixels, the first frame, orientation.

Each case states the answer instead of comparing with another run: the colours that were put in, and the corner that
must end up at the top left.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image as Pillow

from brine.data.config import EncodeConfig
from brine.data.media.images import to_rgb
from tests.data.media_formats import BLUE, GREEN, RED, WHITE, interlaced_png, png, png_chunk, saved, tiff

CONFIG = EncodeConfig(max_audio_s=10.0, max_video_s=20.0)


CLEAR_1 = png_chunk(b"tRNS", b"\0\1")

PALETTE = png_chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE, 9, 9, 9]))

GREY_16 = np.array([0, 0x1234, 0x80FF, 0xFFFF], ">u2")


def rgb(content: bytes) -> np.ndarray:
    """(H, W, 3) int of an encoded image."""
    with Pillow.open(io.BytesIO(content)) as picture:
        return np.asarray(to_rgb(picture)).astype(int)


def greys(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


PICTURES = {
    "png-1-bit": (png(4, 1, 1, 0, [b"\x50"]), greys(0, 255, 0, 255)),
    "png-2-bit": (png(4, 1, 2, 0, [b"\x1b"]), greys(0, 85, 170, 255)),
    "png-2-bit-one-clear": (png(4, 1, 2, 0, [b"\x1b"], extra=CLEAR_1), greys(0, 255, 170, 255)),
    "png-grey-one-clear": (
        png(3, 1, 8, 0, [bytes([0, 100, 200])], extra=png_chunk(b"tRNS", b"\0\x64")),
        greys(0, 255, 200),
    ),
    "png-palette": (png(4, 1, 2, 3, [b"\x1b"], extra=PALETTE), [RED, GREEN, BLUE, (9, 9, 9)]),
    "png-palette-alpha": (
        png(4, 1, 2, 3, [b"\x1b"], extra=PALETTE + png_chunk(b"tRNS", bytes([255, 0, 128]))),
        [RED, WHITE, (127, 127, 255), (9, 9, 9)],
    ),
    "png-16-bit-grey": (png(4, 1, 16, 0, [GREY_16.tobytes()]), greys(0, 0x12, 0x80, 255)),
    "png-16-bit-grey-one-clear": (
        png(4, 1, 16, 0, [GREY_16.tobytes()], extra=png_chunk(b"tRNS", b"\x12\x34")),
        greys(0, 255, 0x80, 255),
    ),
    "png-16-bit-rgb": (png(4, 1, 16, 2, [np.repeat(GREY_16, 3).tobytes()]), greys(0, 0x12, 0x80, 255)),
    "png-16-bit-rgb-one-clear": (
        png(4, 1, 16, 2, [np.repeat(GREY_16, 3).tobytes()], extra=png_chunk(b"tRNS", b"\x12\x34" * 3)),
        greys(0, 255, 0x80, 255),
    ),
    "png-rgb-one-clear": (
        png(2, 1, 8, 2, [bytes([10, 10, 10, 1, 2, 3])], extra=png_chunk(b"tRNS", b"\0\n" * 3)),
        [WHITE, (1, 2, 3)],
    ),
    "png-16-bit-alpha": (
        png(2, 1, 16, 6, [struct.pack(">8H", *[0x1200] * 3, 0xFFFF, *[0x1200] * 3, 0)]),
        [[0x12] * 3, WHITE],
    ),
    "png-half-alpha": (saved(Pillow.new("RGBA", (1, 1), (0, 0, 255, 51)), "PNG"), [(204, 204, 255)]),
    "png-grey-alpha": (saved(Pillow.new("LA", (1, 1), (0, 51)), "PNG"), greys(204)),
    "jpeg-grey": (saved(Pillow.new("L", (1, 1), 77), "JPEG"), greys(77)),
    "jpeg-cmyk": (saved(Pillow.new("CMYK", (1, 1), (255, 0, 0, 0)), "JPEG"), [(0, 255, 255)]),
    "jpeg-progressive": (saved(Pillow.new("L", (1, 1), 77), "JPEG", progressive=True), greys(77)),
    "webp-lossless-alpha": (
        saved(Pillow.new("RGBA", (1, 1), (0, 0, 255, 51)), "WEBP", lossless=True),
        [(204, 204, 255)],
    ),
    "webp-lossy": (saved(Pillow.new("L", (1, 1), 128).convert("RGB"), "WEBP"), greys(128)),
    "bmp-1-bit": (saved(Pillow.new("1", (1, 1), 1), "BMP"), [WHITE]),
    "bmp": (saved(Pillow.new("RGB", (1, 1), (1, 2, 3)), "BMP"), [(1, 2, 3)]),
    "tiff-cmyk": (saved(Pillow.new("CMYK", (1, 1), (0, 0, 255, 0)), "TIFF"), [(255, 255, 0)]),
    "tiff-deflate": (saved(Pillow.new("RGB", (1, 1), RED), "TIFF", compression="tiff_deflate"), [RED]),
    "tiff-lzw": (saved(Pillow.new("RGB", (1, 1), RED), "TIFF", compression="tiff_lzw"), [RED]),
    "tiff-16-bit-grey": (tiff(GREY_16.reshape(1, 4, 1), photometric=1), greys(0, 0x12, 0x80, 255)),
    "tiff-16-bit-white-is-0": (tiff(GREY_16.reshape(1, 4, 1), photometric=0), greys(255, 255 - 0x12, 255 - 0x80, 0)),
    "tiff-16-bit-rgb": (tiff(np.repeat(GREY_16, 3).reshape(1, 4, 3), photometric=2), greys(0, 0x12, 0x80, 255)),
    "tiff-float-0-to-1": (
        tiff(np.float32([0, 0.2, 1]).reshape(1, 3, 1), photometric=1, sample_format=3),
        greys(0, 51, 255),
    ),
    "tiff-float-0-to-255": (
        tiff(np.float32([0, 51, 300]).reshape(1, 3, 1), photometric=1, sample_format=3),
        greys(0, 51, 255),
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pixels(name):
    """Bits, palettes, transparency and colour spaces. JPEG and lossy WebP may be off by a few.

    Pillow compares the transparent colour of a PNG with pixels of another scale (2 and 4 bits stretched to 8, 16 bits
    cut to 8), and reads 16-bit TIFF with white as zero as its negative: such images came out opaque, or inverted.
    """
    content, expected = PICTURES[name]
    lossy = name.startswith(("jpeg", "webp-lossy"))
    np.testing.assert_allclose(rgb(content).reshape(-1, 3), expected, atol=3 if lossy else 0)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(form):
    """Of an animation or of several pages the first, whatever is drawn or disposed of after it."""
    frames = [Pillow.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    options = (
        {} if form == "TIFF" else {"lossless": True} if form == "WEBP" else {"disposal": 2 if form == "GIF" else 1}
    )
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (rgb(content) == RED).all()


def test_a_gif_frame_smaller_than_its_canvas():
    """What the first frame leaves open and its clear pixels are white; the frame sits where it says."""
    frame = Pillow.new("P", (2, 1), 1)
    frame.putpalette([*RED, *GREEN, *BLUE])
    frame.putpixel((1, 0), 2)
    content = bytearray(saved(frame, "GIF", transparency=2))
    # the canvas grows to 4 x 3, the frame moves to (1, 1)
    content[6:10] = struct.pack("<HH", 4, 3)
    place = content.index(b"\x2c\0\0\0\0\x02\0\x01\0")
    content[place + 1 : place + 5] = struct.pack("<HH", 1, 1)
    expected = np.full((3, 4, 3), 255)
    expected[1, 1] = GREEN
    np.testing.assert_array_equal(rgb(bytes(content)), expected)


def test_interlaced_png():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rgb(interlaced_png(pixels)), pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form, orientation):
    """An image stored turned or mirrored, with the tag that says how, comes out upright."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8], upright[:8, 24:], upright[8:, :8] = RED, GREEN, BLUE
    # how a camera stores what is to be shown, by orientation
    turn = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Pillow.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    content = saved(Pillow.fromarray(np.ascontiguousarray(turn(upright))), form, exif=exif, **options)
    np.testing.assert_allclose(rgb(content), upright, atol=10 if form == "JPEG" else 0)
