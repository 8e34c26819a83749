"""Where the same weights of several checkpoints lie while they are in use, a row each: in files that are mapped, or in
memory that they are read into.

Bytes that are mapped are seen when they are used, not when they are loaded. So whoever is done with them calls
`Loaded.check`, and throws away what was made of them if it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.checkpoints.reader import FileRange, Piece, Reader
from relex_core.errors import StorageError
from relex_core.mapped import PAGE, MappedRows, lost_pages, mapping_library

MOST_OPEN = 256
"""Rows that are mapped at most: each has a file open, two where its shards meet, and 1024 descriptors are usual."""


@dataclass(frozen=True)
class Loaded:
    """The same bytes of several checkpoints."""

    rows: np.ndarray
    """uint8 "T n"; read-only where they are mapped."""
    files: Sequence[FileRange] = ()
    """What is mapped to the rows; nothing where they were read."""
    lost_before: int = 0
    """What `lost_pages` said before."""

    def check(self) -> None:
        """Make sure that mapped files were whole and unchanged as long as they were used.

        Raises:
            CheckpointChanged: something was written into one since it was collected.
            StorageError: bytes could not be had.
        """
        for found in self.files:
            found.check()
        if self.files and lost_pages() != self.lost_before:
            raise StorageError(
                "a checkpoint's file could not be read to its end while it was in use",
                where=f"{self.files[0].file.path} or the same file of another step",
                expected="files that stay as they are, on a disk that works",
                next_step="run the same command again: finished work is kept",
            )


class Rows:
    """A row of bytes per checkpoint, for one part of their weights after the other.

    Args:
        count: T, the rows.
        row_bytes: most bytes of a row; to be mapped, it begins and ends within a page.
        memory: makes uint8 memory of a shape, to read into.
        may_map: files of this machine may be mapped.
    """

    def __init__(
        self,
        count: int,
        row_bytes: int,
        memory: Callable[[tuple[int, int]], np.ndarray] = lambda shape: np.empty(shape, np.uint8),
        *,
        may_map: bool = True,
    ) -> None:
        self._shape, self._memory, self._may_map = (count, row_bytes), memory, may_map
        self._own: np.ndarray | None = None
        self._mapped: MappedRows | None = None

    def load(
        self,
        readers: Sequence[Reader],
        pieces: Sequence[Piece],
        item: int,
        *,
        may_map: bool = True,
        each: Callable[..., Iterable[object]] = map,
    ) -> Loaded:
        """The same pieces of all checkpoints, in place of what was loaded before.

        Args:
            readers: a reader for each row.
            item: bytes that the elements have to be aligned to.
            may_map: False: they are needed in memory that may be written to.
            each: like `map`, to read the rows with.

        Raises:
            As `Reader.read`.
        """
        return (self._map(readers, pieces, item) if may_map else None) or self._read(readers, pieces, each)

    def _read(
        self, readers: Sequence[Reader], pieces: Sequence[Piece], each: Callable[..., Iterable[object]]
    ) -> Loaded:
        if self._mapped is not None:
            self._mapped.clear()
        if self._own is None:
            self._own = self._memory(self._shape)
        for _ in each(lambda reader, row: reader.read(pieces, memoryview(row)), readers, self._own):
            pass
        return Loaded(self._own)

    def _map(self, readers: Sequence[Reader], pieces: Sequence[Piece], item: int) -> Loaded | None:
        """None where the files cannot be mapped so that all rows begin at the same byte of their memory."""
        library = mapping_library() if self._may_map and len(readers) <= MOST_OPEN else None
        if library is None:
            return None
        files = [found for reader in readers if (found := reader.file_range(pieces)) is not None]
        places = {(found.offset % PAGE, found.count) for found in files}
        if len(files) < len(readers) or len(places) > 1:
            return None
        ((shift, count),) = places
        if shift % item:
            return None
        lost_before = lost_pages()
        try:
            self._mapped = self._mapped or MappedRows(library, *self._shape)
            self._own = None  # memory that would wait beside the files
            self._mapped.map([found.file.descriptor for found in files], [found.offset for found in files], count)
        except OSError:
            return None  # reading succeeds, or says what is wrong
        for found in files:
            found.counted(count)
        return Loaded(np.asarray(self._mapped)[:, shift : shift + count], files, lost_before)
