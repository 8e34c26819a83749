"""Momentum: increments that remember the ones before, taken out where it can be, and said where it cannot.

An optimizer's momentum makes neighbouring increments alike, and in a window that is short beside it they look like a
drift. It is shown where the mean cosine of increments at the lags 2 to 5 lies above that beyond half the window. Then
the rates v_i = δ_i / g_i are filtered (prewhitening, Andrews and Monahan 1992)

    v'_i = (v_i − r v_{i−1}) / (1 − r)        r: momentum from one checkpoint to the next; v'_1 = v_1

which leaves drift d, long-run variance σ² and t_T as they are, and r is what makes the two means equal. Lag 1 has no
say: rounding of the checkpoints makes neighbouring increments unlike. If even the smallest r that will do
pushes lag 1 below the rest, or none makes the means equal, this is no filtered walk, and nothing is taken out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from relex_core.forecast.null_model import Drift, correlation_length, estimate
from relex_core.forecast.window import Increments

DECAYS = np.concatenate([[0.0], 1.0 - np.geomspace(0.75, 0.04, 16)])
"""r tried, in between by interpolation; 0.96 remembers for 49 checkpoints, more than most windows have."""
NEAR = (2, 5)
ERRORS = 2.0
"""Standard errors by which means must differ."""
MEMORIES = 3.0
"""A window that tells them apart has so many times (1 + r) / (1 − r) checkpoints, what momentum makes of one."""
LENGTHS = 8
"""Or, where no r fits, so many correlation lengths."""


@dataclass(frozen=True)
class Momentum:
    """r of the median gap; 0 where none is shown."""

    low: float
    best: float
    high: float
    resolved: bool
    """Whether the window is long enough to tell a drift from momentum."""


def momentum(moves: Increments) -> Momentum:
    """Momentum of the whole model; moves: I of "T T"."""
    start = _excess(moves, *NEAR)
    if start is None:
        return Momentum(0.0, 0.0, 0.0, resolved=False)
    if start <= ERRORS:
        return Momentum(0.0, 0.0, 0.0, resolved=True)
    excess = np.array([_excess(whitened(moves, decay), *NEAR) or 0.0 for decay in DECAYS])
    low, best, high = (_crossing(excess, level) for level in (ERRORS, 0.0, -ERRORS))
    if excess.min() > 0 or (_excess(whitened(moves, low), 1, 1) or 0.0) < -ERRORS:
        enough = LENGTHS * correlation_length(moves) <= len(moves.gaps)
        return Momentum(0.0, 0.0, 0.0, resolved=enough)
    return Momentum(low, best, high, resolved=len(moves.gaps) * (1 - high) / (1 + high) >= MEMORIES)


def whitened(moves: Increments, decay: float) -> Increments:
    """The increments without a momentum of `decay` a median gap; I of "... T T"."""
    if decay == 0:
        return moves
    gaps = moves.gaps
    apart = (gaps[1:] + gaps[:-1]) / 2 / np.median(gaps)
    later, decays = np.arange(1, len(gaps)), decay**apart
    mixing = np.eye(len(gaps))
    mixing[later, later] = 1 / (1 - decays)
    mixing[later, later - 1] = -decays / (1 - decays) * gaps[1:] / gaps[:-1]
    return replace(moves, inner=mixing @ moves.inner @ mixing.T, mixing=mixing)


def drift_without(moves: Increments, decay: float) -> tuple[Increments, Drift]:
    """Whitened increments of the groups, "groups T T", and their drift; L is that of the last one, the whole model."""
    rest = whitened(moves, decay)
    return rest, estimate(rest, correlation_length(replace(rest, inner=rest.inner[-1])))


def _excess(moves: Increments, first: int, last: int) -> float | None:
    """Mean cosine at the lags first to last less that beyond half the window, in standard errors.

    Cosines, because a learning rate schedule changes sizes. None where there are too few.
    """
    half = (len(moves.gaps) - 1) // 2
    sizes = np.sqrt(np.maximum(np.diag(moves.inner), 0.0))
    pairs = np.triu(np.outer(sizes, sizes) > 0, 1)
    lags, cosines = moves.lags[pairs], moves.inner[pairs] / np.outer(sizes, sizes)[pairs]
    near, far = cosines[(lags >= first) & (lags <= min(last, half))], cosines[lags > half]
    if not near.size or far.size < 4:
        return None
    error = float(far.std()) * math.sqrt(1 / near.size + 1 / far.size)
    return float(near.mean() - far.mean()) / max(error, 1e-9)


def _crossing(excess: np.ndarray, level: float) -> float:
    """The first r at which the excess is down to the level; the largest r if it never is."""
    below = excess <= level
    if not below.any():
        return float(DECAYS[-1])
    row = int(below.argmax())
    return float(np.interp(-level, -excess[row - 1 : row + 1], DECAYS[row - 1 : row + 1]))
