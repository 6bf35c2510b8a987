"""Video files to tubelet patches, and their sound to mel tokens.

Frames are taken by absolute time: at every k / fps the frame that is showing then, whatever the file's own rate.
Times count from the first frame shown (`data.decode_frames`). The sound track is placed on the clock of the first
frame, and becomes mel tokens as any sound does. Tracks may start at any time of the file's own clock: sound that begins
after the first frame has silence in front, what was heard before the first frame is cut, and missing packets are
silence.

FFmpeg can hang on a hostile file, and can leak: import this module only inside the processes of `data.decode_server`.
"""

from pathlib import Path

import numpy as np

from data.config import EncodeConfig
from data.decode import fit, patchify
from data.decode_frames import Frames, container_of, open_frames, reason_of
from data.decode_track import Track, check_codec, pieces
from data.document import DocumentError
from data.lengths import VideoLayout, video_frame_tokens, video_frames, video_layout


def decode_video(path: Path, config: EncodeConfig, *, sound: bool = True) -> tuple[VideoLayout, np.ndarray, np.ndarray]:
    """Layout, (n, video_dim) uint8 patches and (k, audio_dim) float16 sound of a video file.

    Raises DocumentError when it is no video, is broken, too large or too long.
    """
    film = open_frames(path, config)
    track, num_samples = np.zeros((0, config.audio_dim), np.float16), 0
    if sound:
        samples = _sound_track(path, film, config)
        if samples is not None:
            from data.decode_audio import mel_tokens

            track, num_samples = mel_tokens(samples, config), len(samples)
    layout, tubelets = None, []
    frames: list[np.ndarray] = []
    for frame in film.fetch(frames_at(film.times_s, video_frames(film.end_s, config), config)):
        if layout is None:
            layout = video_layout(frame.shape[1], frame.shape[0], film.end_s, num_samples, config)
            size = frame.shape
        if frame.shape != size:
            raise DocumentError("video changes its frame size midway")
        budget = video_frame_tokens(len(layout.tubelet_s), config)
        frames.append(patchify(fit(frame, config, budget), config.patch_size))
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


def frames_at(times_s: np.ndarray, count: int, config: EncodeConfig) -> list[int]:
    """Index of the frame that is showing at each k / fps, k < count."""
    moments = np.arange(count) / config.video_fps
    return np.maximum(np.searchsorted(times_s, moments + 1e-4, side="right") - 1, 0).tolist()


def _sound_track(path: Path, film: Frames, config: EncodeConfig) -> np.ndarray | None:
    """(n,) samples at the configured rate from the time of the first frame on, or None for a silent video."""
    import av

    from data.decode_audio import resample

    try:
        with av.open(str(path), format=container_of(path)) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            check_codec(stream)
            track, last = None, None
            for frame, piece in pieces(container, stream, since_s=film.start_s - config.max_video_s - 1):
                track = track or Track(frame.sample_rate, config.max_video_s)
                timed = frame is not last and frame.pts is not None
                track.add(piece, float(frame.pts * frame.time_base) - film.start_s if timed else None)
                last = frame
    except DocumentError:
        raise
    except Exception as error:
        raise DocumentError(f"broken sound track ({reason_of(error)})") from None
    mono = track.samples() if track else ()
    return resample(mono, track.rate, config) if len(mono) else None
