"""One step of a trajectory as it was looked at: in the trainer's folder, or as relex captured it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.layouts import Layout, StepFolder
from relex_core.errors import WindowError
from relex_core.storage import PATCH_SUFFIX, join_uri, open_store

if TYPE_CHECKING:
    from relex_core.storage.patches import PatchIndex

CAPTURED = Layout("captured", f"step-{{step}}{PATCH_SUFFIX}", "")


@dataclass(frozen=True)
class ObservedStep:
    """One step folder with what its marker and its headers say."""

    folder: StepFolder
    uri: str
    """Of the weights."""
    checkpoint: Checkpoint
    unfinished: str = ""
    """Why the framework's own marker says that the step is not complete; "" if it does not say so."""
    copy: PatchIndex | None = None
    """What a captured step was copied from; None: this is the trainer's folder."""

    @property
    def incomplete(self) -> list[str]:
        marker = [self.unfinished] if self.unfinished else []
        return marker + self.checkpoint.incomplete

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return not (self.incomplete or self.checkpoint.wrong)


def captured_steps(folder: str) -> list[ObservedStep]:
    """The steps that `relex watch --capture` copied into this folder; they appear whole or not at all.

    Raises:
        DataError: one is damaged, or builds upon one that is gone.
    """
    numbers = {info.name: CAPTURED.step_of(info.name) for info in open_store(folder).list()}
    found = {name: number for name, number in numbers.items() if number is not None}
    if not found:
        return []
    from relex_core.storage.captured import CapturedSteps, CapturedStore  # imports zstandard, which few runs need

    steps, opened = [], CapturedSteps(open_store(folder))
    for name, number in found.items():
        store = CapturedStore(join_uri(folder, name), opened)
        files = tuple(store.list())
        step = StepFolder(number, name, CAPTURED, files)
        checkpoint, copy = open_checkpoint(store, files), opened.step(name).index
        # Nobody is writing any more: what is missing is wrong, and not worth waiting for.
        settled = replace(checkpoint, wrong=checkpoint.problems, incomplete=[])
        steps.append(ObservedStep(step, store.uri, settled, copy=copy))
    return steps


def refuse_rewritten(original: StepFolder, copy: PatchIndex) -> None:
    """Hold a captured step against the trainer's folder, where that is still there.

    Raises:
        WindowError: the trainer has written the step again, so what is there now and what was captured do not belong
            together.
    """
    listed = {info.name: info for info in original.files}
    for file in copy.files:
        if file.name in listed and not file.copies(listed[file.name]):
            raise WindowError(
                f"step {copy.step} was captured from another run of training: {file.name} was written again since",
                where=copy.source,
                expected="the file as it was captured, or none",
                next_step="use another --out for training that started again; if it only went back to an earlier step, "
                f"remove the captured step {copy.step} and all later ones instead",
            )
