"""Files mapped over rows of memory (mapped.c): their bytes are used where the page cache has them.

Reading into memory copies every byte, and new memory has to be brought forth; for a window in the page cache that was
half of the fit. The price: bytes are seen when they are used, not when they are read. So whoever uses them asks
afterwards whether the files are still what they were, and whether any bytes were lost (`lost_pages`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache

import numpy as np

from relex_core.kernels import compiled_library

PAGE = mmap.PAGESIZE


class MappedRows:
    """Addresses for rows of bytes; free when the last array of them is gone.

    `np.asarray` gives them as uint8 "T n", read-only: only what is mapped may be looked at.

    Args:
        library: from `mapping_library`.
        rows: T.
        row_bytes: most bytes of a row.

    Raises:
        OSError: there are no more addresses.
    """

    def __init__(self, library: ctypes.CDLL, rows: int, row_bytes: int) -> None:
        # A file's bytes begin anywhere in their first page.
        self._library, self._pitch = library, -(-row_bytes // PAGE) * PAGE + PAGE
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

    def map(self, row: int, file: int, offset: int, count: int) -> None:
        """Let bytes of a file be those of a row; they begin in it at `offset % PAGE`.

        Args:
            file: a descriptor, which may be closed afterwards.

        Raises:
            OSError: its file system cannot do that.
        """
        shift = offset % PAGE
        assert shift + count <= self._pitch, "a row holds what it was made for"
        self._call(self._library.relex_map, self._start + row * self._pitch, shift + count, file, offset - shift)

    def wait_for(self, row: int, offset: int, count: int) -> None:
        """Wait until what was mapped to a row has come from the disk; the file's bytes must be asked for as in `map`.

        Raises:
            OSError: the file ends before that, or its disk fails.
        """
        self._call(self._library.relex_wait_for, self._start + row * self._pitch, offset % PAGE + count)

    def clear(self) -> None:
        """Let go of all files.

        Raises:
            OSError: the system is out of memory.
        """
        self._call(self._library.relex_unmap, self._start, self._bytes)

    def _call(self, function: ctypes._NamedFuncPointer, *arguments: int) -> None:
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
        library.relex_map.argtypes = (address, size, ctypes.c_int, ctypes.c_int64)
        library.relex_wait_for.argtypes = library.relex_unmap.argtypes = (address, size)
        library.relex_lost_pages.argtypes, library.relex_lost_pages.restype = (), ctypes.c_long
    return library


def lost_pages() -> int:
    """Pages of mapped files that could not be had, in this process so far; they were seen as zeros."""
    library = mapping_library()
    return library.relex_lost_pages() if library else 0
