"""Figures of the fit: Plot -> chart."""

from __future__ import annotations

import altair as alt

from relex_core.report.marks import ROOMY, ROWS, Chart, rows_height, rule
from relex_core.report.view import Plot


def coefficients(plot: Plot) -> Chart:
    names, far, cut = [row["tensor"] for row in plot.rows], plot.constants["far"], plot.constants["t_cut"]
    tensor = alt.param("tensor", value=plot.constants["start"], bind=alt.binding_select(options=names, name="Tensor "))
    shown = alt.binding_range(min=2, max=far, step=1, name="Steps shown, up to ")
    upto = alt.param("upto", value=min(far, 2 * cut), bind=shown)
    zoom = alt.selection_interval(
        name="zoom", bind="scales", encodings=["x", "y"], zoom="wheel![event.ctrlKey || event.metaKey]"
    )
    chosen = alt.Chart(ROWS).transform_filter("datum.tensor === tensor")
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(zero=True, nice=False, padding=8))
    y = alt.Y("coefficient:Q", title="coefficient", axis=alt.Axis(format=".2~e"))
    observed = chosen.transform_flatten(["step", "coefficient"]).transform_filter("datum.step <= upto")
    dots = observed.mark_point(style="observed", filled=True, size=42, clip=True).encode(
        x=x, y=y, tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("coefficient:Q", format=".4~g")]
    )
    words = (
        "'explained variance ' + format(datum.share, '.3f') + ',  R² '"
        " + (isValid(datum.r2) ? format(datum.r2, '.3f') : 'undefined')"
    )
    note = chosen.transform_calculate(words=words).mark_text(
        style="note", align="right", baseline="bottom", opacity=ROOMY
    )
    note = note.encode(text="words:N", x=alt.value("width"), y=alt.value("height"))
    line = _line(chosen, plot).mark_line(style="fitted", clip=True).encode(x=x, y=y)
    layers = alt.layer(rule("x", cut), line, dots.add_params(zoom).properties(name="observed"), note)
    return layers.add_params(tensor, upto).properties(height=340)


def _line(chosen: alt.Chart, plot: Plot) -> alt.Chart:
    """The fitted polynomial at 33 steps from 0 to `upto`."""
    degree = max(len(row["line"]) for row in plot.rows) - 1
    value = " + ".join(f"datum.line[{power}] * pow(datum.step, {power})" for power in range(degree + 1))
    at = chosen.transform_calculate(at="sequence(0, 33)").transform_flatten(["at"])
    return at.transform_calculate(step="datum.at * upto / 32").transform_calculate(coefficient=value)


def heat_map(plot: Plot) -> Chart:
    c = plot.constants
    known = [row["value"] for row in plot.rows if row["value"] is not None]
    short = "datum.label === 'outside' ? '·' : datum.label"
    axis = alt.Axis(labelAngle=0, labelExpr=short, labelOverlap="greedy", labelSeparation=4)
    base = alt.Chart(ROWS).encode(
        x=alt.X("layer:O", title="layer (·: outside of all layers)", sort=c["layers"], axis=axis),
        y=alt.Y("module:N", title=None, sort=c["modules"]),
        tooltip=[
            alt.Tooltip("module:N"),
            alt.Tooltip("layer:N"),
            alt.Tooltip("value:Q", format=".4f", title=c["name"]),
            alt.Tooltip("tensors:Q"),
            alt.Tooltip("moved:Q", title="of which moved"),
        ],
    )
    legend = alt.Legend(format=".3~f")
    title = c["name"]
    scale = alt.Scale(domain=[min(known), max(known)], zero=False, nice=False)
    if c["walk"] is not None:
        low, high = min(*known, c["walk"] - 0.02), max(*known, c["walk"] + 0.02)
        scale = alt.Scale(domain=[low, high], domainMid=c["walk"], nice=False)
        title = f"middle colour: walk, {c['walk']:.3f}"
    cells = (
        base.transform_filter("isValid(datum.value)")
        .mark_rect()
        .encode(color=alt.Color("value:Q", title=title, scale=scale, legend=legend))
    )
    frozen = base.transform_filter("!isValid(datum.value)")
    return alt.layer(cells, frozen.mark_rect(style="frozen"), frozen.mark_text(style="note", text="×")).properties(
        height=rows_height(plot, "module", 24)
    )


def spectrum(plot: Plot) -> Chart:
    names = ["this run", "pure random walk"]
    scale = alt.Scale(domain=names)
    base = alt.Chart(ROWS).encode(
        x=alt.X("component:O", title="component", axis=alt.Axis(labelAngle=0)),
        y=alt.Y(
            "share:Q",
            title="share of the squared deltas",
            scale=alt.Scale(type="log"),
            axis=alt.Axis(format=".2~%", tickCount=5),
        ),
        color=alt.Color("of:N", title=None, scale=scale),
        tooltip=[alt.Tooltip("of:N", title="of"), alt.Tooltip("component:O"), alt.Tooltip("share:Q", format=".3~%")],
    )
    dash = alt.StrokeDash("of:N", title=None, scale=alt.Scale(domain=names, range=[[1, 0], [6, 4]]))
    shape = alt.Shape("of:N", title=None, scale=alt.Scale(domain=names, range=["circle", "square"]))
    return alt.layer(
        base.mark_line().encode(strokeDash=dash), base.mark_point(filled=True, size=60).encode(shape=shape)
    ).properties(height=280)
