"""RUN/report.html and figure files, through the store: a run directory may be a gs:// URI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import vl_convert

from relex_core import layout
from relex_core.report import ReportFiles
from relex_core.report.artifacts import read_artifacts
from relex_core.report.build import build
from relex_core.report.charts import draw
from relex_core.report.page import render
from relex_core.report.theme import FILE_FONT, LIGHT, config
from relex_core.report.view import Plot, ReportData
from relex_core.storage import absolute_uri, join_uri, open_store, write_bytes

FIGURE_WIDTH = 720
"""Pixels; PNG files have twice as many."""


def write_report(run: str, figures: str | None) -> ReportFiles:
    """See `relex_core.report.report`."""
    artifacts = read_artifacts(run)
    data = build(artifacts)
    page = render(data)
    write_bytes(open_store(artifacts.run), layout.REPORT, page)
    written = [] if figures is None else list(_write_figures(data, absolute_uri(figures, Path.cwd())))
    return ReportFiles(join_uri(artifacts.run, layout.REPORT), len(page), tuple(written))


def _write_figures(data: ReportData, folder: str) -> Iterator[str]:
    store = open_store(folder)
    for plot in data.plots:
        svg, png = figure(plot)
        write_bytes(store, f"{plot.id}.svg", svg)
        write_bytes(store, f"{plot.id}.png", png)
        yield from (join_uri(folder, f"{plot.id}.svg"), join_uri(folder, f"{plot.id}.png"))


def figure(plot: Plot) -> tuple[bytes, bytes]:
    """One figure as SVG and as PNG, on white."""
    style = {**config(LIGHT, FILE_FONT), "background": "white", "padding": 16}
    svg = vl_convert.vegalite_to_svg(json.dumps(draw(plot, width=FIGURE_WIDTH, config=style, title=True)))
    return svg.encode(), vl_convert.svg_to_png(svg, scale=2)
