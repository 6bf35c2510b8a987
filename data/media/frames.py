"""Frames of a video file: when each is shown, and its pixels as upright RGB, by PyAV.

A file that lacks its end is refused, by its container (`brine.data.media.completeness`) and by packets that end before
its declared duration. Packet times are read first (nothing is decoded); hidden frames and those before the first key
frame are left out. Then every frame up to the last wanted is decoded from the start, since seeking to a key frame of an
open group, or one that is refreshed bit by bit, shows what was never decoded (decord, which seeks, was up to 0.6 s off
and no faster). Pixels follow the display matrix; bits beyond 8 and alpha are dropped, without tone mapping.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brine.data.config import EncodeConfig
from brine.data.document import DocumentError, Video
from brine.data.files.signatures import format_mismatch_hint
from brine.data.media.completeness import check_complete
from brine.data.media.containers import AUDIO_ONLY, check_length, container_of, open_container, video_streams

MAX_FRAME_RATE = 1000  # frames per second above which a file is not believed
_UNTIMED = ("h264", "hevc")  # codecs whose frames AVI holds in another order than it shows them, without their times
_FAILURE = "not a video that can be read"


@dataclass(frozen=True)
class VideoFrames:
    """The frames of one video, in the order in which they are shown."""

    times_s: np.ndarray  # (n,) float64 seconds, from the first frame: 0 first, never falling
    end_s: float  # when the last frame ends, seconds from the first frame
    start_s: float  # time of the first frame on the file's clock, which its audio shares
    fetch: Callable[[list[int]], Iterator[np.ndarray]]
    """Yields (H, W, 3) uint8 for each of the given indices, which must not fall. Raises DocumentError."""


def open_frames(path: Path, config: EncodeConfig) -> VideoFrames:
    """The frames of a video file. Raises DocumentError when it is not a video, is broken, too large or too long."""
    kind = container_of(path)
    if not kind or kind in AUDIO_ONLY:
        known = "no MP4, MOV, MKV, WebM, AVI, OGG, FLV, WMV or MPEG container"
        raise DocumentError(f"{_FAILURE}: {known}{format_mismatch_hint(path, Video)}")
    try:
        check_complete(path)
    except DocumentError as error:
        raise DocumentError(f"{_FAILURE}: {error}") from None
    with open_container(path, kind, _FAILURE) as container:
        import av

        stream = _video_stream(container)
        number = stream.index
        if stream.codec_context is None:
            raise DocumentError(f"{_FAILURE}: no decoder for its codec")
        _check_size(stream.codec_context, config)
        # AVI states only the coding order of B-frames
        is_untimed = kind == "avi" and stream.codec_context.name in _UNTIMED
        base, rate = float(stream.time_base), float(stream.average_rate or 0)
        shown, begin_s, packets_end_s = _shown_packets(container, stream, config)
        declared_s = (container.duration or 0) / av.time_base if kind in ("mov", "matroska") else 0.0
        first_s = (container.start_time or 0) / av.time_base
    if not shown:
        raise DocumentError("video has no frames")
    shown.sort()
    ticks = np.array([pts for pts, _ in shown], dtype=np.int64)
    last_s = shown[-1][1] * base or (1 / rate if rate else 0.04)
    times_s, end_s = (ticks - ticks[0]) * base, float(ticks[-1] - ticks[0]) * base + last_s
    if not 0 < end_s <= config.max_video_s:
        raise DocumentError(f"video of {end_s:.1f} s lies outside 0..max_video_s={config.max_video_s:g}; split it")
    # two frames may share a moment; more is a clock that is not believed
    if len(ticks) > MAX_FRAME_RATE * end_s + 2:
        raise DocumentError(f"video claims {len(ticks)} frames in {end_s:.2f} s")
    # the duration in Matroska is when the last track ends, on a clock that need not begin at the first packet
    is_clock = kind == "matroska"
    missing_s = declared_s - max(packets_end_s, float(ticks[-1]) * base + last_s) + (0 if is_clock else first_s)
    check_length(declared_s, missing_s, declared_s - begin_s if is_clock else declared_s)

    def fetch(indices: list[int]) -> Iterator[np.ndarray]:
        with open_container(path, kind, "the video is damaged") as container:
            stream = container.streams[number]
            stream.thread_count = 1
            frames = ((frame.pts, frame) for frame in container.decode(stream))
            if is_untimed:
                frames = zip(ticks.tolist(), container.decode(stream), strict=False)
            yield from _picked(frames, ticks[indices].tolist(), base, config)

    return VideoFrames(times_s, end_s, float(ticks[0]) * base, fetch)


def _check_size(size, config: EncodeConfig) -> None:
    if size.width * size.height > config.max_pixels:
        raise DocumentError(f"frames of {size.width} x {size.height} pixels are over max_pixels={config.max_pixels}")


def _video_stream(container):
    videos = video_streams(container)
    if not videos:
        only = "only an attached picture" if container.streams.video else "no video stream in the file"
        if container.streams.audio:
            # folders and tars are read by extension
            kind = container.format.name.partition(",")[0]
            ending = {"matroska": "mka", "ogg": "oga", "asf": "wma"}.get(kind, "m4a")
            only += f": it is audio, so give it as audio (in a folder or tar: rename it to end in .{ending})"
        raise DocumentError(f"{_FAILURE}: {only}")
    best = container.streams.best("video")
    return best if best in videos else videos[0]


def _shown_packets(container, stream, config: EncodeConfig) -> tuple[list[tuple[int, int]], float, float]:
    """(pts, duration) of the shown packets, and the first and last second. Those before a key frame are left out."""
    shown, first_s, last_s, key = [], math.inf, 0.0, None
    for packet in container.demux():
        if packet.pts is None:
            continue
        is_video = packet.stream_index == stream.index
        if key is None and packet.is_keyframe and is_video:
            key = packet.pts
        if packet.is_discard:
            continue
        if packet.is_corrupt:
            raise DocumentError("truncated: a packet is incomplete")
        if packet.time_base is not None:
            first_s = min(first_s, float(packet.pts * packet.time_base))
            last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if is_video and key is not None and packet.pts >= key:
            shown.append((packet.pts, packet.duration or 0))
        if len(shown) > MAX_FRAME_RATE * config.max_video_s:
            raise DocumentError(f"video claims over {MAX_FRAME_RATE} frames per second for max_video_s")
    return shown, max(0.0, min(first_s, last_s)), last_s


def _picked(
    frames: Iterator[tuple[int | None, object]], wanted: list[int], base: float, config: EncodeConfig
) -> Iterator[np.ndarray]:
    """Upright pixels of the frames with the given times (pts, not falling; `base` seconds each)."""
    import av

    # one converter on one thread: a frame's converter starts threads, which end when Python happens to let it go
    converter = av.video.reformatter.VideoReformatter()
    pts, pixels = None, None
    for want in wanted:
        while pts is None or pts < want:
            pts, frame = next(frames, (want + 1, None))
            pixels = None
            if pts is not None and frame is not None:
                _check_size(frame, config)
        if pts > want:
            raise DocumentError(f"the frame at {want * base:.3f} s cannot be decoded: the file is damaged or truncated")
        if pixels is None:
            pixels = _upright(frame, converter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        yield pixels


def _upright(frame, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 pixels of a PyAV frame, turned and mirrored as its display matrix says, in quarter turns."""
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return pixels
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    else:
        pixels = pixels.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return np.ascontiguousarray(pixels)
