"""What the walk with drift expects of predictors at steps that nobody has seen yet.

Given the window, the weights at τ = t_T + h are expected at (1 + φ h / t_T) Δ_T (empirical Bayes), and around that

    E‖Δ_τ − Δ̂‖² = ‖(1 + φ h / t_T) Δ_T − Δ̂‖² + h σ² + h² d² (1 − φ)

the walk still to come, and what is not known of the drift. The rest follows: expected skill of any predictor, the
line's overshoot (its coefficient over the expected one) and the scale that would undo it. These are forecasts of a
model; `drift` is the best predictor in it by construction. Held-out skill is the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from relex_core.forecast.cut import Cut
from relex_core.forecast.names import HOLD
from relex_core.forecast.predictors import Predictor, applies, coefficients, drift_factor
from relex_core.forecast.window import Window


@dataclass(frozen=True)
class Expected:
    """At J target steps, by group."""

    overshoot: np.ndarray
    """"groups J": the line's coefficient over the expected one."""
    scale: np.ndarray
    """"groups J": the scale that puts the line where it is expected to help most, Σ line · expected / Σ line²."""
    skill: dict[str, np.ndarray]
    """By predictor, "groups J": against holding the last checkpoint; NaN at or before it."""


def expected_at(
    window: Window, members: np.ndarray, fit: Cut, table: Mapping[str, Predictor], targets: np.ndarray
) -> Expected:
    """Expectations of every group at steps "J"; fit: of the whole window."""
    factor = drift_factor(fit, targets)
    line, calibrated = fit.line(targets), fit.coefficients[:, -1:] * factor
    across = members @ (line * calibrated)
    mixing = fit.mixing()
    own = mixing.transpose(0, 2, 1) @ window.grams @ mixing
    unknown = _unknown(fit, targets)
    centre = coefficients("drift", table, fit, targets)
    errors = {}
    for name in table:
        if applies(name, fit):
            off = coefficients(name, table, fit, targets) - centre
            errors[name] = members @ np.maximum(((off @ own) * off).sum(axis=2), 0.0) + unknown
    ahead = targets > fit.last_step
    hold = np.where(ahead & (errors[HOLD] > 0), errors[HOLD], np.nan)
    return Expected(
        overshoot=_ratio(across, members @ calibrated**2),
        scale=_ratio(across, members @ line**2),
        skill={name: 1.0 - error / hold for name, error in errors.items()},
    )


def _unknown(fit: Cut, targets: np.ndarray) -> np.ndarray:
    """h σ² + h² d² (1 − φ), "groups J": of the module types, and for the model their sum."""
    ahead = np.maximum(targets - fit.last_step, 0.0)
    walk, square = fit.drift.walk[:-1, None], fit.drift.square[:-1, None]
    types = ahead * walk + ahead**2 * square * (1.0 - np.nan_to_num(fit.drift.share[:-1, None]))
    return np.asarray(np.vstack([types, types.sum(axis=0)]))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))
