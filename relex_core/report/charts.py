"""A Plot of the view model -> a Vega-Lite specification; which function draws which kind of figure.

Every parameter and every layer that has one is named: Altair would number them, and the same figure drawn twice would
not have the same bytes. Width and colours (see `theme`) come last, so that page and files share all the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relex_core.report.charts_evidence import accuracy, candidates, cost, gain
from relex_core.report.charts_forecast import direction, drift, predictors, skill
from relex_core.report.charts_weights import coefficients, heat_map, spectrum
from relex_core.report.marks import Chart
from relex_core.report.view import Plot

CHARTS: dict[str, Callable[[Plot], Chart]] = {
    "gain": gain,
    "accuracy": accuracy,
    "candidates": candidates,
    "coefficients": coefficients,
    "heat_map": heat_map,
    "spectrum": spectrum,
    "skill": skill,
    "predictors": predictors,
    "drift": drift,
    "direction": direction,
    "cost": cost,
}


def draw(
    plot: Plot, *, width: int | str, config: dict[str, Any], title: bool = False, validate: bool = False
) -> dict[str, Any]:
    """The Vega-Lite specification of a figure.

    Args:
        width: in pixels, or "container".
        config: colours and type.
        title: whether the figure carries its title, as one that stands alone must.
        validate: against Vega-Lite's schema, which takes longer than all the rest.
    """
    spec: dict[str, Any] = CHARTS[plot.kind](plot).to_dict(validate=validate)
    spec.pop("config", None)
    spec.setdefault("datasets", {})["rows"] = [dict(row) for row in plot.rows]
    spec |= {"width": width, "description": f"{plot.title}. {plot.caption}"}
    if width == "container":
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    if title:
        spec["title"] = plot.title
    return {**spec, "config": config} if config else spec
