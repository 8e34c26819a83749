"""Held-out errors: fit on the first k checkpoints, predict every later one, from the Gram matrices alone.

    Δ̂ = Σ_f a_f F_f,  F = Cᵀ M_k        ‖Δ_j − Δ̂‖² = G_jj − 2 aᵀ Cᵀ G_{:k,j} + aᵀ (Cᵀ G_{:k,:k} C) a

Memory: a few arrays of (tensors + groups) × cuts × T float64, and one of predictors × groups × cuts × T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.forecast.cut import Cut, cut_at
from relex_core.forecast.names import RELEX
from relex_core.forecast.predictors import Predictor, applies, coefficients
from relex_core.forecast.window import Window

MOST_CUTS = 64


@dataclass(frozen=True)
class HeldOut:
    """Squared errors of predictors; NaN where the target lies inside the fit, or the predictor does not apply."""

    steps: np.ndarray
    """"T"."""
    cuts: np.ndarray
    """k, "K"."""
    names: tuple[str, ...]
    """Of the predictors."""
    errors: np.ndarray
    """"P groups K T": predictor p, fitted on cuts[k] checkpoints, at checkpoint t."""
    line: np.ndarray
    """"3 rows K T", rows: groups, then tensors: Σ‖Δ_j − Δ_k‖² of holding, Σ⟨Δ_j, Δ̂_j⟩ and Σ‖Δ̂_j‖² of the line."""
    actual: np.ndarray
    """Σ‖Δ_j‖², "rows T"."""
    fits: tuple[Cut, ...]
    """One for every cut, and the whole window's last."""

    @property
    def horizons(self) -> np.ndarray:
        """t_j − t_k in optimizer steps, "K T"."""
        return np.asarray(self.steps[None, :] - self.steps[self.cuts - 1][:, None])

    @property
    def windows(self) -> np.ndarray:
        """Horizons in units of t_k, the length of the window that was fitted, "K T"."""
        return np.asarray(self.horizons / self.steps[self.cuts - 1][:, None])

    def of(self, name: str) -> np.ndarray:
        """Errors of one predictor, "groups K T"."""
        return np.asarray(self.errors[self.names.index(name)])


def chosen_cuts(length: int) -> np.ndarray:
    """Every k from 2 to T − 1, or 64 of them, evenly spread, in a longer window."""
    return np.unique(np.linspace(2, length - 1, min(max(length - 2, 0), MOST_CUTS)).round().astype(np.int64))


def held_out(window: Window, members: np.ndarray, table: Mapping[str, Predictor], averages: Sequence[int]) -> HeldOut:
    """Errors of all predictors at all cuts; members: "groups N"."""
    cuts = chosen_cuts(window.length)
    rows = np.vstack([members, np.eye(len(window.names))])
    errors = np.full((len(table), len(members), len(cuts), window.length), np.nan)
    line = np.full((3, len(rows), len(cuts), window.length), np.nan)
    fits = []
    for at, count in enumerate(cuts):
        cut = cut_at(window.until(int(count)), members, averages)
        later = _Later(window, cut)
        for row, name in enumerate(table):
            if applies(name, cut):
                errors[row, :, at, count:] = members @ later.error(coefficients(name, table, cut, later.times))
        relex = coefficients(RELEX, table, cut, later.times)
        line[:, :, at, count:] = rows @ np.array([later.holding(), later.product(relex), later.square(relex)])
        fits.append(cut)
    actual = rows @ np.einsum("ntt->nt", window.grams)
    whole = cut_at(window, members, averages)
    return HeldOut(window.steps, cuts, tuple(table), errors, line, actual, (*fits, whole))


class _Later:
    """Inner products of one cut's features with each other and with the later checkpoints."""

    def __init__(self, window: Window, cut: Cut) -> None:
        count = len(cut.steps)
        transposed = cut.mixing().transpose(0, 2, 1)
        grams = window.grams
        self.times = window.steps[count:]
        self._own = transposed @ grams[:, :count, :count] @ cut.mixing()
        self._across = (transposed @ grams[:, :count, count:]).transpose(0, 2, 1)
        self._actual = np.einsum("ntt->nt", grams)[:, count:]
        self._hold = self._actual + grams[:, count - 1, count - 1, None] - 2 * grams[:, count - 1, count:]

    def holding(self) -> np.ndarray:
        """‖Δ_j − Δ_k‖², "N J"."""
        return np.asarray(np.maximum(self._hold, 0.0))

    def product(self, values: np.ndarray) -> np.ndarray:
        """⟨Δ_j, Δ̂_j⟩ for coefficients "N J f"."""
        return np.asarray((values * self._across).sum(axis=2))

    def square(self, values: np.ndarray) -> np.ndarray:
        """‖Δ̂_j‖², "N J"."""
        return np.asarray(((values @ self._own) * values).sum(axis=2))

    def error(self, values: np.ndarray) -> np.ndarray:
        """‖Δ_j − Δ̂_j‖², "N J"."""
        return np.asarray(np.maximum(self._actual - 2 * self.product(values) + self.square(values), 0.0))
