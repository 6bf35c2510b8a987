"""Speech from espeak-ng; the caller's side of server.py, which runs once for each voice.

Samples are resampled from espeak's 22.05 kHz to 16 kHz by FFmpeg's resampler (PyAV, which the videos need anyway;
torchaudio would bring torch and its four seconds of start into each rendering process), and trimmed to the utterance
with 40 ms of silence on both sides.
"""

import io
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from brine.synth.kinds.levels import SAMPLE_RATE
from brine.synth.render_pool import HelperProcess

SERVER_FILE = Path(__file__).parent / "server.py"
ESPEAK_RATE = 22050
MARGIN = int(0.04 * SAMPLE_RATE)
"""Samples of silence before and after an utterance."""
START_TIMEOUT_S = 30.0


class SpeechError(RuntimeError):
    """An utterance could not be synthesised."""


class SpeechSynthesizer(AbstractContextManager):
    """espeak servers, one for each voice in use. close() or leaving the `with` block ends them."""

    def __init__(self, *, timeout_s: float = 20.0) -> None:
        self.timeout_s = timeout_s
        self._servers: dict[str, HelperProcess] = {}

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the servers; one that is needed again is started again."""
        while self._servers:
            self._servers.popitem()[1].close()

    def synthesize(self, text: str, *, voice: str, rate: int, pitch: int) -> np.ndarray:
        """(n,) int16 samples at 16 kHz, mono; `rate` in words per minute, `pitch` from 0 to 99. Raises SpeechError when
        the synthesiser fails, is silent, or takes longer than timeout_s."""
        if voice not in self._servers:
            # -P keeps the files beside the server from hiding modules of the standard library
            self._servers[voice] = HelperProcess([sys.executable, "-P", str(SERVER_FILE), voice, str(self.timeout_s)])
        # the server's time-out comes first, with its reason
        timeout_s = START_TIMEOUT_S + self.timeout_s
        try:
            answer = self._servers[voice].ask((text, rate, pitch), timeout_s=timeout_s)
        except EOFError:
            self._servers.pop(voice).close(kill=True)
            answer = f"the espeak server ended, or did not answer within {timeout_s:g} s"
        if isinstance(answer, str):
            raise SpeechError(answer)
        return trim(resample(np.frombuffer(answer, dtype="<i2")))


def resample(samples: np.ndarray) -> np.ndarray:
    """(n,) int16 at 22.05 kHz to (about 0.7256 n,) int16 at 16 kHz, band-limited."""
    import av

    if len(samples) == 0:
        return np.zeros(0, np.int16)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = ESPEAK_RATE
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    return np.concatenate([item.to_ndarray()[0] for item in (*resampler.resample(frame), *resampler.resample(None))])


def trim(samples: np.ndarray) -> np.ndarray:
    """The samples from 40 ms before the first to 40 ms after the last that is above 1 % of the loudest, filled with
    silence where there are none. Raises SpeechError for silence."""
    loud = np.abs(samples.astype(np.int32))
    if len(loud) == 0 or loud.max() < 100:
        raise SpeechError("espeak-ng said nothing")
    heard = np.flatnonzero(loud > 0.01 * loud.max())
    return np.pad(samples, MARGIN)[heard[0] : heard[-1] + 1 + 2 * MARGIN]


def render_audio(spec: dict, synthesizer: SpeechSynthesizer) -> bytes:
    """The FLAC file (16 kHz, mono, 16 bit) of an audio spec."""
    import soundfile

    samples = synthesizer.synthesize(spec["text"], voice=spec["voice"], rate=spec["rate"], pitch=spec["pitch"])
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
