"""Audio in a container, by PyAV: of a video, and of files that libsndfile does not read (M4A, AAC, AMR, WMA, MKA, ...).

The samples are those of a WAV of the same audio, to a token. An encoder's padding is dropped where the container states
it: in front by FFmpeg (edit lists, codec delays), behind by the declared length of an MP4 track. Elsewhere the first
frame of AAC is dropped, and up to one frame at the end (1,024 samples) cannot be distinguished from audio. Missing
packets are silence. Each packet's declared time is compared with the samples decoded before it, all together, so that
short gaps do not add up; a single packet that comes too early or too late moves nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brine.data.document import DocumentError
from brine.data.media.containers import check_length, open_container, video_streams

_SLACK_S = 0.015  # how far audio may be from its declared time, however many packets are missing before it
_AHEAD = 15
"""Packets whose median error decides: the clocks of live recordings jitter by more than the slack, and come back."""
_AAC_FRAME = 1024
_UNSTATED = ("aac", "mpegts", "mpeg", "flv", "avi")  # containers that do not state an encoder's padding in front


def read_contained(path: Path, kind: str, max_s: float) -> tuple[np.ndarray, int]:
    """As `audio.read_samples`, of the first audio track of a container. Raises DocumentError."""
    with open_container(path, kind, "broken audio track: convert it to WAV") as container:
        import av

        if not container.streams.audio:
            raise DocumentError("no audio track in the file: it is a silent video, so give it as video")
        stream = container.streams.audio[0]
        length_s = float(stream.duration * stream.time_base) if stream.duration and kind == "mov" else 0.0
        declared_s = (container.duration or 0) / av.time_base if kind in ("mov", "matroska", "asf", "caf") else 0.0
        has_video = bool(video_streams(container))
        codec = stream.codec_context
        skip = _AAC_FRAME if kind in _UNSTATED and codec is not None and codec.name == "aac" else 0
        track = read_track(container, stream, max_s, limit="the limit", skip=skip)
        samples = track.samples() if track else np.zeros(0, np.float32)
    # only what filled the last packets; an edit list of many parts may declare anything
    length = round(length_s * track.rate) if track else 0
    if length and 0 < len(samples) - length <= 4 * _AAC_FRAME:
        samples = samples[:length]
    if not len(samples):
        raise DocumentError("no samples in the audio")
    late_s = max(0.0, track.origin_s or 0.0) if kind == "matroska" else 0.0
    # a video may well last longer than its audio
    if not has_video:
        check_length(declared_s, declared_s - len(samples) / track.rate - late_s, declared_s)
    return samples, track.rate


def read_track(
    container, stream, max_s: float, *, limit: str = "max_video_s", origin_s: float | None = None, skip: int = 0
) -> "AudioTrack | None":
    """A stream's audio on the clock that is zero at `origin_s` (or `skip` samples on), or None.

    Raises DocumentError.
    """
    if stream.codec_context is None:
        raise DocumentError("no decoder for the codec of the audio track; convert it to WAV")
    # a transport stream may not have declared the rate yet
    check_format(stream.codec_context.sample_rate or 16000, stream.codec_context.channels)
    track = last = None
    since_s = float("-inf") if origin_s is None else origin_s - max_s - 1
    for frame, chunk in _iter_chunks(container, stream, since_s):
        track = track or AudioTrack(frame.sample_rate, max_s, limit)
        start_s = float(frame.pts * frame.time_base) if frame is not last and frame.pts is not None else None
        if origin_s is None and start_s is not None:
            origin_s = start_s + skip / track.rate
        track.add(chunk, None if start_s is None else start_s - origin_s)
        track.origin_s, last = origin_s, frame
    return track


def check_format(rate: int, channels: int = 1) -> None:
    """DocumentError for a sample rate (Hz) no microphone has, and for over 32 channels."""
    if not 4000 <= rate <= 192000:
        raise DocumentError(f"sample rate of {rate} Hz lies outside 4,000..192,000 Hz")
    if channels > 32:
        raise DocumentError(f"audio has {channels} channels, over the limit of 32")


def to_mono(samples: np.ndarray) -> np.ndarray:
    """(n, channels) float samples, n > 0, to (n,) float32 within [-1, 1]; DocumentError for non-finite ones."""
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DocumentError("audio holds samples that are not finite (NaN or infinity)")
    return np.clip(mono, -1.0, 1.0)


def _iter_chunks(container, stream, since_s: float) -> Iterator[tuple]:
    """Decoded frames, each with its (n,) float32 mono chunks. Packets before `since_s` cost no decoding."""
    import av

    planar = av.AudioResampler(format="fltp")
    for packet in container.demux(stream):
        if packet.pts is not None and float(packet.pts * packet.time_base) < since_s:
            continue
        for frame in packet.decode():
            check_format(frame.sample_rate)
            yield from ((frame, to_mono(chunk.to_ndarray().T)) for chunk in planar.resample(frame) if chunk.samples)


class AudioTrack:
    """Chunks of mono audio, placed on one clock once all are there."""

    def __init__(self, rate: int, max_s: float, limit: str = "max_video_s"):
        self.rate, self.max_s = rate, max_s
        self.origin_s: float | None = None
        self.chunks: list[np.ndarray] = []
        self.offsets: list[float | None] = []  # per chunk: its declared sample less the samples decoded before it
        self.count, self.first = 0, None
        self._late = f"after the first frame, beyond {limit}"
        self._too_long = DocumentError(f"audio track is longer than {limit}={max_s:g}; split it")

    def add(self, chunk: np.ndarray, start_s: float | None) -> None:
        """Take one chunk, which is declared to begin at `start_s`, or to follow the last."""
        if start_s is not None and start_s > self.max_s + 1:
            raise DocumentError(f"audio track begins {start_s:.0f} s {self._late}")
        offset = None if start_s is None else start_s * self.rate - self.count
        self.first = offset if self.first is None else self.first
        # what precedes the first frame is cut later, and was bounded by whoever read it
        if self.count + len(chunk) + max(self.first or 0.0, -self.rate * self.max_s) > (self.max_s + 2) * self.rate:
            raise self._too_long
        self.chunks.append(chunk)
        self.offsets.append(offset)
        self.count += len(chunk)

    def samples(self) -> np.ndarray:
        """(n,) float32 from time 0 on: silence where packets are missing, nothing heard twice."""
        parts, end, before, shift = [np.zeros(0, np.float32)], None, 0, None
        for number, chunk in enumerate(self.chunks):
            shift = self._shift(number, shift)
            start, before = before + round(shift), before + len(chunk)
            if start + len(chunk) > (self.max_s + 1) * self.rate:
                raise self._too_long
            filled = max(0, end or 0)
            end = max(start + len(chunk), end if end is not None else start)
            gap, chunk = max(0, start - filled), chunk[max(0, filled - start) :]
            if gap and len(chunk):
                parts.append(np.zeros(gap, np.float32))
            parts.append(chunk)
        return np.concatenate(parts)

    def _shift(self, number: int, shift: float | None) -> float:
        """Samples between a chunk and the samples decoded before it; `shift` is that of the chunk before."""
        declared = self.offsets[number]
        if shift is None or declared is None:
            return shift or declared or 0.0
        slack = _SLACK_S * self.rate
        coming = [offset - shift for offset in self.offsets[number : number + _AHEAD] if offset is not None]
        steady = sorted(coming)[len(coming) // 2]
        if min(abs(declared - shift), abs(steady)) <= slack or (steady > 0) != (declared > shift):
            return shift
        return shift + min(declared - shift, steady, key=abs)
