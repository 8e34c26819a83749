"""The fit on the first k checkpoints, for all tensors at once: first direction, its line, drift share.

Features are the vectors that predictors are mixed from, each itself a mix of the first k deltas:

    direction            v_1 = M_kᵀ u_1 / σ_1, a unit vector
    last                 Δ_k
    trailing_average_n   the mean of the last n deltas
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from relex_core.forecast.eigen import first_eigenvectors
from relex_core.forecast.momentum import Momentum, drift_without, momentum
from relex_core.forecast.null_model import Drift
from relex_core.forecast.window import Window, increments

DIRECTION, LAST = "direction", "last"


@dataclass(frozen=True)
class Cut:
    """N tensors, fitted on k checkpoints; a tensor that has not moved yet has σ, u, slope and intercept 0."""

    steps: np.ndarray
    """"k"."""
    vectors: np.ndarray
    """u_1, "N k"."""
    sigma: np.ndarray
    """σ_1, "N"."""
    slope: np.ndarray
    """"N", coefficient a step; least squares on the true steps."""
    intercept: np.ndarray
    """"N"."""
    share: np.ndarray
    """φ "N", of the tensor's module type, from the first k checkpoints."""
    momentum: Momentum
    """Of the whole model."""
    drift: Drift
    """Of the groups, without momentum."""
    features: tuple[str, ...]

    @property
    def last_step(self) -> float:
        """t_k."""
        return float(self.steps[-1])

    @property
    def coefficients(self) -> np.ndarray:
        """c = σ_1 u_1, "N k"."""
        return np.asarray(self.sigma[:, None] * self.vectors)

    def line(self, times: np.ndarray) -> np.ndarray:
        """The fitted coefficient at steps "J": "N J"."""
        return np.asarray(self.slope[:, None] * times + self.intercept[:, None])

    def mixing(self) -> np.ndarray:
        """The features as mixes of the observed deltas, "N k features"."""
        count = len(self.steps)
        mixes = np.zeros((len(self.sigma), count, len(self.features)))
        for column, feature in enumerate(self.features):
            if feature == DIRECTION:
                mixes[:, :, column] = self.vectors / np.where(self.sigma > 0, self.sigma, 1.0)[:, None]
            elif feature == LAST:
                mixes[:, -1, column] = 1.0
            else:
                length = int(feature.rpartition("_")[2])
                mixes[:, count - length :, column] = 1.0 / length
        return mixes


def average_feature(length: int) -> str:
    """The mean of the last `length` deltas; also the predictor's and the stored column's name."""
    return f"trailing_average_{length}"


def cut_at(window: Window, members: np.ndarray, averages: Sequence[int]) -> Cut:
    """Fit a window as if it were all there is.

    Args:
        members: "groups N", the module types and, last, the whole model.
        averages: lengths of trailing averages; those longer than the window are left out.
    """
    values, vectors = first_eigenvectors(window.grams)
    sigma = np.sqrt(values)
    centred = window.steps - window.steps.mean()
    coefficients = sigma[:, None] * vectors
    slope = coefficients @ centred / float(centred @ centred)
    moves = increments(window.pooled(members), window.steps)
    found = momentum(replace(moves, inner=moves.inner[-1]))
    _, drift = drift_without(moves, found.best)
    return Cut(
        steps=window.steps,
        vectors=vectors,
        sigma=sigma,
        slope=slope,
        intercept=coefficients.mean(axis=1) - slope * window.steps.mean(),
        share=members[:-1].T @ np.nan_to_num(drift.share[:-1]),
        momentum=found,
        drift=drift,
        features=(DIRECTION, LAST, *(average_feature(n) for n in averages if n <= window.length)),
    )
