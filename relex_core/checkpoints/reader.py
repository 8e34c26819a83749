"""Reading pieces of one tensor, or of neighbouring tensors, out of checkpoint files as byte ranges; or showing where
they lie, to be mapped."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary

from relex_core.checkpoints.checkpoint import open_checkpoint, stored_tensor
from relex_core.checkpoints.contents import StoredTensor, TensorInfo
from relex_core.checkpoints.safetensors_file import read_header
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound
from relex_core.manifest import CheckpointRecord, FileRecord, WindowManifest
from relex_core.storage import LocalStore, ObjectInfo, OpenFile, Store, open_store, open_stores

_open_files: WeakSet[OpenFile] = WeakSet()
"""Of all readers."""


def most_open() -> int:
    """Files that this process maps at the same time: half of the descriptors that it may have, usually 512.

    What lies in others is read.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if most == resource.RLIM_INFINITY else most // 2


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `stop` of a tensor, and where they go in the caller's buffer."""

    tensor: str
    start: int
    stop: int
    at: int


class Reader(Protocol):
    """The weights of one checkpoint, by byte range. Safe to use from several threads."""

    label: str
    """For messages: "base", "step 75"."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, by name."""

    @property
    def bytes_read(self) -> int:
        """Weight bytes read or mapped so far."""

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        """Read `pieces` into `buffer`.

        Raises:
            CheckpointChanged: the weights are no longer those that were collected.
            DataError: there is no tensor of that name.
            StorageError: the storage failed.
        """

    def file_range(self, pieces: Iterable[Piece]) -> FileRange | None:
        """Where `pieces` lie side by side, as in the buffer, in a file of this machine.

        Returns:
            None if they do not, or if too many files are open already.

        Raises:
            As `read`.
        """


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file of this machine, to be mapped instead of read."""

    label: str
    """Of the reader."""
    file: OpenFile
    offset: int
    count: int
    on_use: Callable[[int], None]
    """Called with the number of bytes that are mapped: they count as read."""

    def check(self) -> None:
        """See that the file is still what was collected.

        Raises:
            CheckpointChanged: something was written into it.
            StorageError: the storage failed.
        """
        with _told_of_change(self.label):
            self.file.check()


@contextmanager
def _told_of_change(label: str) -> Iterator[None]:
    """Say which checkpoint it is whose file was replaced or removed."""
    try:
        yield
    except (CheckpointChanged, ObjectNotFound) as error:
        raise CheckpointChanged(
            f"checkpoint changed: {label}: {error.what}",
            where=error.where,
            expected=error.expected,
            next_step=error.next_step or "restore the file, or collect again into a new run directory",
        ) from None


class TensorReader:
    """The reader of weights that lie in files, whole or in shards."""

    def __init__(self, label: str, store: Store, tensors: Mapping[str, StoredTensor]) -> None:
        self.label, self.tensors = label, tensors
        self._store = store
        self._bytes_read = 0
        self._lock = Lock()
        self._open_files: WeakValueDictionary[str, OpenFile] = WeakValueDictionary()
        """By name: each is open once, as long as bytes of it are in use."""
        self._last: OpenFile | None = None
        """Stays open: most ranges lie in the file that was asked for last."""

    @property
    def dtypes(self) -> dict[str, str]:
        """By tensor, as safetensors spells them."""
        return {name: stored.dtype for name, stored in self.tensors.items()}

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        """Read `pieces` into `buffer`; pieces that are neighbours both in a file and in the buffer become one read."""
        for file, offset, at, count in self._ranges(pieces):
            with _told_of_change(self.label):
                self._store.read_into(file.name, file.generation, offset, buffer[at : at + count])
            self._count(count)

    def file_range(self, pieces: Iterable[Piece]) -> FileRange | None:
        if not isinstance(self._store, LocalStore):
            return None
        ranges = self._ranges(pieces)
        if len(ranges) != 1:
            return None
        info, offset, _, count = ranges[0]
        file = self._open(self._store, info)
        return FileRange(self.label, file, offset, count, self._count) if file else None

    def _open(self, store: LocalStore, info: ObjectInfo) -> OpenFile | None:
        """None where too many files are open already."""
        with self._lock:
            file = self._open_files.get(info.name)
            if file is None:
                if len(_open_files) >= most_open():
                    return None
                with _told_of_change(self.label):
                    file = store.open_file(info.name, info.generation, info.size)
                self._open_files[info.name] = file
                _open_files.add(file)
            self._last = file
            return file

    def _count(self, count: int) -> None:
        with self._lock:
            self._bytes_read += count

    def _ranges(self, pieces: Iterable[Piece]) -> list[tuple[ObjectInfo, int, int, int]]:
        """(file, offset in it, offset in the buffer, bytes) of the reads that `pieces` need."""
        merged: list[tuple[ObjectInfo, int, int, int]] = []
        for piece in pieces:
            stored = self.tensors.get(piece.tensor)
            if stored is None:
                raise DataError(f"tensor {piece.tensor} is missing", where=f"{self._store.uri} ({self.label})")
            at = piece.at
            for file, offset, count in stored.ranges(piece.start, piece.stop):
                if merged:
                    last, last_offset, last_at, last_count = merged[-1]
                    neighbours = last_offset + last_count == offset and last_at + last_count == at
                    if neighbours and last.name == file.name:
                        merged[-1] = (last, last_offset, last_at, last_count + count)
                        at += count
                        continue
                merged.append((file, offset, at, count))
                at += count
        return merged


def open_base(manifest: WindowManifest) -> TensorReader:
    """The weights of the base, as recorded in the manifest.

    Raises:
        CheckpointChanged: its files are no longer those of the manifest.
    """
    return _reader("base", open_store(manifest.base.uri), manifest.base.files)


def open_step(record: CheckpointRecord) -> TensorReader:
    """The weights of one observed checkpoint. Errors as for `open_base`."""
    return _reader(f"step {record.step}", open_store(record.uri), record.files)


def open_window_readers(checkpoints: Sequence[CheckpointRecord], pool: Executor) -> list[TensorReader]:
    """The weights of several checkpoints that will be read together; their headers are read in parallel.

    Raises:
        CheckpointChanged: files are no longer those of the manifest.
    """
    stores = open_stores([checkpoint.uri for checkpoint in checkpoints])
    return list(pool.map(lambda store, c: _reader(f"step {c.step}", store, c.files), stores, checkpoints))


def _reader(label: str, store: Store, files: Sequence[FileRecord]) -> TensorReader:
    checkpoint = open_checkpoint(store, [record.info() for record in files])
    if checkpoint.problems:
        raise CheckpointChanged(
            f"{label} is not the checkpoint that was collected: {'; '.join(checkpoint.problems)}",
            where=store.uri,
            next_step="collect again into a new run directory",
        )
    return TensorReader(label, store, checkpoint.tensors)


def open_files_reader(label: str, store: Store, files: Iterable[ObjectInfo]) -> TensorReader:
    """All tensors of several safetensors files together.

    Raises:
        DataError: a file is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for info in files:
        tensors.update({entry.name: stored_tensor(info, entry) for entry in read_header(store, info).tensors})
    return TensorReader(label, store, tensors)
