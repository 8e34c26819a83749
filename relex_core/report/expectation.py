"""What the forecast expects of extrapolation: beside a random walk, by horizon, by predictor; drift and advice."""

from __future__ import annotations

from collections.abc import Iterator

from relex_core.forecast import Forecast
from relex_core.forecast.measures import Group, Null
from relex_core.report.artifacts import Artifacts
from relex_core.report.text import NONE, number, percent
from relex_core.report.view import Fact, Plot, Row, Section, Table

WHOLE = "whole model"
LINE, BEST_SCALE = "the line, scale 1", "the line, best scale in hindsight"
WORTHWHILE = {"yes": "Worth trying", "no": "Not worth it", "unclear": "Unclear"}
WINDOW = {
    "larger": "a larger window",
    "enough": "long enough",
    "smaller_is_enough": "a smaller one would do",
    "unclear": "unclear",
}


def expectation_section(run: Artifacts) -> Section:
    """The forecast, in words first."""
    title = "What the forecast expected"
    if run.forecast is None:
        return Section("forecast", title, ("No forecast yet: relex forecast makes one from the fit alone.",))
    forecast = run.forecast
    advice, null = forecast.advice, forecast.model.null
    limit = "none" if advice.horizon_limit is None else f"step {advice.horizon_limit}"
    facts = (
        Fact("Extrapolating is", WORTHWHILE[advice.worthwhile].lower(), "for the weights; answers are another matter"),
        Fact("Best predictor", advice.predictor, "held out inside the window"),
        Fact(
            "Skill measured up to", limit, "gone beyond it" if advice.horizon_limit_reached else "the window ends there"
        ),
        Fact("Drift share φ", number(null.drift_share, 2), f"95 % interval {_interval(null)}; the rest is random walk"),
        Fact("Window", WINDOW[advice.window], f"consider T_cut = {advice.window_step}" if advice.window_step else ""),
    )
    bullets = tuple(reason[:1].upper() + reason[1:] + "." for reason in advice.reasons)
    if null.drift_share is None:
        return Section("forecast", title, (advice.caveat,), facts, bullets)
    plots = tuple(plot for plot in _plots(forecast) if plot.rows)
    return Section("forecast", title, (advice.caveat,), facts, bullets, (_null_table(forecast),), plots)


def _more(than_a_walk: bool, forecast: Forecast) -> str:
    if not forecast.momentum_resolved:
        return "unclear"
    return "yes" if than_a_walk else "no"


def _interval(null: Null) -> str:
    low, high = null.drift_share_interval
    return NONE if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _plots(forecast: Forecast) -> Iterator[Plot]:
    yield _skill_by_horizon(forecast)
    yield _predictors(forecast)
    yield _drift_share(forecast)
    yield _direction(forecast)


def _null_table(forecast: Forecast) -> Table:
    """Explained variance and R² beside a pure walk's: without that they say nothing."""
    null = forecast.model.null
    rows = (
        (
            "Explained variance",
            number(null.explained_variance),
            number(null.walk_explained_variance),
            number(null.walk_explained_variance_95),
            number(null.p_value),
            _more(null.rank_one, forecast),
        ),
        (
            "R² of the line",
            number(null.r_squared),
            number(null.walk_r_squared),
            number(null.walk_r_squared_95),
            number(null.line_p_value),
            _more(null.straight, forecast),
        ),
    )
    headings = ("all tensors as one", "this run", "a pure walk", "95 % of walks stay below", "p", "more than a walk?")
    exponent = number(null.displacement_exponent, 2)
    note = (
        "The walk has this run’s steps, sizes of increments and momentum, but no drift; p is at least 0.005. "
        f"Squared displacement grows with the horizon to the power of {exponent} (1: walk, 2: drift)."
    )
    return Table(headings, rows, "Is it more than a random walk?", note)


