"""Every group beside the null model: exponent, drift share with its interval, and what a pure walk would show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.bootstrap import share_interval
from relex_core.forecast.measures import Null
from relex_core.forecast.null_model import Drift, displacement_exponent
from relex_core.forecast.numbers import number
from relex_core.forecast.walk import WalkComparison, compare
from relex_core.forecast.window import Window, increments

LEVEL = 0.05
"""Of the test whether a group is more rank 1 than a walk."""


@dataclass(frozen=True)
class NullModels:
    """Every group beside the null model."""

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
            rank_one=beside is not None and beside.p_value < LEVEL,
            straight=beside is not None and beside.line_p_value < LEVEL,
        )


def null_models(window: Window, members: np.ndarray, drift: Drift, seed: int) -> NullModels:
    """Compare every group with walks; seeds of the groups differ."""
    pooled = window.pooled(members)
    moves = increments(pooled, window.steps)
    return NullModels(
        exponent=displacement_exponent(pooled, window.steps),
        drift=drift,
        interval=share_interval(moves, drift, seed),
        comparisons=tuple(
            compare(inner, moves, drift, row, seed + row) if np.trace(pooled[row]) > 0 else None
            for row, inner in enumerate(moves.inner)
        ),
    )
