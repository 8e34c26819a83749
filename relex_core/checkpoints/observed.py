"""One step of a trajectory as it was looked at: in the trainer's folder, or as relex captured it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.layouts import Layout, StepFolder
from relex_core.storage import PATCH_SUFFIX, join_uri, open_store, open_stores

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
    steps = []
    for (name, number), store in zip(found.items(), open_stores([join_uri(folder, n) for n in found]), strict=True):
        files = tuple(store.list())
        step = StepFolder(number, name, CAPTURED, files)
        checkpoint = open_checkpoint(store, files)
        # Nobody is writing any more: what is missing is wrong, and not worth waiting for.
        steps.append(ObservedStep(step, store.uri, replace(checkpoint, wrong=checkpoint.problems, incomplete=[])))
    return steps
