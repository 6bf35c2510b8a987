"""Speech from espeak-ng, through processes of its own; the caller's side.

`Speaker` starts one espeak_server.py for each voice, which forks a fresh child for every utterance, and asks
it for samples. What comes back is resampled from espeak's 22.05 kHz to 16 kHz by FFmpeg's resampler (PyAV,
which the films need anyway; torchaudio would bring torch and its four seconds of start into each rendering
process), and trimmed to the utterance with 40 ms of silence on both sides.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

from data.workbench.levels import SAMPLE_RATE

SERVER_FILE = Path(__file__).parent / "espeak_server.py"
ESPEAK_RATE = 22050
MARGIN_S = 0.04
START_TIMEOUT_S = 30.0


class SpeechError(RuntimeError):
    """An utterance could not be synthesised."""


class Speaker:
    """espeak servers, one for each voice that was asked for. close() or leaving the `with` block ends them."""

    def __init__(self, *, timeout_s: float = 20.0) -> None:
        self.timeout_s = timeout_s
        self._servers: dict[str, _Server] = {}

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the servers; one that is asked for again is started again."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def say(self, text: str, *, voice: str, rate: int, pitch: int):
        """(n,) int16 samples at 16 kHz, mono. `rate` in words a minute, `pitch` from 0 to 99.

        The same arguments give the same samples whatever was said before. Raises SpeechError when the
        synthesiser fails, is silent, or takes longer than timeout_s.
        """
        import numpy as np

        server = self._servers.get(voice)
        if server is None or not server.alive:
            if server is not None:
                server.close()
            server = self._servers[voice] = _Server(voice, timeout_s=self.timeout_s)
        data = server.ask({"text": text, "rate": rate, "pitch": pitch})
        return trim(resample(np.frombuffer(data, dtype="<i2")))


class _Server:
    """One process with one voice; speaks its protocol."""

    def __init__(self, voice: str, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        # -P keeps the files beside the server from hiding modules of the standard library
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER_FILE), voice, str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.alive = True
        try:
            self._receive(time.monotonic() + START_TIMEOUT_S)
        except SpeechError:
            # it has said why, and ends
            self.alive = False
            self.close()
            raise

    def close(self) -> None:
        """Ends the process, which leaves by itself when its input is closed."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def ask(self, request: dict) -> bytes:
        """The samples for a request, 22.05 kHz int16. Raises SpeechError."""
        body = json.dumps(request).encode()
        try:
            self.process.stdin.write(struct.pack("<I", len(body)) + body)
            self.process.stdin.flush()
        except OSError as error:
            self.alive = False
            raise SpeechError(f"the espeak server is gone: {error}") from None
        # the server gives up first, and says so
        return self._receive(time.monotonic() + self.timeout_s + 5.0)

    def _receive(self, deadline: float) -> bytes:
        """One answer: a status byte, a length, the samples or the message of an error."""
        status, length = struct.unpack("<BI", self._read(5, deadline))
        data = self._read(length, deadline)
        if status:
            raise SpeechError(data.decode(errors="replace"))
        return data

    def _read(self, count: int, deadline: float) -> bytes:
        pieces = []
        descriptor = self.process.stdout.fileno()
        while count:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(descriptor, count) if ready else b""
            if not piece:
                # the conversation is out of step: nothing more may be asked of this process
                self.alive = False
                self.process.kill()
                raise SpeechError("the espeak server ended" if ready else "the espeak server does not answer")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def resample(samples):
    """(n,) int16 at 22.05 kHz to (about 0.7256 n,) int16 at 16 kHz, band-limited."""
    import av
    import numpy as np

    if len(samples) == 0:
        return np.zeros(0, np.int16)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = ESPEAK_RATE
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([item.to_ndarray()[0] for item in frames])


def trim(samples):
    """The samples from 40 ms before the first to 40 ms after the last that is above 1 % of the loudest.

    Margins are filled with silence where the recording has none. Raises SpeechError for silence.
    """
    import numpy as np

    loud = np.abs(samples.astype(np.int32))
    if len(loud) == 0 or loud.max() < 100:
        raise SpeechError("espeak-ng said nothing")
    heard = np.flatnonzero(loud > 0.01 * loud.max())
    margin = int(MARGIN_S * SAMPLE_RATE)
    first, last = int(heard[0]) - margin, int(heard[-1]) + 1 + margin
    before, after = max(0, -first), max(0, last - len(samples))
    return np.pad(samples[max(0, first) : last], (before, after))


def render_audio(recipe: dict, speaker: Speaker) -> bytes:
    """The FLAC file (16 kHz, mono, 16 bit) of an audio recipe."""
    import soundfile

    samples = speaker.say(recipe["text"], voice=recipe["voice"], rate=recipe["rate"], pitch=recipe["pitch"])
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
