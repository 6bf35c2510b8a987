"""Documents through decoding servers: in order, in parallel, each with a time-out.

`DecodePool.encode` takes documents and yields each with its sequence or with the reason why there is none, in
the order given, whatever the number of servers; at most a few batches are ahead of the consumer, so memory is bounded.
One thread waits on all pipes; there are no helper threads in the parent and nothing to fork.

A server that says nothing for `decode_timeout_s` while it works on a document is killed and the document is set aside.
Only time spent waiting here counts, so a consumer that is slow to come back condemns nobody. A server that dies
is replaced; the document it held is tried once more on its own, in case the death was not its doing (a machine short
of memory kills at random), and then set aside. The rest of the batch is not lost in either case.
"""

import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.config import EncodeConfig
from data.decode_server import HEAD, MAX_HEADER, pack
from data.document import Document, Quarantined, Text
from data.sequence import FIELDS, Sequence
from data.tokenizer import Tokenizer

STARTUP_TIMEOUT_S = 180.0
"""Seconds a server may take to start, or to import a large library: generous, for a cold disk on a busy machine."""


class Encoded(NamedTuple):
    """A document with its sequence and checksum, or with the reason why it has none."""

    document: Document
    sequence: Sequence | None
    crc32: int
    quarantined: Quarantined | None


