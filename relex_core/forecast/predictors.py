"""Predictors of a later checkpoint, each a linear mix of the observed deltas: W(τ) = W_0 + Σ_f a_f(τ) · feature f.

    hold                    Δ_k                                   keep the last observed checkpoint
    relex-scale<s>          s · (slope τ + intercept) v           the paper's line
    reconstruction          c_k v                                 rank-1 denoising, no horizon
    pinned                  Δ_k + slope (τ − t_k) v               the line, moved through the last checkpoint
    calibrated              c_k (1 + φ (τ − t_k) / t_k) v         the coefficient to expect under walk + drift
    drift                   (1 + φ (τ − t_k) / t_k) Δ_k           empirical Bayes: the mean increment, shrunk
    weight_extrapolation    (τ / t_k) Δ_k
    trailing_average_<n>    the mean of the last n deltas

Under walk + drift E⟨Δ_i, Δ_τ⟩ = min(t_i, τ) σ² + t_i τ d², so c(τ) / c(t_k) is expected to be Σ u_i [...](τ) over
Σ u_i [...](t_k). For τ ≥ t_k that is 1 + φ (τ − t_k) / t_k, whatever u: `calibrated` is `drift` seen along v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from relex_core.forecast.cut import DIRECTION, LAST, Cut, average_feature
from relex_core.forecast.names import HOLD, relex_name

Coefficients = Mapping[str, np.ndarray]
"""a_f by feature: "N J" or "1 J"."""
Predictor = Callable[[Cut, np.ndarray], Coefficients]
"""From a fit and steps τ "J"."""

SCALES = (1.0, 0.75, 0.5, 0.25)
AVERAGES = (5, 10, 20, 40)


def _hold(cut: Cut, times: np.ndarray) -> Coefficients:
    return {LAST: np.ones((1, len(times)))}


def _relex(scale: float) -> Predictor:
    return lambda cut, times: {DIRECTION: scale * cut.line(times)}


def _reconstruction(cut: Cut, times: np.ndarray) -> Coefficients:
    return {DIRECTION: np.broadcast_to(cut.coefficients[:, -1:], (len(cut.sigma), len(times)))}


def _pinned(cut: Cut, times: np.ndarray) -> Coefficients:
    return {LAST: np.ones((1, len(times))), DIRECTION: cut.slope[:, None] * (times - cut.last_step)}


def _calibrated(cut: Cut, times: np.ndarray) -> Coefficients:
    return {DIRECTION: cut.coefficients[:, -1:] * drift_factor(cut, times)}


def _drift(cut: Cut, times: np.ndarray) -> Coefficients:
    return {LAST: drift_factor(cut, times)}


def drift_factor(cut: Cut, times: np.ndarray) -> np.ndarray:
    """1 + φ (τ − t_k) / t_k, "N J": how much farther than W_k the walk with drift is expected to be at τ."""
    return 1.0 + cut.share[:, None] * (times - cut.last_step) / cut.last_step


def _weight_extrapolation(cut: Cut, times: np.ndarray) -> Coefficients:
    return {LAST: times[None, :] / cut.last_step}


def _trailing_average(length: int) -> Predictor:
    return lambda cut, times: {average_feature(length): np.ones((1, len(times)))}


def predictors(scales: Sequence[float] = SCALES, averages: Sequence[int] = AVERAGES) -> dict[str, Predictor]:
    """All predictors by name; a scale of 1 is always among them.

    Args:
        scales: of the line.
        averages: lengths of the trailing averages.
    """
    table: dict[str, Predictor] = {HOLD: _hold}
    table |= {relex_name(scale): _relex(scale) for scale in dict.fromkeys((1.0, *scales))}
    table |= {"reconstruction": _reconstruction, "pinned": _pinned, "calibrated": _calibrated, "drift": _drift}
    table["weight_extrapolation"] = _weight_extrapolation
    return table | {average_feature(length): _trailing_average(length) for length in averages}


def applies(name: str, cut: Cut) -> bool:
    """Whether the window is long enough for it."""
    return not name.startswith("trailing_average") or name in cut.features


def coefficients(name: str, table: Mapping[str, Predictor], cut: Cut, times: np.ndarray) -> np.ndarray:
    """a_f of one predictor over all features: "N J features"."""
    values = np.zeros((len(cut.sigma), len(times), len(cut.features)))
    for feature, value in table[name](cut, times).items():
        values[:, :, cut.features.index(feature)] = value
    return values
