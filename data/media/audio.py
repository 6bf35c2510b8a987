"""Audio files to mel tokens: soundfile reads, torchaudio resamples and takes the mel spectrogram.

    samples   any rate from 4 to 192 kHz, any channels -> mean of the channels -> 16 kHz float32
    mel       n_fft 400, hop 160, centred over zero padding, power, Slaney's scale -> n // 160 + 1 frames
    token     4 frames x 64 bins, float16

The base-10 logarithm of the mel power is mapped to about [-1, 1] by one fixed affine map, never per clip: loudness is
kept, and a streamed clip equals the whole one. The floor of 1e-6 is -1 (digital silence), a full-scale sine, about 1e4,
is +1. PyAV reads what libsndfile does not (`brine.data.media.audio_track`).
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
from einops import rearrange

from brine.data.config import EncodeConfig
from brine.data.document import Audio, DocumentError
from brine.data.files.signatures import format_mismatch_hint
from brine.data.lengths import audio_tokens
from brine.data.media.audio_track import check_format, read_contained, to_mono
from brine.data.media.completeness import check_complete
from brine.data.media.containers import container_of

LOG_FLOOR, LOG_CEILING = -6.0, 4.0  # log10 of the mel power that becomes -1 and +1
_BLOCK = 2**18
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF")


def decode_audio(path: Path, config: EncodeConfig) -> np.ndarray:
    """(n, audio_dim) float16 mel tokens of an audio file. Raises DocumentError when it is broken or too long."""
    samples, rate = read_samples(path, config.max_audio_s)
    return mel_tokens(resample(samples, rate, config), config)


def read_samples(path: Path, max_s: float) -> tuple[np.ndarray, int]:
    """(n,) float32 mono samples in [-1, 1], rate in Hz.

    DocumentError for what is broken, cut, too long or not finite.
    """
    kind = container_of(path).replace("ogg", "")
    if not kind:
        try:
            with soundfile.SoundFile(path) as audio_file:
                return _read_blocks(path, audio_file, max_s)
        except DocumentError:
            raise
        except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
            kind = _fallback_container(path)
            if not kind:
                reason = str(error).removeprefix(f"Error opening {str(path)!r}: ")[-200:]
                hint = format_mismatch_hint(path, Audio)
                raise DocumentError(f"not an audio file that can be read ({reason}){hint}") from None
    check_complete(path)
    samples, rate = read_contained(path, kind, max_s)
    _check_length(len(samples), rate, max_s)
    return samples, rate


def _check_length(num_samples: int, rate: int, max_s: float) -> None:
    if num_samples > max_s * rate:
        raise DocumentError(f"audio of {num_samples / rate:.1f} s is over the limit of {max_s:g} s; split it")


def _fallback_container(path: Path) -> str:
    """The container of a file that PyAV may open though soundfile cannot: video or FLAC in Ogg, compressed CAF."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if head.startswith(b"caff"):
        return "caf"
    known = head.startswith(b"OggS") and any(mark in head for mark in (b"\x80theora", b"OVP80", b"\x7fFLAC"))
    return "ogg" if known else ""


def _read_blocks(path: Path, audio_file: soundfile.SoundFile, max_s: float) -> tuple[np.ndarray, int]:
    """As `read_samples`, block by block: 32 channels at 192 kHz would take 1.5 GB a minute.

    Not by `SoundFile.blocks`, which returns uninitialised memory where a file gives less than it declared.
    """
    if audio_file.format not in _FORMATS:
        raise DocumentError(f"audio format {audio_file.format} is not read; convert it to WAV or FLAC")
    rate = audio_file.samplerate
    check_format(rate, audio_file.channels)
    check_complete(path)
    _check_length(audio_file.frames, rate, max_s)
    block = np.empty((_BLOCK, audio_file.channels), np.float32)
    chunks, total = [], 0
    while count := audio_file.buffer_read_into(block, "float32"):
        chunks.append(to_mono(block[:count]).copy())
        total += count
        if total > max_s * rate:
            raise DocumentError(f"audio is longer than the limit of {max_s:g} s; split it")
    # an MP3 without a header that counts its frames gives an estimate; its frames were walked already
    if audio_file.format != "MP3" and total < audio_file.frames:
        raise DocumentError("truncated: the file ends before the audio it declares")
    if not total:
        raise DocumentError("no samples in the audio")
    return np.concatenate(chunks), rate


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch meanwhile: convolutions and matmuls of more threads differ from it in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.lru_cache(maxsize=16)
def _resampler(numerator: int, denominator: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(orig_freq=denominator, new_freq=numerator)


@_one_thread()
@torch.inference_mode()
def resample(samples: np.ndarray, rate: int, config: EncodeConfig) -> np.ndarray:
    """(n,) float32 samples at `config.sample_rate`."""
    # the filter grows with the terms of the ratio: an odd rate such as 11,127 Hz is met within a thousandth
    ratio = Fraction(config.sample_rate, rate).limit_denominator(1000)
    if ratio == 1:
        return samples
    return _resampler(ratio.numerator, ratio.denominator)(torch.from_numpy(np.ascontiguousarray(samples))).numpy()


@functools.lru_cache(maxsize=4)
def _mel(sample_rate: int, n_fft: int, hop: int, bins: int) -> torchaudio.transforms.MelSpectrogram:
    with warnings.catch_warnings():
        # more bins than the transform can fill is the caller's choice; empty ones stay at the floor
        warnings.simplefilter("ignore")
        return torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate, n_fft=n_fft, hop_length=hop, n_mels=bins, pad_mode="constant", mel_scale="slaney"
        )


@_one_thread()
@torch.inference_mode()
def mel_tokens(samples: np.ndarray, config: EncodeConfig) -> np.ndarray:
    """(n,) samples at the configured rate to (tokens, audio_dim) float16; the last token is filled with silence."""
    transform = _mel(config.sample_rate, config.window_samples, config.hop_samples, config.mel_bins)
    mel = transform(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))).clamp_(min=10.0**LOG_FLOOR)
    mel = mel.log10_().sub_((LOG_CEILING + LOG_FLOOR) / 2).div_((LOG_CEILING - LOG_FLOOR) / 2)
    num_frames = audio_tokens(len(samples), config) * config.mel_frames_per_token
    frames = np.full((num_frames, config.mel_bins), -1.0, np.float16)
    frames[: mel.shape[1]] = mel.T
    return rearrange(frames, "(n f) b -> n (f b)", f=config.mel_frames_per_token)
