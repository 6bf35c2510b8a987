"""Video files to tubelet patches, and their audio track to mel tokens.

Frames are taken by absolute time: at every k / fps after the first frame, the one that is showing then, whatever the
file's frame rate. The audio track is put on the same clock: audio that begins after the first frame has silence in
front, audio before it is cut, and missing packets are silence. FFmpeg can hang on a hostile file, and can leak: import
this module only in the processes of `brine.data.media.server`.
"""

from itertools import islice
from pathlib import Path

import numpy as np

from brine.data.config import EncodeConfig
from brine.data.document import DocumentError
from brine.data.lengths import VideoLayout, video_frame_tokens, video_frames, video_layout
from brine.data.media import audio
from brine.data.media.audio_track import read_track
from brine.data.media.containers import container_of, open_container
from brine.data.media.frames import VideoFrames, open_frames
from brine.data.media.images import fit, patchify


def decode_video(
    path: Path, config: EncodeConfig, *, use_audio: bool = True
) -> tuple[VideoLayout, np.ndarray, np.ndarray]:
    """Layout, (n, video_dim) uint8 patches, (k, audio_dim) float16 mel tokens of a video. Raises DocumentError."""
    video = open_frames(path, config)
    samples = _audio_track(path, video, config) if use_audio else None
    track = np.zeros((0, config.audio_dim), np.float16) if samples is None else audio.mel_tokens(samples, config)
    layout, tubelets = None, []
    frames = video.fetch(frames_at(video.times_s, video_frames(video.end_s, config), config))
    for group in iter(lambda: tuple(islice(frames, config.tubelet_frames)), ()):
        if layout is None:
            size = group[0].shape
            layout = video_layout(size[1], size[0], video.end_s, 0 if samples is None else len(samples), config)
            budget = video_frame_tokens(len(layout.tubelet_s), config)
        if any(frame.shape != size for frame in group):
            raise DocumentError("video changes its frame size midway")
        # a short last tubelet repeats its last frame
        group += group[-1:] * (config.tubelet_frames - len(group))
        tubelets.append(patchify(np.stack([fit(frame, config, budget) for frame in group]), config.patch_size))
    patches = np.concatenate(tubelets)
    if len(patches) != layout.num_video:
        raise DocumentError(f"video gave {len(patches)} patches where its length says {layout.num_video}")
    return layout, patches, track


def frames_at(times_s: np.ndarray, count: int, config: EncodeConfig) -> list[int]:
    """Index of the frame that is showing at each k / fps, k < count."""
    moments = np.arange(count) / config.video_fps
    return np.maximum(np.searchsorted(times_s, moments + 1e-4, side="right") - 1, 0).tolist()


def _audio_track(path: Path, video: VideoFrames, config: EncodeConfig) -> np.ndarray | None:
    """(n,) samples at the configured rate from the time of the first frame on, or None for a silent video."""
    track = None
    with open_container(path, container_of(path), "broken audio track") as container:
        if container.streams.audio:
            track = read_track(container, container.streams.audio[0], config.max_video_s, origin_s=video.start_s)
        samples = track.samples() if track else ()
    return audio.resample(samples, track.rate, config) if len(samples) else None
