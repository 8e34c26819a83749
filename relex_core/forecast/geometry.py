"""The shape of a trajectory: spectrum, line, direction over time, what lies off it. All from G, for N tensors at once.

Groups are averaged over their tensors with the squared deltas (the trace of G) as weights, because that is what a
tensor contributes to the model's movement; a ratio of sums, so a frozen tensor has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.fit.line import varies
from relex_core.forecast.cut import Cut
from relex_core.forecast.window import Window, increments

RANKS = 8
"""Explained variance is listed up to this rank."""


@dataclass(frozen=True)
class Geometry:
    """One row a tensor or group; NaN where it is undefined (a frozen tensor; for R², a constant coefficient)."""

    explained_variance: np.ndarray
    """"rows R": share of the squared deltas, uncentred, along the first 1 ... R components; R = min(T, 8)."""
    r_squared: np.ndarray
    """"rows": of the first coefficient's line over the true steps."""
    residual_autocorrelation: np.ndarray
    """"rows": of that line's residuals, from one checkpoint to the next. Near 1 for a walk: T residuals that move
    together are not T confirmations of a line."""
    direction_cosine: np.ndarray
    """"rows K": between the direction from the first k checkpoints and the one from all."""
    off_direction: np.ndarray
    """"rows": ‖Δ_T − v vᵀ Δ_T‖ / ‖Δ_T‖, what rank 1 leaves out of the last checkpoint."""
    step_cosine: np.ndarray
    """"rows": mean cosine of neighbouring increments; 0 for a walk, above it with momentum."""


def geometry(window: Window, fits: Sequence[Cut], members: np.ndarray) -> Geometry:
    """Geometry of every group, then of every tensor.

    Args:
        fits: of the cuts, and last of the whole window.
        members: "groups N".
    """
    traces = np.einsum("ntt->n", window.grams)
    rows = np.vstack([members, np.eye(len(window.names))]) * traces
    whole = fits[-1]
    series = whole.coefficients
    residuals = series - whole.line(window.steps)
    total = np.square(series - series.mean(axis=1, keepdims=True)).sum(axis=1)
    squares = np.square(residuals).sum(axis=1)
    lagged = (residuals[:, 1:] * residuals[:, :-1]).sum(axis=1)
    last = window.grams[:, -1, -1]
    off = 1.0 - _divide(np.square(series[:, -1]), last)
    cosines = np.array([_cosine(window, cut, whole) for cut in fits]).T.reshape(len(window.names), len(fits))
    return Geometry(
        explained_variance=_mean(_cumulative_shares(window.grams), rows),
        r_squared=_mean(1.0 - _divide(squares, np.where(varies(total, series), total, 0.0)), rows),
        residual_autocorrelation=_mean(_divide(lagged, np.where(varies(squares, series), squares, 0.0)), rows),
        direction_cosine=_mean(cosines, rows),
        off_direction=np.sqrt(np.maximum(_mean(off, rows), 0.0)),
        step_cosine=_mean(_step_cosines(window), rows),
    )


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0))


def _mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weighted means over tensors, of those values "N ..." that are defined; rows: weights, "rows N"."""
    defined = np.isfinite(values)
    weight = rows @ defined.astype(np.float64)
    return _divide(np.asarray(rows @ np.where(defined, values, 0.0)), weight)


def _cumulative_shares(grams: np.ndarray) -> np.ndarray:
    values = np.maximum(np.linalg.eigvalsh(grams)[:, ::-1], 0.0)
    shares = values.cumsum(axis=1)
    return _divide(shares, np.broadcast_to(shares[:, -1:], shares.shape))[:, :RANKS]


def _cosine(window: Window, cut: Cut, whole: Cut) -> np.ndarray:
    """⟨v^(k), v⟩ = u_kᵀ G_{:k,:} u / (σ_k σ), "N"."""
    count = len(cut.steps)
    product = np.einsum("nk,nkt,nt->n", cut.vectors, window.grams[:, :count], whole.vectors, optimize=True)
    return _divide(product, cut.sigma * whole.sigma)


def _step_cosines(window: Window) -> np.ndarray:
    inner = increments(window.grams, window.steps).inner
    sizes = np.sqrt(np.maximum(np.einsum("nii->ni", inner), 0.0))
    cosines = _divide(np.einsum("nii->ni", inner[:, 1:, :-1]), sizes[:, 1:] * sizes[:, :-1])
    count = np.isfinite(cosines).sum(axis=1).astype(np.float64)
    return _divide(np.where(np.isfinite(cosines), cosines, 0.0).sum(axis=1), count)
