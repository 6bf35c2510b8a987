"""Every number that decides how media become tokens.

A corpus is encoded under one `EncodeConfig`; its digest is kept in the corpus, the plan and the model folder, so that a
model is never fed patches of another shape. Bounds on what is accepted (pixels, seconds, MiB, time-out) enter the
digest too, since they decide which documents a corpus holds. Mel hops are 10 ms and windows 25 ms at any sample rate,
which makes one audio token 40 ms at the default of four frames per token.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class EncodeConfig:
    """How documents are decoded and cut into tokens. Raises ValueError when a field cannot work."""

    patch_size: int = 16
    """Side of a square image patch, in pixels; one patch is one token."""
    max_image_tokens: int = 1024
    """Token budget of one image (and of one video frame); larger images are scaled down to fit."""
    sample_rate: int = 16000
    """Hz that all audio is resampled to; a multiple of 400, so that 10 ms and 25 ms are whole samples."""
    mel_bins: int = 64
    """Mel bands from 0 Hz to half the sample rate (Slaney's scale); more than 64 leaves bands empty at 16 kHz."""
    mel_frames_per_token: int = 4
    """Mel frames (10 ms each) in one audio token; also sets the time step of the time axis: 4 frames = 40 ms."""
    max_audio_s: float = 60.0
    """Longest audio accepted, in seconds; longer files are rejected, never cut."""
    video_fps: float = 2.0
    """Frames sampled per second of video, by absolute time."""
    tubelet_frames: int = 2
    """Consecutive sampled frames that share one token per patch."""
    max_video_tokens: int = 4096
    """Token budget of the frames of one video; frames are scaled down to fit."""
    max_video_s: float = 120.0
    """Longest video (and audio track) accepted, in seconds."""
    max_pixels: int = 50_000_000
    """Largest image or frame accepted, in pixels, checked in the header before anything is decoded."""
    max_file_mib: float = 256.0
    """Largest media or text file accepted, in MiB."""
    decode_timeout_s: float = 20.0
    """Time one document may take in a decoding process before the process is killed, in seconds."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), "whole " if field.type is int else ""
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or (whole and int(value) != value) or not value > 0:
                raise ValueError(f"EncodeConfig.{field.name} must be a {whole}number above 0, not {value!r}")
        if self.sample_rate % 400:
            raise ValueError(f"EncodeConfig.sample_rate must be a multiple of 400 Hz, not {self.sample_rate}")
        if self.max_video_tokens < self.max_video_s * self.video_fps / self.tubelet_frames:
            raise ValueError(
                f"EncodeConfig.max_video_tokens={self.max_video_tokens} leaves less than one token for a tubelet of a "
                f"video of max_video_s={self.max_video_s}: raise it or lower max_video_s or video_fps"
            )

    @property
    def image_dim(self) -> int:
        """Numbers in one image patch: p * p * 3."""
        return self.patch_size**2 * 3

    @property
    def audio_dim(self) -> int:
        """Numbers in one audio token: mel frames * mel bins."""
        return self.mel_frames_per_token * self.mel_bins

    @property
    def video_dim(self) -> int:
        """Numbers in one video token: frames * p * p * 3."""
        return self.tubelet_frames * self.image_dim

    @property
    def dims(self) -> dict[str, int]:
        """Patch width of each modality."""
        return {"image": self.image_dim, "audio": self.audio_dim, "video": self.video_dim}

    @property
    def hop_samples(self) -> int:
        """Samples between mel frames: 10 ms."""
        return self.sample_rate // 100

    @property
    def window_samples(self) -> int:
        """Samples in one Fourier window: 25 ms."""
        return self.sample_rate // 40

    @property
    def time_step_s(self) -> float:
        """Seconds that one step of the time axis stands for: one audio token."""
        return self.mel_frames_per_token / 100

    def to_dict(self) -> dict:
        """Plain JSON form, field by field."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "EncodeConfig":
        """Inverse of `to_dict`; raises ValueError naming a field that does not exist."""
        known = sorted(field.name for field in dataclasses.fields(cls))
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"unknown EncodeConfig field {unknown[0]!r}; the fields are {', '.join(known)}")
        return cls(**fields)

    def digest(self) -> str:
        """Hex SHA-256 of the fields, for the corpus, the plan and the model folder to agree on."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
