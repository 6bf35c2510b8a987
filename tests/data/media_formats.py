"""Media files in the corners of their formats, made on the spot: odd PNGs and TIFFs by hand, videos by PyAV.

Videos are of flat frames, so that a frame can be told from its grey (`GREY` of its number), with a red corner at the
top left, so that turning shows. MP4 boxes are rewritten afterwards where no writer offers the case (display matrices,
edit lists). Everything here is a few kB and the same bytes on every run of one library version.
"""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image as Pillow

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def png(width: int, height: int, depth: int, color_type: int, rows: list[bytes], *, extra: bytes = b"") -> bytes:
    """A PNG with the given packed rows, unfiltered; `extra` chunks stand between header and pixels."""
    raw = b"".join(b"\0" + row for row in rows)
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + head + extra + body + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def interlaced_png(pixels: np.ndarray) -> bytes:
    """An Adam7 PNG of (H, W, 3) uint8 pixels, which Pillow reads but cannot write."""
    height, width, _ = pixels.shape
    steps = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    passes = [pixels[top::down, left::right] for top, down, left, right in steps]
    raw = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")


def tiff(values: np.ndarray, *, photometric: int, sample_format: int = 1) -> bytes:
    """A one-strip little-endian TIFF of (H, W, samples) values; photometric 0 white is zero, 1 black is zero, 2 RGB."""
    height, width, samples = values.shape
    bits = values.dtype.itemsize * 8
    body = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {256: width, 257: height, 259: 1, 262: photometric, 277: samples, 278: height, 279: len(body)}
    if samples == 4:
        tags[338] = 2
    tags |= {258: bits, 273: 0, 339: sample_format}
    size = 8 + 2 + 12 * len(tags) + 4
    after = b""
    if samples > 2:
        after = struct.pack(f"<{2 * samples}H", *[bits] * samples, *[sample_format] * samples)
    tags[273] = size + len(after)
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag in sorted(tags):
        long = tag in (256, 257, 273, 278, 279)
        count = samples if tag in (258, 339) else 1
        value = tags[tag] if count < 3 else size + (2 * samples if tag == 339 else 0)
        if count == 2:
            value |= value << 16
        out += struct.pack("<HHII", tag, 4 if long else 3, count, value)
    return out + struct.pack("<I", 0) + after + body


def tone(rate: int, seconds: float, *, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """(n, channels) float32: a sine of amplitude 0.5 in the first channel, silence in the others."""
    samples = np.zeros((round(rate * seconds), channels), np.float32)
    samples[:, 0] = 0.5 * np.sin(2 * np.pi * hertz * np.arange(len(samples)) / rate)
    return samples


def grey_of(number: int) -> int:
    """Grey of frame `number` of a video."""
    return 10 + 10 * number % 240


def film(
    path: Path,
    frames_ms: list[int],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: tuple[float, float] | None = None,
    sound_codec: str = "aac",
    fps: int = 10,
    ticks: int = 1000,
) -> Path:
    """A video whose frame n is shown at frames_ms[n], `ticks` a second, with a tone of sound[1] s from sound[0] on."""
    import av

    options = {"threads": "1"} | (options or {})
    if codec == "libx265":  # it has threads of its own, whatever "threads" says, and has crashed as they ended
        quiet = "pools=none:frame-threads=1:log-level=none"
        options["x265-params"] = ":".join(filter(None, [options.get("x265-params"), quiet]))
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=options)
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        video.codec_context.time_base = video.time_base = Fraction(1, ticks)
        video.codec_context.max_b_frames = b_frames
        audio = None
        if sound:
            rate = 48000 if sound_codec == "libopus" else 16000
            audio = container.add_stream(sound_codec, rate=rate, layout="mono")
        for number, time_ms in enumerate(frames_ms):
            pixels = np.full((height, width, 3), grey_of(number), np.uint8)
            pixels[: height // 4, : width // 4] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = time_ms, Fraction(1, ticks)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            _encode_tone(container, audio, *sound)
    return path


def _encode_tone(container, stream, start_s: float, seconds: float) -> None:
    import av

    wave = np.ascontiguousarray(tone(stream.rate, seconds).T)
    convert = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=stream.rate)
    step = stream.codec_context.frame_size or 960
    for first in range(0, wave.shape[1], step):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, first : first + step]), "fltp", "mono")
        frame.sample_rate, frame.time_base = stream.rate, Fraction(1, stream.rate)
        frame.pts = round(start_s * stream.rate) + first
        for piece in convert.resample(frame):
            container.mux(stream.encode(piece))
    container.mux(stream.encode())


def mp3(seconds: float, *, rate: int = 44100, vbr: bool = False, cover: bytes | None = None) -> bytes:
    """A mono MP3 by LAME with an ID3 tag, and a JPEG as its cover."""
    buffer = io.BytesIO()
    mode = "VARIABLE" if vbr else "CONSTANT"
    soundfile.write(buffer, tone(rate, seconds), rate, format="MP3", bitrate_mode=mode, compression_level=0.6)
    frames = [(b"TIT2", b"\0a tone")] + ([(b"APIC", b"\0image/jpeg\0\3\0" + cover)] if cover else [])
    body = b"".join(kind + struct.pack(">IH", len(content), 0) + content for kind, content in frames)
    size = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + body + buffer.getvalue()


def mp3_without_header(content: bytes) -> bytes:
    """An MP3 without its tag and without the first frame, which counts the others."""
    first = max(content.find(b"Xing"), content.find(b"Info"))
    return content[content.index(b"\xff" + content[content.rindex(b"\xff", 0, first) + 1 :][:1], first) :]


def turned(content: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 of one track with another display matrix: x' = a x + c y, y' = b x + d y."""
    place = content.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return content[:place] + matrix + content[place + 36 :]


def edited(content: bytes, start_ms: int, duration_ms: int) -> bytes:
    """An MP4 of one track whose edit list shows `duration_ms` from `start_ms` on, of what it showed before."""
    place = content.index(b"elst") + 12
    _, start = struct.unpack_from(">Ii", content, place)
    (scale,) = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
    entry = struct.pack(">Ii", duration_ms, start + scale * start_ms // 1000)
    return content[:place] + entry + content[place + 8 :]


def saved(picture: Pillow.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


STEADY = list(range(0, 2000, 100))

UNEVEN = [0, 100, 130, 400, 900, 910, 2000, 2100]


def made(folder) -> dict:
    """Videos by name: the file, the time of its first frame on the file's clock, and its frames' times in ms."""
    films = {}

    def add(name: str, frames_ms=STEADY, **options) -> None:
        films[name] = (film(folder / name, frames_ms, **options), frames_ms[0] / 1000, frames_ms)

    add("plain.mp4")
    add("b-frames.mp4", b_frames=2)
    add("uneven.mp4", UNEVEN, b_frames=2)
    add("uneven.mkv", UNEVEN, b_frames=2)
    add("late.mp4", [500 + time for time in STEADY])
    add("late.mkv", [700 + time for time in UNEVEN], sound=(0.0, 1.0))
    add("vp9.webm", codec="libvpx-vp9", sound=(0.0, 2.0), sound_codec="libopus")
    add("vp8.webm", codec="libvpx")
    add("hevc.mp4", codec="libx265")
    add("odd.mp4", pixel_format="yuv444p", size=(49, 33))
    add("narrow.mp4", size=(24, 48))
    add("one.mp4", [0])
    add("ten-bit.mp4", pixel_format="yuv420p10le")
    add("grey.mkv", codec="ffv1", pixel_format="gray")
    add("fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    add("first.mp4", container_options={"movflags": "faststart"})
    return films
