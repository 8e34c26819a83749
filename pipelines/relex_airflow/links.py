"""A button in Airflow's user interface."""

from __future__ import annotations

from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from relex_core import layout
from relex_core.storage import join_uri


class ReportLink(BaseOperatorLink):
    """Opens RUN/report.html: of a bucket in Google's console, for whoever may read it."""

    name = "Report"

    def get_link(self, operator, *, ti_key) -> str:  # type: ignore[no-untyped-def]
        """Called in the task's process when it has ended, with its fields rendered."""
        return report_url(operator.run)


def report_url(run: str) -> str:
    """Where a browser finds the report of a run directory."""
    page = join_uri(run, layout.REPORT)
    scheme, separator, place = page.partition("gs://")
    return f"https://storage.cloud.google.com/{quote(place)}" if separator and not scheme else f"file://{quote(page)}"
