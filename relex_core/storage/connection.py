"""The one Google Cloud Storage client of a process: credentials are found once, connections and threads are shared.

A store is opened for every checkpoint of a window; 150 clients would ask for credentials 150 times and keep 150 pools.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

from google.cloud.storage import Client
from requests import Session
from requests.adapters import HTTPAdapter

READ_THREADS = 8
"""Pieces read at a time for callers that ask for more than one piece."""

CONNECTIONS = 64
"""Connections kept open: READ_THREADS and the threads of the callers; those beyond are opened anew for each request."""

_lock = Lock()


@dataclass(frozen=True)
class Connection:
    """What all stores of a process share."""

    client: Any  # google.cloud.storage has no types
    session: Session
    """The client's: it sends the credentials with each request."""
    endpoint: str
    pool: ThreadPoolExecutor


def shared_connection() -> Connection:
    """The connection to the server that STORAGE_EMULATOR_HOST names, without credentials; else to Google's.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: there are no application-default credentials.
    """
    with _lock:
        # The process is part of the key: neither sockets nor threads survive a fork.
        return _connect(os.environ.get("STORAGE_EMULATOR_HOST"), os.getpid())


@cache
def _connect(emulator: str | None, process: int) -> Connection:
    # Else the client asks for each bucket's metadata, which needs one more permission.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    client = Client(project=None)
    session: Session = client._http  # the only one that has the client's credentials, quota project and mTLS
    for scheme in ("https://", "http://"):
        adapter = session.get_adapter(scheme)
        if type(adapter) is HTTPAdapter:  # an mTLS adapter holds the certificate: keep it, with its smaller pool
            session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
    pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="gcs-read")
    return Connection(client, session, client.api_endpoint.rstrip("/"), pool)
