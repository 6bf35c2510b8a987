"""The token count of an image, audio or video, from its size and duration alone.

The encoder uses these functions, and so does everything that plans ahead, so that planned and real lengths agree.

    image   rows x columns patches, native aspect ratio. Within the budget it is padded at the right and lower edge to
            whole patches, never resampled; over it, scaled down as little as the budget asks; one thinner than a patch
            is first enlarged until it is one patch thick.
    audio   n samples give n // hop + 1 centred mel frames, four frames per token.
    video   frames at k / fps for all k with k / fps < duration; tubelets of two; an image grid per tubelet; the
            audio track, if any, as audio on the same clock.
"""

import math
from dataclasses import dataclass

from brine.data.config import EncodeConfig


def image_size(width: int, height: int, patch_size: int, max_tokens: int) -> tuple[int, int, bool]:
    """Size (width, height) of an image as encoded, multiples of `patch_size`; whether it is resampled or padded."""
    if width < 1 or height < 1:
        raise ValueError(f"an image needs at least one pixel, not {width} x {height}")

    def patches(scale: float) -> tuple[int, int]:
        return tuple(-(-math.ceil(side * scale) // patch_size) for side in (width, height))

    short = min(width, height)
    grid, resampled = patches(1.0), short < patch_size
    # the short side of a thin image becomes one patch
    if resampled and -(-width // short) * -(-height // short) <= max_tokens:
        grid = -(-width // short), -(-height // short)
    elif grid[0] * grid[1] > max_tokens:
        # the largest scale within the budget, by bisection; whole patches make the count a staircase in the scale
        fits, over, resampled = 0.0, 1.0, True
        for _ in range(40):
            scale = (fits + over) / 2
            if math.prod(patches(scale)) <= max_tokens:
                fits = scale
            else:
                over = scale
        grid = tuple(max(1, side) for side in patches(fits))
    return grid[0] * patch_size, grid[1] * patch_size, resampled


def image_grid(width: int, height: int, config: EncodeConfig, *, max_tokens: int | None = None) -> tuple[int, int]:
    """Patch rows and columns of an image; their product is its token count, at most `max_tokens`."""
    limit = config.max_image_tokens if max_tokens is None else max_tokens
    wide, high, _ = image_size(width, height, config.patch_size, limit)
    return high // config.patch_size, wide // config.patch_size


def audio_tokens(num_samples: int, config: EncodeConfig) -> int:
    """Tokens of `num_samples` of audio at `config.sample_rate`: ceil((n // hop + 1) / frames per token)."""
    if num_samples < 1:
        raise ValueError("audio needs at least one sample")
    return math.ceil((num_samples // config.hop_samples + 1) / config.mel_frames_per_token)


def video_frames(duration_s: float, config: EncodeConfig) -> int:
    """Frames sampled from a video: one at every k / fps before its end, at least one."""
    # a frame that would fall on the very end does not exist; rounding must not invent it
    return max(1, math.ceil(duration_s * config.video_fps - 1e-6))


def video_frame_tokens(num_tubelets: int, config: EncodeConfig) -> int:
    """Token budget of one tubelet of a video that has `num_tubelets` of them."""
    return max(1, min(config.max_image_tokens, config.max_video_tokens // num_tubelets))


@dataclass(frozen=True)
class VideoLayout:
    """How a video becomes tokens: its tubelets and its audio."""

    grid: tuple[int, int]  # patch rows and columns of every tubelet
    tubelet_s: tuple[float, ...]  # time of each tubelet (of its first frame), seconds from the first frame
    num_audio_tokens: int  # audio tokens of the audio track; 0 without one

    @property
    def num_video(self) -> int:
        return len(self.tubelet_s) * self.grid[0] * self.grid[1]


def video_layout(
    width: int, height: int, duration_s: float, num_audio_samples: int, config: EncodeConfig
) -> VideoLayout:
    """Layout of a video of the given frame size and duration, with `num_audio_samples` of audio track (0: silent)."""
    count = math.ceil(video_frames(duration_s, config) / config.tubelet_frames)
    grid = image_grid(width, height, config, max_tokens=video_frame_tokens(count, config))
    times = tuple(number * config.tubelet_frames / config.video_fps for number in range(count))
    return VideoLayout(grid, times, audio_tokens(num_audio_samples, config) if num_audio_samples else 0)


def audio_second(token: int, config: EncodeConfig) -> int:
    """Whole second in which an audio token starts; the tokens of one second are one attention block."""
    return (token * config.mel_frames_per_token) // 100
