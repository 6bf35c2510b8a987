"""The sound in a container, by PyAV: of a film, and of a file that is given as a sound (M4A, AAC, AMR, WMA, MKA, ...).

    read_contained(path, kind, max_s)   (n,) float32 mono samples and their rate
    Track                               pieces of sound laid on one clock

The samples are those of a WAV of the same sound, to a token. What an encoder puts in front (priming) and behind is
dropped where the container states it: FFmpeg does the first by edit lists and codec delays, the declared length of an
MP4 track the second. ADTS, FLV, AVI and MPEG streams state neither: there the first frame of AAC, which only fills the
decoder, is dropped, and up to one frame at the end (1,024 samples) cannot be told from sound. A sound begins at its own
first sample, whatever the container's clock says; packets that are missing later are silence.

Each packet's declared time is held against the samples decoded before it, all together, so gaps too short to matter
alone do not add up. A packet that comes by itself too early or too late moves nothing: most of those behind it must say
the same.

What lacks its end is refused by `data.decode_whole` before, and by declared seconds here. Formats that state neither
bytes nor seconds hide a cut between two packets: ADTS, AMR, MPEG streams.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.decode_frames import container_of, reason_of
from data.document import DocumentError

_SLACK_S = 0.015
"""How far sound may lie from its declared time, however many packets are missing before it."""
_AHEAD = 15
"""Packets whose middle error decides: the clocks of live recordings tremble by more than the slack, and come back."""
_AAC_FRAME = 1024
_UNSTATED = ("aac", "mpegts", "mpeg", "flv", "avi")
"""Containers that do not say what an encoder put in front."""
_EXACT = ("mov",)
"""Containers whose declared length of a track is that of the sound, without what fills the last packet."""


def sound_container(path: Path) -> str | None:
    """FFmpeg's name of the container when soundfile does not read it; None for all other files."""
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            file.seek(10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]))
            head = file.read(10)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    if head.startswith(b"#!AMR"):
        return "amr"
    try:
        kind = container_of(path)
    except DocumentError:
        return None
    return None if kind == "ogg" else kind


def read_contained(path: Path, kind: str, max_s: float) -> tuple[np.ndarray, int]:
    """(n,) float32 mono samples in [-1, 1] of the first sound track of a container, and their rate in Hz.

    Raises DocumentError when there is no sound in it, or a broken, cut or too long one.
    """
    try:
        import av
    except ImportError:
        raise DocumentError("sound in this container takes PyAV to read: install av, or convert it to WAV") from None
    try:
        with av.open(str(path), format=kind) as container:
            if not container.streams.audio:
                raise DocumentError("no sound track in the file: it is a silent video, so give it as video")
            stream = container.streams.audio[0]
            check_codec(stream)
            in_front = _AAC_FRAME if kind in _UNSTATED and stream.codec_context.name == "aac" else 0
            length_s = float(stream.duration * stream.time_base) if stream.duration and kind in _EXACT else 0.0
            declared_s = (container.duration or 0) / av.time_base if kind in ("mov", "matroska", "asf", "caf") else 0.0
            track, first_s, last = None, None, None
            for frame, piece in pieces(container, stream):
                track = track or Track(frame.sample_rate, max_s, "the limit")
                timed = frame is not last and frame.pts is not None
                start_s = float(frame.pts * frame.time_base) if timed else None
                if first_s is None and timed:
                    first_s = start_s + in_front / track.rate
                track.add(piece, start_s - first_s if timed else None)
                last = frame
    except (DocumentError, MemoryError):
        raise
    # PyAV raises what FFmpeg gives it, in classes of its own
    except Exception as error:
        raise DocumentError(f"broken sound track ({reason_of(error)}); convert it to WAV") from None
    if track is None:
        raise DocumentError("no samples in the sound")
    samples, rate = track.samples(), track.rate
    length = round(length_s * rate)
    # no more than what filled the last packets; an edit list of many parts may declare anything
    if 0 < len(samples) - length <= 4 * _AAC_FRAME and length:
        samples = samples[:length]
    if not len(samples):
        raise DocumentError("no samples in the sound")
    missing_s = declared_s - len(samples) / rate
    late_s = max(0.0, first_s or 0.0) if kind == "matroska" else 0.0
    if missing_s - late_s > max(1.0, 0.05 * declared_s) and not container_has_film(path, kind):
        raise DocumentError(f"truncated: {declared_s:.1f} s are declared, the last {missing_s:.1f} s are missing")
    return samples, rate


