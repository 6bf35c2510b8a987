"""Objects below a URL of fsspec (`s3://bucket/prefix`, `file:///...`, `memory://...`), with time-outs and retries.

A cut connection, a time-out, a throttled request (503 SlowDown) or another error of the server is tried again after a
pause that doubles, with jitter; what is missing or forbidden is an error at once. An object appears whole or not at
all: S3 has it so, and files are renamed. Names of objects are relative paths that cannot leave the prefix.
"""

import contextlib
import errno
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger("brine.remote")
T = TypeVar("T")
# a Path made from a URL has lost a slash
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
# of this machine's disk, which no second attempt mends
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_REFUSED = ("accessdenied", "access denied", "forbidden", "invalidaccesskeyid", "signaturedoesnotmatch", "nosuchbucket")


class RemoteError(ValueError):
    """An object or store that cannot be used; the message names it and what to do."""


class UnavailableError(RemoteError):
    """A store that does not answer, or does not let this user in."""


class MissingObjectError(RemoteError):
    """An object that is not there."""


@dataclass(frozen=True)
class RemoteConfig:
    """How patient requests are."""

    timeout_s: float = 60.0
    """Seconds of silence after which a request is given up."""
    attempts: int = 6
    """How often a request is made before its error counts."""
    backoff_s: float = 0.5
    """Pause before the second attempt, which doubles with each further one, up to 20 seconds."""

    def __post_init__(self):
        for name in ("timeout_s", "attempts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")

    @classmethod
    def from_environment(cls) -> "RemoteConfig":
        """The defaults, or what BRINE_REMOTE_TIMEOUT_S, BRINE_REMOTE_ATTEMPTS and BRINE_REMOTE_BACKOFF_S say."""
        found: dict[str, Any] = {}
        for name, kind in (("timeout_s", float), ("attempts", int), ("backoff_s", float)):
            if (value := os.environ.get(variable := f"BRINE_REMOTE_{name.upper()}")) is not None:
                try:
                    found[name] = kind(value)
                except ValueError:
                    raise ValueError(f"{variable}={value!r} is not a number") from None
        return cls(**found)


class ObjectInfo(NamedTuple):
    """What a store says of an object."""

    size: int
    tag: str
    """Its ETag, or time of change; equal for equal content of one store."""


def url_of(value: str | Path | None) -> str | None:
    """The URL that a text or Path is, slashes repaired; None for a path of this machine."""
    found = _URL.fullmatch(str(value)) if value is not None else None
    if found is None:
        return None
    scheme, rest = found.groups()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}".rstrip("/")


def is_url(value: str | Path | None) -> bool:
    """Whether a text or Path is a URL of an object store."""
    return url_of(value) is not None


def check_local(folder: str | Path | None, *, name: str) -> None:
    """Raise ValueError for a URL as the field `name`, which is a folder of this machine."""
    if (url := url_of(folder)) is not None:
        raise ValueError(
            f"{name} = {url} must be a folder of this machine: give the URL to `brine train` as --remote-store, so "
            "that the stages are there too"
        )


def check_name(name: str) -> str:
    """The name of an object below a prefix. Raises RemoteError for one that could leave the folder it is written to."""
    parts = name.split("/")
    if not name or len(name) > 1000 or not name.isprintable() or "\\" in name or {"", ".", ".."} & set(parts):
        raise RemoteError(f"object name {name[:200]!r} is not a plain relative path: rename the object")
    return name


