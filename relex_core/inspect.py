"""`relex inspect URI`: what lies in a trajectory, from names and headers alone. Needs no extra."""

from __future__ import annotations

import yaml
from pydantic import BaseModel, ConfigDict

from relex_core.checkpoints.contents import Adapter
from relex_core.checkpoints.observed import ObservedStep
from relex_core.observe import layouts_for, list_trajectory, look_at, vouched
from relex_core.spec import LayoutSpec


class AdapterReport(BaseModel):
    """A LoRA adapter."""

    model_config = ConfigDict(frozen=True)

    ranks: tuple[int, ...]
    """Each rank that a module has, ascending."""
    alpha: float
    scalings: tuple[float, ...]
    """Each factor that a module's B A has, ascending."""
    targets: int
    """Adapted weights."""
    whole: int
    """Tensors that are trained whole: modules_to_save and biases."""
    base: str | None
    """The base, as the adapter's config names it."""

    def __str__(self) -> str:
        rank = f"rank {self.ranks[0]}" + (f" to {self.ranks[-1]}" if len(self.ranks) > 1 else "")
        whole = f", {self.whole} whole tensors" if self.whole else ""
        return f"LoRA, {rank}, alpha {self.alpha:g}, {self.targets} weights{whole}"


class StepReport(BaseModel):
    """One step folder."""

    model_config = ConfigDict(frozen=True)

    step: int
    folder: str
    layout: str
    complete: bool
    settled: bool
    """False for a complete step that may still change: the newest one, just written, without a completion marker.
    `relex collect` lists it twice before it takes it."""
    problems: tuple[str, ...]
    tensors: int
    dtypes: tuple[str, ...]
    bytes: int
    """Of the weight files."""
    adapter: AdapterReport | None = None
    """Where the step is a LoRA adapter."""


class TrajectoryReport(BaseModel):
    """A trajectory."""

    model_config = ConfigDict(frozen=True)

    trajectory: str
    layout: LayoutSpec | None
    """The layout that was asked for; None: the known ones."""
    steps: tuple[StepReport, ...]
    other_folders: tuple[str, ...]
    """Folders of the trajectory that are no steps."""
    advice: str
    """What to do about a format that relex cannot read; "" where it can."""

    @property
    def last_complete(self) -> int | None:
        """Newest complete step."""
        return max((step.step for step in self.steps if step.complete), default=None)

    @property
    def skeleton(self) -> str:
        """A spec (YAML) to go on with; "" while no step is complete."""
        if self.last_complete is None:
            return ""
        spec: dict[str, object] = {"base": "BASE_MODEL", "trajectory": self.trajectory}
        if self.layout:
            spec["layout"] = self.layout.model_dump(exclude_defaults=True)
        torn = any(not step.complete and step.step < self.last_complete for step in self.steps)
        spec["window"] = {"t_cut": self.last_complete} | ({"skip_incomplete": True} if torn else {})
        return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=1000)


def inspect_trajectory(uri: str, layout: LayoutSpec | None = None) -> TrajectoryReport:
    """Look at every step folder below `uri`.

    Args:
        uri: an absolute location.
        layout: how step folders are laid out; None: as one of the known trainers does.

    Raises:
        WindowNotReady: there is no step folder.
        SpecError: `uri` is a file.
        DataError: two folders claim one step.
    """
    trajectory = list_trajectory(uri, layouts_for(layout))
    steps = look_at(uri, trajectory)
    advice = next((step.folder.layout.advice for step in steps if step.folder.layout.refused), "")
    return TrajectoryReport(
        trajectory=uri,
        layout=layout,
        steps=tuple(_report(step, steps) for step in steps),
        other_folders=trajectory.other_folders,
        advice=advice,
    )


def _report(step: ObservedStep, steps: list[ObservedStep]) -> StepReport:
    problems = (*step.incomplete, *step.checkpoint.wrong)
    return StepReport(
        step=step.folder.step,
        folder=step.folder.weights,
        layout=step.folder.layout.name,
        complete=not problems,
        settled=bool(not problems and vouched(steps, step)),
        problems=problems,
        tensors=len(step.checkpoint.tensors),
        dtypes=tuple(sorted({stored.dtype for stored in step.checkpoint.tensors.values()})),
        bytes=sum(info.size for info in step.checkpoint.files),
        adapter=_adapter(step.checkpoint.adapter),
    )


def _adapter(adapter: Adapter | None) -> AdapterReport | None:
    if adapter is None or not adapter.targets:
        return None
    return AdapterReport(
        ranks=tuple(sorted({target.rank for target in adapter.targets.values()})),
        alpha=adapter.config.lora_alpha,
        scalings=tuple(sorted({target.scaling for target in adapter.targets.values()})),
        targets=len(adapter.targets),
        whole=len(adapter.whole),
        base=adapter.config.base_model_name_or_path,
    )
