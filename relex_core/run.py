"""`relex run`: every stage in order. Each stage recognises its own finished work, so a run resumes where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from relex_core.candidate import Candidate, whole_candidates
from relex_core.collect import collect
from relex_core.errors import RelexError
from relex_core.extras import install
from relex_core.fit import FitArtifact, fit
from relex_core.forecast import Forecast, forecast
from relex_core.manifest import WindowManifest, gaps_text
from relex_core.publish import finished_decision, publish
from relex_core.recipes import refuse_without_candidates
from relex_core.spec import RunSpec
from relex_core.storage import open_store

log = logging.getLogger("relex")

if TYPE_CHECKING:  # decide imports numpy, which a bare install lacks
    from relex_core.decide import Decision


@dataclass(frozen=True)
class RunResult:
    """What a run left in its directory."""

    run: str
    window: WindowManifest
    fit: FitArtifact
    forecast: Forecast
    candidates: tuple[Candidate, ...]
    decision: Decision | None
    """None where the spec has no evaluation."""
    report: str | None = None
    """URI of the page; None where the extra `report` is not installed."""


def run(spec: RunSpec) -> RunResult:
    """Collect, fit, forecast, extrapolate and, where the spec says how, evaluate and decide; then report.

    Raises:
        RelexError: as the stages do.
    """
    manifest = collect(spec)
    if manifest.gaps:
        log.warning("gaps in the window, not filled: %s", gaps_text(manifest.gaps))
    refuse_without_candidates(spec, manifest)
    if spec.evaluation is not None:
        from relex_core.evaluate.ready import refuse_unready
        from relex_core.evaluate.tasks import load_splits  # imports numpy, as the fit does

        # If a library is missing or questions are wrong, say so before hours of reading.
        refuse_unready(spec.evaluation)
        load_splits(spec.evaluation, manifest.base.uri)
    artifact = fit(spec.run_root)
    expected = forecast(spec.run_root)

    def result(candidates: Iterable[Candidate], decision: Decision | None) -> RunResult:
        report = _report(spec.run_root)
        return RunResult(spec.run_root, manifest, artifact, expected, tuple(candidates), decision, report)

    def finished() -> RunResult | None:
        decision = finished_decision(spec, manifest) if spec.evaluation else None
        return result(whole_candidates(open_store(spec.run_root)), decision) if decision else None

    if done := finished():  # do not write the losers again, only to delete them
        return done
    try:
        candidates, decision = _decided(spec)
    except RelexError:
        # Another process may have finished the same run, and deleted what this one was still measuring.
        if done := finished():
            return done
        raise
    decided = result(candidates, decision)
    if decision is not None:
        publish(spec.run_root)  # last: it says that the run is finished
    return decided


def _decided(spec: RunSpec) -> tuple[list[Candidate], Decision | None]:
    """(candidates, the decision between them if the spec has an evaluation)"""
    from relex_core.extrapolate import extrapolate

    candidates = extrapolate(spec.run_root)
    if spec.evaluation is None:
        return candidates, None
    from relex_core.decide import decide
    from relex_core.evaluate import evaluate

    evaluate(spec.run_root)
    return candidates, decide(spec.run_root)


def _report(run: str) -> str | None:
    """Write the page, if what draws it is installed: a run on a small machine need not have it."""
    if not all(map(find_spec, ("altair", "jinja2", "vl_convert"))):
        log.info("no report.html: %s; then: relex report %s", install("report"), run)
        return None
    from relex_core.report import report

    return report(run).page
