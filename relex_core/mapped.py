"""Files mapped over rows of memory (mapped.c): their bytes are used where the page cache has them.

Reading into memory copies every byte, and new memory has to be brought forth; for a window in the page cache that took
up to half of the fit. The price: bytes are seen when they are used, not when they are read. So whoever uses them asks
afterwards whether the files are still what they were, and whether any bytes were lost (`lost_pages`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from functools import cache

from relex_core.kernels import compiled_library

PAGE = mmap.PAGESIZE


class MappedRows:
    """Addresses for rows of bytes; free when the last array of them is gone.

    `np.asarray` gives them as uint8 "T n", read-only: only what is mapped may be looked at.

    Args:
        library: from `mapping_library`.
        rows: T.
        row_bytes: most bytes of a row, from the beginning of the first page that holds some.

    Raises:
        OSError: there are no more addresses.
    """

    def __init__(self, library: ctypes.CDLL, rows: int, row_bytes: int) -> None:
        self._library, self._rows, self._pitch = library, rows, -(-row_bytes // PAGE) * PAGE
        self._bytes = rows * self._pitch
        self._start = library.relex_reserve(self._bytes)
        if not self._start:
            raise OSError("no addresses left to map files to")
        self.__array_interface__ = {
            "version": 3,
            "data": (self._start, True),
            "shape": (rows, self._pitch),
            "typestr": "|u1",
        }

    def map(self, files: Sequence[int], offsets: Sequence[int], count: int) -> None:
        """Let bytes of files be the rows, in place of what was mapped before; they begin in them at `offset % PAGE`.

        Args:
            files: descriptors, one a row; they may be closed afterwards.
            offsets: of the first byte in each file; all with the same `offset % PAGE`.
            count: bytes of each.

        Raises:
            OSError: their file system cannot do that.
        """
        shift = offsets[0] % PAGE
        assert shift + count <= self._pitch, "a row holds what it was made for"
        assert len(files) == len(offsets) == self._rows, "a file for each row"
        starts = (ctypes.c_int64 * self._rows)(*(offset - shift for offset in offsets))
        descriptors = (ctypes.c_int * self._rows)(*files)
        function, pitch, rows = self._library.relex_map_rows, self._pitch, self._rows
        self._call(function, self._start, self._bytes, pitch, descriptors, starts, rows, shift + count)

    def clear(self) -> None:
        """Let go of all files.

        Raises:
            OSError: the system is out of memory.
        """
        self._call(self._library.relex_unmap, self._start, self._bytes)

    def _call(self, function: Callable[..., int], *arguments: object) -> None:
        if error := function(*arguments):
            raise OSError(error, os.strerror(error))

    def __del__(self) -> None:
        if getattr(self, "_start", None):
            self._library.relex_release(self._start)


@cache
def mapping_library() -> ctypes.CDLL | None:
    """What maps files; None where relex was installed without a C compiler."""
    library = compiled_library()
    if library is not None:
        address, size = ctypes.c_void_p, ctypes.c_size_t
        library.relex_reserve.argtypes, library.relex_reserve.restype = (size,), address
        library.relex_release.argtypes, library.relex_release.restype = (address,), None
        files, offsets = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int64)
        library.relex_map_rows.argtypes = (address, size, size, files, offsets, ctypes.c_int, size)
        library.relex_unmap.argtypes = (address, size)
        library.relex_lost_pages.argtypes, library.relex_lost_pages.restype = (), ctypes.c_long
    return library


def lost_pages() -> int:
    """Pages of mapped files that could not be had, in this process so far; they were seen as zeros."""
    library = mapping_library()
    return library.relex_lost_pages() if library else 0