class DecodePool:
    """`num_servers` processes that encode documents whose media lie below `root`. Close it, or use it in `with`."""

    server_module = "data.decode_server"

    def __init__(
        self,
        *,
        root: str | Path,
        tokenizer: Tokenizer,
        config: EncodeConfig,
        num_servers: int = 2,
        batch_documents: int = 64,
        max_memory_mib: float = 6144.0,
    ):
        if num_servers < 1 or batch_documents < 1:
            raise ValueError("num_servers and batch_documents must be at least 1")
        self.config = config
        self.num_servers, self.batch_documents = num_servers, batch_documents
        self._hello = {
            "config": config.to_dict(),
            "tokenizer": tokenizer.to_str(),
            "root": str(Path(root).resolve()),
            "max_memory_mib": max_memory_mib,
        }
        self._servers: list[_Process] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        # at the interpreter's end parts of it are gone already; the servers end by themselves then
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Kill the servers and wait for them. The pool starts new ones when it is used again."""
        while self._servers:
            self._drop(self._servers[0])

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        """Each document with its sequence or its quarantine record, in the order given.

        One such iteration at a time. Raises RuntimeError when servers cannot be started at all.
        """
        source = enumerate(documents)
        queue: deque[list[tuple[int, Document]]] = deque()
        results: dict[int, Encoded] = {}
        retried: set[int] = set()
        taken, given, exhausted = 0, 0, False
        ahead = self.batch_documents * (2 * self.num_servers + 2)
        try:
            while True:
                while given in results:
                    yield results.pop(given)
                    given += 1
                while not exhausted and taken - given < ahead and len(queue) < self.num_servers:
                    batch = list(itertools.islice(source, self.batch_documents))
                    exhausted = len(batch) < self.batch_documents
                    taken += len(batch)
                    if batch:
                        queue.append(batch)
                self._deal(queue)
                if given == taken and exhausted and not queue:
                    return
                if given in results:
                    continue
                self._wait(queue, results, retried)
        finally:
            # an abandoned iteration leaves work in the pipes that a later one must not receive
            for server in list(self._servers):
                if server.batches:
                    self._drop(server)

    def encode_items(self, items: Iterable[Document | Quarantined]) -> Iterator[Encoded | Quarantined]:
        """What a reader gives, encoded: its documents as by `encode`, its rejects at their places among them."""
        # the pool reads ahead by as much as it has servers; the order of the results must not tell how many
        rejects: dict[int, list[Quarantined]] = {}
        count = 0

        def documents() -> Iterator[Document]:
            nonlocal count
            for item in items:
                if isinstance(item, Quarantined):
                    rejects.setdefault(count, []).append(item)
                else:
                    count += 1
                    yield item

        for given, result in enumerate(self.encode(documents())):
            yield from rejects.pop(given, ())
            yield result
        for place in sorted(rejects):
            yield from rejects[place]

    def _deal(self, queue: deque) -> None:
        """Hand batches to servers, two deep, so that none waits for the consumer."""
        for depth in (1, 2):
            while queue:
                free = [server for server in self._servers if len(server.batches) < depth]
                if not free and depth == 1 and len(self._servers) < self.num_servers:
                    free = [self._start()]
                if not free:
                    break
                free[0].give(queue.popleft())
                self._watch(free[0])

    def _start(self) -> "_Process":
        server = _Process(self._hello, self.server_module)
        self._servers.append(server)
        self._selector.register(server.answers, selectors.EVENT_READ, server)
        self._selector.register(server.requests, selectors.EVENT_WRITE, server)
        return server

    def _watch(self, server: "_Process") -> None:
        """Listen for room in a server's input only while there is something to write."""
        wanted = bool(server.outgoing)
        if wanted != (server.requests in self._selector.get_map()):
            if wanted:
                self._selector.register(server.requests, selectors.EVENT_WRITE, server)
            else:
                self._selector.unregister(server.requests)

    def _drop(self, server: "_Process") -> int:
        """Kill and bury a server; returns its exit status."""
        self._servers.remove(server)
        for stream in (server.answers, server.requests):
            if stream in self._selector.get_map():
                self._selector.unregister(stream)
        return server.end()

    def _wait(self, queue: deque, results: dict, retried: set) -> None:
        """Wait for pipes once, read what came, and end servers that died or hang."""
        began = time.monotonic()
        events = self._selector.select(timeout=0.5)
        waited = time.monotonic() - began
        heard = set()
        for key, mask in events:
            server = key.data
            if server not in self._servers:
                continue
            if mask & selectors.EVENT_WRITE:
                server.write()
                self._watch(server)
            if mask & selectors.EVENT_READ:
                heard.add(server)
                self._hear(server, queue, results, retried)
        for server in list(self._servers):
            if server in heard or not server.busy:
                server.silent_s = 0.0
                continue
            server.silent_s += waited
            limit = self.config.decode_timeout_s if server.ready and not server.loading else STARTUP_TIMEOUT_S
            if server.silent_s > limit:
                reason = f"decoding took longer than decode_timeout_s={self.config.decode_timeout_s:g}"
                started = server.ready
                self._drop(server)
                if not started:
                    raise RuntimeError(f"a decoding server did not start within {STARTUP_TIMEOUT_S:g} s")
                self._salvage(server, queue, results, reason)

    def _hear(self, server: "_Process", queue: deque, results: dict, retried: set) -> None:
        alive = server.read()
        for header, payload in server.messages():
            if "ready" in header:
                server.ready, self._failed_starts = True, 0
            elif "loading" in header:
                server.loading = header["loading"]
            elif "done" in header:
                if header["tired"]:
                    queue.extendleft(reversed([list(batch) for batch in server.batches]))
                    self._drop(server)
                    return
            else:
                number, document = server.batches[0][header["n"]]
                server.position = header["n"] + 1
                results[number] = _result(document, header, payload)
                if server.position == len(server.batches[0]):
                    server.batches.popleft()
                    server.position = 0
        if alive:
            return
        status = self._drop(server)
        if not server.ready:
            self._failed_starts += 1
            queue.extendleft(reversed([list(batch) for batch in server.batches]))
            if self._failed_starts >= 2:
                raise RuntimeError(f"decoding servers cannot be started: {server.last_words()}")
            return
        held = server.batches[0][server.position] if server.batches else None
        if held is not None and held[0] not in retried:
            retried.add(held[0])
            self._salvage(server, queue, results, None)
        else:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            self._salvage(server, queue, results, f"the decoder died on this document ({how})")

    def _salvage(self, server: "_Process", queue: deque, results: dict, reason: str | None) -> None:
        """Put a dead server's unfinished work back; its current document is set aside when there is a reason."""
        batches = [list(batch) for batch in server.batches]
        if not batches:
            return
        rest = batches[0][server.position :]
        back = batches[1:]
        if rest:
            number, document = rest.pop(0)
            if rest:
                back.insert(0, rest)
            if reason is None:
                back.insert(0, [(number, document)])
            else:
                results[number] = Encoded(document, None, 0, Quarantined(document.id, file_of(document), reason))
        queue.extendleft(reversed(back))


