"""What a pure walk of this length would show: explained variance and R² by formula, and their spread by simulation.

A high-dimensional random walk has G_ij ∝ min(t_i, t_j), whatever the data. Its first component explains 8/π² = 0.811
of the squared deltas and has an R² of 0.958 over the steps as T grows. Here the walk has this window's steps, the sizes
of its increments, their short-range correlation (momentum) and their effective number of dimensions, and no drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from relex_core.fit.line import varies
from relex_core.forecast.eigen import first_eigenvectors
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
    """Of that component's line over the steps; NaN where the coefficient is constant, and so is `line_p_value`."""
    walk_explained_variance: float
    walk_r_squared: float
    """Of the same walk in infinitely many dimensions, by formula."""
    walk_explained_variance_95: float
    """95 % quantile over simulated walks."""
    walk_r_squared_95: float
    p_value: float
    """Of the explained variance: share of simulated walks that show at least as much."""
    line_p_value: float
    """The same of R²."""
    dimensions: float
    """Effective number of dimensions, (tr Σ)² / tr Σ² of the increments' covariance Σ."""


def compare(inner: np.ndarray, moves: Increments, drift: Drift, row: int, seed: int) -> WalkComparison:
    """Compare one group with walks; inner: its I, "T T", not all 0."""
    steps = np.cumsum(moves.gaps)
    undo = np.linalg.inv(moves.mixing)
    root = undo @ _root(_walk_covariance(inner, moves, float(drift.square[row]), drift.length))
    dimensions = effective_dimensions(inner, moves, drift.length)
    random = np.random.default_rng(seed)
    walks = root @ _wisharts(len(steps), dimensions, random) @ root.T
    observed = undo @ inner @ undo.T
    shares, fits = shape(_positions(np.concatenate([observed[None], (root @ root.T)[None], walks])), steps)
    return WalkComparison(
        explained_variance=float(shares[0]),
        r_squared=float(fits[0]),
        walk_explained_variance=float(shares[1]),
        walk_r_squared=float(fits[1]),
        walk_explained_variance_95=float(np.quantile(shares[2:], 0.95)),
        walk_r_squared_95=float(np.quantile(fits[2:], 0.95)),
        p_value=(1 + int((shares[2:] >= shares[0]).sum())) / (1 + DRAWS),
        line_p_value=(1 + int((fits[2:] >= fits[0]).sum())) / (1 + DRAWS) if np.isfinite(fits[0]) else math.nan,
        dimensions=dimensions,
    )


def shape(grams: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Explained variance and R² of the line of the first component; grams: "N T T", returns "N" and "N".

    R² is NaN where the coefficient is constant.
    """
    values, vectors = first_eigenvectors(grams)
    trace = np.einsum("nii->n", grams)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    total = np.square(centred).sum(axis=1)
    line = np.square(centred @ (steps - steps.mean())) / float(np.square(steps - steps.mean()).sum())
    fits = np.divide(line, total, out=np.full_like(total, math.nan), where=varies(total, vectors))
    return values / np.where(trace > 0, trace, 1.0), fits


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
    # A floor, for trajectories that are so much of a drift that nothing is left for the walk.
    sizes = np.sqrt(np.maximum(own, 1e-6 * float(np.diag(inner).mean())))
    scale = np.outer(sizes, sizes)
    covariance = np.diag(sizes**2)
    for lag in range(1, length + 1):
        at = moves.lags == lag
        if at.any():
            covariance += at * scale * np.clip(rest[at].sum() / scale[at].sum(), -1.0, 1.0)
    return covariance


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _positions(inner: np.ndarray) -> np.ndarray:
    """Back from increments to the Gram matrices of the deltas, "... T T"."""
    return np.asarray(inner.cumsum(axis=-1).cumsum(axis=-2))


def _wisharts(length: int, dimensions: float, random: np.random.Generator) -> np.ndarray:
    """Z Zᵀ / n for Z "T n" of standard normals, "draws T T"; by Bartlett's decomposition where n ≥ T."""
    if dimensions < length:
        z = random.standard_normal((DRAWS, length, max(round(dimensions), 1)))
        return np.asarray(z @ z.transpose(0, 2, 1) / z.shape[2])
    factor = np.tril(random.standard_normal((DRAWS, length, length)), -1)
    diagonal = np.sqrt(random.chisquare(dimensions - np.arange(length), (DRAWS, length)))
    factor[:, np.arange(length), np.arange(length)] = diagonal
    return np.asarray(factor @ factor.transpose(0, 2, 1) / dimensions)
