"""Sound files to mel tokens: soundfile reads, torchaudio resamples and takes the mel spectrogram.

    samples   any rate from 4 to 192 kHz, any channels -> mean of the channels -> 16 kHz float32
    mel       n_fft 400, hop 160, centred over zero padding, power, Slaney's scale -> n // 160 + 1 frames
    token     4 frames x 64 bins, float16

The mel's base-10 logarithm is mapped to about [-1, 1] by one fixed affine map, never per clip: loudness stays
information and a streamed clip equals the whole one. The floor of 1e-6 is -1 (digital silence), a full-scale sine,
about 1e4, is +1. torch is imported here, and for pictures only where one must be scaled: servers start without it.

libsndfile silently accepts a WAV, OGG or MP3 file that ends before its time; `data.decode_whole` does not. What it
does not read at all (M4A, AAC, AMR, WMA, MKA, and films, whose sound track counts) is left to `data.decode_track`.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from data.config import EncodeConfig
from data.decode_track import read_contained, sound_container
from data.decode_whole import check_whole
from data.document import Audio, DocumentError
from data.lengths import audio_tokens
from data.signatures import why_not

LOG_FLOOR, LOG_CEILING = -6.0, 4.0
"""log10 of the mel power that becomes -1 and +1."""
_BLOCK = 2**18
BLOCK_FRAMES = 256
"""Mel frames made at a time; decides speed and memory, not the result."""
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF")


def decode_audio(path: Path, config: EncodeConfig) -> np.ndarray:
    """(n, audio_dim) float16 mel tokens of a sound file. Raises DocumentError when it is broken or too long."""
    samples, rate = read_samples(path, config.max_audio_s)
    return mel_tokens(resample(samples, rate, config), config)


def read_samples(path: Path, max_s: float) -> tuple[np.ndarray, int]:
    """(n,) float32 mono samples in [-1, 1] and their rate in Hz.

    Raises DocumentError when the file is no sound, is broken, cut or too long, or holds what is not finite.
    """
    kind = sound_container(path)
    if kind is not None:
        return _contained(path, kind, max_s)
    try:
        with soundfile.SoundFile(path) as sound:
            if sound.format not in _FORMATS:
                raise DocumentError(f"sound format {sound.format} is not read; convert it to WAV or FLAC")
            check_rate(sound.samplerate)
            if sound.channels > 32:
                raise DocumentError(f"sound has {sound.channels} channels, over the limit of 32")
            check_whole(path)
            if sound.frames > max_s * sound.samplerate:
                raise DocumentError(
                    f"sound of {sound.frames / sound.samplerate:.1f} s is over the limit of {max_s:g} s; split it"
                )
            samples = _read_blocks(sound, max_s)
            # an MP3 without a header that counts its frames gives an estimate; its frames were walked already
            declared = sound.frames if sound.format != "MP3" else 0
            rate = sound.samplerate
    except DocumentError:
        raise
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        kind = _second_try(path)
        if kind is not None:
            return _contained(path, kind, max_s)
        reason = str(error).removeprefix(f"Error opening {str(path)!r}: ")[-200:]
        raise DocumentError(f"not a sound file that can be read ({reason}){why_not(path, Audio)}") from None
    if len(samples) < declared:
        raise DocumentError("truncated: the file ends before the sound it declares")
    if not len(samples):
        raise DocumentError("no samples in the sound")
    return samples, rate


def _contained(path: Path, kind: str, max_s: float) -> tuple[np.ndarray, int]:
    """As `read_samples`, by PyAV."""
    check_whole(path)
    samples, rate = read_contained(path, kind, max_s)
    if len(samples) > max_s * rate:
        raise DocumentError(f"sound of {len(samples) / rate:.1f} s is over the limit of {max_s:g} s; split it")
    return samples, rate


def _second_try(path: Path) -> str | None:
    """The container of a file that soundfile cannot open and PyAV may: film or FLAC in Ogg, compressed sound in CAF."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if head.startswith(b"caff"):
        return "caf"
    known = head.startswith(b"OggS") and any(mark in head for mark in (b"\x80theora", b"OVP80", b"\x7fFLAC"))
    return "ogg" if known else None


def _read_blocks(sound: soundfile.SoundFile, max_s: float) -> np.ndarray:
    """(n,) float32 mono samples up to the end of the file, whatever number it declares.

    Block by block, since 32 channels at 192 kHz would take 1.5 GB a minute. Not by `SoundFile.blocks`: where a file
    gives less than it declared, that returns the rest of its buffer as it finds it, which is memory of other things.
    """
    block = np.empty((_BLOCK, sound.channels), np.float32)
    pieces, total = [np.zeros(0, np.float32)], 0
    while count := sound.buffer_read_into(block, "float32"):
        pieces.append(to_mono(block[:count]).copy())
        total += count
        if total > max_s * sound.samplerate:
            raise DocumentError(f"sound is longer than the limit of {max_s:g} s; split it")
    return np.concatenate(pieces)


def check_rate(rate: int) -> None:
    """DocumentError for a sample rate no microphone has."""
    if not 4000 <= rate <= 192000:
        raise DocumentError(f"sample rate of {rate} Hz lies outside 4,000..192,000 Hz")


def to_mono(samples: np.ndarray) -> np.ndarray:
    """(n, channels) float samples, n > 0, to (n,) float32 within [-1, 1]; DocumentError for non-finite ones."""
    if not len(samples):
        raise DocumentError("no samples in the sound")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DocumentError("sound holds samples that are not finite (NaN or infinity)")
    return np.clip(mono, -1.0, 1.0)


@functools.lru_cache(maxsize=16)
def _resampler(numerator: int, denominator: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(orig_freq=denominator, new_freq=numerator)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch meanwhile: convolutions and products of more threads differ from it in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
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


@_one_thread()
def mel_tokens(samples: np.ndarray, config: EncodeConfig) -> np.ndarray:
    """(n,) samples at the configured rate to (tokens, audio_dim) float16; the last token is filled with silence."""
    transform = _mel(config.sample_rate, config.window_samples, config.hop_samples, config.mel_bins)
    window, bands = transform.spectrogram.window, transform.mel_scale.fb
    count, half = audio_tokens(len(samples), config), config.window_samples // 2
    tokens = torch.full((count * config.mel_frames_per_token, config.mel_bins), -1.0, dtype=torch.float16)
    with torch.inference_mode():
        padded = torch.zeros(len(samples) + 2 * half)
        padded[half : half + len(samples)] = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        frames = padded.unfold(0, config.window_samples, config.hop_samples)
        # the transform's own steps on a few seconds at a time: what they need in between then stays in the cache
        for first in range(0, len(frames), BLOCK_FRAMES):
            spectrum = torch.fft.rfft(frames[first : first + BLOCK_FRAMES] * window)
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
            log = (power @ bands).clamp_(min=10.0**LOG_FLOOR).log10_()
            log.sub_((LOG_CEILING + LOG_FLOOR) / 2).div_((LOG_CEILING - LOG_FLOOR) / 2)
            tokens[first : first + len(log)] = log
    return tokens.numpy().reshape(count, config.audio_dim)