def file_of(document: Document) -> str:
    """Path of a document's first medium, for quarantine records."""
    return next((part.path for part in document.parts if not isinstance(part, Text)), "")


def _result(document: Document, header: dict, payload: bytes) -> Encoded:
    if "reason" in header:
        named = (part.path for part in document.parts if not isinstance(part, Text))
        file = next((path for path in named if repr(path) in header["reason"]), file_of(document))
        return Encoded(document, None, 0, Quarantined(document.id, file, header["reason"]))
    arrays, start = {}, 0
    for name, dtype in FIELDS.items():
        shape = header["shapes"][name]
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(payload, dtype, count=count, offset=start).reshape(shape)
        start += count * dtype.itemsize
    return Encoded(document, Sequence(**arrays), header["crc32"], None)


class _Process:
    """One server: its process, its pipes, and the batches it was given."""

    def __init__(self, hello: dict, module: str):
        room = Path(__file__).resolve().parent.parent
        paths = [str(room), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`, with the process)
        self._process = subprocess.Popen(
            # -P: a file called like a module in the current folder must not be imported instead of it
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            bufsize=0,
            env=environment,
        )
        self.requests, self.answers = self._process.stdin, self._process.stdout
        for stream in (self.requests, self.answers):
            os.set_blocking(stream.fileno(), False)
        self.outgoing = bytearray(pack(hello))
        self._incoming = bytearray()
        self._header: dict | None = None
        self.batches: deque[list[tuple[int, Document]]] = deque()
        self.position = 0
        self.ready = self.loading = False
        self.silent_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether it owes us an answer."""
        return bool(self.batches) or not self.ready

    def give(self, batch: list[tuple[int, Document]]) -> None:
        self.batches.append(batch)
        self.outgoing += pack({"documents": [document.to_json() for _, document in batch]})

    def write(self) -> None:
        try:
            del self.outgoing[: os.write(self.requests.fileno(), memoryview(self.outgoing)[: 2**16].tobytes())]
        except BlockingIOError:
            return
        except OSError:
            # the reader is gone; its death shows at the other pipe
            self.outgoing.clear()

    def read(self) -> bool:
        """Take in what has come; False at the end of the stream."""
        while True:
            try:
                piece = os.read(self.answers.fileno(), 2**20)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self._incoming += piece
            if len(self._incoming) > 2**24:
                return True

    def messages(self) -> Iterator[tuple[dict, bytes]]:
        """Whole messages among what has come in."""
        start = 0
        while True:
            if self._header is None:
                if len(self._incoming) - start < HEAD.size:
                    break
                (length,) = HEAD.unpack_from(self._incoming, start)
                if length > MAX_HEADER or len(self._incoming) - start < HEAD.size + length:
                    break
                start += HEAD.size
                self._header = json.loads(self._incoming[start : start + length])
                start += length
            size = self._header["bytes"]
            if len(self._incoming) - start < size:
                break
            payload = bytes(memoryview(self._incoming)[start : start + size])
            start += size
            header, self._header = self._header, None
            yield header, payload
        del self._incoming[:start]

    def last_words(self) -> str:
        """The end of what the server wrote to standard error before it was ready."""
        return self._words_text or "it gave no reason"

    def end(self) -> int:
        self._process.kill()
        status = self._process.wait()
        self._words.seek(0)
        self._words_text = self._words.read()[-2000:].decode(errors="replace").strip()
        for stream in (self.requests, self.answers, self._words):
            stream.close()
        return status
