"""Every group beside the null model: exponent, drift share with its interval, and what a pure walk would show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.bootstrap import share_interval
from relex_core.forecast.measures import Null
from relex_core.forecast.momentum import Momentum, drift_without
from relex_core.forecast.null_model import Drift, displacement_exponent
from relex_core.forecast.numbers import number
from relex_core.forecast.walk import WalkComparison, compare
from relex_core.forecast.window import Increments, Window, increments

LEVEL = 0.05
"""Of the test whether a group is more rank 1 than a walk."""


@dataclass(frozen=True)
class NullModels:
    """Every group beside the null model."""

    momentum: Momentum
    exponent: np.ndarray
    """"groups"."""
    drift: Drift
    interval: np.ndarray
    """"groups 2"."""
    comparisons: tuple[WalkComparison | None, ...]
    """None where nothing moved."""

    def of(self, row: int) -> Null:
        """One group's entry."""
        square, walk, beside = self.drift.square[row], self.drift.walk[row], self.comparisons[row]
        return Null(
            displacement_exponent=number(self.exponent[row]),
            drift_share=number(self.drift.share[row]),
            drift_share_interval=(number(self.interval[row, 0]), number(self.interval[row, 1])),
            drift_square=float(square),
            walk_variance=float(walk),
            half_drift_step=number(walk / square) if square > 0 else None,
            explained_variance=number(beside.explained_variance) if beside else None,
            walk_explained_variance=number(beside.walk_explained_variance) if beside else None,
            walk_explained_variance_95=number(beside.walk_explained_variance_95) if beside else None,
            r_squared=number(beside.r_squared) if beside else None,
            walk_r_squared=number(beside.walk_r_squared) if beside else None,
            walk_r_squared_95=number(beside.walk_r_squared_95) if beside else None,
            p_value=number(beside.p_value) if beside else None,
            line_p_value=number(beside.line_p_value) if beside else None,
            dimensions=number(beside.dimensions) if beside else None,
            rank_one=self.momentum.resolved and beside is not None and beside.p_value < LEVEL,
            straight=self.momentum.resolved and beside is not None and beside.line_p_value < LEVEL,
        )


def null_models(window: Window, members: np.ndarray, found: Momentum, seed: int) -> NullModels:
    """Compare every group with walks that have the model's momentum; seeds of the groups differ."""
    pooled = window.pooled(members)
    moves = increments(pooled, window.steps)
    rest, drift = drift_without(moves, found.best)
    return NullModels(
        momentum=found,
        exponent=displacement_exponent(pooled, window.steps),
        drift=drift,
        interval=_interval(moves, found, seed),
        comparisons=tuple(
            compare(inner, rest, drift, row, seed + row) if np.trace(pooled[row]) > 0 else None
            for row, inner in enumerate(rest.inner)
        ),
    )


def _interval(moves: Increments, found: Momentum, seed: int) -> np.ndarray:
    """φ's interval "groups 2", the widest over the range of momentum; from 0 where it cannot be told from a drift."""
    intervals = [
        share_interval(*drift_without(moves, decay), seed) for decay in sorted({found.low, found.best, found.high})
    ]
    low, high = np.min(intervals, axis=0)[:, 0], np.max(intervals, axis=0)[:, 1]
    return np.stack([low if found.resolved else np.minimum(low, 0.0), high], axis=1)
