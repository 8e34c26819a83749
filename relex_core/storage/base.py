"""The Store protocol: what relex asks of a place that holds objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from relex_core.errors import CheckpointChanged, ObjectNotFound

READ_ATTEMPTS = 5
"""Of a small object that others replace while it is read."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object, as a listing shows it."""

    name: str
    """Key below the store's root, with "/" between folders."""
    size: int
    """Bytes."""
    generation: int
    """Changes whenever the content is replaced: the GCS generation, or a file's modification time in ns."""
    crc32c: str | None = None
    """Checksum, base64 as GCS gives it; None where the store keeps none."""
    updated: float | None = field(default=None, compare=False)
    """When the store last saw the object change, in seconds since the epoch by the store's clock; None if it is not
    known. Nobody can set it back: a file's modification time can be old although the file has just been copied."""


class Writer(Protocol):
    """A stream whose object appears, whole, when the stream is closed without an error."""

    def write(self, data: memoryview | bytes, /) -> object: ...


class Store(Protocol):
    """A folder of objects. Implementations are safe to use from several threads.

    Every method raises StorageError when the storage fails after retries, and ObjectNotFound for a missing key.
    """

    uri: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects below the folder `prefix`, at any depth, ordered by name."""

    def stat(self, key: str) -> ObjectInfo:
        """What a listing would show of one object."""

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (writable, contiguous) with the object's bytes from `offset`.

        A store that is far away fills a long buffer in parallel, and proves an object by its checksum once the ranges
        read from this store tile it.

        Raises:
            CheckpointChanged: the object is no longer of that generation.
            DataError: an object whose ranges were all read has not the bytes that the store keeps of it.
            StorageError: it ends before the buffer is full.
        """

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write a new object in one step.

        Raises:
            ObjectExists: the key is taken; of many callers exactly one succeeds.
        """

    def replace(self, key: str, data: bytes, generation: int) -> ObjectInfo:
        """Write a small object in place of the one of that generation, in one step.

        Of many callers with the same generation exactly one succeeds. Only callers of this method exclude each other:
        `open_write` asks for no generation.

        Raises:
            CheckpointChanged: the object is no longer of that generation, or another caller is replacing it.
        """

    def open_write(self, key: str) -> AbstractContextManager[Writer]:
        """A stream to a new or replaced object: published when the block ends, dropped when it raises."""

    def delete(self, key: str) -> None:
        """Remove one object; a missing key is no error."""


def read_bytes(store: Store, key: str) -> bytes:
    """One small object, whole; if it is replaced meanwhile, the newer one."""
    for attempts_left in reversed(range(READ_ATTEMPTS)):
        info = store.stat(key)
        data = bytearray(info.size)
        try:
            store.read_into(key, info.generation, 0, memoryview(data))
            break
        except CheckpointChanged:
            if not attempts_left:
                raise
    return bytes(data)


def write_bytes(store: Store, key: str, data: bytes) -> None:
    """Write or replace one small object."""
    with store.open_write(key) as writer:
        writer.write(data)


def exists(store: Store, key: str) -> bool:
    """Whether there is such an object."""
    return find(store, key) is not None


def find(store: Store, key: str) -> ObjectInfo | None:
    """What `stat` says; None where there is no such object."""
    try:
        return store.stat(key)
    except ObjectNotFound:
        return None


def replace_seen(store: Store, key: str, data: bytes, seen: ObjectInfo | None) -> ObjectInfo:
    """Write a small object in place of what `find` gave, in one step.

    Raises:
        ObjectExists, ObjectNotFound, CheckpointChanged: something else is there by now.
    """
    return store.create(key, data) if seen is None else store.replace(key, data, seen.generation)
