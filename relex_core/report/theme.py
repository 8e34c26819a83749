"""Colours and type of the charts, light and dark, as Vega-Lite config. The page's own are in templates/style.css.

Category colours are those of Okabe and Ito, darkened for white paper and lightened for a dark screen; kinds also differ
in shape or dash, so no figure depends on colour. Vega's named schemes serve neither background, so ramps are lists.
"""

from __future__ import annotations

from typing import Any

NARROW = 600
"""Pixels below which the page is a phone's: legends then stand in one column."""

LIGHT = {
    "text": "#3d4654",
    "strong": "#141a22",
    "grid": "#e6e9ee",
    "axis": "#aab3bf",
    "category": ["#0072b2", "#c4520a", "#00805d", "#a8437f", "#8a6a00", "#5b6472"],
    "diverging": ["#8c4a00", "#d98a3d", "#f3d9b8", "#f4f5f7", "#b9d7ec", "#4a97cc", "#00588f"],
    "ramp": ["#eaf3fa", "#b9d7ec", "#6fb0da", "#2f83bd", "#00588f"],
    "frozen": "#e3e6eb",
}
DARK = {
    "text": "#b4bdca",
    "strong": "#f0f3f7",
    "grid": "#2b333e",
    "axis": "#596575",
    "category": ["#62b8f0", "#f2955a", "#3fd0a4", "#e08fc0", "#f0c94a", "#a9b4c2"],
    "diverging": ["#ffb066", "#b86f22", "#5b4026", "#2a323d", "#1f4c6b", "#3487bd", "#8fd0fb"],
    "ramp": ["#1c2b38", "#1f4c6b", "#2a74a3", "#55a6d8", "#a8dcff"],
    "frozen": "#313a46",
}
SCREEN_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
FILE_FONT = "Helvetica, Arial, sans-serif"


def config(colours: dict[str, Any], font: str = SCREEN_FONT) -> dict[str, Any]:
    """A Vega-Lite config."""
    text, strong, axis = colours["text"], colours["strong"], colours["axis"]
    first, second = colours["category"][:2]
    return {
        "font": font,
        "background": "transparent",
        "view": {"stroke": None},
        "padding": {"left": 2, "right": 8, "top": 6, "bottom": 2},
        "axis": {
            "labelColor": text,
            "titleColor": text,
            "titleFontWeight": 500,
            "titlePadding": 8,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "gridColor": colours["grid"],
            "domainColor": axis,
            "tickColor": axis,
            "labelLimit": 230,
        },
        "legend": {
            "orient": "top",
            "direction": "horizontal",
            "columns": 5,
            "labelColor": text,
            "titleColor": text,
            "titleFontWeight": 500,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "labelLimit": 320,
            "titleLimit": 400,
            "symbolSize": 90,
            "offset": 10,
            "gradientLength": 220,
        },
        "title": {"color": strong, "anchor": "start", "fontSize": 15, "fontWeight": 600, "offset": 12},
        "range": {
            "category": colours["category"],
            "diverging": colours["diverging"],
            "heatmap": colours["ramp"],
            "ramp": colours["ramp"],
        },
        "axisQuantitative": {"tickCount": 8},
        "point": {"size": 90, "strokeWidth": 2, "opacity": 1},
        "line": {"strokeWidth": 2},
        "bar": {"cornerRadiusEnd": 3},
        "style": {  # by "color": Vega-Lite would set its own default over a style's "fill" or "stroke"
            "reference": {"color": axis, "strokeWidth": 1.5},
            "note": {"color": text, "fontSize": 12},
            "value": {"color": strong, "fontSize": 12, "fontWeight": 600},
            "interval": {"strokeWidth": 2.5},
            "faint": {"strokeWidth": 1.25, "opacity": 0.65},
            "threshold": {"color": strong},
            "observed": {"color": first},
            "fitted": {"color": second, "strokeWidth": 2.5},
            "frozen": {"color": colours["frozen"]},
            "true": {"color": text, "strokeDash": [5, 4], "strokeWidth": 1.75},
        },
    }


def themes() -> dict[str, dict[str, Any]]:
    """For the page: the browser's preference chooses."""
    return {"light": config(LIGHT), "dark": config(DARK)}
