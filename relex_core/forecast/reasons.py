"""The facts that advice rests on, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from relex_core.forecast.measures import Group, Null
from relex_core.forecast.names import RELEX, extrapolates
from relex_core.forecast.results import Incidents

FEWEST = 8
"""Checkpoints below which nothing is advised."""
STEADY = 0.95
"""Cosine from which a direction counts as found."""
ENOUGH = 0.75
"""Drift share from which a window counts as long enough to be shortened."""


@dataclass(frozen=True)
class Facts:
    """What advice is based on."""

    steps: Sequence[int]
    cut_steps: Sequence[int]
    targets: Sequence[int]
    farthest: float
    """Longest horizon measured, in units of its window."""
    momentum_resolved: bool
    """Whether the window is long enough to tell a drift from momentum."""
    model: Group
    modules: Mapping[str, Group]
    incidents: Incidents

    @property
    def best(self) -> str:
        """The extrapolating predictor with the best pooled skill."""
        skills = {name: p.skill for name, p in self.model.predictors.items() if extrapolates(name)}
        return max(skills, key=lambda name: -float("inf") if (s := skills[name]) is None else s)

    @property
    def short(self) -> bool:
        """Whether there is too little to advise on."""
        return len(self.steps) < FEWEST or self.model.null.drift_share is None


def reasons(facts: Facts, limit: int | None, reached: bool, window: str, step: int | None) -> Iterator[str]:
    """One sentence a reason; horizon and window are those of the advice."""
    if len(facts.steps) < FEWEST:
        yield f"{len(facts.steps)} checkpoints are too few to forecast from; {FEWEST} are the least"
    if facts.model.null.drift_share is None:
        yield "no weight moved"
        return
    yield from _skill_reasons(facts)
    yield from _null_reasons(facts)
    yield _horizon_reason(limit, reached)
    yield from _window_reasons(facts, window, step)
    yield from _incident_reasons(facts.incidents)


def _skill_reasons(facts: Facts) -> Iterator[str]:
    best, line = facts.model.predictors[facts.best], facts.model.predictors[RELEX]
    if best.skill is None or line.skill is None:
        yield "no checkpoint is left to hold out, so no skill was measured"
        return
    yield (
        f"of the extrapolations, {facts.best} forecast later weights best: skill {best.skill:+.2f} against holding the "
        f"last checkpoint, above 0 at {100 * (best.cuts_helped or 0):.0f} % of the cuts"
    )
    ahead = [(t, e) for t, e in zip(facts.targets, best.expected, strict=True) if e is not None]
    if ahead:
        yield f"if walk and drift go on as they are, {facts.best} has skill {ahead[-1][1]:+.2f} at step {ahead[-1][0]}"
    if facts.best != RELEX:
        yield f"the line at scale 1 has skill {line.skill:+.2f}"
    scales = [pooled.best_scale for pooled in facts.model.by_windows if pooled.best_scale is not None]
    if scales:
        yield f"the line's best scale was {scales[0]:.2f} at the shortest horizons and {scales[-1]:.2f} at the longest"
    still = {n: p.skill for n, p in facts.model.predictors.items() if not extrapolates(n) and p.skill is not None}
    name = max(still, key=lambda key: still[key])
    if still[name] > max(best.skill, 0.0):
        yield f"{name}, which does not extrapolate, did better: skill {still[name]:+.2f}"


def _null_reasons(facts: Facts) -> Iterator[str]:
    null = facts.model.null
    low, high = null.drift_share_interval
    if low is not None and high is not None:
        yield (
            f"drift share φ = {null.drift_share:.2f} [{low:.2f}, {high:.2f}]; mean squared displacement grows with the "
            f"horizon to the power of {null.displacement_exponent or float('nan'):.2f} (1: walk, 2: drift)"
        )
    if null.explained_variance is not None and null.r_squared is not None:
        yield (
            f"the first component explains {null.explained_variance:.3f} with R² {null.r_squared:.3f}; a pure walk of "
            f"this length {null.walk_explained_variance:.3f} with {null.walk_r_squared:.3f}: "
            + _beside_a_walk(null, facts.momentum_resolved)
        )
    if not facts.momentum_resolved:
        yield (
            "the window is too short to tell drift from momentum: the increments' correlation has not died down within "
            "it. φ may hold some momentum; a longer window, or checkpoints farther apart, would tell"
        )
    overshoots = [(t, o) for t, o in zip(facts.targets, facts.model.overshoot, strict=True) if o is not None]
    if overshoots:
        target, overshoot = overshoots[-1]
        yield f"at step {target} the line's coefficient is expected to be {overshoot:.2f} times the true one"


def _beside_a_walk(null: Null, resolved: bool) -> str:
    ps = (null.p_value, null.line_p_value)
    if not resolved:
        return "p = {:.2g} and {:.2g}, but a walk with more momentum than this window shows may reach both".format(*ps)
    return (
        f"{'more' if null.rank_one else 'no more'} rank 1 than a walk (p = {null.p_value:.2g}) and "
        f"{'straighter' if null.straight else 'no straighter'} (p = {null.line_p_value:.2g})"
    )


def _horizon_reason(limit: int | None, reached: bool) -> str:
    if limit is None:
        return "no horizon was measured at which extrapolating helped"
    if reached:
        return f"skill was gone beyond the equivalent of step {limit}"
    return f"skill was measured up to the equivalent of step {limit}; the window is too short to see farther"


def _window_reasons(facts: Facts, window: str, step: int | None) -> Iterator[str]:
    uncertain = not facts.model.null.drift_share_interval[0]
    if window == "larger" and uncertain:
        yield "the extrapolation has skill, yet the interval of φ reaches 0: a longer window would tell drift from luck"
    elif window == "larger":
        at = f" would be reached at step {step}" if step else " is not in sight"
        yield f"drift makes up less than half of the movement; half{at}, if drift and walk stay as they are"
    elif window == "smaller_is_enough":
        yield f"T_cut = {step} already gave the direction (cosine ≥ {STEADY}) with a drift share of {ENOUGH} or more"
    elif window == "unclear" and not facts.short:
        yield "the interval of φ reaches 0: no drift is shown, and a longer window helps only if there is one"
    unlike = [name for name, group in facts.modules.items() if group.moved and not group.null.rank_one]
    if unlike and facts.momentum_resolved:
        yield f"not more rank 1 than a walk: {', '.join(unlike)}"


def _incident_reasons(incidents: Incidents) -> Iterator[str]:
    if incidents.duplicates:
        first = incidents.duplicates[0][1]
        yield f"{len(incidents.duplicates)} checkpoints repeat an earlier one, the first at step {first}"
    if incidents.outliers:
        yield f"single checkpoints lie off the path at steps {', '.join(map(str, incidents.outliers))}"
    if incidents.jumps:
        yield f"the weights jump at steps {', '.join(map(str, incidents.jumps))}"
    if incidents.kink:
        kink = incidents.kink
        yield (
            f"from step {kink.step} on the weights move {kink.ratio:.2f} times as far a step "
            "(a learning rate schedule?): one line through both paces fits neither"
        )
