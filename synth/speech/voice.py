"""Speech from espeak-ng, through processes of its own; the caller's side.

`SpeechSynthesizer` starts one server.py for each voice, which forks a fresh child for every utterance, and requests
samples from it. They are resampled from espeak's 22.05 kHz to 16 kHz by FFmpeg's resampler (PyAV, which the videos need
anyway; torchaudio would bring torch and its four seconds of start into each rendering process), and trimmed to the
utterance with 40 ms of silence on both sides.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from brine.synth.kinds.levels import SAMPLE_RATE

SERVER_FILE = Path(__file__).parent / "server.py"
ESPEAK_RATE = 22050
MARGIN = int(0.04 * SAMPLE_RATE)
"""Samples of silence before and after an utterance."""
START_TIMEOUT_S = 30.0


class SpeechError(RuntimeError):
    """An utterance could not be synthesised."""


class SpeechSynthesizer:
    """espeak servers, one for each voice in use. close() or leaving the `with` block ends them."""

    def __init__(self, *, timeout_s: float = 20.0) -> None:
        self.timeout_s = timeout_s
        self._servers: dict[str, _EspeakProcess] = {}

    def __enter__(self) -> SpeechSynthesizer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the servers; one that is needed again is started again."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def synthesize(self, text: str, *, voice: str, rate: int, pitch: int) -> np.ndarray:
        """(n,) int16 samples at 16 kHz, mono. `rate` in words a minute, `pitch` from 0 to 99.

        The same arguments give the same samples whatever was said before. Raises SpeechError when the synthesiser
        fails, is silent, or takes longer than timeout_s.
        """
        server = self._servers.get(voice)
        if server is None or not server.alive:
            if server is not None:
                server.close()
            server = self._servers[voice] = _EspeakProcess(voice, timeout_s=self.timeout_s)
        data = server.request(text=text, rate=rate, pitch=pitch)
        return trim(resample(np.frombuffer(data, dtype="<i2")))


class _EspeakProcess:
    """One process with one voice; speaks the protocol of server.py."""

    def __init__(self, voice: str, *, timeout_s: float) -> None:
        # -P keeps the files beside the server from hiding modules of the standard library
        command = [sys.executable, "-P", str(SERVER_FILE), voice, str(timeout_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.alive = True
        try:
            self._receive(START_TIMEOUT_S)
        except SpeechError:
            self.close()
            raise
        # the server's own time-out comes first, with its reason
        self.timeout_s = timeout_s + 5.0

    def close(self) -> None:
        """Ends the process, which leaves by itself when its input is closed."""
        self.alive = False
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def request(self, **request: str | int) -> bytes:
        """The samples of an utterance, 22.05 kHz int16. Raises SpeechError."""
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return base64.b64decode(self._receive(self.timeout_s)["samples"])

    def _receive(self, timeout_s: float) -> dict:
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line.endswith("\n"):
            self.alive = False
            raise SpeechError(f"the espeak server ended, or did not answer within {timeout_s:g} s")
        answer = json.loads(line)
        if "error" in answer:
            raise SpeechError(answer["error"])
        return answer


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
    """The samples from 40 ms before the first to 40 ms after the last that is above 1 % of the loudest.

    Margins are filled with silence where the samples have none. Raises SpeechError for silence.
    """
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
