"""Where a stripe lies while it is in work: in memory that it is read into, or in files that are mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.checkpoints.reader import FileRange
from relex_core.errors import StorageError
from relex_core.fit.memory import Memory
from relex_core.mapped import PAGE, MappedRows, lost_pages


class Buffers:
    """A row of bytes per step, and one for the base; for one stripe after the other.

    Args:
        row_bytes: of a step's row.
        base_row_bytes: of the base's.
    """

    def __init__(self, memory: Memory, steps: int, row_bytes: int, base_row_bytes: int) -> None:
        self._memory, self._shape = memory, (steps, row_bytes)
        self.base = memory.buffer((base_row_bytes,))
        self._rows: np.ndarray | None = None
        self._mapped: MappedRows | None = None

    def rows(self) -> np.ndarray:
        """Memory to read into: uint8 "T n"."""
        if self._mapped is not None:
            self._mapped.clear()
        if self._rows is None:
            self._rows = self._memory.buffer(self._shape)
        return self._rows

    def map(self, ranges: Sequence[FileRange], item: int) -> np.ndarray | None:
        """The bytes of files, one range a step, without a copy: uint8 "T n", read-only.

        Args:
            item: bytes that the elements have to be aligned to.

        Returns:
            None where these cannot be mapped so that all rows begin at the same byte of their memory: read them.
        """
        shift, count = ranges[0].offset % PAGE, ranges[0].count
        alike = all((found.offset % PAGE, found.count) == (shift, count) for found in ranges)
        if not alike or shift % item:
            return None
        try:
            self._mapped = self._mapped or self._memory.mapped(*self._shape)
            if self._mapped is None:
                return None
            self._rows = None  # memory that would wait beside the files
            self._mapped.map([found.file.descriptor for found in ranges], [found.offset for found in ranges], count)
        except OSError:
            return None  # reading succeeds, or says what is wrong
        for found in ranges:
            found.counted(count)
        return np.asarray(self._mapped)[:, shift : shift + count]


@dataclass
class LoadedStripe:
    """A stripe in memory, or several packed ones."""

    buffers: Buffers
    rows: np.ndarray
    """uint8 "T n"."""
    waiting: int
    """Parts that are not done yet."""
    mapped: Sequence[FileRange] = ()
    """What the rows are, where they were not read."""

    def check(self, lost_before: int) -> None:
        """Make sure that mapped files were whole and unchanged as long as they were used.

        Args:
            lost_before: what `lost_pages` said before.

        Raises:
            CheckpointChanged: one is no longer the one that was collected.
            StorageError: bytes could not be had.
        """
        for found in self.mapped:
            found.check()
        if self.mapped and lost_pages() != lost_before:
            raise StorageError(
                "a checkpoint's file could not be read to its end while it was in use",
                where=f"{self.mapped[0].file.path} or the same file of another step",
                expected="files that stay as they are, on a disk that works",
                next_step="run the same command again: finished groups of tensors are kept",
            )
