"""One function per figure: a Plot of the view model -> an Altair chart, without width and colours (see `theme`).

Every parameter and every layer that has one is named here: Altair would number them, and the same figure drawn twice
would not have the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import altair as alt

from relex_core.report.view import Plot

Chart = alt.Chart | alt.LayerChart | alt.FacetChart

KINDS = ("base", "last observed", "extrapolated", "average or within the window", "RL itself, trained on")
SHAPES = ("square", "circle", "triangle-up", "diamond", "cross")


def draw(plot: Plot, *, width: int | str, config: dict[str, Any], title: bool = False) -> dict[str, Any]:
    """The Vega-Lite specification of a figure.

    Args:
        width: in pixels, or "container".
        config: colours and type.
        title: whether the figure carries its title, as one that stands alone must.
    """
    spec: dict[str, Any] = CHARTS[plot.kind](plot).to_dict()
    spec.pop("config", None)
    spec.setdefault("datasets", {})["rows"] = [dict(row) for row in plot.rows]
    spec |= {"width": width, "description": f"{plot.title}. {plot.caption}"}
    if width == "container":
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    if title:
        spec["title"] = plot.title
    return {**spec, "config": config} if config else spec


ROOMY = alt.ExprRef("width > 450 ? 1 : 0")
"""Opacity of words inside a chart: on a phone they would cover the marks."""
ROWS = alt.NamedData("rows")
"""The data of every figure; `draw` supplies them, because Altair would check each number against its schema."""


def _rule(axis: str, value: float) -> alt.Chart:
    """A reference line across the whole chart."""
    datum = alt.XDatum(value) if axis == "x" else alt.YDatum(value)
    rule: alt.Chart = alt.Chart(alt.InlineData(values=[{}])).mark_rule(style="reference").encode(**{axis: datum})
    return rule


def _rows(plot: Plot, field: str, pixels: int) -> int:
    """Height of a chart with one row for each value of a field; a height by step would not go with a fitted width."""
    return pixels * len({row[field] for row in plot.rows})


def _percent(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(field, type="quantitative", format=".1%", title=title)


def gain(plot: Plot) -> Chart:
    base = alt.Chart(ROWS).encode(y=alt.Y("label:N", title=None, sort=None))
    legend = alt.Legend(values=sorted({row["met"] for row in plot.rows}))
    colour = alt.Color("met:N", title=None, scale=alt.Scale(domain=["condition met", "not met"]), legend=legend)
    tooltip = [
        alt.Tooltip("label:N", title="task"),
        _percent("difference", "difference"),
        _percent("low", "from"),
        _percent("high", "to"),
        alt.Tooltip("n:Q", title="questions"),
    ]
    x = alt.X("low:Q", title="difference, percentage points", axis=_points_axis(), scale=_with_zero(plot))
    bar = base.mark_rule(style="interval").encode(x=x, x2="high:Q", color=colour, tooltip=tooltip)
    shape = alt.Shape(
        "met:N",
        title=None,
        scale=alt.Scale(domain=["condition met", "not met"], range=["circle", "cross"]),
        legend=legend,
    )
    dot = base.mark_point(filled=True, size=130).encode(x="difference:Q", color=colour, shape=shape, tooltip=tooltip)
    threshold = base.mark_point(style="threshold", shape="diamond", filled=True, size=70).encode(
        x="threshold:Q", tooltip=[_percent("threshold", "the interval must lie above")]
    )
    return alt.layer(_rule("x", 0), bar, dot, threshold).properties(height=_rows(plot, "label", 44))


def _points_axis() -> alt.Axis:
    return alt.Axis(
        labelExpr="format(datum.value * 100, '+') == '+0' ? '0' : format(datum.value * 100, '+')", tickCount=6
    )


def _with_zero(plot: Plot) -> alt.Scale:
    ends = [value for row in plot.rows for value in (row["low"], row["high"], row["threshold"], 0.0)]
    room = max(0.05 * (max(ends) - min(ends)), 0.005)
    return alt.Scale(domain=[min(ends) - room, max(ends) + room], nice=False)


def accuracy(plot: Plot) -> Chart:
    there = [kind for kind in KINDS if any(row["kind"] == kind for row in plot.rows)]
    legend = alt.Legend(values=there)
    base = alt.Chart(ROWS).encode(
        x=alt.X("x:Q", title="optimizer step", scale=alt.Scale(zero=True, nice=False, padding=12)),
        color=alt.Color("kind:N", title=None, scale=alt.Scale(domain=KINDS), legend=legend),
        tooltip=[
            alt.Tooltip("label:N", title="model"),
            alt.Tooltip("step:Q", title="step"),
            alt.Tooltip("questions:N"),
            _percent("mean", "accuracy"),
            _percent("low", "from"),
            _percent("high", "to"),
            alt.Tooltip("n:Q", title="n"),
        ],
    )
    y = alt.Y("mean:Q", title="accuracy", axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=True, nice=True))
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=KINDS, range=SHAPES), legend=legend)
    layers: list[alt.Chart] = [_rule("x", plot.constants["t_cut"])]
    asked = {row["questions"] for row in plot.rows}
    if "selection" in asked:
        selection = base.transform_filter("datum.questions === 'selection'")
        layers += [selection.mark_rule(style="faint").encode(y="low:Q", y2="high:Q")]
        layers += [selection.mark_point(filled=False, size=60).encode(y=y, shape=shape)]
    if "confirmation" in asked:
        confirmation = base.transform_filter("datum.questions === 'confirmation'")
        layers += [confirmation.mark_rule(style="interval").encode(y="low:Q", y2="high:Q")]
        layers += [confirmation.mark_point(filled=True, size=130).encode(y=y, shape=shape)]
        layers += _names(plot, confirmation, y)
    if KINDS[-1] in there:
        layers.insert(1, _true_curve(y))
    return alt.layer(*layers).properties(height=340)


def _true_curve(y: alt.Y) -> alt.Chart:
    """From base through the last observed checkpoint along RL's own later ones."""
    own = " || ".join(f"datum.kind === '{kind}'" for kind in (KINDS[0], KINDS[1], KINDS[-1]))
    confirmed = alt.Chart(ROWS).transform_filter(f"datum.questions === 'confirmation' && ({own})")
    curve: alt.Chart = confirmed.mark_line(style="true").encode(x="step:Q", y=y)
    return curve


