"""Candidates as recipes: every one is the base plus a linear mix of stored directions and observed deltas.

    W = W_0 + Σ_j a_j · D_j + Σ_t b_t · Δ_t          D_j: stored column j; Δ_t = W_t − W_0, t observed

A recipe says, for one tensor's fit, what the a_j and b_t are. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from relex_core.errors import SpecError
from relex_core.fit.artifact import FitArtifact, TensorFit
from relex_core.fit.columns import average_column, rank_columns, trend_columns
from relex_core.manifest import WindowManifest
from relex_core.spec import CandidatesSpec, RunSpec

DEFAULT_HORIZONS = (2, 4, 6)
"""Target steps in multiples of T_cut, where the spec names none."""


@dataclass(frozen=True)
class Mix:
    """Coefficients for one tensor; what is not named has none."""

    columns: Mapping[str, float] = field(default_factory=dict)
    """a_j by stem of the stored column."""
    observed: Mapping[int, float] = field(default_factory=dict)
    """b_t by observed step."""


@dataclass(frozen=True)
class Recipe:
    """One candidate."""

    method: str
    target_step: int | None = None
    """Optimizer step that the candidate stands for."""
    scale: float | None = None
    """λ, on the whole displacement."""
    alpha: float | None = None
    """Factor of the observed displacement (ExPO, first update)."""
    count: int | None = None
    """Checkpoints averaged."""

    @property
    def name(self) -> str:
        parts = [self.method]
        if self.count is not None:
            parts.append(str(self.count))
        if self.alpha is not None:
            parts.append(f"alpha{_number(self.alpha)}")
        elif self.target_step is not None:
            parts.append(f"step{self.target_step:05d}")
        if self.scale is not None:
            parts.append(f"scale{_number(self.scale, 2)}")
        return "-".join(parts)

    def mix(self, fit: FitArtifact, tensor: TensorFit) -> Mix:
        """What this candidate adds to the base in one tensor; nothing, if the tensor never moved."""
        return METHODS[self.method](self, fit, tensor) if tensor.moved else Mix()


def _number(value: float, digits: int = 0) -> str:
    """The shortest text that reads back as `value`, with at least `digits` decimals."""
    fixed = f"{value:.{digits}f}"
    return fixed if float(fixed) == value else repr(value)


def _trend(fit: FitArtifact, step: int, scale: float) -> Mix:
    """Every weight's own line at one step."""
    from relex_core.fit.basis import trend_coefficients  # numpy; not needed to name candidates

    values = trend_coefficients(fit.steps, fit.degree, step)
    return Mix({name: scale * value for name, value in zip(trend_columns(fit.degree), values, strict=True)})


