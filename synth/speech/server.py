"""The process in which one voice speaks; run as a script, `server.py VOICE TIMEOUT_S PIPE`. The pipe's end ends it.

espeak-ng keeps state (prosody, wave generator), so one long-lived synthesiser's output would depend on the order of its
utterances, and a corpus on the number of workers. Here espeak is initialised once, and each utterance is said by a
child forked from that untouched state (some ms). The process imports the standard library and espeakng_loader alone: a
fork of a process with threads, or with torch, is not safe. espeak-ng is GPL-3 and stays on this side of a pipe.

A request is (text, rate, pitch), its answer int16 samples at 22.05 kHz as bytes, or a message.
"""

import contextlib
import ctypes
import os
import signal
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection

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


def speak(library: ctypes.CDLL, text: str, rate: int, pitch: int) -> bytes:
    """All samples of one utterance. Raises RuntimeError with espeak's error."""
    samples = bytearray()

    def collect(wave, count, _events) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return int(len(samples) > 2 * 22050 * MAX_SECONDS)

    callback = CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(PARAMETER_RATE, rate, 0)
    library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
    data = text.encode()
    code = library.espeak_Synth(data, len(data) + 1, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None)
    if code:
        raise RuntimeError(f"espeak-ng refused {text!r} (code {code})")
    return bytes(samples)


def answer_in_child(pipe: Connection, library: ctypes.CDLL, request: tuple) -> None:
    """What the forked child does."""
    try:
        answer: bytes | str = speak(library, *request)
    except Exception as error:
        answer = str(error)
    pipe.send(answer)


def speak_in_child(library: ctypes.CDLL, request: tuple, *, timeout_s: float) -> bytes | str:
    """The answer to one request, said in a forked child that is killed after timeout_s."""
    fork = get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=answer_in_child, args=(theirs, library, request))
    child.start()
    theirs.close()
    answer: bytes | str = f"{request[0]!r} was not said within {timeout_s:g} s"
    if ours.poll(timeout_s):
        try:
            answer = ours.recv()
        except EOFError:
            answer = f"the synthesiser ended at {request[0]!r}"
    ours.close()
    child.kill()
    child.join()
    return answer


def main(voice: str, timeout_s: str, pipe: str) -> None:
    """Answers requests until the pipe ends."""
    # Ctrl-C goes to the whole group; this process ends when its pipe does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    library, failure, requests = None, "", Connection(int(pipe))
    try:
        library = start_espeak(voice)
    except Exception as error:
        failure = str(error)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = requests.recv()
            requests.send(failure or speak_in_child(library, request, timeout_s=float(timeout_s)))


if __name__ == "__main__":
    main(*sys.argv[1:])
