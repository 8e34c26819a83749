"""Advice with its reasons, from the measured skill first and the null model second. Pure: results in, Advice out.

Thresholds are stated here once. They are about weights; whether answers get better only evaluation tells.
"""

from __future__ import annotations

from typing import Literal

from relex_core.forecast.reasons import ENOUGH, STEADY, Facts, reasons
from relex_core.forecast.results import Advice

LEAST_SKILL = 0.02
"""Skill below this is called none: a walk's best predictor reaches it by chance."""
MOST_CUTS_HELPED = 2 / 3
"""Of the cuts must show skill."""

LEAST_EXPECTED = 0.05
"""Skill expected at a target, by the null model, that keeps a "no" from being one while cuts show some skill."""

CAVEAT = (
    "This is about weights, not about answers: on real runs better weight forecasts did not always raise accuracy, and "
    "averages with a worse weight error did. Evaluate before promoting anything."
)


def advise(facts: Facts) -> Advice:
    """Weigh the facts."""
    verdict = _worthwhile(facts)
    limit, reached = _horizon(facts)
    window, step = _window(facts)
    return Advice(
        worthwhile=verdict,
        predictor=facts.best,
        horizon_limit=limit,
        horizon_limit_reached=reached,
        scales=_scales(facts),
        window=window,
        window_step=step,
        not_rank_one=tuple(name for name, group in facts.modules.items() if group.moved and not group.null.rank_one),
        reasons=tuple(reasons(facts, limit, reached, window, step)),
        caveat=CAVEAT,
    )


def _worthwhile(facts: Facts) -> Literal["yes", "no", "unclear"]:
    best = facts.model.predictors[facts.best]
    low = facts.model.null.drift_share_interval[0]
    if facts.short or best.skill is None or best.cuts_helped is None:
        return "unclear"
    steady = best.cuts_helped >= MOST_CUTS_HELPED and low is not None and low > 0
    if best.skill < LEAST_SKILL or best.cuts_helped <= 0.5:
        hope = max((skill for skill in best.expected if skill is not None), default=0.0)
        return "unclear" if steady and hope >= LEAST_EXPECTED else "no"
    return "yes" if steady else "unclear"


def _horizon(facts: Facts) -> tuple[int | None, bool]:
    """The farthest step with skill, and whether skill is known to be gone beyond it."""
    ranges = [pooled.windows for pooled in facts.model.by_windows if pooled.windows]
    skills = facts.model.predictors[facts.best].by_windows
    useful = [row for row, skill in enumerate(skills) if skill is not None and skill >= LEAST_SKILL]
    if not useful:
        return None, bool(skills)
    end = min(ranges[useful[-1]][1], facts.farthest)
    return int(facts.steps[-1] * (1 + end)), useful[-1] < len(skills) - 1


def _scales(facts: Facts) -> tuple[float, ...]:
    """One for every target: measured at that relative horizon, else expected; to a twentieth."""
    scales = []
    for target, expected in zip(facts.targets, facts.model.expected_scale, strict=True):
        ahead = target / facts.steps[-1] - 1
        measured = [
            pooled.best_scale
            for pooled in facts.model.by_windows
            if pooled.windows and pooled.windows[0] < ahead <= pooled.windows[1]
        ]
        scale = measured[0] if measured else expected
        if scale is not None:
            scales.append(min(max(round(scale * 20) / 20, 0.05), 1.0))
    return tuple(sorted(set(scales), reverse=True))


def _window(facts: Facts) -> tuple[Literal["larger", "enough", "smaller_is_enough", "unclear"], int | None]:
    """φ grows with the window: t d² / (t d² + σ²). A half is what makes a line worth more than its noise."""
    null = facts.model.null
    if facts.short or null.drift_share is None:
        return "unclear", None
    if not null.drift_share_interval[0]:
        return ("larger" if (facts.model.predictors[facts.best].skill or 0.0) >= LEAST_SKILL else "unclear"), None
    if null.drift_share < 0.5:
        return "larger", None if null.half_drift_step is None else int(null.half_drift_step) + 1
    needed = ENOUGH / (1 - ENOUGH) * (null.half_drift_step or 0.0)
    for step, cosine in zip(facts.cut_steps[:-1], facts.model.shape.direction_cosine, strict=False):
        if step >= needed and (cosine or 0.0) >= STEADY and step <= facts.steps[-1] / 2:
            return "smaller_is_enough", step
    return "enough", None
