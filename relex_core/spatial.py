"""Spatial rank: the top singular vectors of one matrix of a direction, and how many of them stand out of the noise.

    A = Σ_i s_i x_i y_iᵀ  (a direction, reshaped to "m n")        cut to rank k: Σ_{i ≤ k} s_i x_i y_iᵀ

By the eigenvectors of the Gram matrix of the shorter side, exact to float64 for s_i > 1e-8 s_1. The rest is not
rescaled: a cut direction is shorter than 1. Memory: the direction (4 bytes a weight), 32 bytes times the square of the
shorter side, and a block of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.lora.factors import LowRank
from relex_core.shapes import Float

BLOCK = 1024
"""Rows that are converted to float64 at a time."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix, and the singular vectors of its shorter side."""

    values: Float[np.ndarray, " side"]
    """Descending, float64."""
    vectors: Float[np.ndarray, "side side"]
    """One a column, float64."""


def spectrum(matrix: Float[np.ndarray, "m n"]) -> Spectrum:
    """Singular values and vectors of the shorter side; matrix: finite, of any float dtype."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for start in range(0, len(tall), BLOCK):
        rows = tall[start : start + BLOCK].astype(np.float64)
        gram += rows.T @ rows
    squares, vectors = np.linalg.eigh(gram)
    return Spectrum(np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1])


def cut(matrix: Float[np.ndarray, "m n"], found: Spectrum, rank: int) -> LowRank:
    """The matrix cut to rank `rank`, by projecting it onto its first singular vectors; found: its spectrum."""
    kept = found.vectors[:, :rank].astype(matrix.dtype)
    if matrix.shape[0] >= matrix.shape[1]:
        return LowRank(matrix @ kept, np.ascontiguousarray(kept.T), compressed=True)
    return LowRank(kept, kept.T @ matrix, compressed=True)


def noise_edge_rank(values: Float[np.ndarray, " side"], longer: int) -> int:
    """How many singular values stand out of the noise, at least 1.

    The optimal hard threshold for a low-rank matrix in white noise of unknown size (Gavish & Donoho 2014, equation 11
    and their approximation of ω): ω(β) times the median singular value, β = shorter / longer side. It has no constant
    to tune. Where more than half of the values are 0 nothing is taken for noise.

    Args:
        values: singular values.
        longer: length of the longer side.
    """
    beta = len(values) / longer
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return max(int((values > omega * np.median(values)).sum()), 1)