def _skill_by_horizon(forecast: Forecast) -> Plot:
    bins = forecast.model.by_horizon
    rows: list[Row] = [
        {"horizon": each.horizon, "skill": value, "of": name, "pairs": each.pairs}
        for each in bins
        for name, value in ((LINE, each.skill), (BEST_SCALE, each.best_scale_skill))
        if value is not None
    ]
    table = tuple(
        (f"{b.horizon:.4g}", number(b.skill), number(b.best_scale_skill), number(b.best_scale, 2), str(b.pairs))
        for b in bins
    )
    return Plot(
        id="skill",
        kind="skill",
        title="Skill of the line, by horizon",
        caption="Held out inside the window: above 0 the line predicts later weights better than keeping the last "
        "checkpoint. What lies below the chart is in the table.",
        rows=tuple(rows),
        table=Table(("horizon (steps)", "skill", "skill at best scale", "best scale", "pairs"), table),
    )


def _predictors(forecast: Forecast) -> Plot:
    pooled = {name: each for name, each in forecast.model.predictors.items() if each.skill is not None}
    order = sorted(pooled, key=lambda name: -(pooled[name].skill or 0.0))
    rows: tuple[Row, ...] = tuple(
        {
            "predictor": name,
            "skill": pooled[name].skill,
            "role": "best extrapolation" if name == forecast.advice.predictor else "other",
        }
        for name in order
    )
    ranges = tuple(f"{low:g} to {high:g} windows ahead" for low, high in forecast.windows)
    targets = tuple(f"expected at step {step}" for step in forecast.target_steps)
    table = tuple(
        (
            name,
            number(each.skill),
            percent(each.cuts_helped, 0),
            *(number(value) for value in each.by_windows),
            *(number(value) for value in each.expected),
        )
        for name in order
        for each in [pooled[name]]
    )
    measured = len(pooled[order[0]].by_windows) if order else 0
    headings = ("predictor", "skill", "cuts helped", *ranges[:measured])
    return Plot(
        id="predictors",
        kind="predictors",
        title="Skill of every predictor, all horizons together",
        caption="All are mixes of the observed checkpoints; “hold” keeps the last one and has skill 0 by definition.",
        rows=rows,
        table=Table((*headings, *targets), table),
        constants={"order": order},
    )


def _groups(forecast: Forecast) -> dict[str, Group]:
    return {WHOLE: forecast.model, **{name: group for name, group in forecast.modules.items() if group.moved}}


def _drift_share(forecast: Forecast) -> Plot:
    groups = {name: g for name, g in _groups(forecast).items() if g.null.drift_share is not None}
    rows: tuple[Row, ...] = tuple(
        {
            "group": name,
            "share": group.null.drift_share,
            "low": group.null.drift_share_interval[0],
            "high": group.null.drift_share_interval[1],
            "role": "whole model" if name == WHOLE else "module type",
        }
        for name, group in groups.items()
    )
    table = tuple(
        (
            name,
            number(group.null.drift_share, 2),
            _interval(group.null),
            number(group.null.displacement_exponent, 2),
            percent(group.share),
            _more(group.null.rank_one, forecast),
            _more(group.null.straight, forecast),
        )
        for name, group in groups.items()
    )
    headings = ("tensors", "φ", "95 % interval", "displacement exponent", "share of the movement")
    return Plot(
        id="drift",
        kind="drift",
        title="Drift share φ: how much of the movement is going somewhere",
        caption="1: pure drift, which can be extrapolated. 0: pure random walk, which cannot. Bars are 95 % intervals.",
        rows=rows,
        table=Table((*headings, "more rank 1 than a walk", "straighter than a walk"), table),
        constants={"order": list(groups)},
    )


def _direction(forecast: Forecast) -> Plot:
    cosines = zip(forecast.cut_steps, forecast.model.shape.direction_cosine, strict=False)
    found = [(step, cosine) for step, cosine in cosines if cosine is not None]
    return Plot(
        id="direction",
        kind="direction",
        title="Has the direction settled?",
        caption="Cosine between the direction fitted up to each step and the whole window’s. It ends at 1 by "
        "definition; a settled direction is near 1 long before the end.",
        rows=tuple({"step": step, "cosine": cosine} for step, cosine in found),
        table=Table(("fitted up to step", "cosine"), tuple((str(step), number(cosine)) for step, cosine in found)),
    )
