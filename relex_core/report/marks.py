"""What all charts share: where their data come from, reference lines, heights, tooltips."""

from __future__ import annotations

import altair as alt

from relex_core.report.view import Plot

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
ROWS = alt.NamedData("rows")
"""The data of every figure; `charts.draw` supplies them, because Altair would check each number against its schema."""
ROOMY = alt.ExprRef("width > 450 ? 1 : 0")
"""Opacity of words inside a chart: on a phone they would cover the marks."""


def rule(axis: str, value: float) -> alt.Chart:
    """A reference line across the whole chart."""
    datum = alt.XDatum(value) if axis == "x" else alt.YDatum(value)
    line: alt.Chart = alt.Chart(alt.InlineData(values=[{}])).mark_rule(style="reference").encode(**{axis: datum})
    return line


def rows_height(plot: Plot, field: str, pixels: int) -> int:
    """Height of a chart with one row for each value of a field; a height by step would not go with a fitted width."""
    return pixels * len({row[field] for row in plot.rows})


def percent_tooltip(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(field, type="quantitative", format=".1%", title=title)