def container_has_film(path: Path, kind: str) -> bool:
    """Whether there is a video stream in the file, which may well last longer than its sound."""
    import av

    attached = av.stream.Disposition.attached_pic
    with av.open(str(path), format=kind) as container:
        return any(not stream.disposition & attached for stream in container.streams.video)


def check_codec(stream) -> None:
    """DocumentError for a sound track that cannot be decoded at all, or not within bounds."""
    from data.decode_audio import check_rate

    if stream.codec_context is None:
        raise DocumentError("no decoder for the codec of the sound track; convert it to WAV")
    # a transport stream may not have told the rate yet
    if stream.codec_context.sample_rate:
        check_rate(stream.codec_context.sample_rate)
    if stream.codec_context.channels > 32:
        raise DocumentError(f"sound has {stream.codec_context.channels} channels, over the limit of 32")


def pieces(container, stream, *, since_s: float = float("-inf")) -> Iterator[tuple]:
    """Decoded frames of a sound track with their (n,) float32 mono samples; a frame may come with several.

    Packets before `since_s`, however many, cost no decoding.
    """
    import av

    from data.decode_audio import check_rate, to_mono

    planar = av.AudioResampler(format="fltp")
    for packet in container.demux(stream):
        if packet.pts is not None and float(packet.pts * packet.time_base) < since_s:
            continue
        for frame in packet.decode():
            check_rate(frame.sample_rate)
            for piece in planar.resample(frame):
                if piece.samples:
                    yield frame, to_mono(piece.to_ndarray().T)


class Track:
    """Pieces of mono sound, laid on the clock of the first frame once all are there."""

    def __init__(self, rate: int, max_s: float, limit: str = "max_video_s"):
        self.rate, self.max_s, self.limit = rate, max_s, limit
        self.pieces: list[np.ndarray] = []
        self.apart: list[float | None] = []
        """Per piece: its declared sample less the samples decoded before it."""
        self.count, self.first = 0, None

    def add(self, piece: np.ndarray, start_s: float | None) -> None:
        """Take one piece, which is declared to begin at `start_s`, or to follow the last."""
        if start_s is not None and start_s > self.max_s + 1:
            raise DocumentError(f"sound track begins {start_s:.0f} s after the picture, beyond {self.limit}")
        apart = None if start_s is None else start_s * self.rate - self.count
        self.first = apart if self.first is None else self.first
        # what precedes the picture is cut later, and was bounded by whoever read it
        if self.count + len(piece) + max(self.first or 0.0, -self.rate * self.max_s) > (self.max_s + 2) * self.rate:
            raise self._too_long()
        self.pieces.append(piece)
        self.apart.append(apart)
        self.count += len(piece)

    def samples(self) -> np.ndarray:
        """(n,) float32 from the first frame on: silence where packets are missing, nothing heard twice."""
        laid, end, before, shift = [np.zeros(0, np.float32)], None, 0, None
        for place, piece in enumerate(self.pieces):
            shift = self._shift(place, shift)
            start, before = before + round(shift), before + len(piece)
            if start + len(piece) > (self.max_s + 1) * self.rate:
                raise self._too_long()
            begun = max(0, end or 0)
            end = max(start + len(piece), end if end is not None else start)
            gap, piece = max(0, start - begun), piece[max(0, begun - start) :]
            if gap and len(piece):
                laid.append(np.zeros(gap, np.float32))
            laid.append(piece)
        return np.concatenate(laid)

    def _shift(self, place: int, shift: float | None) -> float:
        """Samples by which the piece at `place` lies behind those decoded before it."""
        own = self.apart[place]
        if shift is None or own is None:
            return shift or own or 0.0
        if abs(own - shift) <= _SLACK_S * self.rate:
            return shift
        coming = [apart - shift for apart in self.apart[place : place + _AHEAD] if apart is not None]
        steady = sorted(coming)[len(coming) // 2]
        if abs(steady) <= _SLACK_S * self.rate or (steady > 0) != (own > shift):
            return shift
        return shift + min(own - shift, steady, key=abs)

    def _too_long(self) -> DocumentError:
        return DocumentError(f"sound track is longer than {self.limit}={self.max_s:g}; split it")