def _relex(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """Ŵ(τ, s) = W_0 + s Σ_i (slope_i τ + intercept_i) v_i, the paper's method; or a line for every weight."""
    assert recipe.target_step is not None and recipe.scale is not None
    if fit.basis == "per_parameter":
        return _trend(fit, recipe.target_step, recipe.scale)
    names = rank_columns(len(tensor.components))
    return Mix(
        {name: recipe.scale * c.at(recipe.target_step) for name, c in zip(names, tensor.components, strict=True)}
    )


def _reconstruction(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """An observed step rebuilt from its own coefficients: rank-r denoising, no horizon."""
    assert recipe.target_step is not None
    if fit.basis == "per_parameter":
        return _trend(fit, recipe.target_step, 1.0)
    row = fit.steps.index(recipe.target_step)
    names = rank_columns(len(tensor.components))
    return Mix({name: c.coefficients[row] for name, c in zip(names, tensor.components, strict=True)})


def _pinned(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """W_T + s Σ_i (c_i(τ) − c_i(t_T)) v_i: the line, moved to go through the last observed checkpoint."""
    assert recipe.target_step is not None and recipe.scale is not None
    last = fit.steps[-1]
    names = rank_columns(len(tensor.components))
    gains = [c.at(recipe.target_step) - c.at(last) for c in tensor.components]
    return Mix({n: recipe.scale * gain for n, gain in zip(names, gains, strict=True)}, {last: 1.0})


def _weight_extrapolation(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """W_0 + (τ / t_T) (W_T − W_0)."""
    assert recipe.target_step is not None
    return Mix(observed={fit.steps[-1]: recipe.target_step / fit.steps[-1]})


def _expo(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """W_T + α (W_T − W_0)."""
    assert recipe.alpha is not None
    return Mix(observed={fit.steps[-1]: 1.0 + recipe.alpha})


def _first_update(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """W_0 + α (W_1 − W_0)."""
    assert recipe.alpha is not None
    return Mix(observed={fit.steps[0]: recipe.alpha})


def _trailing_average(recipe: Recipe, fit: FitArtifact, tensor: TensorFit) -> Mix:
    """The mean of the last k checkpoints."""
    assert recipe.count is not None
    return Mix({average_column(recipe.count): 1.0})


METHODS: dict[str, Callable[[Recipe, FitArtifact, TensorFit], Mix]] = {
    "relex": _relex,
    "reconstruction": _reconstruction,
    "pinned": _pinned,
    "weight_extrapolation": _weight_extrapolation,
    "expo": _expo,
    "first_update": _first_update,
    "trailing_average": _trailing_average,
}


def recipes_of(spec: RunSpec, manifest: WindowManifest) -> list[Recipe]:
    """The candidates of a run; known as soon as it is collected. Errors as for `candidate_recipes`."""
    averages, basis = spec.fit.trailing_averages, spec.fit.basis
    return candidate_recipes(spec.candidates, manifest.steps, manifest.t_cut, averages, basis)


def candidate_recipes(
    spec: CandidatesSpec, steps: Sequence[int], t_cut: int, averages: Sequence[int], basis: str
) -> list[Recipe]:
    """The spec's candidates, in a fixed order; `last_observed` is none of them, because it exists already.

    Args:
        steps: observed steps, ascending.
        averages: lengths of the trailing averages that the fit stores.
        basis: of the fit.

    Raises:
        SpecError: a reconstruction of a step that was not observed, or a pinned line without a rank-1 line.
    """
    for step in spec.reconstruction_steps:
        if step not in steps:
            raise SpecError(
                f"candidates.reconstruction_steps: step {step} was not observed",
                expected=f"some of {', '.join(map(str, steps))}",
            )
    if "pinned" in spec.baselines and basis != "rank":
        raise SpecError("candidates.baselines: pinned needs fit.basis: rank")
    targets = spec.target_steps or tuple(factor * t_cut for factor in DEFAULT_HORIZONS)
    recipes = [*relex_recipes(targets, spec.scales)]
    recipes += [Recipe("reconstruction", target_step=step) for step in spec.reconstruction_steps]
    for baseline in spec.baselines:
        recipes += _baseline(baseline, spec, targets, steps, averages)
    return list(dict.fromkeys(recipes))


def relex_recipes(targets: Sequence[int], scales: Sequence[float]) -> list[Recipe]:
    """RELEX candidates for every target step and scale, each once.

    Raises:
        SpecError: a scale is not a finite number.
    """
    if not all(map(math.isfinite, scales)):
        raise SpecError(f"scales must be finite numbers, got {', '.join(map(str, scales))}")
    pairs = dict.fromkeys((target, scale) for target in targets for scale in scales)
    return [Recipe("relex", target_step=target, scale=scale) for target, scale in pairs]


def choose_recipes(recipes: Sequence[Recipe], names: Sequence[str]) -> list[Recipe]:
    """The recipes of these names, in that order.

    Raises:
        SpecError: there is none of that name.
    """
    known = {recipe.name: recipe for recipe in recipes}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SpecError(
            f"the spec has no candidate {unknown[0]!r}",
            expected=f"one of {', '.join(known)}",
            next_step="relex run SPEC --dry-run lists them",
        )
    return [known[name] for name in dict.fromkeys(names)]


def _baseline(
    name: str, spec: CandidatesSpec, targets: Sequence[int], steps: Sequence[int], averages: Sequence[int]
) -> Iterator[Recipe]:
    ahead = [target for target in targets if target > steps[-1]]  # at or before t_T these are observed checkpoints
    if name == "trailing_average":
        yield from (Recipe(name, count=count) for count in averages)
    elif name == "weight_extrapolation":
        yield from (Recipe(name, target_step=target) for target in ahead)
    elif name == "first_update":
        yield from (Recipe(name, alpha=target / steps[0]) for target in targets)
    elif name == "expo":
        yield from (Recipe(name, alpha=alpha) for alpha in spec.expo_alphas)
    elif name == "pinned":
        yield from (Recipe(name, target_step=target, scale=scale) for target in ahead for scale in spec.scales)
