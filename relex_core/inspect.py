"""`relex inspect URI`: what lies in a trajectory, from names and headers alone. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from relex_core.collect import observe


class StepReport(BaseModel):
    """One step folder."""

    model_config = ConfigDict(frozen=True)

    step: int
    folder: str
    layout: str
    complete: bool
    problems: tuple[str, ...]
    tensors: int
    dtypes: tuple[str, ...]
    bytes: int
    """Of the weight files."""


class TrajectoryReport(BaseModel):
    """A trajectory."""

    model_config = ConfigDict(frozen=True)

    trajectory: str
    steps: tuple[StepReport, ...]

    @property
    def last_complete(self) -> int | None:
        """Newest complete step."""
        return max((step.step for step in self.steps if step.complete), default=None)


def inspect_trajectory(uri: str) -> TrajectoryReport:
    """Look at every step folder below `uri`.

    Raises:
        WindowNotReady: there is none.
        DataError: two folders claim one step.
    """
    reports = []
    for observed in observe(uri):
        problems = (*observed.incomplete, *observed.checkpoint.wrong)
        reports.append(
            StepReport(
                step=observed.folder.step,
                folder=observed.folder.weights,
                layout=observed.folder.layout.name,
                complete=not problems,
                problems=problems,
                tensors=len(observed.checkpoint.tensors),
                dtypes=tuple(sorted({stored.dtype for stored in observed.checkpoint.tensors.values()})),
                bytes=sum(info.size for info in observed.checkpoint.files),
            )
        )
    return TrajectoryReport(trajectory=uri, steps=tuple(reports))
