"""From Gram matrices to a Forecast: every analysis once, then rounded into plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from relex_core.forecast import results
from relex_core.forecast.advice import advise
from relex_core.forecast.auto import Auto, choose
from relex_core.forecast.expected import expected_at
from relex_core.forecast.geometry import Geometry, geometry
from relex_core.forecast.groups import Analyses, line_by_horizon, line_by_windows, predictor_skills
from relex_core.forecast.held_out import HeldOut, held_out
from relex_core.forecast.incidents import Incidents, incidents
from relex_core.forecast.measures import SkillTable
from relex_core.forecast.modules import layer_number, membership, module_type
from relex_core.forecast.nulls import null_models
from relex_core.forecast.numbers import number, numbers
from relex_core.forecast.predictors import AVERAGES, SCALES, predictors
from relex_core.forecast.reasons import Facts
from relex_core.forecast.results import Forecast
from relex_core.forecast.skill import LineSkill, fair_pairs, line_table, pooled_line, window_bins
from relex_core.forecast.window import Window, window_of

WINDOWS_AHEAD = (2, 4, 6)
"""Target steps in multiples of the last observed step, where none are given."""


def build(
    grams: Mapping[str, np.ndarray],
    steps: Sequence[int],
    *,
    targets: Sequence[int] = (),
    scales: Sequence[float] = SCALES,
    averages: Sequence[int] = AVERAGES,
    seed: int = 0,
    digests: tuple[str, str, str] = ("", "", ""),
) -> Forecast:
    """See `relex_core.forecast.forecast_from_grams`; digests: of window, fit and result."""
    window = window_of(grams, steps)
    types, members = membership(window.names)
    table = predictors(scales, averages)
    held = held_out(window, members, table, averages)
    whole = held.fits[-1]
    aims = tuple(targets) or tuple(int(factor * window.steps[-1]) for factor in WINDOWS_AHEAD)
    expected = expected_at(window, members, whole, table, np.array(aims, dtype=np.float64))
    shapes, auto = geometry(window, held.fits, members), choose(held)
    analyses = Analyses(
        window=window,
        members=members,
        shapes=shapes,
        nulls=null_models(window, members, whole.momentum, seed),
        by_horizon=line_by_horizon(held),
        by_windows=line_by_windows(held),
        skills=predictor_skills(held, expected),
        best=dict(enumerate((*auto.modules, auto.model))),
        expected=expected,
    )
    model = analyses.group(len(types) - 1)
    modules = {name: analyses.group(row) for row, name in enumerate(types[:-1])}
    happened = _incidents(incidents(window.grams.sum(axis=0), window.steps, seed))
    observed = tuple(int(step) for step in window.steps)
    cut_steps = tuple(int(cut.last_step) for cut in held.fits)
    farthest = float(held.windows[fair_pairs(held)].max(initial=0.0))
    facts = Facts(observed, cut_steps, aims, farthest, whole.momentum.resolved, model, modules, happened)
    return Forecast(
        window_digest=digests[0],
        fit_key=digests[1],
        key=digests[2],
        steps=observed,
        cut_steps=cut_steps,
        windows=tuple((low, high) for low, high, _ in window_bins(held)),
        target_steps=aims,
        correlation_length=whole.drift.length,
        momentum=whole.momentum.best,
        momentum_resolved=whole.momentum.resolved,
        advice=advise(facts),
        incidents=happened,
        auto=_auto(auto, types[:-1]),
        model=model,
        skill=_table(held, len(types) - 1),
        modules=modules,
        tensors=_tensors(window, held, shapes, len(types)),
    )


def _table(held: HeldOut, row: int) -> SkillTable:
    skill = line_table(held, row)
    return SkillTable(
        cuts=tuple(int(held.steps[count - 1]) for count in held.cuts),
        targets=tuple(int(step) for step in held.steps),
        skill=tuple(map(numbers, skill.skill)),
        best_scale_skill=tuple(map(numbers, skill.best_scale_skill)),
        best_scale=tuple(map(numbers, skill.best_scale)),
    )


def _incidents(found: Incidents) -> results.Incidents:
    kink = None
    if found.kink:
        kink = results.Kink(step=found.kink.step, ratio=float(found.kink.ratio), p_value=found.kink.p_value)
    return results.Incidents(duplicates=found.duplicates, outliers=found.outliers, jumps=found.jumps, kink=kink)


def _auto(auto: Auto, types: Sequence[str]) -> results.Auto:
    return results.Auto(
        predictor=auto.model,
        modules=dict(zip(types, auto.modules, strict=True)),
        skill=number(auto.skill),
        skill_by_module=number(auto.skill_by_module),
        by_module=auto.by_module,
    )


def _tensors(window: Window, held: HeldOut, shapes: Geometry, groups: int) -> dict[str, results.Tensor]:
    """The tensors' rows come after the groups'."""
    line = pooled_line(held, fair_pairs(held), slice(groups, None))
    half = next(row for row, cut in enumerate(held.fits) if cut.last_step >= window.steps[-1] / 2)
    return {name: _tensor(name, groups, row, shapes, line, half) for row, name in enumerate(window.names)}


def _tensor(name: str, groups: int, at: int, shapes: Geometry, line: LineSkill, half: int) -> results.Tensor:
    row = groups + at
    return results.Tensor(
        module=module_type(name),
        layer=layer_number(name),
        moved=bool(np.isfinite(shapes.explained_variance[row, 0])),
        explained_variance=numbers(shapes.explained_variance[row, :4]),
        r_squared=number(shapes.r_squared[row]),
        residual_autocorrelation=number(shapes.residual_autocorrelation[row]),
        off_direction=number(shapes.off_direction[row]),
        direction_cosine_half=number(shapes.direction_cosine[row, half]),
        skill=number(line.skill[at]),
        best_scale_skill=number(line.best_scale_skill[at]),
        best_scale=number(line.best_scale[at]),
    )
