"""Where the fit's arrays lie: in host memory as numpy arrays, or on a device as torch tensors.

gram.py says the arithmetic once, in what numpy and torch have in common; these classes make its arrays. numpy serves
the CPU: it is loaded in a tenth of the time that torch takes, and converts bfloat16 as fast (ml_dtypes).
"""

from __future__ import annotations

import math
import mmap
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np

from relex_core.kernels import Kernels, compiled_library, processor_name
from relex_core.stripes import tile_columns

Array = Any
"""A numpy array or a torch tensor."""


@runtime_checkable
class Memory(Protocol):
    """Makes arrays, and moves them to where the arithmetic is done and back. Safe to use from several threads."""

    name: str
    """As fit.json calls it: as `kernels.processor_name` or "cuda:0"."""
    maps: bool
    """Whether files can be used where they are mapped, instead of `buffer`."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array where the arithmetic is done; dtype: "float32" or "float64"."""

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 on the host, to read files into and to load from."""

    def load(self, array: np.ndarray) -> Array:
        """A host array of at most two dimensions, where the arithmetic is done. It is in use until `fetch`."""

    def fetch(self, array: Array) -> np.ndarray:
        """A result, on the host."""

    def self_product(self, tile: Array) -> Array:
        """M Mᵀ of a tile "T m", float32."""

    def tile_columns(self, steps: int) -> int:
        """Columns of a tile."""

    def kernels(self, steps: int) -> Kernels | None:
        """Compiled kernels with scratch memory for one thread, where arrays lie so that they can be used."""

    def in_order(self) -> AbstractContextManager[object]:
        """Within it, what this thread asks for is done in order, beside what other threads ask for."""


class HostMemory:
    """numpy, on the CPU: nothing moves.

    Args:
        compiled: use the compiled kernels where they are installed.
    """

    maps = True

    def __init__(self, compiled: bool = True) -> None:
        self._library = compiled_library() if compiled else None
        self.name = processor_name(self._library)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.empty(shape, dtype)

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        # Not malloc's, which may keep what it has back: a stripe's memory must go once files are mapped instead.
        memory = mmap.mmap(-1, math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)  # as numpy does
        return np.frombuffer(memory, np.uint8).reshape(shape)

    def load(self, array: np.ndarray) -> np.ndarray:
        return array

    def fetch(self, array: np.ndarray) -> np.ndarray:
        return array

    def self_product(self, tile: np.ndarray) -> np.ndarray:
        # numpy sees the symmetric product and calls BLAS ssyrk, half the work of a general one: 65 against 43 GFLOP/s
        # for torch.mm at T = 24 on two cores of an AMD EPYC, 107 against 64 at T = 150. np.dot, not matmul: that keeps
        # the interpreter's lock where the result has less than 500 numbers, and halves two threads' speed at T = 16.
        product: np.ndarray = np.dot(tile, tile.T)
        return product

    def tile_columns(self, steps: int) -> int:
        return tile_columns(steps)

    def kernels(self, steps: int) -> Kernels | None:
        return Kernels(self._library, steps) if self._library else None

    def in_order(self) -> AbstractContextManager[object]:
        return nullcontext()
