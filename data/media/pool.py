"""Documents through decoding processes: in order, in parallel, each with a time-out.

Media libraries hang, crash and leak, and no time-out inside a process helps. So documents are encoded by servers
(`brine.data.media.server`) that can be killed, each driven by a thread. A server that is silent for `decode_timeout_s`
is killed and its document quarantined; the document of one that dies is tried once more alone (a machine short of
memory kills at random) and then quarantined. The rest of a batch is not lost.

`concurrent.futures` and pebble lack two things: their processes are children of `multiprocessing`, which a DataLoader
worker (a daemon) may not have, and they answer in pickles, which a process that reads hostile files must not send.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brine.common.processes import IMPORT_FOLDER
from brine.data.config import EncodeConfig
from brine.data.document import Document, Quarantined, media_paths
from brine.data.files.roots import MediaRoots, resolved_root, root_to_json
from brine.data.sequence import FIELDS, EncodedDocument
from brine.data.tokenizer import Tokenizer

STARTUP_TIMEOUT_S = 180.0
"""Seconds a server may take to start, or to import a large library: generous, for a cold disk on a busy machine."""


class EncodeResult(NamedTuple):
    """A document with its encoded form and checksum, or with the reason why it has none."""

    document: Document
    encoded: EncodedDocument | None
    crc32: int
    quarantined: Quarantined | None


class DecodePool:
    """`num_servers` processes that encode documents whose media are below `root`. Close it, or use it in `with`."""

    server_module = "brine.data.media.server"

    def __init__(
        self,
        *,
        root: str | Path | MediaRoots,
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
        self._handshake = {
            "config": config.to_dict(),
            "tokenizer": tokenizer.to_str(),
            "root": root_to_json(resolved_root(root)),
            "max_memory_mib": max_memory_mib,
        }
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._servers: list[_Server] = []
        self._idle: queue.LifoQueue[_Server] = queue.LifoQueue()
        self._threads: ThreadPoolExecutor | None = None

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
        if self._pid == os.getpid():
            for server in list(self._servers):
                self._end(server)
            if self._threads is not None:
                self._threads.shutdown(cancel_futures=True)
        self._reset()

    def encode(self, items: Iterable[Document | Quarantined]) -> Iterator[EncodeResult | Quarantined]:
        """Each document with its sequence or quarantine record, in order; records of a reader stay between them.

        A few batches are read ahead. One such iteration at a time. Raises RuntimeError when servers cannot be started
        at all.
        """
        # a forked process has neither the threads nor the servers
        if self._pid != os.getpid():
            self._reset()
        self._threads = self._threads or ThreadPoolExecutor(self.num_servers, thread_name_prefix="decode")
        source, stop = iter(items), threading.Event()
        batches: deque[tuple[list, queue.SimpleQueue, Future]] = deque()
        try:
            while True:
                ahead = 2 * self.num_servers + 2
                while len(batches) < ahead and (batch := list(itertools.islice(source, self.batch_documents))):
                    documents, answers = [item for item in batch if isinstance(item, Document)], queue.SimpleQueue()
                    batches.append((batch, answers, self._threads.submit(self._run, documents, answers, stop)))
                if not batches:
                    return
                for item in batches[0][0]:
                    result = batches[0][1].get() if isinstance(item, Document) else item
                    if isinstance(result, BaseException):
                        raise result
                    yield result
                batches.popleft()
        finally:
            # an abandoned iteration leaves work behind that a later one must not wait for
            stop.set()
            tasks, killed = [task for _, _, task in batches if not task.cancel()], False
            while wait(tasks, timeout=0.1).not_done:
                killed = True
                for server in list(self._servers):
                    server.process.kill()
            if killed:
                # the idle ones too
                self._idle = queue.LifoQueue()
                for server in list(self._servers):
                    self._end(server)

    def _run(self, batch: list[Document], answers: queue.SimpleQueue, stop: threading.Event) -> None:
        """Put a result for each document of a batch, by one server after another where they hang or die."""
        left, retry = deque(batch), False
        try:
            while left and not stop.is_set():
                server = self._take()
                try:
                    group = [left[0]] if retry else list(left)
                    server.send([document.to_json() for document in group])
                    for document in group:
                        header, payload = server.receive(self.config.decode_timeout_s)
                        answers.put(_result(document, header, payload))
                        left.popleft()
                        retry = False
                    if header["recycle"]:
                        self._end(server)
                    else:
                        self._idle.put(server)
                    continue
                except TimeoutError:
                    self._end(server)
                    reason = f"decoding took longer than decode_timeout_s={self.config.decode_timeout_s:g}"
                except (EOFError, OSError):
                    status = self._end(server)
                    if not retry:
                        retry = True
                        continue
                    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                    reason = f"the decoder died on this document ({how})"
                answers.put(_quarantine(left.popleft(), reason))
                retry = False
        # whatever it is, the iteration raises it
        except BaseException as error:
            answers.put(error)

    def _take(self) -> "_Server":
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        for _ in range(2):
            server = _Server(self._handshake, self.server_module)
            self._servers.append(server)
            try:
                server.receive(STARTUP_TIMEOUT_S)
                return server
            except TimeoutError:
                self._end(server)
                raise RuntimeError(f"a decoding server did not start within {STARTUP_TIMEOUT_S:g} s") from None
            except (EOFError, OSError):
                self._end(server)
        raise RuntimeError(f"decoding servers cannot be started: {server.last_words or 'it gave no reason'}")

    def _end(self, server: "_Server") -> int:
        self._servers.remove(server)
        return server.end()


def _quarantine(document: Document, reason: str) -> EncodeResult:
    """A result without a sequence; the file at fault is the one named in the reason, or the first."""
    paths = media_paths(document)
    file = next((path for path in paths if repr(path) in reason), paths[0] if paths else "")
    return EncodeResult(document, None, 0, Quarantined(document.id, file, reason))


def _result(document: Document, header: dict, payload: bytes) -> EncodeResult:
    if "reason" in header:
        return _quarantine(document, header["reason"])
    arrays, start = {}, 0
    for name, dtype in FIELDS.items():
        shape = header["shapes"][name]
        arrays[name] = np.frombuffer(payload, dtype, count=int(np.prod(shape)), offset=start).reshape(shape)
        start += arrays[name].nbytes
    return EncodeResult(document, EncodedDocument(**arrays), header["crc32"], None)


class _Server:
    """One server process and its pipe."""

    def __init__(self, handshake: dict, module: str):
        paths = [IMPORT_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`, with the process)
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                # -P: a file called like a module in the current folder must not be imported instead of it
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | threads,
            )
        self.last_words = ""
        # a server that is dead already shows when its answer is read
        with contextlib.suppress(OSError):
            self.send(handshake)

    def send(self, message) -> None:
        self._pipe.send_bytes(json.dumps(message).encode())

    def receive(self, timeout_s: float) -> tuple[dict, bytes]:
        header = {"loading": False}
        while "loading" in header:
            if not self._pipe.poll(STARTUP_TIMEOUT_S if header["loading"] else timeout_s):
                raise TimeoutError
            header = json.loads(self._pipe.recv_bytes())
        return header, self._pipe.recv_bytes() if "shapes" in header else b""

    def end(self) -> int:
        """Kill the process and wait for it; returns its exit status."""
        self.process.kill()
        status = self.process.wait()
        self._stderr.seek(0)
        self.last_words = self._stderr.read()[-2000:].decode(errors="replace").strip()
        for stream in (self._pipe, self._stderr):
            stream.close()
        return status
