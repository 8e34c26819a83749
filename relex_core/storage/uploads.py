"""A stream to one Google Cloud Storage object, which appears whole when the stream is closed.

Little is sent in one request, more through a resumable upload. The checksum of what was written goes with it, and is
compared with the one that the server gives for what it stored.
"""

from __future__ import annotations

from typing import Any

import google_crc32c

from relex_core.errors import StorageError
from relex_core.storage.crc32c import encode
from relex_core.storage.gcs_errors import gcs_errors
from relex_core.storage.resumable import CONTENT_TYPE, ResumableUpload, Target

CHUNK_BYTES = 32 << 20
"""Bytes of one request of a resumable upload; a multiple of 256 KiB, as the protocol wants."""

SINGLE_BYTES = 8 << 20
"""Most bytes that are sent in one request; google-cloud-storage's own limit for that."""

COPY_BYTES = 1 << 20


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
