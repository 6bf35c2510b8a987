"""Video files to tubelet patches: decord first, PyAV where decord is absent or cannot.

Frames are taken by absolute time: at every k / fps the frame that is showing then, whatever the file's own rate.
Times count from the first frame. Both readers give frame times, duration and a way to fetch frames; the rest is one
path.
The sound track is read by PyAV (decord's own reader where PyAV is absent), placed on the clock of the first frame
(silence in front when it begins later, cut when it begins earlier), and becomes mel tokens as any sound does.

decord can hang and can leak: import this module only inside the processes of `data.decode_server`. It is tried
with one thread, since starting threads costs more than they save on short clips.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from data.config import EncodeConfig
from data.decode import fit, patchify
from data.document import DocumentError
from data.lengths import VideoLayout, video_frame_tokens, video_frames, video_layout

MAX_FRAME_RATE = 1000
"""Frames per second above which a file is not believed."""


def decode_video(path: Path, config: EncodeConfig, *, sound: bool = True) -> tuple[VideoLayout, np.ndarray, np.ndarray]:
    """Layout, (n, video_dim) uint8 patches and (k, audio_dim) float16 sound of a video file.

    Raises DocumentError when it is no video, is broken, too large or too long.
    """
    times, end_s, fetch = _open(path, config)
    wanted = _frames_at(times, video_frames(end_s, config), config)
    track, num_samples = np.zeros((0, config.audio_dim), np.float16), 0
    if sound:
        samples = _sound_track(path, config)
        if samples is not None:
            from data.decode_audio import mel_tokens

            track, num_samples = mel_tokens(samples, config), len(samples)
    layout, tubelets = None, []
    frames: list[np.ndarray] = []
    for frame in fetch(wanted):
        if layout is None:
            layout = video_layout(frame.shape[1], frame.shape[0], end_s, num_samples, config)
            size = frame.shape
        if frame.shape != size:
            raise DocumentError("video changes its frame size midway")
        budget = video_frame_tokens(len(layout.tubelet_s), config)
        frames.append(patchify(fit(Pillow.fromarray(frame), config, budget), config.patch_size))
        if len(frames) == config.tubelet_frames:
            tubelets.append(np.concatenate(frames, axis=1))
            frames = []
    if frames:
        # a short last tubelet repeats its last frame
        tubelets.append(np.concatenate(frames + frames[-1:] * (config.tubelet_frames - len(frames)), axis=1))
    patches = np.concatenate(tubelets)
    if len(patches) != layout.num_video:
        raise DocumentError(f"video gave {len(patches)} patches where its length says {layout.num_video}")
    return layout, patches, track


def _frames_at(times: np.ndarray, count: int, config: EncodeConfig) -> list[int]:
    """Index of the frame that is showing at each k / fps."""
    moments = np.arange(count) / config.video_fps
    return np.maximum(np.searchsorted(times, moments + 1e-4, side="right") - 1, 0).tolist()


_Opened = tuple[np.ndarray, float, Callable[[list[int]], Iterator[np.ndarray]]]


def _open(path: Path, config: EncodeConfig) -> _Opened:
    """Times of the frames from the first (seconds), end of the last, and a function that yields frames as RGB."""
    reasons = []
    for name, reader in (("decord", _open_decord), ("PyAV", _open_av)):
        try:
            return reader(path, config)
        except ImportError:
            reasons.append(f"{name} is not installed")
        except DocumentError:
            raise
        # both libraries raise what FFmpeg gives them, in classes of their own
        except Exception as error:
            reasons.append(f"{name}: {str(error).splitlines()[0][-120:] if str(error) else type(error).__name__}")
    raise DocumentError(f"not a video that can be read ({'; '.join(reasons)})")


def _check(num_frames: int, end_s: float, width: int, height: int, config: EncodeConfig) -> None:
    if num_frames < 1:
        raise DocumentError("video has no frames")
    if not 0 < end_s <= config.max_video_s:
        raise DocumentError(f"video of {end_s:.1f} s lies outside 0..max_video_s={config.max_video_s:g}; split it")
    if num_frames > MAX_FRAME_RATE * max(end_s, 1.0):
        raise DocumentError(f"video claims {num_frames} frames in {end_s:.2f} s")
    if width * height > config.max_pixels:
        raise DocumentError(f"frames of {width} x {height} pixels are over max_pixels={config.max_pixels}")


def _open_decord(path: Path, config: EncodeConfig) -> _Opened:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # decord tells the frame size only with the first frame, so it is checked there
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    spans = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(spans).all() or (np.diff(spans[:, 0]) < 0).any():
        raise RuntimeError("frame times are not in order")
    start = spans[0, 0] if len(spans) else 0.0
    end_s = float(spans[-1, 1] - start) if len(spans) else 0.0
    _check(len(spans), end_s, 1, 1, config)

    def fetch(indices: list[int]) -> Iterator[np.ndarray]:
        frame, last = None, -1
        for index in indices:
            if index != last:
                frame, last = _three_channels(reader[index].asnumpy()), index
                _check(len(spans), end_s, frame.shape[1], frame.shape[0], config)
            yield frame

    return spans[:, 0] - start, end_s, fetch


def _three_channels(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) pixels of a decord frame.

    decord takes the padded length of a line over the width for the number of channels: frames 16, 24 or 48 pixels
    wide come out with 4 or 6. The bytes are right, with padding at the end of each line.
    """
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return np.ascontiguousarray(frame.reshape(height, width * channels)[:, : width * 3]).reshape(height, width, 3)


