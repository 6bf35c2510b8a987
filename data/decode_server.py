"""A process that encodes documents for another, and can be killed without loss.

Media libraries hang, crash and leak, and no time-out inside a process helps against that. So each server is a plain
subprocess (not a `multiprocessing` child, which a DataLoader worker may not have), fed through its standard input
and read from its standard output. `data.decode_pool` is the other end.

    frame    4 bytes little-endian length of a JSON header, the header, then `header["bytes"]` raw bytes
    hello    {"config", "tokenizer", "root", "max_memory_mib"}   once; answered by {"ready": true}
    batch    {"documents": [native JSON, ...]}
    answer   one a document, in order: {"n", "shapes": {field: shape}} with the arrays, or {"n", "reason", "file"};
             {"loading": true} before a slow import and {"loading": false} after, so that it is not held against
             the document; {"done": true, "tired": bool} after the batch: a tired server asks to be replaced

No pickle crosses the pipe: arrays are raw bytes with the dtypes of `data.sequence.FIELDS`. The server ends when its
input closes, when its parent dies (the kernel tells it on Linux, a watching thread elsewhere), and when it exceeds
its memory bound. Ctrl-C is left to the parent.
"""

import ctypes
import json
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path

HEAD = struct.Struct("<I")
MAX_HEADER = 2**30
_LIGHT = frozenset(("wav", "wave", "flac", "ogg", "oga", "mp3", "opus", "aif", "aiff", "aifc", "au", "snd"))
"""Endings of sounds for which PyAV is not loaded ahead; it is when such a file turns out to need it."""


def pack(header: dict, *payload) -> bytes:
    """One frame of the protocol; payloads are objects with the buffer interface."""
    parts = [memoryview(part).cast("B") for part in payload]
    text = json.dumps(header | {"bytes": sum(len(part) for part in parts)}).encode()
    return b"".join([HEAD.pack(len(text)), text, *parts])


def main() -> None:
    """Serve until the input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=2**20)
    _die_with(parent)
    hello = _read(requests)
    if hello is None:
        return
    server = _Server(hello, answers)
    # what libraries print must not mix with the answers, nor fill a pipe that nobody reads
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    server.send({"ready": True})
    while (request := _read(requests)) is not None:
        server.serve(request["documents"])


def _read(stream) -> dict | None:
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (length,) = HEAD.unpack(head)
    text = stream.read(length)
    return json.loads(text) if len(text) == length else None


def _die_with(parent: int) -> None:
    """End this process when its parent does, however that happens."""
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: holds even while a library call keeps the interpreter busy
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Server:
    def __init__(self, hello: dict, answers):
        from data.config import EncodeConfig
        from data.tokenizer import Tokenizer

        self.answers = answers
        self.config = EncodeConfig.from_dict(hello["config"])
        self.tokenizer = Tokenizer.from_str(hello["tokenizer"])
        self.root = Path(hello["root"])
        self.memory_mib = hello["max_memory_mib"]
        _bound_memory(self.memory_mib)

    def send(self, header: dict, *payload) -> None:
        self.answers.write(pack(header, *payload))
        self.answers.flush()

    def serve(self, documents: list[dict]) -> None:
        import numpy as np

        from data.document import DocumentError, parse_document
        from data.encode import encode
        from data.sequence import FIELDS

        for number, fields in enumerate(documents):
            try:
                document = parse_document(fields)
                self._load_for(document)
                sequence = encode(document, root=self.root, tokenizer=self.tokenizer, config=self.config)
            except DocumentError as error:
                self.send({"n": number, "reason": str(error)})
            except MemoryError:
                self.send({"n": number, "reason": "needs more memory than a decoder may have"})
            # a library's surprise costs one document, not the build
            except Exception as error:
                self.send({"n": number, "reason": f"{type(error).__name__}: {str(error)[:300]}"})
            else:
                arrays = {name: np.ascontiguousarray(getattr(sequence, name)) for name in FIELDS}
                shapes = {name: array.shape for name, array in arrays.items()}
                payload = [array.reshape(-1).view(np.uint8) for array in arrays.values()]
                self.send({"n": number, "shapes": shapes, "crc32": sequence.crc32()}, *payload)
        self.send({"done": True, "tired": _resident_mib() > 0.6 * self.memory_mib})

    def _load_for(self, document) -> None:
        """Import what a document's media need, telling the parent that this takes a while."""
        from data.document import Audio, Video
        from data.endings import ending_of

        names = []
        if any(isinstance(part, Audio | Video) for part in document.parts):
            names.append("data.decode_audio")
        if any(isinstance(part, Audio) and ending_of(part.path) not in _LIGHT for part in document.parts):
            names.append("av")
        if any(isinstance(part, Video) for part in document.parts):
            names += ["data.decode_video", "av"]
        names = [name for name in names if name not in sys.modules]
        if not names:
            return
        self.send({"loading": True})
        for name in names:
            try:
                __import__(name)
            except ImportError:
                # a reader that is not installed; decoding falls back or says so
                sys.modules.setdefault(name, None)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        self.send({"loading": False})


def _bound_memory(max_mib: float) -> None:
    """Let allocations beyond the bound fail instead of taking the machine down; Linux only."""
    if sys.platform == "linux":
        import resource

        limit = int(max_mib * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _resident_mib() -> float:
    """Memory this process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
