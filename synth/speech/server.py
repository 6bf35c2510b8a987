"""The process in which one voice speaks; run as a script, `server.py VOICE TIMEOUT_S`. The end of stdin ends it.

espeak-ng keeps state (prosody, wave generator), so one long-lived synthesiser's output would depend on the order of its
utterances, and a corpus on the number of workers. Here espeak is initialised once, and each utterance is said by a
child forked from that untouched state (3 to 4 ms). The process imports the standard library and espeakng_loader alone:
a fork of a process with threads, or with torch, is not safe. espeak-ng is GPL-3 and stays on this side of a pipe.

    request    a line of JSON, {"text", "rate", "pitch"}
    answer     a line of JSON, {"samples": base64 of int16 at 22.05 kHz} or {"error": message}
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import select
import signal
import sys
import time

OUTPUT_SYNCHRONOUS, CHARACTERS_UTF8, POSITION_CHARACTER, PARAMETER_RATE, PARAMETER_PITCH = 2, 1, 1, 1, 3
"""Numbers of espeak's speak_lib.h."""
MAX_SECONDS = 60

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def start_espeak(voice: str) -> ctypes.CDLL:
    """The library, initialised with a voice, silent. Raises RuntimeError where it does not start."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    # espeak keeps at most 160 characters of its data folder's path: give it relative to the working folder
    os.chdir(os.path.dirname(espeakng_loader.get_data_path()))
    rate = library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, b".", 0)
    if rate != 22050:
        raise RuntimeError(f"espeak-ng did not start (it returned {rate}): reinstall it by `uv sync --group corpus`")
    if library.espeak_SetVoiceByName(voice.encode()):
        raise RuntimeError(f"espeak-ng has no voice {voice!r}")
    # it seeds itself with the time of day: a voice with breath would never repeat
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed(1)
    return library


def speak(library: ctypes.CDLL, request: dict) -> bytes:
    """All samples of one utterance; runs in the child. Raises RuntimeError with espeak's error."""
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


def in_child(library: ctypes.CDLL, request: dict, *, timeout_s: float, answers: int) -> dict:
    """The answer to one request, said in a forked child that is killed after timeout_s and has no `answers` pipe."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        # whatever happens, this copy of the server must not serve further requests
        try:
            os.close(readable)
            os.close(answers)
            try:
                answer = {"samples": base64.b64encode(speak(library, request)).decode()}
            except Exception as error:
                answer = {"error": str(error)}
            with os.fdopen(writable, "w") as stream:
                json.dump(answer, stream)
        finally:
            os._exit(0)
    os.close(writable)
    found, deadline, ready = b"", time.monotonic() + timeout_s, True
    while ready:
        ready, _, _ = select.select([readable], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(readable, 1 << 16) if ready else b""
        if not chunk:
            break
        found += chunk
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.close(readable)
    os.waitpid(child, 0)
    if not ready:
        return {"error": f"{request['text']!r} was not said within {timeout_s:g} s"}
    return json.loads(found) if found else {"error": f"the synthesiser ended at {request['text']!r}"}


def main(voice: str, timeout_s: str) -> None:
    """Answers the requests on stdin until it ends."""
    # Ctrl-C goes to the whole group; this process ends when its input does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # what a library prints must not get between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    library, failure = None, None
    try:
        library = start_espeak(voice)
    except Exception as error:
        failure = {"error": str(error)}
    try:
        for line in sys.stdin:
            found = failure or in_child(library, json.loads(line), timeout_s=float(timeout_s), answers=answers.fileno())
            answers.write(json.dumps(found) + "\n")
            answers.flush()
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
