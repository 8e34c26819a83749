"""Candidates as recipes: which ones a spec asks for, what they are called, and which mix each is. Needs no extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from relex_core import mixes
from relex_core.errors import SpecError
from relex_core.fit.artifact import FitArtifact
from relex_core.forecast.names import number_text
from relex_core.guidance import Guidance
from relex_core.manifest import WindowManifest
from relex_core.mixes import Mix
from relex_core.spec import CandidatesSpec, RunSpec, SpatialRank
from relex_core.spec.sections import MAX_FACTOR

GUIDED = ("calibrated", "drift", "auto")
"""Methods that take something from the forecast."""
NEED_A_LINE = ("pinned", "calibrated", "auto")
"""Baselines that need fit.basis: rank."""


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
    spatial_rank: SpatialRank | None = None
    """Singular vectors kept of each matrix of the direction; None: all."""

    @property
    def name(self) -> str:
        parts = [self.method]
        if self.count is not None:
            parts.append(str(self.count))
        if self.alpha is not None:
            parts.append(f"alpha{number_text(self.alpha)}")
        elif self.target_step is not None:
            parts.append(f"step{self.target_step:05d}")
        if self.scale is not None:
            parts.append(f"scale{number_text(self.scale, 2)}")
        if self.spatial_rank is not None:
            parts.append(f"srank{self.spatial_rank}")
        return "-".join(parts)

    def mix(self, fit: FitArtifact, name: str, guidance: Guidance | None = None) -> Mix:
        """What this candidate adds to the base in one tensor; nothing, if the tensor never moved.

        Args:
            name: of the tensor.
            guidance: for the methods of GUIDED.
        """
        return METHODS[self.method](self, fit, name, guidance or Guidance()) if fit.tensors[name].moved else Mix()

    @property
    def target(self) -> int:
        assert self.target_step is not None
        return self.target_step

    @property
    def factor(self) -> float:
        """Scale or alpha."""
        value = self.alpha if self.scale is None else self.scale
        assert value is not None
        return value


METHODS: dict[str, Callable[[Recipe, FitArtifact, str, Guidance], Mix]] = {
    "relex": lambda r, fit, name, _: mixes.line(fit, fit.tensors[name], r.target, r.factor),
    "reconstruction": lambda r, fit, name, _: mixes.reconstruction(fit, fit.tensors[name], r.target),
    "pinned": lambda r, fit, name, _: mixes.pinned(fit, fit.tensors[name], r.target, r.factor),
    "calibrated": lambda r, fit, name, g: mixes.calibrated(fit, fit.tensors[name], r.target, g.drift_share(name)),
    "drift": lambda r, fit, name, g: mixes.drift(fit, r.target, g.drift_share(name)),
    "auto": lambda r, fit, name, g: mixes.predicted(
        g.predictor(name), fit, fit.tensors[name], r.target, g.drift_share(name)
    ),
    "weight_extrapolation": lambda r, fit, _n, _: mixes.multiple(fit.steps[-1], r.target / fit.steps[-1]),
    "expo": lambda r, fit, _n, _: mixes.multiple(fit.steps[-1], 1.0 + r.factor),
    "first_update": lambda r, fit, _n, _: mixes.multiple(fit.steps[0], r.factor),
    "trailing_average": lambda r, fit, _n, _: mixes.average(fit, r.count or 1),
}


def recipes_of(spec: RunSpec, manifest: WindowManifest) -> list[Recipe]:
    """The candidates of a run; known as soon as it is collected. Errors as for `candidate_recipes`."""
    averages, basis = spec.fit.trailing_averages, spec.fit.basis
    return candidate_recipes(spec.candidates, manifest.steps, manifest.t_cut, averages, basis)


def refuse_without_candidates(spec: RunSpec, manifest: WindowManifest) -> None:
    """Refuse a spec that wants a decision between candidates and asks for none.

    Raises:
        SpecError: it does.
    """
    if spec.evaluation is not None and not recipes_of(spec, manifest):
        raise SpecError(
            "the spec asks for no candidate, so there is nothing to decide",
            where="candidates",
            expected="at least one scale, baseline beside last_observed, or reconstruction step",
            next_step="give candidates.scales, for example [1.0]; or leave out evaluation",
        )


def candidate_recipes(
    spec: CandidatesSpec, steps: Sequence[int], t_cut: int, averages: Sequence[int], basis: str
) -> list[Recipe]:
    """The spec's candidates, in a fixed order; `last_observed` is none of them, because it exists already.

    Args:
        steps: observed steps, ascending.
        averages: lengths of the trailing averages that the fit stores.
        basis: of the fit.

    Raises:
        SpecError: a reconstruction of a step that was not observed, or what needs a rank-1 line without one.
    """
    for step in spec.reconstruction_steps:
        if step not in steps:
            raise SpecError(
                f"candidates.reconstruction_steps: step {step} was not observed",
                expected=f"some of {', '.join(map(str, steps))}",
                next_step="name steps of the window, or use candidates.target_steps, which may be any",
            )
    for baseline in spec.baselines:
        if baseline in NEED_A_LINE and basis != "rank":
            raise SpecError(f"candidates.baselines: {baseline} needs fit.basis: rank")
    if spec.spatial_ranks != ("full",) and basis != "rank":
        raise SpecError("candidates.spatial_ranks needs fit.basis: rank")
    targets = spec.targets(t_cut)
    recipes = [*relex_recipes(targets, spec.scales, spec.spatial_ranks)]
    recipes += [Recipe("reconstruction", target_step=step) for step in spec.reconstruction_steps]
    for baseline in spec.baselines:
        recipes += _baseline(baseline, spec, targets, steps, averages)
    return list(dict.fromkeys(recipes))


def relex_recipes(
    targets: Sequence[int], scales: Sequence[float], spatial_ranks: Sequence[SpatialRank] = ("full",)
) -> list[Recipe]:
    """RELEX candidates for every target step, scale and spatial rank, each once.

    Raises:
        SpecError: a scale is out of bounds, or no number.
    """
    for scale in scales:
        if not -MAX_FACTOR <= scale <= MAX_FACTOR:  # nor nan
            raise SpecError(
                f"a scale of {scale:g}",
                expected=f"a number from {-MAX_FACTOR} to {MAX_FACTOR}; 1 is the paper",
                next_step="change --scale, or candidates.scales in the spec",
            )
    ranks = list(map(_kept, spatial_ranks))
    recipes = [Recipe("relex", t, s, spatial_rank=rank) for t in targets for s in scales for rank in ranks]
    return list(dict.fromkeys(recipes))


def _kept(rank: SpatialRank) -> SpatialRank | None:
    return None if rank == "full" else rank


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
    ranks = list(map(_kept, spec.spatial_ranks))
    if name == "trailing_average":
        yield from (Recipe(name, count=count) for count in averages)
    elif name in ("weight_extrapolation", "drift", "auto"):
        yield from (Recipe(name, target_step=target) for target in ahead)
    elif name == "first_update":
        yield from (Recipe(name, alpha=target / steps[0]) for target in targets)
    elif name == "expo":
        yield from (Recipe(name, alpha=alpha) for alpha in spec.expo_alphas)
    elif name == "pinned":
        yield from (Recipe(name, t, s, spatial_rank=rank) for t in ahead for s in spec.scales for rank in ranks)
    elif name == "calibrated":
        yield from (Recipe(name, t, spatial_rank=rank) for t in ahead for rank in ranks)


def worth_writing(recipes: Sequence[Recipe], guidance: Guidance | None) -> list[Recipe]:
    """Without those of `auto` that say nothing new: copies of the last observed checkpoint, or of one another.

    Where nothing else is left one copy stays: it ties, and the run ends with a decision to keep what was observed.
    """
    kept: list[Recipe] = []
    for recipe in recipes:
        again = any(other.method == "auto" for other in kept)
        stale = guidance is not None and (guidance.holds or (guidance.stays and again))
        if recipe.method != "auto" or not stale:
            kept.append(recipe)
    return kept or list(recipes[:1])
