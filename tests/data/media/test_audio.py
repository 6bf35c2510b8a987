"""What is right for every sound format: samples, frequency, length.

Each case states the answer instead of comparing with another run.
"""

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from brine.data.config import EncodeConfig
from brine.data.document import DocumentError
from brine.data.lengths import audio_tokens
from tests.data.media_formats import RED, mp3, mp3_without_header, saved, tone

CONFIG = EncodeConfig(max_audio_s=10.0, max_video_s=20.0)

SOUNDS = [
    *[
        ("WAV", subtype, 8000)
        for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
    ],
    ("WAVEX", "PCM_24", 96000),
    ("RF64", "PCM_16", 22050),
    ("FLAC", "PCM_16", 44100),
    ("FLAC", "PCM_24", 96000),
    ("OGG", "VORBIS", 32000),
    ("OGG", "OPUS", 48000),
    ("MP3", "MPEG_LAYER_III", 24000),
    ("WAV", "PCM_16", 11127),
    ("AIFF", "PCM_16", 88200),
]


# an MP3 has at most two channels
@pytest.mark.parametrize(
    ("form", "subtype", "rate", "channels"),
    [(*sound, channels) for sound in SOUNDS for channels in (1, 2, 6) if sound[0] != "MP3" or channels <= 2],
    ids=lambda value: str(value),
)
def test_sound(tmp_path, form, subtype, rate, channels):
    """Samples after resampling within one of n * 16000 / rate, the tone where it was, channels averaged."""
    from brine.data.media.audio import decode_audio, read_samples, resample

    samples = tone(rate, 0.7, channels=channels)
    soundfile.write(tmp_path / "x", samples, rate, format=form, subtype=subtype)
    mono, read_rate = read_samples(tmp_path / "x", 10.0)
    assert (read_rate, len(mono)) == (rate, len(samples))
    heard = resample(mono, rate, CONFIG)
    assert abs(len(heard) - len(samples) * 16000 / rate) <= 1
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert abs(spectrum.argmax() * 16000 / len(heard) - 440) < 1.5
    middle = heard[len(heard) // 4 : -len(heard) // 4]
    tolerance = 0.1 if form in ("OGG", "MP3") else 0.02 if subtype.endswith("LAW") else 0.01
    assert np.abs(middle).max() * channels == pytest.approx(0.5, rel=0.02 + tolerance * channels)
    assert decode_audio(tmp_path / "x", CONFIG).shape == (audio_tokens(len(heard), CONFIG), 256)


@pytest.mark.parametrize("vbr", [False, True], ids=["cbr", "vbr"])
def test_mp3_with_tag_and_cover(tmp_path, vbr):
    """Neither the tag nor the image in it is heard, and the encoder's delay is cut: the length is exact."""
    from brine.data.media.audio import read_samples

    (tmp_path / "x.mp3").write_bytes(mp3(1.0, vbr=vbr, cover=saved(Pillow.new("RGB", (16, 16), RED), "JPEG")))
    samples, rate = read_samples(tmp_path / "x.mp3", 10.0)
    assert (len(samples), rate) == (44100, 44100)
    assert np.abs(samples).max() == pytest.approx(0.5, rel=0.1)


def test_mp3_that_does_not_count_its_frames(tmp_path):
    """A whole MP3 without the header that counts frames is read to its end, the same each time.

    libsndfile guesses its length, here 88 samples too many. It was refused as truncated; and read through
    `SoundFile.blocks` those samples came out as whatever the memory held before: the fuzz test saw NaN once, and other
    numbers under another file name.
    """
    from brine.data.media.audio import read_samples

    (tmp_path / "x.mp3").write_bytes(mp3_without_header(mp3(0.4)))
    with soundfile.SoundFile(tmp_path / "x.mp3") as sound:
        guessed = sound.frames
    samples, _ = read_samples(tmp_path / "x.mp3", 10.0)
    assert len(samples) % 1152 == 0 and 17640 < len(samples) < guessed
    for _ in range(3):
        np.full(2**18, np.nan, np.float32).sum()
        np.testing.assert_array_equal(read_samples(tmp_path / "x.mp3", 10.0)[0], samples)


def test_clipped_sound_passes_and_sound_that_is_not_finite_does_not(tmp_path):
    from brine.data.media.audio import read_samples

    soundfile.write(tmp_path / "loud.wav", np.float32([3.0, -1e30, 0.5] * 100), 8000, subtype="FLOAT")
    assert read_samples(tmp_path / "loud.wav", 10.0)[0][:3].tolist() == [1.0, -1.0, 0.5]
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        # in the other channel and beyond the first block
        samples = np.zeros((300_000, 2), np.float32)
        samples[-1, 1] = value
        soundfile.write(tmp_path / f"{name}.wav", samples, 48000, subtype="FLOAT")
        with pytest.raises(DocumentError, match="not finite"):
            read_samples(tmp_path / f"{name}.wav", 10.0)


def test_a_wav_from_a_pipe_keeps_its_samples(tmp_path):
    """A writer that cannot go back leaves all ones for "unknown": everything up to the end is the sound."""
    from brine.data.media.audio import read_samples

    soundfile.write(tmp_path / "x.wav", tone(8000, 0.5), 8000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    (tmp_path / "x.wav").write_bytes(content)
    assert len(read_samples(tmp_path / "x.wav", 10.0)[0]) == 4000
