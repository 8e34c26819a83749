"""The compiled arithmetic of fit and extrapolate (kernels.c), from stored weights in one pass.

It was compiled when relex was installed, if there was a C compiler; it needs nothing of Python, so ctypes calls it,
without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

from relex_core.dtypes import NUMPY_DTYPES

# In the order of `enum dtype`.
_DTYPES = {NUMPY_DTYPES[name]: number for number, name in enumerate(("BF16", "F16", "F32"))}
# In the order of `enum processor`.
_PROCESSORS = ("cpu", "cpu, AVX2", "cpu, AVX-512")

VERSION = 5
"""Of the library, as `relex_kernels_version` in kernels.c; mapped.c counts, too."""


class _Stripe(ctypes.Structure):
    """`struct stripe`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("stride", ctypes.c_ssize_t),
        ("steps", ctypes.c_ssize_t),
        ("columns", ctypes.c_ssize_t),
        ("dtype", ctypes.c_int),
        ("base_dtype", ctypes.c_int),
    )


class Kernels:
    """The kernels, with the scratch memory of one thread.

    Args:
        library: from `compiled_library`.
        steps: T.
    """

    def __init__(self, library: ctypes.CDLL, steps: int) -> None:
        self._library, self._steps = library, steps
        self._scratch = np.zeros(library.relex_scratch_bytes(steps), np.uint8)
        self._changed = np.empty(0, np.uint32)

    def can_take(self, slices: np.ndarray, base: np.ndarray) -> bool:
        """Whether these dtypes are among those that were compiled (float64 is not), and rows in one piece."""
        known = slices.dtype in _DTYPES and base.dtype in _DTYPES
        return known and slices.strides[1] == slices.itemsize and base.strides[0] == base.itemsize

    def block_grams(
        self, slices: np.ndarray, base: np.ndarray, block: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """As `relex_core.fit.gram.block_grams`.

        Args:
            slices: "T n".
            base: "n".
            block: columns of a block.

        Returns:
            (Gram matrices "b T T", float64; squared norms of the base "b", float64; columns that changed "k", uint32,
            ascending, in memory that the next call uses again, or None where they are more than a third). Where many of
            768 neighbours changed, all of them count; in the columns not listed every step holds the base's bytes.
        """
        self._require(slices, base)
        blocks = -(-slices.shape[1] // block)
        grams, squares = np.empty((blocks, self._steps, self._steps)), np.empty(blocks)
        if len(self._changed) < len(base) // 3:
            self._changed = np.empty(len(base) // 3, np.uint32)
        out = grams.ctypes.data, squares.ctypes.data, self._changed.ctypes.data
        count = self._library.relex_block_grams(_stripe(slices, base), block, *out, self._scratch.ctypes.data)
        return grams, squares, None if count < 0 else self._changed[:count]

    def mix(self, slices: np.ndarray, base: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """As `relex_core.fit.gram.mix`: directions "r n", float32.

        Args:
            slices: "T n".
            base: "n".
            weights: "r T", float32, contiguous.
        """
        self._require(slices, base)
        if weights.shape[1] != self._steps or weights.dtype != np.float32 or not weights.flags.c_contiguous:
            raise ValueError(f"weights {weights.dtype} {weights.shape} for {self._steps} steps")
        mixed = np.empty((len(weights), slices.shape[1]), np.float32)
        self._library.relex_mix(_stripe(slices, base), weights.ctypes.data, len(weights), mixed.ctypes.data)
        return mixed

    def gather(
        self, slices: np.ndarray, base: np.ndarray, columns: np.ndarray, rows: np.ndarray, rows_base: np.ndarray
    ) -> None:
        """rows = slices[:, columns] and rows_base = base[columns], without a copy in between.

        Args:
            slices: "T n".
            base: "n".
            columns: uint32 "k", ascending, below n.
            rows: "T k", contiguous, of the slices' dtype; may begin where the slices begin.
            rows_base: "k", of the base's dtype; must not overlap.
        """
        self._require(slices, base)
        self._require(rows, rows_base)
        if (rows.dtype, rows_base.dtype) != (slices.dtype, base.dtype) or len(columns) != len(rows_base):
            raise ValueError(f"{rows.dtype} {rows.shape} for {len(columns)} columns of {slices.dtype}")
        if columns.dtype != np.uint32 or not all(array.flags.c_contiguous for array in (columns, rows, rows_base)):
            raise ValueError(f"columns {columns.dtype}, or arrays that are not in one piece")
        out = rows.ctypes.data, rows_base.ctypes.data
        self._library.relex_gather(_stripe(slices, base), columns.ctypes.data, len(columns), *out)

    def _require(self, slices: np.ndarray, base: np.ndarray) -> None:
        """C would read and write beyond the arrays; numpy raises an error of this kind by itself."""
        if slices.shape != (self._steps, len(base)):
            raise ValueError(f"slices {slices.shape} for {self._steps} steps of {len(base)} weights")


@dataclass(frozen=True)
class Part:
    """What `add_parts` adds to a base."""

    values: np.ndarray
    coefficient: float
    is_step: bool
    """An observed step: its delta counts."""


class _Term(ctypes.Structure):
    """`struct term`."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("is_step", ctypes.c_int),
        ("coefficient", ctypes.c_float),
    )


def can_add(sources: Iterable[np.ndarray], result: np.ndarray) -> bool:
    """Whether `add_parts` can read these sources and write this result; arrays "n"."""
    return result.dtype in (NUMPY_DTYPES["BF16"], NUMPY_DTYPES["F32"]) and all(
        array.dtype in _DTYPES and array.flags.c_contiguous for array in (*sources, result)
    )


def add_parts(library: ctypes.CDLL, base: np.ndarray, parts: Sequence[Part], out: np.ndarray) -> bool:
    """out = base + Σ coefficient · values, with float32 sums, rounded to nearest, ties to even.

    Args:
        base: "n", as all arrays.
        parts: arrays and float32 coefficients.
        out: is written.

    Returns:
        Whether all of `out` is finite.
    """
    if any(len(array) != len(base) for array in (out, *(part.values for part in parts))):
        raise ValueError("arrays of different lengths")
    terms = (_Term * len(parts))(
        *(_Term(p.values.ctypes.data, _DTYPES[p.values.dtype], p.is_step, p.coefficient) for p in parts)
    )
    source = base.ctypes.data, _DTYPES[base.dtype], len(base)
    return bool(library.relex_add_terms(*source, terms, len(parts), out.ctypes.data, _DTYPES[out.dtype]))


@cache
def compiled_library() -> ctypes.CDLL | None:
    """The compiled library (kernels.c, mapped.c); None where there was no C compiler when relex was installed, or where
    it is of another version's source."""
    candidates = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        return None
    library = ctypes.CDLL(str(found))
    version = getattr(library, "relex_kernels_version", None)
    return declare(library) if version is not None and version() == VERSION else None


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the signatures of kernels.c."""
    address, size = ctypes.c_void_p, ctypes.c_ssize_t
    library.relex_scratch_bytes.argtypes, library.relex_scratch_bytes.restype = (size,), size
    library.relex_block_grams.argtypes = (ctypes.POINTER(_Stripe), size, address, address, address, address)
    library.relex_block_grams.restype = size
    library.relex_gather.argtypes = (ctypes.POINTER(_Stripe), address, size, address, address)
    library.relex_mix.argtypes = (ctypes.POINTER(_Stripe), address, size, address)
    number, terms = ctypes.c_int, ctypes.POINTER(_Term)
    library.relex_add_terms.argtypes = (address, number, size, terms, size, address, number)
    library.relex_add_terms.restype = number
    library.relex_gather.restype = library.relex_mix.restype = None
    return library


def processor_name(library: ctypes.CDLL | None) -> str:
    """What computes, for fit.json: "cpu, AVX-512", "cpu, AVX2", "cpu" (another processor) or "cpu, numpy" (without
    compiled kernels).

    Results of different ones agree to float32 rounding, not to the byte.
    """
    return "cpu, numpy" if library is None else _PROCESSORS[library.relex_processor()]


def _stripe(slices: np.ndarray, base: np.ndarray) -> _Stripe:
    dtypes = _DTYPES[slices.dtype], _DTYPES[base.dtype]
    return _Stripe(slices.ctypes.data, base.ctypes.data, slices.strides[0], *slices.shape, *dtypes)
