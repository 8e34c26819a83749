"""The formulas of the candidates: every one is the base plus a linear mix of stored directions and observed deltas.

    W = W_0 + Σ_j a_j · D_j + Σ_t b_t · Δ_t          D_j: stored column j; Δ_t = W_t − W_0, t observed

Each function says, for one tensor's fit, what the a_j and b_t are. Needs no extra: a bare install has it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relex_core.fit.artifact import FitArtifact, TensorFit
from relex_core.fit.columns import average_column, rank_columns, trend_columns
from relex_core.forecast.names import relex_scale


@dataclass(frozen=True)
class Mix:
    """Coefficients for one tensor; what is not named has none."""

    columns: Mapping[str, float] = field(default_factory=dict)
    """a_j by stem of the stored column."""
    observed: Mapping[int, float] = field(default_factory=dict)
    """b_t by observed step."""


def line(fit: FitArtifact, tensor: TensorFit, target: int, scale: float) -> Mix:
    """Ŵ(τ, s) = W_0 + s Σ_i (slope_i τ + intercept_i) v_i, the paper's method; or a line for every weight."""
    if fit.basis == "per_parameter":
        return _trend(fit, target, scale)
    return _along(tensor, [scale * c.at(target) for c in tensor.components])


def reconstruction(fit: FitArtifact, tensor: TensorFit, step: int) -> Mix:
    """An observed step rebuilt from its own coefficients: rank-r denoising, no horizon."""
    if fit.basis == "per_parameter":
        return _trend(fit, step, 1.0)
    row = fit.steps.index(step)
    return _along(tensor, [c.coefficients[row] for c in tensor.components])


def pinned(fit: FitArtifact, tensor: TensorFit, target: int, scale: float) -> Mix:
    """W_T + s Σ_i (c_i(τ) − c_i(t_T)) v_i: the line, moved to go through the last observed checkpoint."""
    last = fit.steps[-1]
    moves = [scale * (c.at(target) - c.at(last)) for c in tensor.components]
    return Mix(_along(tensor, moves).columns, {last: 1.0})


def calibrated(fit: FitArtifact, tensor: TensorFit, target: int, drift_share: float) -> Mix:
    """W_0 + Σ_i c_i(t_T) (1 + φ (τ − t_T) / t_T) v_i: the coefficient to expect under walk + drift."""
    factor = drift_factor(fit, target, drift_share)
    return _along(tensor, [factor * c.coefficients[-1] for c in tensor.components])


def drift(fit: FitArtifact, target: int, drift_share: float) -> Mix:
    """W_T + φ (τ − t_T) / t_T (W_T − W_0): the mean increment, shrunk (empirical Bayes)."""
    return Mix(observed={fit.steps[-1]: drift_factor(fit, target, drift_share)})


def drift_factor(fit: FitArtifact, target: int, drift_share: float) -> float:
    """1 + φ (τ − t_T) / t_T: how much farther than W_T the walk with drift is expected to be at τ.

    For τ ≥ t_T this is Σ_i u_i [min(i,τ) σ² + i τ d²] / Σ_i u_i [min(i,T) σ² + i T d²], whatever u.
    """
    last = fit.steps[-1]
    return 1.0 + drift_share * (target - last) / last


def multiple(step: int, factor: float) -> Mix:
    """W_0 + factor · (W_t − W_0)."""
    return Mix(observed={step: factor})


def average(fit: FitArtifact, count: int) -> Mix:
    """The mean of the last `count` checkpoints; from the checkpoints themselves where the fit stores no such mean."""
    column = average_column(count)
    if column in fit.columns:
        return Mix({column: 1.0})
    return Mix(observed=dict.fromkeys(fit.steps[-count:], 1.0 / count))


def predicted(name: str, fit: FitArtifact, tensor: TensorFit, target: int, drift_share: float) -> Mix:
    """The mix of a predictor of the forecast (forecast/predictors.py), by its name there."""
    last = fit.steps[-1]
    scale = relex_scale(name)
    if scale is not None:
        return line(fit, tensor, target, scale)
    if name.startswith("trailing_average_"):
        return average(fit, int(name.removeprefix("trailing_average_")))
    simple = {
        "hold": lambda: multiple(last, 1.0),
        "reconstruction": lambda: reconstruction(fit, tensor, last),
        "pinned": lambda: pinned(fit, tensor, target, 1.0),
        "calibrated": lambda: calibrated(fit, tensor, target, drift_share),
        "drift": lambda: drift(fit, target, drift_share),
        "weight_extrapolation": lambda: multiple(last, target / last),
    }
    return simple[name]()


def _along(tensor: TensorFit, coefficients: list[float]) -> Mix:
    return Mix(dict(zip(rank_columns(len(tensor.components)), coefficients, strict=True)))


def _trend(fit: FitArtifact, step: int, scale: float) -> Mix:
    """Every weight's own line at one step."""
    from relex_core.fit.basis import trend_coefficients  # numpy; not needed to name candidates

    values = trend_coefficients(fit.steps, fit.degree, step)
    return Mix({name: scale * value for name, value in zip(trend_columns(fit.degree), values, strict=True)})
