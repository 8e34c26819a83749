"""The arithmetic of candidates: base, stored columns and observed deltas, mixed tile by tile.

    W = W_0 + Σ_j a_j · D_j + Σ_t b_t · Δ_t          D_j: stored column j; Δ_t = W_t − W_0, t observed

Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.dtypes import finite
from relex_core.kernels import Part, add_parts, can_add, compiled_library

TILE = 128 * 1024
"""Weights that are mixed at a time: what several candidates have in common stays in the cache."""

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


def mix_tiles(slices: Slices, candidates: Sequence[Terms], results: Sequence[np.ndarray]) -> list[bool]:
    """W_0 + Σ a_j D_j + Σ b_t Δ_t of every candidate.

    Sums are float32, or float64 where a dtype is; tile by tile, so that they stay in the cache. A candidate's bytes do
    not depend on what else is mixed with it.

    Args:
        results: "n" each, in the candidates' dtypes; are written.

    Returns:
        of every candidate: whether all of it is finite, or the base's own bytes.
    """
    sound = [True] * len(results)
    for start in range(0, len(slices.base), TILE):
        tile = _tile(slices, slice(start, start + TILE))
        for number, (terms, result) in enumerate(zip(candidates, results, strict=True)):
            sound[number] &= _mix(tile, terms, result[start : start + TILE])
    return sound


def _tile(slices: Slices, tile: slice) -> Slices:
    columns = {key: column[tile] for key, column in slices.columns.items()}
    return Slices(slices.base[tile], columns, {step: weights[tile] for step, weights in slices.observed.items()})


def _mix(slices: Slices, terms: Terms, result: np.ndarray) -> bool:
    """One tile of one candidate; returns whether it is finite, or the base's own bytes."""
    parts = [Part(slices.columns[key], a, is_step=False) for key, a in terms.columns.items() if a != 0.0]
    parts += [Part(slices.observed[step], b, is_step=True) for step, b in terms.observed.items() if b != 0.0]
    if not parts and result.dtype == slices.base.dtype:  # frozen: infinities of a mask, negative zeros and all
        result[...] = slices.base
        return True
    library = compiled_library()
    if parts and library and can_add((slices.base, *(part.values for part in parts)), result):
        return add_parts(library, slices.base, parts, result)
    with np.errstate(over="ignore"):  # infinities in the result tell the caller
        result[...] = _sum(slices.base, parts, result.dtype) if parts else slices.base
    return finite(result)


def _sum(stored_base: np.ndarray, parts: Sequence[Part], dtype: np.dtype) -> np.ndarray:
    wide = np.dtype(np.float64) in (stored_base.dtype, dtype)
    working = np.dtype(np.float64 if wide else np.float32)
    base = stored_base.astype(working, copy=False)
    displacement = np.zeros_like(base)
    for part in parts:
        values = part.values.astype(working)
        displacement += (values - base if part.is_step else values) * working.type(part.coefficient)
    displacement += base
    return displacement
