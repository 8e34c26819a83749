"""Waiting for the outcome of a pipeline that runs elsewhere.

The run directory says what came of it, and the orchestrator whether anything still can.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from relex_airflow.judgement import Judgement
from relex_airflow.sensors import WindowSensor
from relex_airflow.triggers import WindowTrigger
from relex_core.errors import StorageError

Target = Literal["kfp", "vertex"]


class OutcomeTrigger(WindowTrigger):
    """Fires when the outcome is published, when the run has ended without one, or when time is up.

    Args:
        pipeline: as the arguments of OutcomeSensor: target, run, python, environment.
        waiting: of WindowTrigger.
    """

    def __init__(self, pipeline: dict[str, Any], **waiting: Any) -> None:
        super().__init__(**waiting)
        self.pipeline = pipeline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path, fields = super().serialize()
        return path, fields | {"pipeline": self.pipeline}

    async def look(self) -> Judgement:
        """The orchestrator is asked first: a run that has ended then has published before, or never will."""
        target, run = self.pipeline["target"], self.pipeline["run"]
        command = [self.pipeline["python"], "-m", "relex_kfp", "status", target, run]
        answer = await self.process(command, environment=self.pipeline["environment"])
        seen = await super().look()
        if seen.ends(self.until):
            return seen
        if answer.status:
            passing = answer.status == StorageError.exit_code or answer.status < 0
            message = f"the state of {run} is not known: {answer.errors}"
            return seen.model_copy(update={"verdict": "unreachable" if passing else "refused", "message": message})
        state = json.loads(answer.printed)
        if state["ended"] and seen.verdict != "unreachable":
            message = f"the run {run} ended as {state['state']} without an outcome. {state['message']}".rstrip()
            return seen.model_copy(update={"verdict": "refused", "message": message})
        return seen.model_copy(update={"message": seen.message or f"the run {run} is {state['state']}"})


class OutcomeSensor(WindowSensor):
    """Wait until RUN/published.json is there for this spec; a run that ended without it fails the task.

    Args:
        target: where it was submitted to.
        pipeline_run: its id there; `relex_kfp submit` prints it.
        python: interpreter of an environment with relex's extra `kfp`, in the triggerer.
        environment: names the cluster (docs/kubeflow.md).
    """

    template_fields: Sequence[str] = (*WindowSensor.template_fields, "pipeline_run", "python", "environment")

    def __init__(
        self, *, target: Target, pipeline_run: str, python: str, environment: dict[str, str], **kwargs: Any
    ) -> None:
        super().__init__(until="published", **kwargs)
        self.target, self.pipeline_run, self.python, self.environment = target, pipeline_run, python, environment

    def trigger(self, spec: str) -> OutcomeTrigger:
        """Looks at the run directory as any sensor here does, and asks the orchestrator as well."""
        pipeline = {"target": self.target, "run": self.pipeline_run, "python": self.python}
        pipeline |= {"environment": self.environment}
        waiting = super().trigger(spec).serialize()[1]
        return OutcomeTrigger(pipeline, **waiting)
