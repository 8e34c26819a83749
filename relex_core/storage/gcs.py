"""Objects of a Google Cloud Storage bucket, below a folder."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from google.api_core.exceptions import PreconditionFailed

from relex_core.errors import ObjectExists, ObjectNotFound
from relex_core.storage.base import ObjectInfo, Writer
from relex_core.storage.connection import shared_connection
from relex_core.storage.gcs_errors import changed, gcs_errors
from relex_core.storage.ledger import ChecksumLedger
from relex_core.storage.ranges import RangeReader
from relex_core.storage.resumable import CONTENT_TYPE, Target
from relex_core.storage.retries import Retries
from relex_core.storage.uploads import ObjectWriter

FIELDS = "items(name,size,generation,crc32c,updated),nextPageToken"
CREATOR = "relex-creator"
ABSENT = 0
"""The generation of an object that is not there."""


class GcsStore:
    """A folder of a bucket, with application-default credentials; none if STORAGE_EMULATOR_HOST is set.

    Reads are pinned to a generation. `ledger` collects their checksums and proves the objects that were read whole.

    Args:
        uri: gs://BUCKET or gs://BUCKET/FOLDER.
        retries: how long failures are retried.
        timeouts: seconds to wait for a connection, and for the next bytes on it.
    """

    def __init__(
        self, uri: str, *, retries: Retries | None = None, timeouts: tuple[float, float] = (10.0, 60.0)
    ) -> None:
        self.uri = uri
        bucket, _, folder = uri.removeprefix("gs://").partition("/")
        self._root = f"{folder}/" if folder else ""
        self._call: dict[str, Any] = {"retry": retries or Retries(), "timeout": timeouts}
        with gcs_errors("", uri):
            self._connection = shared_connection()
        self._bucket = self._connection.client.bucket(bucket)
        self.ledger = ChecksumLedger(f"gs://{bucket}")
        connection = self._connection
        self._ranges = RangeReader(
            connection.session, connection.endpoint, bucket, connection.pool, self.ledger, self._call["retry"], timeouts
        )

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        top = f"{self._root}{prefix.strip('/')}".rstrip("/")
        top = f"{top}/" if top else ""
        with self._errors("list", prefix):
            for blob in self._bucket.list_blobs(prefix=top, fields=FIELDS, **self._call):
                if not blob.name.endswith("/"):  # consoles leave empty objects to show folders
                    yield self._info(blob)

    def stat(self, key: str) -> ObjectInfo:
        with self._errors("get", key):
            blob = self._blob(key)
            blob.reload(**self._call)
            return self._info(blob)

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        try:
            if buffer.nbytes:
                return self._ranges.read_into(self._root + key, generation, offset, buffer)
            self._require(key, generation)
        except ObjectNotFound:  # of that generation: say whether there is another
            self._require(key, generation)
            raise

    def _require(self, key: str, generation: int) -> None:
        found = self.stat(key).generation
        if found != generation:
            raise changed(f"{self.uri}/{key}", found, generation)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        written = self._write_if(key, data, ABSENT)
        if written is None:
            raise ObjectExists("the name is taken", where=f"{self.uri}/{key}")
        return written

    def replace(self, key: str, data: bytes, generation: int) -> ObjectInfo:
        written = self._write_if(key, data, generation)
        if written is None:
            raise changed(f"{self.uri}/{key}", self.stat(key).generation, generation)
        return written

    def _write_if(self, key: str, data: bytes, generation: int) -> ObjectInfo | None:
        """Write in one request, if the object is of that generation; None if it is not."""
        blob = self._blob(key)
        blob.metadata = {CREATOR: uuid.uuid4().hex}
        with self._errors("create", key):
            try:
                blob.upload_from_string(
                    data, CONTENT_TYPE, if_generation_match=generation, checksum="crc32c", **self._call
                )
            except PreconditionFailed:
                return self._own(key, blob.metadata[CREATOR])
            return self._info(blob)

    def _own(self, key: str, creator: str) -> ObjectInfo | None:
        """The object that a request of ours wrote although its answer was lost."""
        blob = self._blob(key)
        with suppress(ObjectNotFound), self._errors("get", key):
            blob.reload(**self._call)
        return self._info(blob) if (blob.metadata or {}).get(CREATOR) == creator else None

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        url = f"{self._connection.endpoint}/upload/storage/v1{self._bucket.path}/o"
        session, call = self._connection.session, self._call
        writer = ObjectWriter(
            Target(self._blob(key), f"{self.uri}/{key}", url, session, call["retry"], call["timeout"])
        )
        try:
            yield writer
            writer.close()
        except BaseException:
            writer.abort()
            raise

    def delete(self, key: str) -> None:
        with suppress(ObjectNotFound), self._errors("delete", key):
            self._blob(key).delete(**self._call)

    def _blob(self, key: str) -> Any:
        return self._bucket.blob(self._root + key)

    def _info(self, blob: Any) -> ObjectInfo:
        updated = blob.updated.timestamp() if blob.updated else None
        return ObjectInfo(blob.name.removeprefix(self._root), blob.size, blob.generation, blob.crc32c, updated)

    def _errors(self, verb: str, key: str) -> AbstractContextManager[None]:
        return gcs_errors(f"storage.objects.{verb}", f"{self.uri}/{key}".rstrip("/"))
