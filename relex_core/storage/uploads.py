"""A stream to one Google Cloud Storage object, which appears whole when the stream is closed.

Little is sent in one request; more goes through a resumable upload, chunk by chunk, and becomes an object only with
the last one (https://cloud.google.com/storage/docs/performing-resumable-uploads). google-cloud-storage's own writer
cannot go on after a chunk that failed once or was stored in part, so the protocol is spoken here.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import google_crc32c
from requests import RequestException, Session

from relex_core.errors import StorageError
from relex_core.storage.crc32c import encode
from relex_core.storage.gcs_errors import gcs_errors, require_status
from relex_core.storage.retries import Retries

CHUNK_BYTES = 32 << 20
"""Bytes of one request of a resumable upload; a multiple of 256 KiB, as the protocol wants."""

SINGLE_BYTES = 8 << 20
"""Most bytes that are sent in one request; google-cloud-storage's own limit for that."""

COPY_BYTES = 1 << 20
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
        return response.headers["Location"]

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
        headers = {"Content-Range": content_range, **hashes}
        target = self._target
        response = target.session.put(self._location, data=data, headers=headers, timeout=target.timeouts)
        require_status(response, 200, 201, 308)
        if response.status_code != 308:
            metadata: dict[str, Any] = response.json()
            return metadata
        kept = re.search(r"-(\d+)$", response.headers.get("Range", ""))
        self._stored = int(kept[1]) + 1 if kept else 0
        return {}

    def cancel(self) -> None:
        """Tell the server to forget the session; if that fails it does so by itself after a week."""
        with suppress(RequestException):
            self._target.session.delete(self._location, timeout=self._target.timeouts)


class ObjectWriter:
    """The stream: `write` any number of times, then either `close` or `abort`. Memory: CHUNK_BYTES.

    Raises (from every method but abort):
        StorageError: the upload failed, after retries; the message names the permission if one is lacking.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._upload: ResumableUpload | None = None
        self._buffer = bytearray()
        self._crc = 0

    def write(self, data: memoryview | bytes) -> None:
        """Append; sends a chunk whenever one is full and more follows."""
        view = memoryview(data).cast("B")
        while view:
            if len(self._buffer) == CHUNK_BYTES:
                self._send()
            part = bytes(view[: min(COPY_BYTES, CHUNK_BYTES - len(self._buffer))])
            self._crc = google_crc32c.extend(self._crc, part)
            self._buffer += part
            view = view[len(part) :]

    def close(self) -> None:
        """Publish the object; if the server stored other bytes than were written it is removed again."""
        target = self._target
        small = self._upload is None and len(self._buffer) <= SINGLE_BYTES
        stored, generation = self._send_whole() if small else self._send_last()
        if stored != encode(self._crc):
            with gcs_errors("storage.objects.delete", target.where):
                target.blob.delete(if_generation_match=generation, retry=target.retries, timeout=target.timeouts)
            raise StorageError(
                f"the upload arrived damaged, with crc32c {stored}, and was removed",
                where=target.where,
                expected=f"crc32c {encode(self._crc)}",
                next_step="run the same command again; if it happens again, check this machine's memory and network",
            )

    def abort(self) -> None:
        """Drop what was written; no object appears."""
        if self._upload is not None:
            self._upload.cancel()

    def _send_whole(self) -> tuple[str, int]:
        blob, call = self._target.blob, {"retry": self._target.retries, "timeout": self._target.timeouts}
        with gcs_errors("storage.objects.create", self._target.where):
            blob.upload_from_string(bytes(self._buffer), CONTENT_TYPE, checksum="crc32c", **call)
        return blob.crc32c, blob.generation

    def _send_last(self) -> tuple[str, int]:
        metadata = self._send(final_crc=self._crc)
        return metadata["crc32c"], int(metadata["generation"])

    def _send(self, *, final_crc: int | None = None) -> dict[str, Any]:
        with gcs_errors("storage.objects.create", self._target.where):
            if self._upload is None:
                self._upload = ResumableUpload(self._target)
            metadata = self._upload.send(memoryview(self._buffer), final_crc=final_crc)
        self._buffer = bytearray()
        return metadata