class ObjectStore:
    """Objects below a URL. May be pickled; opens its connections anew in each process."""

    def __init__(self, url: str | Path, config: RemoteConfig | None = None):
        url = url_of(url) or ""
        if not url:
            raise RemoteError("an object store needs a URL such as s3://bucket/prefix")
        self.url, self.config = url, config or RemoteConfig.from_environment()
        self._opened: tuple[int, Any, str] | None = None
        self._lock = threading.Lock()

    def __reduce__(self):
        return type(self), (self.url, self.config)

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def below(self, folder: str) -> "ObjectStore":
        """The store of a folder of this one."""
        return ObjectStore(f"{self.url}/{check_name(folder)}", self.config)

    def _open(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), *_filesystem(self.url, self.config))
            return self._opened[1:]

    def _path(self, name: str) -> str:
        return f"{self._open()[1].rstrip('/')}/{check_name(name)}"

    def address(self, name: str) -> str:
        """URL of an object, for messages."""
        return f"{self.url}/{name}"

    def info(self, name: str) -> ObjectInfo | None:
        """Size and tag of an object; None where there is none."""
        try:
            found = self._try(name, lambda fs, path: fs.info(path))
        except MissingObjectError:
            return None
        return _info_of(found) if found.get("type") != "directory" else None

    def list(self, folder: str = "") -> dict[str, ObjectInfo]:
        """Objects below a folder by their names below this store."""
        prefix = self._path(folder) if folder else self._open()[1].rstrip("/")

        def find(fs: Any, _: str) -> dict:
            fs.invalidate_cache()
            return fs.find(prefix, detail=True)

        try:
            found = self._try(folder or ".", find)
        except MissingObjectError:
            return {}
        base = self._open()[1].strip("/")
        names = {path.strip("/").removeprefix(base).strip("/"): _info_of(each) for path, each in found.items()}
        return dict(sorted((name, each) for name, each in names.items() if name))

    def read(self, name: str, *, max_bytes: int = 2**28) -> bytes:
        """Content of a small object. Raises RemoteError for one over `max_bytes`, MissingObjectError for none."""
        size = self._try(name, lambda fs, path: fs.info(path)).get("size") or 0
        if size > max_bytes:
            raise RemoteError(f"{self.address(name)} has {size:,} bytes, more than the {max_bytes:,} that are read")
        return self._try(name, lambda fs, path: fs.cat_file(path))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, whole or not at all."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            self.upload(Path(file.name), name)

    def upload(self, path: Path, name: str) -> None:
        """Write an object from a file, whole or not at all."""

        def put(fs: Any, target: str) -> None:
            if "file" not in _protocols(fs):
                fs.put_file(str(path), target)
                return
            temporary = f"{target}.{os.getpid()}.{threading.get_ident()}.tmp"
            fs.makedirs(os.path.dirname(target), exist_ok=True)
            fs.put_file(str(path), temporary)
            os.replace(temporary, target)

        self._try(name, put)

    def download(self, name: str, path: Path, *, size: int) -> None:
        """Copy an object of `size` bytes to a file, which is not whole when an error is raised. Raises RemoteError for
        one of another size, before anything is copied."""
        info = self.info(name)
        if info is None:
            raise MissingObjectError(f"{self.address(name)} is not there: upload it again")
        if info.size != size:
            raise RemoteError(
                f"{self.address(name)} has {info.size:,} bytes instead of {size:,}: delete it and upload it again"
            )
        self._try(name, lambda fs, source: fs.get_file(source, str(path)))

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        with contextlib.suppress(MissingObjectError):
            self._try(name, lambda fs, path: fs.rm_file(path))

    def _try(self, name: str, call: Callable[[Any, str], T]) -> T:
        pause = self.config.backoff_s
        for attempt in range(1, self.config.attempts + 1):
            try:
                fs, prefix = self._open()
                return call(fs, prefix if name == "." else self._path(name))
            except RemoteError:
                raise
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise MissingObjectError(f"{self.address(name)} is not there: see its address and bucket") from None
            # libraries raise a dozen kinds for a connection that failed
            except Exception as error:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                if isinstance(error, PermissionError) or _is_refused(error, reason):
                    raise UnavailableError(
                        f"{self.address(name)} may not be used ({reason}): see its credentials and permissions"
                    ) from None
                if isinstance(error, OSError) and error.errno in _LOCAL:
                    raise
                if attempt == self.config.attempts:
                    raise UnavailableError(
                        f"{self.address(name)} failed {attempt} times ({type(error).__name__}: {reason}): see the "
                        "connection, and give the same command again"
                    ) from None
                logger.debug("%s: attempt %d: %r", self.address(name), attempt, error)
                time.sleep(random.uniform(0.5, 1.0) * min(20.0, pause))
                pause *= 2
        raise AssertionError


def _is_refused(error: Exception, reason: str) -> bool:
    lowered = reason.lower()
    return type(error).__name__ in ("NoCredentialsError", "ParamValidationError") or any(
        word in lowered for word in _REFUSED
    )


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _info_of(found: dict) -> ObjectInfo:
    tag = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("created") or ""
    return ObjectInfo(int(found.get("size") or 0), str(tag).strip('"'))


def _filesystem(url: str, config: RemoteConfig) -> tuple[Any, str]:
    """The file system of a URL, with time-outs and without its own retries and caches; and the path there."""
    try:
        import fsspec
    except ImportError:
        raise RemoteError(f"{url} needs fsspec: pip install brine-lm[remote]") from None
    options: dict[str, Any] = {}
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        seconds = config.timeout_s
        options = {
            "config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"max_attempts": 0}},
            "use_listings_cache": False,
            # one of another process has threads that this one lacks
            "skip_instance_cache": True,
        }
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError:
        raise RemoteError(
            f"{url} needs s3fs, or another package for {scheme}://: pip install brine-lm[remote]"
        ) from None
    except ValueError as error:
        raise RemoteError(f"{url}: {str(error).strip()[:200]}") from None
    if options:
        fs.retries = 1
    return fs, path
