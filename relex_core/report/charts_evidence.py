"""Figures of accuracies and of the gain: Plot -> chart."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from relex_core.report.marks import ROOMY, ROWS, Chart, percent_tooltip, rows_height, rule
from relex_core.report.view import Plot

KINDS = ("base", "last observed", "extrapolated", "average or within the window", "RL itself, trained on")
SHAPES = ("square", "circle", "triangle-up", "diamond", "cross")


def gain(plot: Plot) -> Chart:
    base = alt.Chart(ROWS).encode(y=alt.Y("label:N", title=None, sort=None))
    legend = alt.Legend(values=sorted({row["met"] for row in plot.rows}))
    colour = alt.Color("met:N", title=None, scale=alt.Scale(domain=["condition met", "not met"]), legend=legend)
    tooltip = [
        alt.Tooltip("label:N", title="task"),
        percent_tooltip("difference", "difference"),
        percent_tooltip("low", "from"),
        percent_tooltip("high", "to"),
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
        x="threshold:Q", tooltip=[percent_tooltip("threshold", "threshold")]
    )
    return alt.layer(rule("x", 0), bar, dot, threshold).properties(height=rows_height(plot, "label", 44))


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
            percent_tooltip("mean", "accuracy"),
            percent_tooltip("low", "from"),
            percent_tooltip("high", "to"),
            alt.Tooltip("n:Q", title="n"),
        ],
    )
    y = alt.Y("mean:Q", title="accuracy", axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=True, nice=True))
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=KINDS, range=SHAPES), legend=legend)
    layers: list[alt.Chart] = [rule("x", plot.constants["t_cut"])]
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
            percent_tooltip("mean", "accuracy"),
            percent_tooltip("low", "from"),
            percent_tooltip("high", "to"),
            alt.Tooltip("n:Q", title="n"),
        ],
    )
    x = alt.X("mean:Q", title="accuracy", axis=alt.Axis(format=".0%", tickCount=6))
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["triangle-up", "square", "circle"]))
    bars = base.mark_rule(style="interval").encode(x="low:Q", x2="high:Q")
    if len({row["task"] for row in plot.rows}) > 1:
        base = base.encode(opacity=alt.Opacity("task:N", title="task"))
    dots = base.mark_point(filled=True, size=110).encode(x=x, shape=shape)
    return alt.layer(bars, dots).properties(height=rows_height(plot, "label", 24))


def cost(plot: Plot) -> Chart:
    base = alt.Chart(ROWS).encode(
        y=alt.Y("stage:N", title=None, sort=plot.constants["order"]),
        x=alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=5)),
        tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("seconds:Q", format=".4~g")],
    )
    bars = base.mark_bar(style="observed", height={"band": 0.6})
    text = base.mark_text(style="value", align="left", dx=6).encode(text=alt.Text("text:N"))
    return alt.layer(bars, text).properties(height=rows_height(plot, "stage", 34))
