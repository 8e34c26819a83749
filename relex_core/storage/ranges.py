"""Byte ranges of Google Cloud Storage objects, straight into the caller's buffer.

A range read can go wrong without an error: a response may be short, whole instead of a range, of another
generation or unpacked on the way, and a range carries no checksum of its own. So every response is checked before a
byte of it is taken, a broken one is resumed where it stopped, and the crc32c of what arrived goes to the ledger.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor, wait
from ctypes import c_char
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

import google_crc32c
from requests import Response, Session

from relex_core.errors import DataError, StorageError
from relex_core.storage.base import ObjectInfo
from relex_core.storage.gcs_errors import changed, gcs_errors, require_status
from relex_core.storage.ledger import ChecksumLedger
from relex_core.storage.retries import Retries

PIECE_BYTES = 8 << 20
"""Longest range of one request: at 32 MiB the throughput is lower, and a retry costs more."""

CHUNK_BYTES = 512 << 10
"""Bytes taken off a connection at once: what a broken one may lose, and small enough to be summed up in the cache."""


class _ShortBody(ConnectionError):
    """A response ended before its range did; the rest is asked for again."""


@dataclass
class _Progress:
    done: int = 0
    crc: int = 0


@dataclass(frozen=True)
class RangeReader:
    """Reads ranges of one bucket's objects; safe to use from several threads.

    No byte is copied on its way into the caller's buffer.
    """

    session: Session
    endpoint: str
    bucket: str
    pool: ThreadPoolExecutor
    ledger: ChecksumLedger
    retries: Retries
    timeouts: tuple[float, float]
    """Seconds to wait for a connection, and for the next bytes on it."""

    def read_into(self, name: str, generation: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of that generation; more than PIECE_BYTES are read in parallel.

        Raises:
            CheckpointChanged: a response is of another generation.
            DataError: the object is stored compressed; or its ranges tile it, and its checksum is not theirs.
            ObjectNotFound: no such object, or no longer that generation of it.
            StorageError: any other failure, after retries; the object ends before the buffer is full.
        """
        buffer = buffer.cast("B")
        read = partial(self._read_piece, name, generation)
        if len(buffer) <= PIECE_BYTES:
            return read(offset, buffer)
        starts = range(0, len(buffer), PIECE_BYTES)
        pieces = [self.pool.submit(read, offset + start, buffer[start : start + PIECE_BYTES]) for start in starts]
        try:
            for piece in pieces:
                piece.result()
        finally:  # the buffer is the caller's again only when no thread writes into it
            for piece in pieces:
                piece.cancel()
            wait(pieces)

    def _read_piece(self, name: str, generation: int, offset: int, view: memoryview) -> None:
        progress = _Progress()
        with gcs_errors("storage.objects.get", f"gs://{self.bucket}/{name}"):
            info = self.retries(self._attempt)(name, generation, offset, view, progress)
        self.ledger.record(info, offset, len(view), progress.crc)

    def _attempt(self, name: str, generation: int, offset: int, view: memoryview, progress: _Progress) -> ObjectInfo:
        """One request for what is still missing of a piece."""
        first, last = offset + progress.done, offset + len(view) - 1
        url = f"{self.endpoint}/download/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}"
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        parameters = {"alt": "media", "generation": str(generation)}
        with self.session.get(url, params=parameters, headers=headers, stream=True, timeout=self.timeouts) as response:
            info = _checked(response, ObjectInfo(f"gs://{self.bucket}/{name}", last + 1, generation), first)
            _receive(response, view, progress)
        return ObjectInfo(name, info.size, info.generation, info.crc32c)


def _receive(response: Response, view: memoryview, progress: _Progress) -> None:
    """Take the body into what is missing of `view`."""
    body = response.raw._fp  # http.client's response: urllib3's readinto takes every byte through another buffer
    while progress.done < len(view):
        chunk = view[progress.done : progress.done + CHUNK_BYTES]
        count = body.readinto(chunk)
        if count == 0:
            raise _ShortBody(f"the response ended {len(view) - progress.done} bytes too early")
        received = (c_char * count).from_buffer(chunk)  # google_crc32c takes bytes or this, but no memoryview
        progress.crc = google_crc32c.extend(progress.crc, received)
        progress.done += count
    if body.isclosed():  # nothing more comes: the connection is good for another request
        response.raw.release_conn()


def _checked(response: Response, wanted: ObjectInfo, first: int) -> ObjectInfo:
    """The object that a response is a range of; refused unless it is the range asked for.

    Args:
        wanted: the object's URI and generation; `size`: where the range ends.
        first: where the range begins.
    """
    if response.status_code == 416:
        raise _ends_before(wanted, "the object ends before the range begins")
    if response.status_code != 200:
        require_status(response, 206)
    _refuse_compressed(response, wanted.name)
    generation = response.headers.get("X-Goog-Generation", str(wanted.generation))
    if generation != str(wanted.generation):
        raise changed(wanted.name, generation, wanted.generation)
    parts = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or parts is None or "X-Goog-Generation" not in response.headers:
        raise _unexpected(response, wanted, first)
    start, last, total = (int(part) for part in parts.groups())
    if total < wanted.size:
        raise _ends_before(wanted, f"the object ends at byte {total}")
    if start != first or not start <= last < wanted.size:
        raise _unexpected(response, wanted, first)
    hashes = re.search(r"crc32c=([\w+/]{6}==)", response.headers.get("X-Goog-Hash", ""))
    return ObjectInfo(wanted.name, total, wanted.generation, hashes[1] if hashes else None)


def _refuse_compressed(response: Response, where: str) -> None:
    encodings = (response.headers.get(name) for name in ("Content-Encoding", "X-Goog-Stored-Content-Encoding"))
    if any(encoding not in (None, "identity") for encoding in encodings):
        raise DataError(
            "the object is stored compressed (Content-Encoding), so its bytes cannot be read in ranges",
            where=where,
            next_step="upload it again without the -z, -Z or -J option of gcloud storage or gsutil",
        )


def _ends_before(wanted: ObjectInfo, what: str) -> StorageError:
    return StorageError(what, where=wanted.name, expected=f"{wanted.size} bytes or more")


def _unexpected(response: Response, wanted: ObjectInfo, first: int) -> StorageError:
    seen = {name: response.headers.get(name) for name in ("Content-Range", "X-Goog-Generation")}
    return StorageError(
        f"the answer to a range request is not that range: status {response.status_code}, {seen}",
        where=wanted.name,
        expected=f"status 206, Content-Range: bytes {first}-{wanted.size - 1}/SIZE, and the object's generation",
        next_step="see whether a proxy between here and Google Cloud Storage rewrites requests",
    )
