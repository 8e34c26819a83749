"""The sensor: the window of a run is complete."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException

from relex_airflow.credentials import google_credentials
from relex_airflow.judgement import Judgement, Until, judge
from relex_airflow.triggers import WindowTrigger
from relex_core.errors import SpecError
from relex_core.spec import spec_from_json


class WindowSensor(BaseSensorOperator):
    """Wait until the observation window of an RL run is complete, as `relex collect` judges it.

    Looks once in the worker and then defers, so that waiting holds no worker slot. Returns the window's digest and the
    URI of its manifest, never listings. A storage that fails is waited for; lacking permissions and wrong data fail
    the task at once, with relex's message and without retries.

    Args:
        spec: the run's spec as JSON or as a mapping (docs/spec.md); what follows overrides its fields.
        base: folder of the model that the RL run started from.
        trajectory: folder of the step folders.
        t_cut: last optimizer step of the window.
        run_root: where relex writes.
        gcp_conn_id: connection whose account reads the storage; None: application-default credentials.
        until: "complete": the window is. "published": the outcome is, however the work was started.
        poke_interval: seconds between the first looks; the interval doubles while nothing changes.
        max_wait: seconds between two looks at most.
        timeout: seconds after which the task fails, or is skipped with `soft_fail`.
    """

    template_fields: Sequence[str] = ("spec", "base", "trajectory", "t_cut", "run_root", "gcp_conn_id")
    ui_color = "#e3f2e1"

    def __init__(
        self,
        *,
        spec: str | dict[str, Any] = "{}",
        base: str = "",
        trajectory: str = "",
        t_cut: int | str = 0,
        run_root: str = "",
        gcp_conn_id: str | None = None,
        until: Until = "complete",
        max_wait: timedelta | float = 600,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_wait=max_wait, **kwargs)
        self.spec, self.base, self.trajectory, self.t_cut, self.run_root = spec, base, trajectory, t_cut, run_root
        self.gcp_conn_id, self.until = gcp_conn_id, until

    def execute(self, context: Context) -> dict[str, str]:
        try:
            spec = spec_from_json(
                self.spec if isinstance(self.spec, str) else json.dumps(self.spec),
                base=self.base,
                trajectory=self.trajectory,
                run_root=self.run_root,
                t_cut=int(self.t_cut or 0),
            )
        except SpecError as error:
            raise AirflowFailException(f"SpecError: {error}") from error
        with google_credentials(self.gcp_conn_id):
            judgement = judge(spec)
        if judgement.ends(self.until):
            return self._answer(judgement)
        self.log.info("%s: %s", judgement.verdict, judgement.message)
        self.defer(trigger=self.trigger(spec.model_dump_json(exclude_defaults=True)), method_name="resumed")

    def trigger(self, spec: str) -> WindowTrigger:
        """What goes on looking while this task is deferred."""
        return WindowTrigger(
            spec=spec,
            interval=self.poke_interval,
            longest=max(self.poke_interval, _seconds(self.max_wait)),
            deadline=time.time() + self.timeout,
            gcp_conn_id=self.gcp_conn_id,
            until=self.until,
        )

    def resumed(self, context: Context, event: dict[str, Any]) -> dict[str, str]:
        """Called with what the trigger saw last."""
        return self._answer(Judgement.model_validate(event))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As every operator's; a sensor's own would also turn refusals into skips with `soft_fail`."""
        return BaseOperator.resume_execution(self, next_method, next_kwargs, context)

    def _answer(self, judgement: Judgement) -> dict[str, str]:
        if judgement.meets(self.until):
            return judgement.model_dump(exclude={"message"})
        if judgement.verdict == "refused":
            raise AirflowFailException(judgement.message)
        late = f"not {self.until} after {self.timeout:g} s; last seen: {judgement.message or judgement.verdict}"
        raise AirflowSkipException(late) if self.soft_fail else AirflowSensorTimeout(late)


def _seconds(time: timedelta | float | None) -> float:
    return time.total_seconds() if isinstance(time, timedelta) else time or 0
