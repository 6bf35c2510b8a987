"""The clean process in which one voice speaks; run as a script, `espeak_server.py VOICE TIMEOUT_S`.

espeak-ng's output depends on what it said before (its prosody and its wave generator keep state), so a
corpus made by one long-lived synthesiser would depend on the order of its utterances, and with that on the
number of workers. Here espeak is initialised once, set to one voice, and never speaks: each utterance is
said by a child forked from that untouched state, and the child is thrown away. That costs 3 to 4 ms, twice
as much if the child also had to load the voice. The process imports nothing but the standard library and
espeakng_loader: a fork of a process with threads, or with torch, is not safe.

espeak-ng is GPL-3 and stays on this side of a pipe. Requests on stdin and answers on stdout are length and
payload; the end of stdin ends the process, so it goes when the one that started it goes.

    request    u32 length, JSON {"text", "rate", "pitch"}
    answer     u8 status (0 = samples, 1 = message), u32 length, int16 samples at 22.05 kHz or UTF-8 text
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct
import sys
import time

OUTPUT_SYNCHRONOUS = 2
CHARACTERS_UTF8 = 1
POSITION_CHARACTER = 1
PARAMETER_RATE = 1
PARAMETER_PITCH = 3
MAX_SECONDS = 60

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def start_espeak(voice: str) -> ctypes.CDLL:
    """The library, initialised, with a voice, silent. Raises RuntimeError where it does not start so."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    # espeak keeps at most 160 characters of its data folder's path: say it relative to where we stand
    os.chdir(os.path.dirname(espeakng_loader.get_data_path()))
    rate = library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, b".", 0)
    if rate != 22050:
        raise RuntimeError(f"espeak-ng did not start (it answered {rate}); reinstall it: uv sync --group corpus")
    if library.espeak_SetVoiceByName(voice.encode()):
        raise RuntimeError(f"espeak-ng has no voice {voice!r}")
    # it seeds itself with the time of day, and breathes by it: a voice with breath would never repeat
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed(1)
    return library


def speak(library: ctypes.CDLL, request: dict) -> bytes:
    """All samples of one utterance; runs in the child. Raises RuntimeError with espeak's refusal."""
    samples = bytearray()

    def collect(wave, count, _events) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return int(len(samples) > 2 * 22050 * MAX_SECONDS)

    callback = CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(PARAMETER_RATE, int(request["rate"]), 0)
    library.espeak_SetParameter(PARAMETER_PITCH, int(request["pitch"]), 0)
    text = request["text"].encode()
    code = library.espeak_Synth(text, len(text) + 1, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None)
    if code:
        raise RuntimeError(f"espeak-ng refused {request['text']!r} (code {code})")
    return bytes(samples)


def in_child(library: ctypes.CDLL, request: dict, *, timeout_s: float) -> tuple[int, bytes]:
    """(status, payload) of one utterance, said in a forked child that is killed after timeout_s."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        # whatever happens, this copy of the server must not go on serving
        try:
            os.close(readable)
            try:
                answer = b"\0" + speak(library, request)
            except Exception as error:
                answer = b"\1" + str(error).encode()
            with os.fdopen(writable, "wb") as stream:
                stream.write(answer)
        finally:
            os._exit(0)
    os.close(writable)
    pieces, deadline = [], time.monotonic() + timeout_s
    late = False
    while True:
        ready, _, _ = select.select([readable], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            late = True
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(readable, 1 << 16)
        if not piece:
            break
        pieces.append(piece)
    os.close(readable)
    os.waitpid(child, 0)
    answer = b"".join(pieces)
    if late:
        return 1, f"{request['text']!r} was not said within {timeout_s:g} s".encode()
    if not answer:
        return 1, f"the synthesiser died at {request['text']!r}".encode()
    return answer[0], answer[1:]


def main() -> None:
    # Ctrl-C goes to the whole group; this process ends when its input does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    voice, timeout_s = sys.argv[1], float(sys.argv[2])
    requests = sys.stdin.buffer
    # answers go to a private descriptor, so that nothing a library prints can get between them
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(status: int, payload: bytes) -> None:
        answers.write(struct.pack("<BI", status, len(payload)) + payload)
        answers.flush()

    try:
        library = start_espeak(voice)
    except Exception as error:
        answer(1, str(error).encode())
        return
    answer(0, b"")
    while True:
        head = requests.read(4)
        if len(head) < 4:
            return
        body = requests.read(struct.unpack("<I", head)[0])
        try:
            answer(*in_child(library, json.loads(body), timeout_s=timeout_s))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
