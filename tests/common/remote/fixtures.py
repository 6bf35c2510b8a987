"""Fixtures: an S3 server for the session, a proxy and a bucket for each test. Import them where they are used."""

import itertools

import pytest

from tests.common.remote.s3_server import FaultProxy, Faults, S3Process, environment

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_process():
    pytest.importorskip("s3fs", reason="the extra [remote]")
    pytest.importorskip("moto", reason="the S3 server of the tests")
    process = S3Process()
    yield process
    process.close()


@pytest.fixture
def s3(s3_process, tmp_path, monkeypatch):
    """A proxy, `url` of an empty bucket behind it, and `env` for other processes."""
    import fsspec

    proxy = FaultProxy(s3_process.port)
    proxy.env = environment(proxy.port, tmp_path / "cache")
    for name, value in proxy.env.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_numbers)}"
    proxy.fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    proxy.fs.mkdir(bucket)
    proxy.faults = Faults()
    proxy.url = f"s3://{bucket}"
    yield proxy
    proxy.close()


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """URL of an empty folder of fsspec's file system in memory."""
    pytest.importorskip("fsspec", reason="the extra [remote]")
    monkeypatch.setenv("BRINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BRINE_REMOTE_BACKOFF_S", "0.01")
    return f"memory://test-{next(_numbers)}/a"
