"""What a run directory holds so far. Only spec and window must be there; what belongs to another window is left out."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from relex_core import layout
from relex_core.evaluate.candidates import Candidate, references, written_candidates
from relex_core.evaluate.cost import pipeline_seconds
from relex_core.evaluate.decision import Decision
from relex_core.evaluate.results import EvalResult
from relex_core.fit.artifact import FitArtifact
from relex_core.forecast import Forecast
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.spec import RunSpec, load_spec_of
from relex_core.storage import Store, absolute_uri, open_store, read_bytes
from relex_core.stored_json import read_stored

log = logging.getLogger("relex")

REPAIR = "delete it, and run its stage"


@dataclass(frozen=True)
class Artifacts:
    """Everything that a report is made of."""

    run: str
    spec: RunSpec
    window: WindowManifest
    fit: FitArtifact | None
    forecast: Forecast | None
    candidates: tuple[Candidate, ...]
    """Base, last observed, then the written ones by name."""
    versions: dict[str, str]
    """Of the software that wrote candidates and evaluations."""
    results: tuple[EvalResult, ...]
    """Finished evaluations of this window, by candidate, then folder."""
    decision: Decision | None
    seconds: dict[str, float]
    """Measured, by stage."""
    stale: tuple[str, ...]
    """Files that belong to another window or fit, or are older than what they rest on."""

    @property
    def later(self) -> tuple[EvalResult, ...]:
        """Evaluations of checkpoints that are neither candidates nor references, such as RL's own later ones."""
        known = {candidate.name for candidate in self.candidates}
        return tuple(result for result in self.results if result.candidate not in known)


def read_artifacts(run: str) -> Artifacts:
    """Read whatever there is.

    Raises:
        WindowNotReady: nothing was collected into this directory.
        DataError: a file is not what relex writes.
    """
    from pathlib import Path

    run = absolute_uri(run, Path.cwd())
    spec, window, store = load_spec_of(run), load_manifest(run), open_store(run)
    fit = read_stored(FitArtifact, store, layout.FIT, repair=REPAIR)
    forecast = read_stored(Forecast, store, layout.FORECAST, repair=REPAIR)
    decision = read_stored(Decision, store, layout.DECISION, repair=REPAIR)
    written = written_candidates(run, window.digest)
    results, old = _results(store, window.digest)
    stale = [*old]
    if fit is not None and fit.window_digest != window.digest:
        fit, stale = None, [*stale, layout.FIT]
    if forecast is not None and (fit is None or forecast.fit_key != fit.fit_key):
        forecast, stale = None, [*stale, layout.FORECAST]
    if decision is not None and (decision.window_digest != window.digest or not _rests_on(decision, results)):
        decision, stale = None, [*stale, layout.DECISION]
    return Artifacts(
        run=run,
        spec=spec,
        window=window,
        fit=fit,
        forecast=forecast,
        candidates=(*references(window), *written),
        versions=_versions(store, [candidate.name for candidate in written], results),
        results=tuple(results),
        decision=decision,
        seconds=pipeline_seconds(store),
        stale=tuple(stale),
    )


def _results(store: Store, window_digest: str) -> tuple[list[EvalResult], list[str]]:
    """Finished evaluations of this window, and the names of those of another."""
    found, old = [], []
    for info in store.list(layout.EVALUATIONS):
        if info.name.endswith(f"/{layout.SUMMARY}"):
            result = read_stored(EvalResult, store, info.name, repair=REPAIR)
            if result is not None and result.key.get("window") == window_digest:
                found.append(result)
            else:
                old.append(info.name)
    return found, old


def _rests_on(decision: Decision, results: list[EvalResult]) -> bool:
    """Whether the decision's confirmed accuracies are those that lie in the run now."""
    now = {(r.candidate, r.task): r.mean for r in results if r.split == "confirm"}
    return all(now.get((standing.candidate, standing.task)) == standing.mean for standing in decision.confirm)


def _versions(store: Store, names: list[str], results: list[EvalResult]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in names[:1]:
        versions |= json.loads(read_bytes(store, f"{layout.candidate(name)}/{layout.PROVENANCE}")).get("versions", {})
    for result in results[:1]:
        versions |= result.key.get("versions", {})
    return dict(sorted((str(name), str(version)) for name, version in versions.items()))
