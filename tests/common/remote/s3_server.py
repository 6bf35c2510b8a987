"""A real S3 server (moto's) in a process of its own, and a proxy before it that misbehaves on demand.

python s3_server.py    prints the server's port, serves until its standard input closes
"""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Faults:
    """What the proxy does to requests; each list is consumed from its front, one entry a request that it applies to."""

    throttle: int = 0
    """Answer so many requests with 503 SlowDown."""
    cut_downloads: int = 0
    """Cut so many downloads of more than 1,000 bytes in the middle."""
    cut_uploads: int = 0
    """Cut so many uploads without an answer."""
    delay_s: float = 0.0
    """Seconds before each answer."""
    hang: int = 0
    """Never answer so many requests."""
    hold_upload: int = -1
    """Stop before the upload of this number (from 0) for ever."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of all requests."""
    uploads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Whether one of the faults of this name is left, and use it up."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0


class FaultProxy:
    """A server on `port` that forwards to `target`."""

    def __init__(self, target: int):
        self.faults, self.holding, self.closed = Faults(), threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(target))
        self.server.daemon_threads = True
        # a client that is killed leaves broken pipes
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self, target: int):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_): ...

            def forward(self):
                faults = proxy.faults
                body = self.body()
                faults.requests.append((self.command, self.path))
                time.sleep(faults.delay_s)
                if self.command == "PUT":
                    with faults.lock:
                        number, faults.uploads = faults.uploads, faults.uploads + 1
                    if number == faults.hold_upload:
                        proxy.holding.set()
                        proxy.closed.wait(60)
                        return self.cut()
                    if faults.take("cut_uploads"):
                        return self.cut()
                if faults.take("hang"):
                    proxy.closed.wait(60)
                    return self.cut()
                if faults.take("throttle"):
                    return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
                connection = HTTPConnection("127.0.0.1", target, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                connection.request(self.command, self.path, body=body, headers=headers)
                response = connection.getresponse()
                content = response.read()
                headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP]
                if self.command == "HEAD":
                    content, length = b"", response.getheader("Content-Length", "0")
                    return self.answer(response.status, headers, content, length=int(length))
                if self.command == "GET" and len(content) > 1000 and faults.take("cut_downloads"):
                    self.answer(response.status, headers, content[: len(content) // 2], length=len(content))
                    return self.cut()
                return self.answer(response.status, headers, content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

            def body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    found = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        found += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return found
                length = int(self.headers.get("Content-Length") or 0)
                found = self.rfile.read(length)
                if len(found) < length:
                    # S3 stores no half of what a killed client began to send
                    raise ConnectionError
                return found

            def answer(self, status, headers, content, *, length=None):
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()

            def cut(self):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        return Handler


class S3Process:
    """The server's process."""

    def __init__(self):
        # from a folder of its own: a file called like a module must not be imported instead of it
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.port = int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def main() -> None:
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()


def environment(port: int, cache: Path) -> dict[str, str]:
    """Environment variables with which s3fs talks to the server, and Brine is quick to try again."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "BRINE_REMOTE_TIMEOUT_S": "5",
        "BRINE_REMOTE_BACKOFF_S": "0.05",
        "BRINE_CACHE": str(cache),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


if __name__ == "__main__":
    main()
