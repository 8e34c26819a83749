"""gate: is there anything to do? Listings, headers and questions alone, so a schedule may ask often. Needs no extra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relex_core import layout
from relex_core.collect import find_window, refuse_other_run
from relex_core.errors import SpecError, WindowNotReady
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.publish import finished_outcome
from relex_core.questions import questions_digest
from relex_core.recipes import refuse_without_candidates
from relex_core.spec import RunSpec
from relex_core.storage import exists, open_store


@dataclass(frozen=True)
class Gate:
    """What the gate saw."""

    state: Literal["ready", "not_ready", "done"]
    """`done`: the outcome of this spec and its questions is published already."""
    message: str


def gate(spec: RunSpec) -> Gate:
    """Whether the window is complete and its outcome not published yet; writes nothing.

    A window that is collected already counts as complete: the trainer may have deleted its checkpoints since.

    Raises:
        SpecError: the spec has no evaluation section, so a pipeline that ends with a decision cannot run it; or it asks
            for no candidate; or the run directory belongs to another spec.
        WindowError, DataError: a checkpoint is refused, or a file of questions is not there; waiting does not help.
    """
    if spec.evaluation is None:
        raise SpecError(
            "the spec has no evaluation section, so nothing could be decided",
            where="evaluation",
            expected="evaluation: {select: {task: ...}, confirm: {task: ...}}",
            next_step="add the section; to only write candidates, use relex run",
        )
    refuse_other_run(spec)
    outcome = finished_outcome(spec)
    if outcome is not None:
        return Gate("done", f"{outcome.decision}: {outcome.candidate} is published in {spec.run_root}")
    if exists(open_store(spec.run_root), layout.WINDOW):
        refuse_undecidable(spec, load_manifest(spec.run_root))
        return Gate("ready", f"the window is collected in {spec.run_root}")
    try:
        manifest = find_window(spec)
    except WindowNotReady as error:
        return Gate("not_ready", str(error))
    refuse_undecidable(spec, manifest)
    return Gate("ready", f"the window is complete: {len(manifest.steps)} steps up to {manifest.steps[-1]}")


def refuse_undecidable(spec: RunSpec, manifest: WindowManifest) -> None:
    """Refuse what could never be decided, before hours of reading.

    Raises:
        SpecError: the spec asks for no candidate.
        DataError: a file of questions is not there, or is not the one whose digest the spec gives.
    """
    refuse_without_candidates(spec, manifest)
    questions_digest(spec)
