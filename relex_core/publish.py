"""publish: Decision -> the outcome. Deletes the losers, then says in one small object which checkpoint to use.

Nothing else reads captured steps: one that is kept is written out first, as RUN/last_observed.

RUN/published.json is written last of all. It marks a finished run for the gate, and tells a trainer or a registration
step that polls for it what to do; nobody has to ask an orchestrator.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.candidate import whole_candidates
from relex_core.checkpoints.checkpoint import SINGLE_FILE
from relex_core.errors import DataError, WindowNotReady
from relex_core.events import record_event
from relex_core.manifest import WindowManifest, load_manifest, spec_digest
from relex_core.questions import questions_digest
from relex_core.spec import RunSpec, load_spec_of
from relex_core.storage import PATCH_SUFFIX, absolute_uri, exists, join_uri, open_store, write_bytes
from relex_core.stored_json import read_stored

if TYPE_CHECKING:  # scipy
    from relex_core.evaluate.decision import Decision


class Outcome(BaseModel):
    """RUN/published.json."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["promote", "keep_observed", "not_ready"]
    candidate: str
    """What to use: a candidate's name or "last_observed"; empty while nothing is decided."""
    checkpoint_uri: str
    """Its folder; empty while nothing is decided. A candidate, and a captured step that is written out for it, are
    complete Hugging Face checkpoints; another observed one is what the trainer saved, in its layout: that may be FSDP
    shards or an adapter."""
    training_steps_saved: int
    window_digest: str
    spec_digest: str
    """Of the spec that was decided on: another spec is not finished by this outcome."""
    questions_digest: str
    """Of the files of questions that were answered: nor are other questions."""


NOTHING_YET = Outcome(
    decision="not_ready",
    candidate="",
    checkpoint_uri="",
    training_steps_saved=0,
    window_digest="",
    spec_digest="",
    questions_digest="",
)


def publish(run: str) -> Outcome:
    """Delete the losers' weights, as `candidates.keep` says, write out a captured step that is kept, and write
    RUN/published.json.

    While the verdict is `not_ready` nothing is deleted and nothing is written; the answer is `NOTHING_YET`.

    Args:
        run: the run directory (path or URI).

    Raises:
        SpecError: the spec has no evaluation, so nothing ever will be decided.
        WindowNotReady: nothing was decided yet; or by other rules, of another window, on other questions, or without
            one of the candidates.
        DataError: the promoted candidate's weights or a file of questions are gone; or the captured step is no longer
            what was collected.
    """
    from relex_core.decide import delete_losers, load_decision  # scipy
    from relex_core.evaluate import evaluation_of

    run = absolute_uri(run, Path.cwd())
    spec, manifest = load_spec_of(run), load_manifest(run)
    evaluation_of(spec, run)
    decision = load_decision(run)
    _refuse_outdated(run, decision, spec, manifest)
    if decision.decision == "not_ready":
        return NOTHING_YET
    outcome = Outcome(
        decision=decision.decision,
        candidate=decision.candidate,
        checkpoint_uri=_folder_to_use(run, decision, manifest),
        training_steps_saved=decision.training_steps_saved,
        window_digest=manifest.digest,
        spec_digest=spec_digest(spec),
        questions_digest=decision.questions_digest,
    )
    changed = published(run) != outcome
    if outcome.checkpoint_uri == join_uri(run, layout.LAST_OBSERVED) and (changed or not _written_out(run)):
        _write_out(manifest, outcome.checkpoint_uri)
    deleted = delete_losers(run, decision)
    if changed:
        write_bytes(open_store(run), layout.PUBLISHED, outcome.model_dump_json(indent=1).encode())
    if changed or deleted:
        record_event(run, "published", decision=outcome.decision, candidate=outcome.candidate, deleted=deleted)
    return outcome


def _folder_to_use(run: str, decision: Decision, manifest: WindowManifest) -> str:
    """What the outcome names: of a captured step, which only relex reads, the folder that it is written out to."""
    if decision.decision == "promote":
        return join_uri(run, layout.candidate(decision.candidate))
    observed = manifest.last_observed.uri
    return join_uri(run, layout.LAST_OBSERVED) if observed.endswith(PATCH_SUFFIX) else observed


def _written_out(run: str) -> bool:
    return exists(open_store(run), f"{layout.LAST_OBSERVED}/{SINGLE_FILE}")


def _write_out(manifest: WindowManifest, folder: str) -> None:
    """Write the last observed checkpoint as a Hugging Face folder."""
    from relex_core.evaluate.candidates import references
    from relex_core.evaluate.scratch import copy_checkpoint  # numpy

    _, last_observed = references(manifest)
    last_observed.refuse_if_changed()
    copy_checkpoint(last_observed.uri, manifest.base.uri, folder)


def finished_decision(spec: RunSpec, manifest: WindowManifest) -> Decision | None:
    """The decision behind the outcome, if that is the one of this spec, window and questions, and what it promotes is
    still there."""
    from relex_core.decide import load_decision  # scipy
    from relex_core.evaluate import is_evaluated

    run = spec.run_root
    outcome = finished_outcome(spec)
    if outcome is None or outcome.window_digest != manifest.digest:
        return None
    try:
        decision = load_decision(run)
        _refuse_outdated(run, decision, spec, manifest)
    except (DataError, WindowNotReady):  # to be decided again, or refused by the stage that meets it
        return None
    kept = ["last_observed", *(candidate.name for candidate in whole_candidates(open_store(run)))]
    there = outcome.candidate == decision.candidate and outcome.candidate in kept
    folder = _folder_to_use(run, decision, manifest)
    there &= outcome.checkpoint_uri == folder and (folder != join_uri(run, layout.LAST_OBSERVED) or _written_out(run))
    return decision if there and is_evaluated(run, decision.finalist) else None


def _refuse_outdated(run: str, decision: Decision, spec: RunSpec, manifest: WindowManifest) -> None:
    """What was decided of other candidates, questions or rules says nothing of these; and deleting is for good."""
    from relex_core.decide import rules_digest
    from relex_core.evaluate.candidates import written_candidates

    written = written_candidates(run, manifest.digest)
    unknown = [c.name for c in written if c.weights and decision.candidates.get(c.name) != c.digest]
    other = {
        "the spec has other rules": decision.rules_digest != rules_digest(spec),
        "it is of another window": decision.window_digest != manifest.digest,
        "the questions are others now": decision.questions_digest != questions_digest(spec),
        f"{', '.join(unknown)} took no part in it": bool(unknown),
    }
    reasons = [reason for reason, holds in other.items() if holds]
    if reasons:
        raise WindowNotReady(
            f"the decision is out of date: {'; '.join(reasons)}",
            where=join_uri(run, layout.DECISION),
            expected="a decision by this spec, of this window, these questions and these candidates",
            next_step=f"relex evaluate {run}, then relex decide {run}",
        )


def finished_outcome(spec: RunSpec) -> Outcome | None:
    """The outcome that is published, if it is the one of this spec and of its questions as they are now.

    Raises:
        DataError: published.json is not one, or a file of questions is not there.
    """
    outcome = published(spec.run_root)
    if outcome.spec_digest != spec_digest(spec) or outcome.questions_digest != questions_digest(spec):
        return None
    return outcome


def published(run: str) -> Outcome:
    """The outcome of a run directory; `NOTHING_YET` while there is none.

    Raises:
        DataError: published.json is not one.
    """
    repair = f"delete it, then run relex publish {run}"
    return read_stored(Outcome, open_store(run), layout.PUBLISHED, repair=repair) or NOTHING_YET
