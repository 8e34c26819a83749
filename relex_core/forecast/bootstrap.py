"""Confidence interval of the drift share: a block bootstrap over the increments, by multipliers.

Drawing increments again and again would pair an increment with itself and take its length for drift. So every
increment gets a random weight 1 + η_i instead, where the η of neighbours are alike (blocks as long as the
correlation length, Shao 2010), and d² is split into the parts that weights act on in different ways (Hoeffding):

    I_ij − d² g_i g_j = a_i g_j + a_j g_i + ε_ij        a_i: increment i along the mean drift; ε_ij: two walks meeting

Without the split the interval of a driftless walk would be √3 too long. a_i is shrunk for the ε in it.
"""

from __future__ import annotations

import numpy as np

from relex_core.forecast.null_model import Drift, drift_share, weights
from relex_core.forecast.window import Increments

DRAWS = 999
LEVEL = 0.95


def share_interval(moves: Increments, drift: Drift, seed: int) -> np.ndarray:
    """Interval of φ for groups.

    Args:
        moves: with I of "groups T T".
        drift: its estimate.
        seed: of the multipliers.

    Returns:
        "groups 2"; (0, 1) where the window is too short to tell, NaN where nothing moved.
    """
    far, band = weights(moves, drift.length)
    products = np.outer(moves.gaps, moves.gaps)
    eta = _multipliers(moves, drift.length, seed)
    # For σ², a sum of lengths, the weights must be positive: log-normal ones of variance 1, with mean 1 in every draw.
    sizes = np.exp(np.sqrt(np.log(2.0)) * eta)
    sizes /= sizes.mean(axis=1, keepdims=True)
    interval = np.full((len(moves.inner), 2), np.nan)
    for row, inner in enumerate(moves.inner):
        if not np.isfinite(drift.share[row]):
            continue
        if len(moves.gaps) < 4 or (far > 0).sum() < 4:
            interval[row] = (0.0, 1.0)
            continue
        squares = drift.raw_square[row] + _deviations(inner - drift.raw_square[row] * products, far, moves.gaps, eta)
        squares = np.maximum(squares, 0.0)
        walks = sizes @ (inner * band).sum(axis=1) - squares * float((band * products).sum())
        shares = drift_share(squares, np.maximum(walks, 0.0), moves.last_step)
        interval[row] = np.nanquantile(shares, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return interval


def _multipliers(moves: Increments, length: int, seed: int) -> np.ndarray:
    """η, "draws T": mean 0, variance 1, correlated over neighbours with Bartlett's kernel."""
    kernel = np.clip(1.0 - moves.lags / (length + 1.0), 0.0, None)
    values, vectors = np.linalg.eigh(kernel)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(np.random.default_rng(seed).standard_normal((DRAWS, len(kernel))) @ root.T)


def _deviations(rest: np.ndarray, far: np.ndarray, gaps: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """Deviations of d² under the multipliers, "draws"; rest: I_ij − d² g_i g_j, "T T"."""
    reach = far @ gaps
    along = np.divide((rest * far).sum(axis=1), reach, out=np.zeros_like(reach), where=reach > 0)
    meeting = far * (rest - np.outer(along, gaps) - np.outer(gaps, along))
    variance = float((meeting**2).sum() / (far * np.outer(gaps, gaps)).sum())
    chance = float(np.divide(variance * gaps, reach, out=np.zeros_like(reach), where=reach > 0).sum())
    total = float((along**2).sum())
    kept = np.sqrt(max(0.0, 1.0 - chance / total)) if total > 0 else 0.0
    linear = 2.0 * kept * (eta @ (along * reach))
    quadratic = np.einsum("bi,ij,bj->b", eta, meeting, eta, optimize=True)
    return np.asarray((linear + quadratic) / float((far * np.outer(gaps, gaps)).sum()))
