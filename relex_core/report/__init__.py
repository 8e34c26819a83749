"""report: everything a run directory holds -> one HTML page that opens without network, and the same figures as files.

    report("run/")                          # writes RUN/report.html
    report("run/", figures="figures/")      # and every figure as SVG and PNG
    build_report("run/").verdict.headline   # the numbers and sentences alone; nothing is drawn

The data flow, and the reading order:

    artifacts       what the run has so far; anything but the window may be missing
    verdict, gain, notices, accuracy, weights, expectation, provenance     -> sections of `view`, all numbers and words
    build           -> ReportData
    charts, charts_*, marks, theme    ReportData -> Altair charts
    page            ReportData + charts -> HTML (templates/); files: charts -> SVG and PNG

The same inputs give the same bytes: nothing in the page says when it was made. Importing this package loads neither
numpy nor the plotting libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relex_core.report.view import ReportData

__all__ = ["ReportFiles", "build_report", "report"]


@dataclass(frozen=True)
class ReportFiles:
    """What `report` wrote."""

    page: str
    """URI of the page."""
    size: int
    """Of the page, in bytes."""
    figures: tuple[str, ...]
    """URIs of the figure files."""


def report(run: str, *, figures: str | None = None) -> ReportFiles:
    """Write RUN/report.html.

    Args:
        run: the run directory (path or URI).
        figures: a folder (path or URI) for every figure as SVG and PNG.

    Raises:
        WindowNotReady: nothing was collected into this directory.
        DataError: a file of the run is not what relex writes.
        ModuleNotFoundError: the extra `report` is not installed.
    """
    from relex_core.report.files import write_report

    return write_report(run, figures)


def build_report(run: str) -> ReportData:
    """All numbers and sentences of the page, without drawing anything; errors as for `report`."""
    from relex_core.report.artifacts import read_artifacts
    from relex_core.report.build import build

    return build(read_artifacts(run))
