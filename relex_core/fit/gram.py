"""The one inner loop of the fit, over tiles of float32 deltas: Gram matrices and mixed directions.

    Δ_i = W_{t_i} − W_0        float32; exact for bf16 and fp16, and for fp32 whenever the two are within a factor of 2
    G   = M Mᵀ                 float32 products within a tile, float64 sums over tiles
    D   = Cᵀ M                 float32

A tile "T m" stays in the cache between conversion, subtraction and product. On CUDA the same loop runs on the
device, on a stream per thread, with IEEE float32 products (TF32 would keep 10 bits of each delta).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from relex_core.plan import BLOCK_COLUMNS, tile_columns


class Tiles:
    """Scratch memory of one thread: turns slices of checkpoints into tiles of deltas."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.device = device
        self._columns = tile_columns(steps)
        self._deltas = torch.empty((steps, self._columns), dtype=torch.float32, device=device)
        self._base = torch.empty(self._columns, dtype=torch.float32, device=device)

    def deltas(
        self, slices: Float[Tensor, "T n"], base: Float[Tensor, " n"]
    ) -> Iterator[tuple[int, Float32[Tensor, "T m"], Float32[Tensor, " m"]]]:
        """Tiles from left to right: (first column, deltas, base); the memory of both is reused by the next tile.

        Args:
            slices: the window's values of n weights, any float dtype.
            base: the base's values of them, any float dtype.
        """
        wide = torch.float64 in (slices.dtype, base.dtype)  # float64 must be subtracted before it is rounded
        for start in range(0, slices.shape[1], self._columns):
            piece, base_piece = slices[:, start : start + self._columns], base[start : start + self._columns]
            columns = piece.shape[1]
            tile, base_tile = self._deltas[:, :columns], self._base[:columns]
            base_tile.copy_(base_piece)
            if wide:
                tile.copy_(piece.double() - base_piece.double())
            else:
                tile.copy_(piece)
                tile.sub_(base_tile)
            yield start, tile, base_tile


def block_grams(
    slices: Float[Tensor, "T n"], base: Float[Tensor, " n"], tiles: Tiles
) -> tuple[Float64[np.ndarray, "b T T"], Float64[np.ndarray, " b"]]:
    """Gram matrices of the deltas, one for every BLOCK_COLUMNS columns.

    Blocks are returned one by one, so that the caller can add them in the order of the tensor's columns: the sum is
    then the same whatever stripes they came from.

    Args:
        slices: any float dtype, on the device.
        base: any float dtype, on the device.

    Returns:
        (Gram matrices, squared norms of the base), both by block.
    """
    steps, columns = slices.shape
    blocks = -(-columns // BLOCK_COLUMNS)
    grams = torch.zeros((blocks, steps, steps), dtype=torch.float64, device=tiles.device)
    squares = torch.zeros(blocks, dtype=torch.float64, device=tiles.device)
    for start, tile, base_tile in tiles.deltas(slices, base):
        block = start // BLOCK_COLUMNS
        grams[block] += _product(tile)
        squares[block] += torch.dot(base_tile, base_tile)
    return grams.cpu().numpy(), squares.cpu().numpy()


def _product(tile: Float32[Tensor, "T m"]) -> Float32[Tensor, "T T"]:
    """M Mᵀ of one tile."""
    if tile.device.type != "cpu":
        return torch.mm(tile, tile.T)
    # numpy sees the symmetric product and calls BLAS ssyrk, half the work of a general product: 65 against 43
    # GFLOP/s for torch.mm at T = 24 on the machine above, 107 against 64 at T = 150.
    array = tile.numpy()
    return torch.from_numpy(np.matmul(array, array.T))


def mix(
    slices: Float[Tensor, "T n"],
    base: Float[Tensor, " n"],
    mixing: Float64[np.ndarray, "T r"],
    tiles: Tiles,
    dtype: torch.dtype,
) -> Float[Tensor, "r n"]:
    """Directions D = Cᵀ M.

    Args:
        slices: any float dtype, on the device.
        base: any float dtype, on the device.
        mixing: C.
        dtype: of the result.

    Returns:
        D, on the CPU.
    """
    weights = torch.from_numpy(np.ascontiguousarray(mixing.T)).to(tiles.device, torch.float32)
    mixed = torch.empty((weights.shape[0], slices.shape[1]), dtype=dtype, device=tiles.device)
    for start, tile, _ in tiles.deltas(slices, base):
        mixed[:, start : start + tile.shape[1]] = torch.mm(weights, tile)
    return mixed.cpu()
