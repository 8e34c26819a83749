"""The arithmetic of candidates: base, stored columns and observed deltas, mixed tile by tile.

    W = W_0 + Σ_j a_j · D_j + Σ_t b_t · Δ_t          D_j: stored column j; Δ_t = W_t − W_0, t observed

Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import CDLL
from dataclasses import dataclass

import numpy as np

from relex_core.dtypes import finite
from relex_core.kernels import Part, add_parts, can_add, compiled_library

TILE = 64 * 1024
"""Weights that are mixed at a time: their float32 values stay in the cache."""

CALL = 256 * 1024
"""Weights that compiled code mixes at a time; it has tiles of its own."""

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


def mix_tiles(slices: Slices, candidates: Sequence[Terms], dtypes: Sequence[np.dtype]) -> list[tuple[np.ndarray, bool]]:
    """W_0 + Σ a_j D_j + Σ b_t Δ_t of every candidate, "n" each, in its dtype; and whether all of it is finite.

    Sums are float32, or float64 where a dtype is; tile by tile, so that they stay in the cache.
    """
    results = [np.empty(len(slices.base), dtype) for dtype in dtypes]
    sources = (slices.base, *slices.columns.values(), *slices.observed.values())
    library = compiled_library()
    if library and can_add(sources, results):
        sound = _mix_compiled(library, slices, candidates, results)
    else:
        _mix_with_numpy(slices, candidates, results)
        sound = [finite(result) for result in results]
    return list(zip(results, sound, strict=True))


def _mix_compiled(
    library: CDLL, slices: Slices, candidates: Sequence[Terms], results: Sequence[np.ndarray]
) -> list[bool]:
    sound = [True] * len(results)
    for start in range(0, len(slices.base), CALL):
        tile = slice(start, start + CALL)
        for number, (terms, result) in enumerate(zip(candidates, results, strict=True)):
            parts = [Part(slices.columns[key][tile], a, False) for key, a in terms.columns.items() if a != 0.0]
            parts += [Part(slices.observed[step][tile], b, True) for step, b in terms.observed.items() if b != 0.0]
            if parts:
                sound[number] &= add_parts(library, slices.base[tile], parts, result[tile])
            else:
                result[tile] = slices.base[tile]
                sound[number] &= finite(result[tile])
    return sound


def _mix_with_numpy(slices: Slices, candidates: Sequence[Terms], results: Sequence[np.ndarray]) -> None:
    wide = np.dtype(np.float64) in (slices.base.dtype, *(result.dtype for result in results))
    working = np.float64 if wide else np.float32
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


def _sum(base: np.ndarray, parts: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    displacement = np.zeros_like(base)
    for part, coefficient in parts:
        displacement += part * base.dtype.type(coefficient)
    displacement += base
    return displacement
