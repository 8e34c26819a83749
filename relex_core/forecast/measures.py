"""Entries of RUN/forecast.json that a module type and the whole model have. Imports neither numpy nor torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A part of the forecast."""

    model_config = ConfigDict(frozen=True)


class HorizonSkill(Record):
    """Held-out skill of the paper's line, pooled over cuts, at one horizon or a range of them."""

    horizon: float
    """Mean horizon, in optimizer steps after the cut."""
    windows: tuple[float, float] | None
    """Range of horizons in units of the fitted window (from, to], where they are pooled like that."""
    pairs: int
    """Pairs of cut and later checkpoint."""
    skill: float | None
    """1 − squared error / squared error of holding the last checkpoint; above 0, the line helps."""
    best_scale_skill: float | None
    """The same at the scale that was best in hindsight: no scale does better."""
    best_scale: float | None


class SkillTable(Record):
    """Skill of the paper's line for every cut and later checkpoint, over the whole model."""

    cuts: tuple[int, ...]
    """Last step that was fitted."""
    targets: tuple[int, ...]
    """Steps predicted; a row has null up to its cut."""
    skill: tuple[tuple[float | None, ...], ...]
    best_scale_skill: tuple[tuple[float | None, ...], ...]
    best_scale: tuple[tuple[float | None, ...], ...]


class PredictorSkill(Record):
    """Held-out skill of one predictor."""

    skill: float | None
    """Pooled over all cuts and horizons."""
    by_windows: tuple[float | None, ...]
    """In the ranges of `Forecast.windows`."""
    cuts_helped: float | None
    """Share of the cuts at which it was above 0."""
    expected: tuple[float | None, ...]
    """At the target steps, if the walk with drift holds."""


class Shape(Record):
    """Geometry of a trajectory, weighted by squared deltas."""

    explained_variance: tuple[float | None, ...]
    """Along the first 1, 2, ... components of each tensor."""
    r_squared: float | None
    residual_autocorrelation: float | None
    """From one checkpoint to the next; near 1 for a walk."""
    off_direction: float | None
    """Share of ‖Δ_T‖ that rank 1 leaves out."""
    step_cosine: float | None
    """Of neighbouring increments."""
    direction_cosine: tuple[float | None, ...]
    """Between the direction up to each of `Forecast.cut_steps` and the whole window's."""


class Null(Record):
    """A group beside a random walk with drift. Explained variance and R² are news only above a walk's."""

    displacement_exponent: float | None
    """1 for a walk, 2 for pure drift."""
    drift_share: float | None
    """φ."""
    drift_share_interval: tuple[float | None, float | None]
    """95 %, block bootstrap, the widest over the range of momentum; from 0 where momentum is not resolved."""
    drift_square: float
    """d², squared norm a step²."""
    walk_variance: float
    """σ², squared norm a step."""
    half_drift_step: float | None
    """Window length at which φ reaches one half, σ² / d²; null without drift."""
    explained_variance: float | None
    """Of the first component of the group's concatenated deltas."""
    walk_explained_variance: float | None
    """A pure walk's, with this window's steps and momentum."""
    walk_explained_variance_95: float | None
    r_squared: float | None
    walk_r_squared: float | None
    walk_r_squared_95: float | None
    p_value: float | None
    """That a pure walk explains as much; the smallest possible is 0.005."""
    line_p_value: float | None
    """That a pure walk has as high an R²."""
    dimensions: float | None
    """Effective number of dimensions of the walk."""
    rank_one: bool
    """p_value < 0.05: more rank 1 than a walk. False where momentum is not resolved."""
    straight: bool
    """line_p_value < 0.05: straighter than a walk. False where momentum is not resolved."""


class Group(Record):
    """A module type, or the whole model."""

    tensors: int
    moved: int
    share: float | None
    """Of the model's squared deltas."""
    shape: Shape
    null: Null
    by_horizon: tuple[HorizonSkill, ...]
    by_windows: tuple[HorizonSkill, ...]
    predictors: dict[str, PredictorSkill]
    best_predictor: str
    overshoot: tuple[float | None, ...]
    """At the target steps: the line's coefficient over the expected one."""
    expected_scale: tuple[float | None, ...]
    """At the target steps: the scale that undoes it."""
