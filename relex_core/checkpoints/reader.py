"""Reading pieces of one tensor, or of neighbouring tensors, out of checkpoint files as byte ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from relex_core.checkpoints.checkpoint import open_checkpoint, stored_tensor
from relex_core.checkpoints.contents import Extent, StoredTensor, TensorInfo
from relex_core.checkpoints.safetensors_file import read_header
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound
from relex_core.manifest import FileRecord, WindowManifest
from relex_core.storage import ObjectInfo, Store, open_store


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
        """Weight bytes read so far."""

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        """Read `pieces` into `buffer`.

        Raises:
            CheckpointChanged: the weights are no longer those that were collected.
            DataError: there is no tensor of that name.
            StorageError: the storage failed.
        """


class TensorReader:
    """The reader of weights that lie in files, whole or in shards."""

    def __init__(self, label: str, store: Store, tensors: Mapping[str, StoredTensor]) -> None:
        self.label, self.tensors = label, tensors
        self._store = store
        self._bytes_read = 0
        self._lock = Lock()

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        """Read `pieces` into `buffer`; pieces that are neighbours both in a file and in the buffer become one read."""
        for extent, at in self._ranges(pieces):
            file = extent.file
            try:
                self._store.read_into(file.name, file.generation, extent.offset, buffer[at : at + extent.nbytes])
            except (CheckpointChanged, ObjectNotFound) as error:
                raise CheckpointChanged(
                    f"checkpoint changed: {self.label}: {error.what}",
                    where=error.where,
                    expected=error.expected,
                    next_step=error.next_step or "restore the file, or collect again into a new run directory",
                ) from None
            with self._lock:
                self._bytes_read += extent.nbytes

    def _ranges(self, pieces: Iterable[Piece]) -> list[tuple[Extent, int]]:
        """The reads that `pieces` need: which bytes, and where they go in the buffer."""
        merged: list[tuple[Extent, int]] = []
        for piece in pieces:
            stored = self.tensors.get(piece.tensor)
            if stored is None:
                raise DataError(f"tensor {piece.tensor} is missing", where=f"{self._store.uri} ({self.label})")
            at = piece.at
            for extent in stored.ranges(piece.start, piece.stop):
                merged.append((extent, at))
                at += extent.nbytes
                if len(merged) > 1 and (joined := _joined(*merged[-2:])):
                    merged[-2:] = [joined]
        return merged


def _joined(first: tuple[Extent, int], second: tuple[Extent, int]) -> tuple[Extent, int] | None:
    """Two reads as one, if they are neighbours both in their file and in the buffer."""
    (one, at), (other, other_at) = first, second
    neighbours = one.offset + one.nbytes == other.offset and at + one.nbytes == other_at
    if not neighbours or one.file.name != other.file.name:
        return None
    return Extent(one.file, one.offset, one.nbytes + other.nbytes), at


def open_checkpoint_reader(label: str, uri: str, files: Sequence[FileRecord]) -> TensorReader:
    """The weights of one checkpoint, as recorded in the manifest.

    Raises:
        CheckpointChanged: its files are no longer those of the manifest.
    """
    store = open_store(uri)
    checkpoint = open_checkpoint(store, [record.info() for record in files])
    if checkpoint.problems:
        raise CheckpointChanged(
            f"{label} is not the checkpoint that was collected: {'; '.join(checkpoint.problems)}",
            where=uri,
            next_step="collect again into a new run directory",
        )
    return TensorReader(label, store, checkpoint.tensors)


def base_dtypes_of(manifest: WindowManifest) -> dict[str, str]:
    """Dtype of each tensor of the base, from its headers.

    Raises:
        CheckpointChanged: its files are no longer those of the manifest.
    """
    base = open_checkpoint_reader("base", manifest.base.uri, manifest.base.files)
    return {name: stored.dtype for name, stored in base.tensors.items()}


def open_files_reader(label: str, store: Store, files: Iterable[ObjectInfo]) -> TensorReader:
    """All tensors of several safetensors files together.

    Raises:
        DataError: a file is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for info in files:
        tensors.update({entry.name: stored_tensor(info, entry) for entry in read_header(store, info).tensors})
    return TensorReader(label, store, tensors)
