"""The arithmetic of candidates: base, stored columns and observed deltas, mixed tile by tile.

    W = W_0 + Σ_j a_j · D_j + Σ_t b_t · Δ_t          D_j: stored column j; Δ_t = W_t − W_0, t observed

Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TILE = 64 * 1024
"""Weights that are mixed at a time: their float32 values stay in the cache."""

Column = tuple[str, int | None]
"""A stored column and the spatial rank that it is cut to; None: as it is."""


@dataclass(frozen=True)
class Slices:
    """The same n weights of everything that candidates are mixed from, as stored: any float dtype, "n" each."""

    base: np.ndarray
    columns: Mapping[Column, np.ndarray]
    observed: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Terms:
    """One candidate's coefficients, of stored columns and of observed deltas; zeros count for nothing."""

    columns: Mapping[Column, float]
    observed: Mapping[int, float]


def mix_tiles(slices: Slices, candidates: Sequence[Terms], dtypes: Sequence[np.dtype]) -> list[np.ndarray]:
    """W_0 + Σ a_j D_j + Σ b_t Δ_t of every candidate, "n" each, in its dtype.

    Sums are float32, or float64 where a dtype is; tile by tile, so that they stay in the cache.
    """
    wide = np.dtype(np.float64) in (slices.base.dtype, *dtypes)
    working = np.float64 if wide else np.float32
    results = [np.empty(len(slices.base), dtype) for dtype in dtypes]
    with np.errstate(over="ignore"):  # infinities in the result tell the caller
        for start in range(0, len(slices.base), TILE):
            tile = slice(start, start + TILE)
            base = slices.base[tile].astype(working, copy=False)
            columns = {key: column[tile].astype(working, copy=False) for key, column in slices.columns.items()}
            deltas = {
                step: np.subtract(weights[tile].astype(working), base) for step, weights in slices.observed.items()
            }
            for terms, result in zip(candidates, results, strict=True):
                parts = [(columns[key], a) for key, a in terms.columns.items() if a != 0.0]
                parts += [(deltas[step], b) for step, b in terms.observed.items() if b != 0.0]
                result[tile] = _sum(base, parts) if parts else slices.base[tile]  # bit for bit, negative zeros included
    return results


def _sum(base: np.ndarray, parts: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    displacement = np.zeros_like(base)
    for part, coefficient in parts:
        displacement += part * base.dtype.type(coefficient)
    displacement += base
    return displacement
