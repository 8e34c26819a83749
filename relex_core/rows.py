"""Where the same weights of several checkpoints lie while they are in use, a row each: in files that are mapped, or in
memory that they are read into.

Bytes that are mapped are seen when they are used, not when they are loaded. So whoever is done with them calls
`check`, and throws away what was made of them if it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from relex_core.checkpoints.reader import FileRange, Piece, Reader
from relex_core.errors import StorageError
from relex_core.mapped import PAGE, MappedRows, lost_pages, mapping_library


@dataclass(frozen=True)
class Loaded:
    """The same bytes of several checkpoints."""

    rows: np.ndarray = field(repr=False)
    """uint8 "T n"; read-only where they are mapped, and gone when something else is loaded."""
    files: Sequence[FileRange] = ()
    """What is mapped to the rows; nothing where they were read."""
    lost_before: int = 0
    """What `lost_pages` said before."""


def check(loaded: Iterable[Loaded]) -> None:
    """Make sure that mapped files were whole and unchanged as long as they were used.

    Args:
        loaded: what was used together.

    Raises:
        CheckpointChanged: something was written into one since it was collected.
        StorageError: bytes could not be had, although no file changed.
    """
    mapped = [part for part in loaded if part.files]
    for part in mapped:  # all files first: a lost page does not say of which file it was
        for found in part.files:
            found.check()
    if mapped and lost_pages() != min(part.lost_before for part in mapped):
        raise StorageError(
            "bytes of a mapped file could not be had while they were in use",
            where=f"{mapped[0].files[0].file.path}, or another file that was in use",
            expected="files that stay as they are, on a disk that works",
            next_step="run the same command again: finished work is kept",
        )


class Rows:
    """A row of bytes per checkpoint, for one part of their weights after the other.

    Args:
        count: T, the rows.
        row_bytes: most bytes of a row, and a page more: mapped bytes begin and end inside of pages.
        memory: makes uint8 memory of a shape, to read into.
    """

    def __init__(
        self,
        count: int,
        row_bytes: int,
        memory: Callable[[tuple[int, int]], np.ndarray] = lambda shape: np.empty(shape, np.uint8),
    ) -> None:
        self._shape, self._memory = (count, row_bytes), memory
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
        library = mapping_library()
        if library is None:
            return None
        files: list[FileRange] = []
        for reader in readers:
            found = reader.file_range(pieces)
            if found is None:
                return None
            files.append(found)
        shift, count = files[0].offset % PAGE, files[0].count
        alike = all((found.offset % PAGE, found.count) == (shift, count) for found in files)
        if not alike or shift % item:
            return None
        lost_before = lost_pages()
        try:
            self._mapped = self._mapped or MappedRows(library, *self._shape)
            self._own = None  # memory that would wait beside the files
            self._mapped.map([found.file.descriptor for found in files], [found.offset for found in files], count)
        except OSError:
            return None  # reading succeeds, or says what is wrong
        for found in files:
            found.on_use(count)
        return Loaded(np.asarray(self._mapped)[:, shift : shift + count], files, lost_before)
