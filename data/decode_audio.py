"""Sound files to mel tokens: soundfile reads, torchaudio resamples and takes the mel spectrogram.

    samples   any rate from 4 to 192 kHz, any channels -> mean of the channels -> 16 kHz float32
    mel       n_fft 400, hop 160, centred over zero padding, power, Slaney's scale -> n // 160 + 1 frames
    token     4 frames x 64 bins, float16

The mel's base-10 logarithm is mapped to about [-1, 1] by one fixed affine map, never per clip: loudness stays
information and a streamed clip equals the whole one. The floor of 1e-6 is -1 (digital silence), a full-scale sine,
about 1e4, is +1. torch is imported here and by nothing that decodes pictures, so picture servers start without it.

libsndfile silently accepts a WAV or OGG file that ends before its time; both are checked here by hand.
"""

import functools
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from data.config import EncodeConfig
from data.document import DocumentError
from data.lengths import audio_tokens

LOG_FLOOR, LOG_CEILING = -6.0, 4.0
"""log10 of the mel power that becomes -1 and +1."""
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU")


def decode_audio(path: Path, config: EncodeConfig) -> np.ndarray:
    """(n, audio_dim) float16 mel tokens of a sound file. Raises DocumentError when it is broken or too long."""
    samples, rate = read_samples(path, config.max_audio_s)
    return mel_tokens(resample(samples, rate, config), config)


def read_samples(path: Path, max_s: float) -> tuple[np.ndarray, int]:
    """(n,) float32 mono samples in [-1, 1] and their rate in Hz."""
    try:
        with soundfile.SoundFile(path) as sound:
            if sound.format not in _FORMATS:
                raise DocumentError(f"sound format {sound.format} is not read; convert it to WAV or FLAC")
            check_rate(sound.samplerate)
            if sound.frames > max_s * sound.samplerate:
                raise DocumentError(
                    f"sound of {sound.frames / sound.samplerate:.1f} s is over the limit of {max_s:g} s; split it"
                )
            declared, channels = sound.frames, sound.channels
            if channels > 32:
                raise DocumentError(f"sound has {channels} channels, over the limit of 32")
            samples = sound.read(dtype="float32", always_2d=True)
            rate, kind = sound.samplerate, sound.format
    except DocumentError:
        raise
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise DocumentError(f"not a sound file that can be read ({str(error)[-200:]})") from None
    if len(samples) < declared or _ends_early(path, kind):
        raise DocumentError("truncated: the file ends before the sound it declares")
    return to_mono(samples), rate


def check_rate(rate: int) -> None:
    """DocumentError for a sample rate no microphone has."""
    if not 4000 <= rate <= 192000:
        raise DocumentError(f"sample rate of {rate} Hz lies outside 4,000..192,000 Hz")


def to_mono(samples: np.ndarray) -> np.ndarray:
    """(n, channels) float samples to (n,) float32 within [-1, 1]; DocumentError for none or non-finite ones."""
    if not len(samples):
        raise DocumentError("no samples in the sound")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DocumentError("sound holds samples that are not finite (NaN or infinity)")
    return np.clip(mono, -1.0, 1.0)


def _ends_early(path: Path, kind: str) -> bool:
    """Whether the container says that more should have come: RIFF sizes, and the last page mark of OGG."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if kind in ("WAV", "WAVEX"):
            head = file.read(8)
            declared = int.from_bytes(head[4:8], "little")
            # writers that stream leave 0 or all ones; a size of odd length may lack its padding byte
            return head[:4] == b"RIFF" and 0 < declared < 2**32 - 1 and declared + 8 > size + 1
        if kind == "OGG":
            file.seek(max(0, size - 2**16 - 2**12))
            tail = file.read()
            page = tail.rfind(b"OggS")
            return page < 0 or len(tail) < page + 6 or not tail[page + 5] & 4
    return False


@functools.lru_cache(maxsize=16)
def _resampler(numerator: int, denominator: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(orig_freq=denominator, new_freq=numerator)


def resample(samples: np.ndarray, rate: int, config: EncodeConfig) -> np.ndarray:
    """(n,) float32 samples at `config.sample_rate`."""
    # the filter grows with the terms of the ratio: an odd rate such as 11,127 Hz is met within a thousandth
    ratio = Fraction(config.sample_rate, rate).limit_denominator(1000)
    if ratio == 1:
        return samples
    with torch.inference_mode():
        out = _resampler(ratio.numerator, ratio.denominator)(torch.from_numpy(np.ascontiguousarray(samples)))
    return out.numpy()


@functools.lru_cache(maxsize=4)
def _mel(sample_rate: int, n_fft: int, hop: int, bins: int) -> torchaudio.transforms.MelSpectrogram:
    with warnings.catch_warnings():
        # more bins than the transform can fill is the caller's choice; empty ones stay at the floor
        warnings.simplefilter("ignore")
        return torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop,
            n_mels=bins,
            center=True,
            pad_mode="constant",
            power=2.0,
            mel_scale="slaney",
            norm=None,
        )


def mel_tokens(samples: np.ndarray, config: EncodeConfig) -> np.ndarray:
    """(n,) samples at the configured rate to (tokens, audio_dim) float16; the last token is filled with silence."""
    transform = _mel(config.sample_rate, config.window_samples, config.hop_samples, config.mel_bins)
    with torch.inference_mode():
        power = transform(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)))
        log = power.clamp_(min=10.0**LOG_FLOOR).log10_()
        frames = log.sub_((LOG_CEILING + LOG_FLOOR) / 2).div_((LOG_CEILING - LOG_FLOOR) / 2).T.to(torch.float16).numpy()
    count = audio_tokens(len(samples), config)
    tokens = np.full((count * config.mel_frames_per_token, config.mel_bins), -1.0, dtype=np.float16)
    tokens[: len(frames)] = frames
    return tokens.reshape(count, config.audio_dim)
