"""A process that encodes documents for `brine.data.media.pool` and can be killed without loss.

    handshake  {"config", "tokenizer", "root", "max_memory_mib"}, answered by {"ready": true}
    request    [document, ...] in native JSON form
    answers    one per document: {"shapes": {field: shape}, "crc32"} and then the arrays' bytes, or {"reason"};
               the last of a request says "recycle" where memory has grown. {"loading": true} before a slow import and
               {"loading": false} after it keep the import out of the document's time-out.

They cross a `multiprocessing.connection` pipe, whose number is the argument; no pickle, since a hostile file may have
taken this process over. It ends when the pipe closes, its parent dies or its memory bound is exceeded.
"""

import importlib
import json
import os
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

from brine.common.processes import die_with_parent, exit_with_parent
from brine.data import encode
from brine.data.config import EncodeConfig
from brine.data.document import Audio, Document, DocumentError, Video, parse_document
from brine.data.files.extensions import extension_of
from brine.data.files.roots import root_from_json
from brine.data.sequence import FIELDS
from brine.data.tokenizer import Tokenizer

_LIGHT = frozenset(("wav", "wave", "flac", "ogg", "oga", "mp3", "opus", "aif", "aiff", "aifc", "au", "snd"))
"""Extensions of audio for which PyAV is not loaded ahead; it is when such a file turns out to need it."""


def main() -> None:
    # Ctrl-C is for the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    # the kernel's signal (Linux) holds even while a library call is busy
    die_with_parent(parent=parent)
    exit_with_parent(parent)
    pipe = Connection(int(sys.argv[1]))
    try:
        server = _DecodeServer(pipe, json.loads(pipe.recv_bytes()))
        # what libraries print must not fill a file that nobody reads
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(quiet, number)
        server.send({"ready": True})
        while True:
            server.serve(json.loads(pipe.recv_bytes()))
    except (EOFError, ConnectionError):
        return


class _DecodeServer:
    def __init__(self, pipe: Connection, handshake: dict):
        self.pipe = pipe
        self.options = {
            "config": EncodeConfig.from_dict(handshake["config"]),
            "tokenizer": Tokenizer.from_str(handshake["tokenizer"]),
            "root": root_from_json(handshake["root"]),
        }
        self.memory_mib = handshake["max_memory_mib"]
        if sys.platform == "linux":
            import resource

            # allocations beyond the bound fail instead of taking the machine down
            resource.setrlimit(resource.RLIMIT_DATA, (int(self.memory_mib * 2**20),) * 2)

    def send(self, header: dict) -> None:
        self.pipe.send_bytes(json.dumps(header).encode())

    def serve(self, documents: list[dict]) -> None:
        for number, fields in enumerate(documents, 1):
            header, payload = self._encode(fields)
            if number == len(documents):
                header["recycle"] = _resident_mib() > 0.6 * self.memory_mib
            self.send(header)
            if payload is not None:
                self.pipe.send_bytes(payload)

    def _encode(self, fields: dict) -> tuple[dict, bytes | None]:
        try:
            document = parse_document(fields)
            self._load_for(document)
            sequence = encode.encode(document, **self.options)
            arrays = {name: np.ascontiguousarray(getattr(sequence, name)) for name in FIELDS}
            header = {"shapes": {name: array.shape for name, array in arrays.items()}, "crc32": sequence.crc32()}
            return header, b"".join(arrays.values())
        except DocumentError as error:
            reason = str(error)
        except MemoryError:
            reason = "needs more memory than a decoder may have"
        # a library's surprise costs one document, not the build
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:300]}"
        return {"reason": reason}, None

    def _load_for(self, document: Document) -> None:
        """Import what a document's media need, and say so to the parent, since this takes a while."""
        audio = [part for part in document.parts if isinstance(part, Audio)]
        has_video = any(isinstance(part, Video) for part in document.parts)
        needs_av = has_video or any(extension_of(part.path) not in _LIGHT for part in audio)
        needed = {"brine.data.media.audio": audio or has_video, "av": needs_av, "brine.data.media.video": has_video}
        names = [name for name, is_needed in needed.items() if is_needed and name not in sys.modules]
        if not names:
            return
        self.send({"loading": True})
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError:
                # a reader that is not installed: decoding falls back or says so
                sys.modules.setdefault(name, None)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        self.send({"loading": False})


def _resident_mib() -> float:
    """Memory this process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
