"""`auto`: the predictor with the best held-out skill, for the whole model or for every module type on its own.

How well that choice itself does is measured the same way: at every cut, what would have been chosen from the
checkpoints up to that cut alone, and how it then did on the later ones. The best of many skills is too high on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.held_out import HeldOut
from relex_core.forecast.names import HOLD
from relex_core.forecast.skill import fair_pairs, pooled

FEWEST = 8
"""Checkpoints below which holding is chosen: a few pairs choose whatever the start of training looks like."""
LEAST_SKILL = 0.02
"""Of a choice other than holding."""


@dataclass(frozen=True)
class Auto:
    """The choice, and how such choices did."""

    model: str
    """Best predictor for the whole model."""
    modules: tuple[str, ...]
    """Best predictor for every module type."""
    skill: float
    """Of choosing one predictor for the model, chosen in time; NaN without held-out pairs."""
    skill_by_module: float
    """Of choosing by module type, chosen in time."""

    @property
    def by_module(self) -> bool:
        """Whether choosing by module type did better, by more than chance would."""
        return bool(self.skill_by_module >= self.skill + LEAST_SKILL)


def choose(held: HeldOut) -> Auto:
    """Choose from the held-out errors of every group, the model last."""
    pairs = fair_pairs(held)
    best = [held.names[row] for row in _best(held, pairs, len(held.steps))]
    hold = held.of(HOLD)
    chosen = np.full(hold.shape, np.nan)
    for at, count in enumerate(held.cuts):
        known = pairs & (np.arange(len(held.steps)) < count)[None, :]
        for group, row in enumerate(_best(held, known, int(count))):
            error = held.errors[row, group, at]
            chosen[group, at] = np.where(np.isfinite(error), error, hold[group, at])
    summed = chosen[:-1].sum(axis=0, keepdims=True)
    return Auto(
        model=best[-1],
        modules=tuple(best[:-1]),
        skill=float(pooled(chosen, hold, pairs)[-1]),
        skill_by_module=float(pooled(summed, hold[-1:], pairs)[0]),
    )


def _best(held: HeldOut, pairs: np.ndarray, observed: int) -> np.ndarray:
    """Row of the predictor with the best skill in each group; holding, unless one that always applied is better."""
    hold = held.names.index(HOLD)
    if observed < FEWEST or not pairs.any():
        return np.full(held.errors.shape[1], hold)
    errors = held.errors[:, :, pairs].sum(axis=2)
    best = np.where(np.isfinite(errors), errors, np.inf).argmin(axis=0)
    groups = np.arange(errors.shape[1])
    return np.asarray(np.where(errors[best, groups] < (1 - LEAST_SKILL) * errors[hold], best, hold))
