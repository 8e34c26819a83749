"""Confidence interval of the drift share: a block bootstrap over the increments, by multipliers.

Drawing increments again and again would pair an increment with itself and take its length for drift. So every
increment gets a random weight 1 + η_i instead, where the η of neighbours are alike (blocks as long as the
correlation length, Shao 2010), and d² is split into the parts that weights act on in different ways (Hoeffding):

    I_ij − d² g_i g_j = a_i g_j + a_j g_i + ε_ij        a_i: increment i along the mean drift; ε_ij: two walks meeting

Without the split the interval of a driftless walk would be √3 too long. a_i is shrunk for the ε in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.null_model import Drift, drift_share, weights
from relex_core.forecast.window import Increments

DRAWS = 999
FEWEST = 4
"""Checkpoints below which the interval is (0, 1)."""
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
    draws = _multipliers(moves, drift.length, seed)
    interval = np.full((len(moves.inner), 2), np.nan)
    for row, inner in enumerate(moves.inner):
        if not np.isfinite(drift.share[row]):
            continue
        if len(moves.gaps) < FEWEST:
            interval[row] = (0.0, 1.0)
            continue
        rest = inner - drift.raw_square[row] * products
        changes = _deviations(rest, far, moves.gaps, draws)
        squares = np.maximum(drift.raw_square[row] + changes, 0.0)
        kept = drift.raw_square[row] - squares
        walks = draws.sizes @ (rest * band).sum(axis=1) + kept * float((band * products).sum())
        shares = drift_share(squares, np.maximum(walks, 0.0), moves.last_step)
        interval[row] = np.nanquantile(shares, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return interval


@dataclass(frozen=True)
class _Multipliers:
    eta: np.ndarray
    """"draws T": mean 0, variance 1, correlated over neighbours with Bartlett's kernel."""
    sizes: np.ndarray
    """"draws T": positive, mean 1 in every draw; for σ², a sum of squares."""
    tails: np.ndarray
    """"draws": Student's factor for the few blocks that a window has."""
    centred: float
    """What centring leaves of a variance, 1 − blocks' length / T."""


def _multipliers(moves: Increments, length: int, seed: int) -> _Multipliers:
    kernel = np.clip(1.0 - moves.lags / (length + 1.0), 0.0, None)
    values, vectors = np.linalg.eigh(kernel)
    random = np.random.default_rng(seed)
    normal = random.standard_normal((DRAWS, len(kernel)))
    eta = normal @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    sizes = np.exp(np.sqrt(np.log(2.0)) * eta)  # log-normal, of variance 1
    share = float(kernel.mean())  # a block's length over T
    freedom = 1.5 / share  # Bartlett's kernel; Priestley (1981), section 6.2
    tails = np.sqrt(freedom / random.chisquare(freedom, DRAWS))
    return _Multipliers(eta, sizes / sizes.mean(axis=1, keepdims=True), tails, max(1.0 - share, share))


def _deviations(rest: np.ndarray, far: np.ndarray, gaps: np.ndarray, draws: _Multipliers) -> np.ndarray:
    """Deviations of d², "draws"; rest: I_ij − d² g_i g_j, "T T"."""
    reach = far @ gaps
    along = _divide((rest * far).sum(axis=1), reach)
    meeting = far * (rest - np.outer(along, gaps) - np.outer(gaps, along))
    pairs = float((far * np.outer(gaps, gaps)).sum())
    chance = float(_divide(gaps * float((meeting**2).sum()) / pairs, reach).sum())
    total = float((along**2).sum())
    kept = np.sqrt(max(0.0, 1.0 - chance / total)) if total > 0 else 0.0
    linear = 2.0 * kept * (draws.eta @ (along * reach)) / np.sqrt(draws.centred)
    quadratic = ((draws.eta @ meeting) * draws.eta).sum(axis=1) / draws.centred
    return np.asarray(draws.tails * (linear + quadratic) / pairs)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.zeros_like(below), where=below > 0))
