"""What a pure walk of this length would show: explained variance and R² by formula, and their spread by simulation.

A high-dimensional random walk has G_ij ∝ min(t_i, t_j), whatever the data. Its first component explains 8/π² = 0.811
of the squared deltas and has an R² of 0.958 over the steps as T grows. Here the walk has this window's steps, the sizes
of its increments, their short-range correlation (momentum) and their effective number of dimensions, and no drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.null_model import Drift
from relex_core.forecast.window import Increments

DRAWS = 199
MOST_DIMENSIONS = 1e7


@dataclass(frozen=True)
class WalkComparison:
    """One group beside a pure walk."""

    explained_variance: float
    """Of the first component of the group's concatenated deltas."""
    r_squared: float
    """Of that component's line over the steps."""
    walk_explained_variance: float
    walk_r_squared: float
    """Of the same walk in infinitely many dimensions, by formula."""
    walk_explained_variance_95: float
    """95 % quantile over simulated walks."""
    walk_r_squared_95: float
    p_value: float
    """Of the explained variance: share of simulated walks that show at least as much."""
    dimensions: float
    """Effective number of dimensions, (tr Σ)² / tr Σ² of the increments' covariance Σ."""


def compare(inner: np.ndarray, moves: Increments, drift: Drift, row: int, seed: int) -> WalkComparison:
    """Compare one group with walks; inner: its I, "T T", not all 0."""
    steps = np.cumsum(moves.gaps)
    root = _root(_walk_covariance(inner, moves, float(drift.square[row]), drift.length))
    dimensions = effective_dimensions(inner, moves, drift.length)
    random = np.random.default_rng(seed)
    drawn = np.array([shape(_positions(root @ _wishart(len(steps), dimensions, random) @ root.T), steps) for _ in range(DRAWS)])
    own, expected = shape(_positions(inner), steps), shape(_positions(root @ root.T), steps)
    return WalkComparison(
        explained_variance=own[0],
        r_squared=own[1],
        walk_explained_variance=expected[0],
        walk_r_squared=expected[1],
        walk_explained_variance_95=float(np.quantile(drawn[:, 0], 0.95)),
        walk_r_squared_95=float(np.quantile(drawn[:, 1], 0.95)),
        p_value=(1 + int((drawn[:, 0] >= own[0]).sum())) / (1 + DRAWS),
        dimensions=dimensions,
    )


def shape(gram: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """Explained variance and R² of the line of the first component of one Gram matrix "T T"."""
    values, vectors = np.linalg.eigh(gram)
    coefficient = vectors[:, -1]
    total = float(np.square(coefficient - coefficient.mean()).sum())
    correlation = float((steps - steps.mean()) @ coefficient) ** 2 / float(np.square(steps - steps.mean()).sum())
    return float(values[-1] / np.trace(gram)), correlation / total if total > 0 else 0.0


def effective_dimensions(inner: np.ndarray, moves: Increments, length: int) -> float:
    """One over the variance of the cosines between increments farther apart than `length`."""
    sizes = np.sqrt(np.maximum(np.diag(inner), 0.0))
    pairs = np.triu((moves.lags > length) & (np.outer(sizes, sizes) > 0))
    cosines = inner[pairs] / np.outer(sizes, sizes)[pairs]
    if cosines.size < 3:
        return MOST_DIMENSIONS
    return float(np.clip(1.0 / max(float(cosines.var(ddof=1)), 1.0 / MOST_DIMENSIONS), 1.0, MOST_DIMENSIONS))


def _walk_covariance(inner: np.ndarray, moves: Increments, square: float, length: int) -> np.ndarray:
    """Covariance of the increments without their drift: own sizes, one correlation a lag up to L, none beyond."""
    rest = inner - square * np.outer(moves.gaps, moves.gaps)
    own = np.diag(rest)
    sizes = np.sqrt(np.maximum(own, 1e-3 * max(float(own.mean()), 0.0)))
    scale = np.outer(sizes, sizes)
    covariance = np.diag(sizes**2)
    for lag in range(1, length + 1):
        at = moves.lags == lag
        covariance += at * scale * (float(rest[at].sum()) / max(float(scale[at].sum()), 1e-300))
    return covariance


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _positions(inner: np.ndarray) -> np.ndarray:
    """Back from increments to the Gram matrix of the deltas."""
    return np.asarray(inner.cumsum(axis=0).cumsum(axis=1))


def _wishart(length: int, dimensions: float, random: np.random.Generator) -> np.ndarray:
    """Z Zᵀ / n for Z "T n" of standard normals, by Bartlett's decomposition where n ≥ T."""
    if dimensions < length:
        z = random.standard_normal((length, max(round(dimensions), 1)))
        return np.asarray(z @ z.T / z.shape[1])
    factor = np.tril(random.standard_normal((length, length)), -1)
    factor[np.diag_indices(length)] = np.sqrt(random.chisquare(dimensions - np.arange(length)))
    return np.asarray(factor @ factor.T / dimensions)
