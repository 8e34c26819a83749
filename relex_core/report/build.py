"""Artifacts -> ReportData: the order of the page."""

from __future__ import annotations

from relex_core.report.accuracy import accuracy_section
from relex_core.report.artifacts import Artifacts
from relex_core.report.expectation import expectation_section
from relex_core.report.notices import notices
from relex_core.report.provenance import cost_section, inputs_section, reproduce_section
from relex_core.report.text import plural
from relex_core.report.verdict import verdict
from relex_core.report.view import ReportData
from relex_core.report.weights import weights_section


def build(run: Artifacts) -> ReportData:
    """Everything that the page says; nothing is read or drawn here."""
    steps = run.window.steps
    return ReportData(
        title=run.run.rstrip("/").rsplit("/", 1)[-1] or run.run,
        subtitle=f"{run.run} · {plural(len(steps), 'checkpoint')}, steps {steps[0]} to {steps[-1]}",
        verdict=verdict(run),
        notices=tuple(notices(run)),
        sections=(
            accuracy_section(run),
            weights_section(run),
            expectation_section(run),
            cost_section(run),
            inputs_section(run),
            reproduce_section(run),
        ),
    )
