"""Figures of the forecast: Plot -> chart."""

from __future__ import annotations

import altair as alt

from relex_core.report.marks import ROWS, Chart, rows_height, rule
from relex_core.report.view import Plot


def skill(plot: Plot) -> Chart:
    names = ["the line, scale 1", "the line, best scale in hindsight"]
    low = max(min((row["skill"] for row in plot.rows), default=0.0), -1.0)
    high = max(max((row["skill"] for row in plot.rows), default=0.0), 0.1)
    base = alt.Chart(ROWS).encode(
        x=alt.X(
            "horizon:Q",
            title="horizon (steps after the last one fitted)",
            scale=alt.Scale(zero=True, nice=False, padding=6),
        ),
        y=alt.Y("skill:Q", title="skill", scale=alt.Scale(domain=[min(low, -0.1), high], nice=True)),
        color=alt.Color("of:N", title=None, scale=alt.Scale(domain=names)),
        tooltip=[
            alt.Tooltip("of:N", title="of"),
            alt.Tooltip("horizon:Q", format=".4~g"),
            alt.Tooltip("skill:Q", format="+.3f"),
            alt.Tooltip("pairs:Q"),
        ],
    )
    dash = alt.StrokeDash("of:N", title=None, scale=alt.Scale(domain=names, range=[[1, 0], [6, 4]]))
    shape = alt.Shape("of:N", title=None, scale=alt.Scale(domain=names, range=["circle", "square"]))
    lines = base.mark_line(clip=True).encode(strokeDash=dash)
    return alt.layer(
        rule("y", 0), lines, base.mark_point(filled=True, size=36, clip=True).encode(shape=shape)
    ).properties(height=280)


def predictors(plot: Plot) -> Chart:
    roles = ["best extrapolation", "other"]
    worst = min(row["skill"] for row in plot.rows)
    best = max(row["skill"] for row in plot.rows)
    low = max(worst, -1.5)
    base = alt.Chart(ROWS).encode(
        y=alt.Y("predictor:N", title=None, sort=plot.constants["order"]),
        color=alt.Color("role:N", title=None, scale=alt.Scale(domain=roles)),
        tooltip=[alt.Tooltip("predictor:N"), alt.Tooltip("skill:Q", format="+.3f")],
    )
    scale = alt.Scale(domain=[min(low, -0.05), max(best, 0.05)], nice=True, clamp=True)
    x = alt.X("skill:Q", title="skill", scale=scale)
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["triangle-up", "circle"]))
    stems = base.mark_rule(style="interval").encode(x=x, x2=alt.X2Datum(0))
    return alt.layer(rule("x", 0), stems, base.mark_point(filled=True, size=110).encode(x=x, shape=shape)).properties(
        height=rows_height(plot, "predictor", 24)
    )


def drift(plot: Plot) -> Chart:
    roles = ["whole model", "module type"]
    base = alt.Chart(ROWS).encode(
        y=alt.Y("group:N", title=None, sort=plot.constants["order"]),
        color=alt.Color("role:N", title=None, scale=alt.Scale(domain=roles)),
        tooltip=[
            alt.Tooltip("group:N", title="tensors"),
            *(alt.Tooltip(f"{f}:Q", format=".2f") for f in ("share", "low", "high")),
        ],
    )
    x = alt.X("share:Q", title="drift share φ", scale=alt.Scale(domain=[0, 1]))
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["diamond", "circle"]))
    return alt.layer(
        base.transform_filter("isValid(datum.low)").mark_rule(style="interval").encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=110).encode(x=x, shape=shape),
    ).properties(height=rows_height(plot, "group", 24))


def direction(plot: Plot) -> Chart:
    base = alt.Chart(ROWS).encode(
        x=alt.X("step:Q", title="fitted up to step", scale=alt.Scale(zero=True, nice=False, padding=6)),
        y=alt.Y("cosine:Q", title="cosine with the whole window’s direction", scale=alt.Scale(domainMax=1, zero=True)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("cosine:Q", format=".3f")],
    )
    return alt.layer(
        base.mark_line(style="fitted"), base.mark_point(style="observed", filled=True, size=30)
    ).properties(height=240)
