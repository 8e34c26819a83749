"""Forecast: what RUN/forecast.json holds. Imports neither numpy nor torch.

Shares, skills and p-values are plain numbers; null means undefined (a frozen tensor, a window too short to tell).
"""

from __future__ import annotations

from typing import Literal

from relex_core.forecast.measures import Group, Record, SkillTable


class Tensor(Record):
    """One tensor, in short."""

    module: str
    layer: int | None
    moved: bool
    explained_variance: tuple[float | None, ...]
    """By rank, at most 4."""
    r_squared: float | None
    residual_autocorrelation: float | None
    off_direction: float | None
    direction_cosine_half: float | None
    """Direction from the first half of the window against the whole window's."""
    skill: float | None
    """Of the line, pooled over all cuts and horizons."""
    best_scale_skill: float | None
    best_scale: float | None


class Kink(Record):
    step: int
    """First step at the new pace."""
    ratio: float
    """Movement a step after it, in units of that before."""
    p_value: float


class Incidents(Record):
    """Checkpoints that stand out, by step."""

    duplicates: tuple[tuple[int, int], ...]
    outliers: tuple[int, ...]
    jumps: tuple[int, ...]
    kink: Kink | None


class Auto(Record):
    """The predictor with the best held-out skill."""

    predictor: str
    """For the whole model."""
    modules: dict[str, str]
    """For every module type."""
    skill: float | None
    """Of one choice for the model, made in time at every cut."""
    skill_by_module: float | None
    by_module: bool
    """Whether choosing by module type did better."""


class Advice(Record):
    """What the forecast suggests, and why. It speaks about weights; accuracy is for `relex evaluate` to measure."""

    worthwhile: Literal["yes", "no", "unclear"]
    predictor: str
    """The one that the advice is about: the best extrapolating one."""
    horizon_limit: int | None
    """Farthest step after T at which held-out skill was above 0; null if it never was."""
    horizon_limit_reached: bool
    """Whether skill was measured to be gone beyond it; else the window ends before the answer."""
    scales: tuple[float, ...]
    """Of the paper's line, one for each target step: worth trying, or if it is tried all the same."""
    window: Literal["larger", "enough", "smaller_is_enough", "unclear"]
    """Whether T_cut should change."""
    window_step: int | None
    """A T_cut to consider, where it should."""
    not_rank_one: tuple[str, ...]
    """Module types whose explained variance a pure walk reaches too."""
    reasons: tuple[str, ...]
    caveat: str


class Forecast(Record):
    """RUN/forecast.json."""

    window_digest: str
    fit_key: str
    key: str
    """Digest of everything the result depends on."""
    steps: tuple[int, ...]
    cut_steps: tuple[int, ...]
    """Last steps of the cuts, and of the whole window."""
    windows: tuple[tuple[float, float], ...]
    """Ranges of horizons, in units of the fitted window (from, to]."""
    target_steps: tuple[int, ...]
    correlation_length: int
    """L, in median gaps between checkpoints, of what momentum leaves."""
    momentum: float
    """r from one checkpoint to the next, as taken out; 0 where none is shown or none fits."""
    momentum_resolved: bool
    """Whether the window is long enough to tell a drift from momentum; if not, φ's interval starts at 0."""
    advice: Advice
    incidents: Incidents
    auto: Auto
    model: Group
    skill: SkillTable
    modules: dict[str, Group]
    tensors: dict[str, Tensor]
