"""Resumable uploads: an object sent chunk by chunk, which appears only with the last one.

google-cloud-storage's own writer cannot go on after a chunk that failed once or was stored in part, so the protocol is
spoken here (https://cloud.google.com/storage/docs/performing-resumable-uploads).
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from google.auth.exceptions import GoogleAuthError
from requests import RequestException, Session

from relex_core.errors import StorageError
from relex_core.storage.crc32c import encode
from relex_core.storage.gcs_errors import require_status
from relex_core.storage.retries import Retries

CONTENT_TYPE = "application/octet-stream"


class _PartlyStored(ConnectionError):
    """The server kept only the beginning of a chunk; the rest is sent again."""


@dataclass(frozen=True)
class Target:
    """The object that is written, and how it is sent."""

    blob: Any
    """google.cloud.storage's handle of it."""
    where: str
    """Its gs:// URI."""
    url: str
    """Where uploads into its bucket start."""
    session: Session
    retries: Retries
    timeouts: tuple[float, float]
    """Seconds to wait for a connection, and for an answer on it."""


class ResumableUpload:
    """One upload session. Every method raises google.api_core and requests errors, after retries."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stored = 0
        self._location = target.retries(self._start)()

    def _start(self) -> str:
        target = self._target
        parameters = {"uploadType": "resumable", "name": target.blob.name}
        metadata = {"contentType": CONTENT_TYPE}
        response = target.session.post(target.url, params=parameters, json=metadata, timeout=target.timeouts)
        require_status(response, 200, 201)
        return str(response.headers["Location"])

    def send(self, data: memoryview, *, final_crc: int | None = None) -> dict[str, Any]:
        """Store the next chunk.

        Args:
            final_crc: crc32c of the whole object, if it ends with this chunk.

        Returns:
            the object's metadata if it ended, else nothing.
        """
        begin, stop, last = self._stored, self._stored + len(data), final_crc is not None
        size = str(stop) if last else "*"
        hashes = {"X-Goog-Hash": f"crc32c={encode(final_crc)}"} if final_crc is not None else {}
        failed = False

        def attempt() -> dict[str, Any]:
            nonlocal failed
            if failed and (found := self._put(b"", f"bytes */{size}", hashes)):  # asks how much arrived
                return found
            failed = True
            if not begin <= self._stored <= stop:
                raise StorageError(f"the server lost bytes {self._stored} to {begin}", where=self._target.where)
            metadata = {}
            if self._stored < stop:
                metadata = self._put(data[self._stored - begin :], f"bytes {self._stored}-{stop - 1}/{size}", hashes)
            if not metadata and (last or self._stored < stop):
                raise _PartlyStored(f"bytes {self._stored} to {stop} of an upload were not stored")
            return metadata

        return self._target.retries(attempt)()

    def _put(self, data: memoryview | bytes, content_range: str, hashes: dict[str, str]) -> dict[str, Any]:
        headers, timeouts = {"Content-Range": content_range, **hashes}, self._target.timeouts
        response = self._target.session.put(
            self._location, data=data, headers=headers, timeout=timeouts, allow_redirects=False
        )
        require_status(response, 200, 201, 308)
        if response.status_code != 308:
            metadata: dict[str, Any] = response.json()
            return metadata
        kept = re.search(r"-(\d{1,19})$", response.headers.get("Range", ""))
        self._stored = int(kept[1]) + 1 if kept else 0
        return {}

    def cancel(self) -> None:
        """Tell the server to forget the session; if that fails it does so by itself after a week."""
        with suppress(RequestException, GoogleAuthError):
            self._target.session.delete(self._location, timeout=self._target.timeouts)