def _names(plot: Plot, confirmation: alt.Chart, y: alt.Y) -> Iterator[alt.Chart]:
    """Names of the confirmed models, on the side where there is room."""
    half = max(row["step"] for row in plot.rows) / 2
    named = [row for row in plot.rows if row["questions"] == "confirmation" and row["kind"] != KINDS[-1]]
    for left in sorted({row["step"] <= half for row in named}):  # an empty layer would have no extent
        side = f"datum.step {'<=' if left else '>'} {half} && datum.kind !== '{KINDS[-1]}'"
        text = confirmation.transform_filter(side).mark_text(
            style="value",
            align="left" if left else "right",
            dx=12 if left else -20,
            limit=190,
            opacity=ROOMY,
        )
        yield text.encode(y=y, text="label:N")


def candidates(plot: Plot) -> Chart:
    roles = ["finalist", "reference", "other candidate"]
    base = alt.Chart(ROWS).encode(
        y=alt.Y("label:N", title=None, sort=plot.constants["order"]),
        color=alt.Color("role:N", title=None, scale=alt.Scale(domain=roles)),
        tooltip=[
            alt.Tooltip("label:N", title="model"),
            alt.Tooltip("task:N"),
            _percent("mean", "accuracy"),
            _percent("low", "from"),
            _percent("high", "to"),
            alt.Tooltip("n:Q", title="n"),
        ],
    )
    x = alt.X("mean:Q", title="accuracy", axis=alt.Axis(format=".0%", tickCount=6))
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["triangle-up", "square", "circle"]))
    bars = base.mark_rule(style="interval").encode(x="low:Q", x2="high:Q")
    if len({row["task"] for row in plot.rows}) > 1:
        base = base.encode(opacity=alt.Opacity("task:N", title="task"))
    dots = base.mark_point(filled=True, size=110).encode(x=x, shape=shape)
    return alt.layer(bars, dots).properties(height=_rows(plot, "label", 24))


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
    layers = alt.layer(_rule("x", cut), line, dots.add_params(zoom).properties(name="observed"), note)
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
        height=_rows(plot, "module", 24)
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
        _rule("y", 0), lines, base.mark_point(filled=True, size=36, clip=True).encode(shape=shape)
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
    return alt.layer(_rule("x", 0), stems, base.mark_point(filled=True, size=110).encode(x=x, shape=shape)).properties(
        height=_rows(plot, "predictor", 24)
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
    ).properties(height=_rows(plot, "group", 24))


def direction(plot: Plot) -> Chart:
    base = alt.Chart(ROWS).encode(
        x=alt.X("step:Q", title="fitted up to step", scale=alt.Scale(zero=True, nice=False, padding=6)),
        y=alt.Y("cosine:Q", title="cosine with the whole window’s direction", scale=alt.Scale(domainMax=1, zero=True)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("cosine:Q", format=".3f")],
    )
    return alt.layer(
        base.mark_line(style="fitted"), base.mark_point(style="observed", filled=True, size=30)
    ).properties(height=240)


def cost(plot: Plot) -> Chart:
    base = alt.Chart(ROWS).encode(
        y=alt.Y("stage:N", title=None, sort=plot.constants["order"]),
        x=alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=5)),
        tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("seconds:Q", format=".4~g")],
    )
    bars = base.mark_bar(style="observed", height={"band": 0.6})
    text = base.mark_text(style="value", align="left", dx=6).encode(text=alt.Text("text:N"))
    return alt.layer(bars, text).properties(height=_rows(plot, "stage", 34))


CHARTS: dict[str, Callable[[Plot], Chart]] = {
    function.__name__: function
    for function in (
        gain,
        accuracy,
        candidates,
        coefficients,
        heat_map,
        spectrum,
        skill,
        predictors,
        drift,
        direction,
        cost,
    )
}
