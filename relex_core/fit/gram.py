"""The one inner loop of the fit, over tiles of float32 deltas: Gram matrices and mixed directions.

    Δ_i = W_{t_i} − W_0        float32; exact for bf16 and fp16, and for fp32 whenever the two are within a factor of 2
    G   = M Mᵀ                 float32 products within a tile, float64 sums over tiles
    D   = Cᵀ M                 float32

A tile "T m" stays in the cache between conversion, subtraction and product. The same lines run on numpy arrays (CPU)
and on torch tensors (CUDA, with IEEE float32 products: TF32 would keep 10 bits of each delta); memory.py has the
difference. On a CPU the kernels of kernels.c, where they could be compiled, do the same in half the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from relex_core.fit.memory import HostMemory, Memory
from relex_core.shapes import Float, Float32, Float64, UInt32
from relex_core.stripes import BLOCK_COLUMNS


class Tiles:
    """Scratch memory of one thread: turns slices of checkpoints into tiles of deltas."""

    def __init__(self, steps: int, memory: Memory | None = None) -> None:
        self.memory = memory or HostMemory()
        self.kernels = self.memory.kernels(steps)
        self._columns = self.memory.tile_columns(steps)
        self._deltas = self.memory.empty((steps, self._columns), "float32")
        self._base = self.memory.empty((self._columns,), "float32")

    def deltas(
        self, slices: Float[Any, "T n"], base: Float[Any, " n"]
    ) -> Iterator[tuple[int, Float32[Any, "T m"], Float32[Any, " m"]]]:
        """Tiles from left to right: (first column, deltas, base); the memory of both is reused by the next tile.

        Args:
            slices: the window's values of n weights, any float dtype.
            base: the base's values of them, any float dtype.
        """
        wide = 8 in (slices.dtype.itemsize, base.dtype.itemsize)  # float64 must be subtracted before it is rounded
        for start, base_tile in self.bases(base):
            columns = base_tile.shape[0]
            piece, tile = slices[:, start : start + columns], self._deltas[:, :columns]
            if wide:
                tile[...] = piece - base[start : start + columns]
            else:
                tile[...] = piece
                tile -= base_tile
            yield start, tile, base_tile

    def bases(self, base: Float[Any, " n"]) -> Iterator[tuple[int, Float32[Any, " m"]]]:
        """The base's part of the same tiles: (first column, base)."""
        for start in range(0, base.shape[0], self._columns):
            piece = base[start : start + self._columns]
            base_tile = self._base[: piece.shape[0]]
            base_tile[...] = piece
            yield start, base_tile


def block_grams(
    slices: Float[np.ndarray, "T n"], base: Float[np.ndarray, " n"], tiles: Tiles
) -> tuple[Float64[np.ndarray, "b T T"], Float64[np.ndarray, " b"], UInt32[np.ndarray, " k"] | None]:
    """Gram matrices of the deltas, one for every BLOCK_COLUMNS columns.

    Blocks are returned one by one, so that the caller can add them in the order of the tensor's columns: the sum is
    then the same whatever stripes they came from.

    Args:
        slices: any float dtype, on the host.
        base: any float dtype, on the host.

    Returns:
        (Gram matrices, by block; squared norms of the base, by block; columns that changed, or None where they are many
        or nobody looked: valid until this thread's next call)
    """
    if tiles.kernels and tiles.kernels.can_take(slices, base):
        return tiles.kernels.block_grams(slices, base, BLOCK_COLUMNS)
    steps, columns = slices.shape
    blocks, memory = -(-columns // BLOCK_COLUMNS), tiles.memory
    grams, squares = memory.empty((blocks, steps, steps), "float64"), memory.empty((blocks,), "float64")
    grams[...], squares[...] = 0.0, 0.0
    if _frozen(slices, base):
        for start, base_tile in tiles.bases(memory.load(base)):
            squares[start // BLOCK_COLUMNS] += base_tile @ base_tile
        return memory.fetch(grams), memory.fetch(squares), None
    for start, tile, base_tile in tiles.deltas(memory.load(slices), memory.load(base)):
        block = start // BLOCK_COLUMNS
        grams[block] += memory.self_product(tile)
        squares[block] += base_tile @ base_tile
    return memory.fetch(grams), memory.fetch(squares), None


def _frozen(slices: Float[np.ndarray, "T n"], base: Float[np.ndarray, " n"]) -> bool:
    """Whether the weights never changed, by their bytes; the last step tells of nearly all that did change."""
    if slices.dtype != base.dtype:
        return False
    expected = base.view(np.uint8)
    return all(np.array_equal(row.view(np.uint8), expected) for row in slices[::-1])


def mix(
    slices: Float[np.ndarray, "T n"],
    base: Float[np.ndarray, " n"],
    mixing: Float64[np.ndarray, "T r"],
    tiles: Tiles,
) -> Float32[np.ndarray, "r n"]:
    """Directions D = Cᵀ M.

    Args:
        slices: any float dtype, on the host.
        base: any float dtype, on the host.
        mixing: C.
    """
    columns = np.ascontiguousarray(mixing.T, dtype=np.float32)
    if tiles.kernels and tiles.kernels.can_take(slices, base):
        return tiles.kernels.mix(slices, base, columns)
    memory = tiles.memory
    weights = memory.load(columns)
    mixed = memory.empty((mixing.shape[1], slices.shape[1]), "float32")
    for start, tile, _ in tiles.deltas(memory.load(slices), memory.load(base)):
        mixed[:, start : start + tile.shape[1]] = weights @ tile
    return memory.fetch(mixed)