def _open_av(path: Path, config: EncodeConfig) -> _Opened:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DocumentError("no video stream in the file")
        stream = container.streams.video[0]
        _check(1, config.max_video_s, stream.codec_context.width, stream.codec_context.height, config)
        base, packets = float(stream.time_base), []
        for packet in container.demux(stream):
            if packet.pts is not None:
                packets.append((packet.pts * base, float(packet.duration or 0) * base))
        packets.sort()
        rate = float(stream.average_rate or 0)
    if not packets:
        raise DocumentError("video has no frames")
    times = np.array([time for time, _ in packets])
    last = packets[-1][1] or (1 / rate if rate else 0.04)
    times, end_s = times - times[0], float(times[-1] - times[0] + last)
    _check(len(times), end_s, 1, 1, config)

    def fetch(indices: list[int]) -> Iterator[np.ndarray]:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            position, wanted = -1, iter(indices)
            want = next(wanted, None)
            for frame in container.decode(video=0):
                position += 1
                pixels = None
                while want is not None and want == position:
                    pixels = frame.to_ndarray(format="rgb24") if pixels is None else pixels
                    yield pixels
                    want = next(wanted, None)
                if want is None:
                    return
            raise DocumentError(f"truncated: frame {want} of the video cannot be decoded")

    return times, end_s, fetch


def _sound_track(path: Path, config: EncodeConfig) -> np.ndarray | None:
    """(n,) samples at the configured rate from the time of the first frame on, or None for a silent video."""
    try:
        import av
    except ImportError:
        return _sound_decord(path, config)
    from data.decode_audio import check_rate, resample, to_mono

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            video = container.streams.video[0] if container.streams.video else None
            rate = stream.codec_context.sample_rate
            check_rate(rate)
            planar = av.AudioResampler(format="fltp")
            pieces, start_s, total = [], None, 0
            for frame in container.decode(stream):
                if start_s is None:
                    start_s = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
                for piece in planar.resample(frame):
                    pieces.append(piece.to_ndarray().T)
                    total += len(pieces[-1])
                if total > (config.max_video_s + 1) * rate:
                    raise DocumentError(f"sound track is longer than max_video_s={config.max_video_s:g}; split it")
            first_s = float((video.start_time or 0) * video.time_base) if video is not None else 0.0
    except DocumentError:
        raise
    except Exception as error:
        raise DocumentError(f"broken sound track ({str(error).splitlines()[0][-120:] if str(error) else ''})") from None
    if not pieces:
        return None
    mono = to_mono(np.concatenate(pieces))
    shift = round((start_s - first_s) * rate)
    if abs(shift) > config.max_video_s * rate:
        raise DocumentError("sound track begins far away from the picture")
    mono = np.pad(mono, (shift, 0)) if shift > 0 else mono[-shift:]
    return resample(mono, rate, config) if len(mono) else None


def _sound_decord(path: Path, config: EncodeConfig) -> np.ndarray | None:
    """The sound track by decord, for installations without PyAV; decord pads and trims it to the picture itself."""
    import decord

    from data.decode_audio import to_mono

    try:
        reader = decord.AudioReader(str(path), ctx=decord.cpu(0), sample_rate=config.sample_rate, mono=True)
    except Exception as error:
        if "audio stream" in str(error).lower():
            return None
        raise DocumentError(f"broken sound track ({str(error)[-120:]})") from None
    samples = reader[:].asnumpy().reshape(-1, 1)
    if len(samples) > (config.max_video_s + 1) * config.sample_rate:
        raise DocumentError(f"sound track is longer than max_video_s={config.max_video_s:g}; split it")
    return to_mono(samples) if len(samples) else None
