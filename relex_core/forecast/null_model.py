"""The null model: a random walk with drift, from the increments of a Gram matrix alone.

    drift²        d² = Σ_{lag > L} I_ij / Σ_{lag > L} g_i g_j                      g_i: optimizer steps of increment i
    walk          σ² = Σ_{lag ≤ L} (I_ij − d² g_i g_j) / (t_T − lag · median gap)  long-run variance per step
    drift share   φ = t_T d² / (t_T d² + σ²)

On regular steps these are the mean beyond lag L and the sum over |l| ≤ L of the mean of the l-th diagonal minus d².
Weights g_i g_j are the best ones for a walk, where the variance of I_ij is proportional to them. L, the correlation
length of the increments (momentum), is found from the lags. A high-dimensional walk shows I_ij ≈ 0 beyond L with
hardly any noise, which is why so few checkpoints tell drift from wandering.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.window import Increments

SHORTEST_LENGTH = 5
"""L is at least this, in median gaps: momentum of 0.9 is down to 0.6 of itself there."""


@dataclass(frozen=True)
class Drift:
    """Walk and drift of groups of tensors; all arrays "groups"."""

    square: np.ndarray
    """d², squared norm a step²; at least 0."""
    raw_square: np.ndarray
    """d² as estimated; below 0 by chance where there is no drift."""
    walk: np.ndarray
    """σ², squared norm a step; at least 0."""
    share: np.ndarray
    """φ; NaN where nothing moved."""
    length: int
    """L, in median gaps."""


def estimate(moves: Increments, length: int) -> Drift:
    """Estimate drift and walk of groups.

    Args:
        moves: with I of "groups T T".
        length: L.
    """
    far, band = weights(moves, length)
    products = np.outer(moves.gaps, moves.gaps)
    raw = np.einsum("gij,ij->g", moves.inner, far) / float((far * products).sum())
    square = np.maximum(raw, 0.0)
    walk = np.einsum("gij,ij->g", moves.inner, band) - square * float((band * products).sum())
    walk = np.maximum(walk, 0.0)
    return Drift(square, raw, walk, drift_share(square, walk, moves.last_step), length)


def weights(moves: Increments, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What multiplies I_ij in the sum for d² (1 beyond L) and in the sum for σ² (up to L), both "T T"."""
    far = (moves.lags > length).astype(np.float64)
    span = np.maximum(moves.last_step - moves.lags * float(np.median(moves.gaps)), moves.gaps.min())
    return far, (1.0 - far) / span


def drift_share(square: np.ndarray, walk: np.ndarray, last_step: float) -> np.ndarray:
    """φ = t_T d² / (t_T d² + σ²); NaN where both are 0."""
    total = last_step * square + walk
    return np.where(total > 0, last_step * square / np.where(total > 0, total, 1.0), np.nan)


def correlation_length(moves: Increments) -> int:
    """L: the first lag ≥ 5 after which two lags in a row lie on the plateau of the far ones, within two errors.

    Never more than half the window, so that something is left beyond; a window of fewer than 11 checkpoints cannot
    have 5, and its drift share holds whatever momentum is left.

    Args:
        moves: of the whole model, I of "T T".
    """
    most = max(min((len(moves.gaps) - 1) // 2, int(moves.lags.max()) - 1), 0)
    normal = moves.inner / np.outer(moves.gaps, moves.gaps)
    far = normal[moves.lags > most]
    if most <= SHORTEST_LENGTH or far.size < 4:
        return min(most, SHORTEST_LENGTH)
    for lag in range(SHORTEST_LENGTH, most):
        near = [normal[moves.lags == other] for other in (lag + 1, lag + 2)]
        if all(not n.size or abs(n.mean() - far.mean()) <= 2 * far.std() * (2 / n.size) ** 0.5 for n in near):
            return lag
    return most


def displacement_exponent(grams: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Exponent of the mean squared displacement ⟨‖Δ(t + h) − Δ(t)‖²⟩ ∝ h^α: 1 for a walk, 2 for pure drift.

    Least squares on logarithms over horizons up to half the window, the base included as step 0; every doubling of
    the horizon has the same weight.

    Args:
        grams: "groups T T".

    Returns:
        α "groups"; NaN where nothing moved, or with fewer than two horizons.
    """
    padded = np.zeros((len(grams), len(steps) + 1, len(steps) + 1))
    padded[:, 1:, 1:] = grams
    times = np.concatenate([[0.0], steps])
    square = np.einsum("gii->gi", padded)
    apart = square[:, :, None] + square[:, None, :] - 2 * padded
    first, second = np.triu_indices(len(times), 1)
    horizons, which = np.unique(times[second] - times[first], return_inverse=True)
    means = np.array([np.bincount(which, row[first, second]) / np.bincount(which) for row in apart])
    near = horizons <= max(times[-1] / 2, horizons[min(1, len(horizons) - 1)])
    return np.array([_log_slope(horizons[near], row[near]) for row in means])


def _log_slope(horizons: np.ndarray, displacement: np.ndarray) -> float:
    fine = displacement > 0
    if fine.sum() < 2:
        return float("nan")
    x, y, w = np.log(horizons[fine]), np.log(displacement[fine]), 1.0 / horizons[fine]
    x = x - np.average(x, weights=w)
    return float((w * x * y).sum() / (w * x * x).sum())
