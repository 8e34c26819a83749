"""RunSpec: all parts together."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator

from relex_core.spec.evaluation import DecisionSpec, EvaluationSpec
from relex_core.spec.sections import CandidatesSpec, CostSpec, FitSpec, LayoutSpec, Location, Section, WindowSpec


class RunSpec(Section):
    """Everything relex needs to know about one run."""

    base: Location
    """Folder of the model the RL run started from: a path or gs:// URI."""
    trajectory: Location
    """The folder that holds the step folders."""
    run_root: Location
    """Where relex writes; `--out` overrides it. Default: TRAJECTORY/relex."""
    window: WindowSpec
    layout: LayoutSpec | None = None
    """Absent: one of the layouts of docs/trainers.md, recognised by its folders."""
    fit: FitSpec = FitSpec()
    candidates: CandidatesSpec = CandidatesSpec()
    evaluation: EvaluationSpec | None = None
    decision: DecisionSpec = DecisionSpec()
    cost: CostSpec = CostSpec()

    @field_validator("run_root")
    @classmethod
    def _a_folder_of_its_own(cls, run_root: str, info: ValidationInfo) -> str:
        """What relex writes must not be taken for a part of the base, nor for the trainer's files."""
        base, trajectory = (info.data.get(name, "") for name in ("base", "trajectory"))
        if run_root == trajectory:
            raise ValueError("this is the trajectory; give a folder of its own, for example TRAJECTORY/relex")
        steps_in_base = _within(trajectory, base) and _within(run_root, trajectory)  # the base may hold the whole run
        if base and _within(run_root, base) and not steps_in_base:
            raise ValueError("this lies in the folder of the base; give a folder of its own outside of it")
        return run_root

    @model_validator(mode="after")
    def _averages_are_fitted(self) -> RunSpec:
        if "trailing_average" in self.candidates.baselines and not self.fit.trailing_averages:
            raise ValueError(
                "candidates.baselines names trailing_average, which the fit must store: "
                "set fit.trailing_averages, for example [20]"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that a run directory belongs to: a spec that differs here needs another directory.

        Where and how fast the fit runs, and how carefully was looked, does not change the result: those fields are
        left out.
        """
        fit = self.fit.model_dump(mode="json", exclude={"device", "memory_budget"})
        window = self.window.model_dump(exclude={"settle_seconds"})
        layout = self.layout and self.layout.model_dump()
        return {"base": self.base, "trajectory": self.trajectory, "window": window, "layout": layout, "fit": fit}


def _within(uri: str, folder: str) -> bool:
    """Whether a location is a folder or lies below it, by their names."""
    return f"{uri}/".startswith(f"{folder.rstrip('/')}/")
