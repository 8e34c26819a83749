"""The event-driven DAG: for many RL runs whose windows complete at unknown times, without a waiting task for each.

Events are wake-ups, never the record: they may get lost, or come twice. Every run of this DAG lists anew which windows
are complete and not decided on yet, and starts a run of the main DAG for each, under a name that follows from window,
spec and questions: whatever woke it up, and however often, there is one. A time-table wakes it up as well, so a lost
event costs time and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable, task
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from relex_airflow.credentials import google_credentials
from relex_airflow.judgement import judge
from relex_airflow.params import params_of, resolve
from relex_airflow.triggers import WindowTrigger
from relex_core.manifest import short_digest, spec_digest
from relex_core.questions import questions_digest
from relex_core.spec import RunSpec


class AnyWindowTrigger(BaseEventTrigger):
    """An event whenever a window is complete and not decided on, one look at a time.

    Args:
        specs: resolved specs as JSON.
        interval: seconds between two looks at all of them.
        gcp_conn_id: connection whose account reads the storage; None: application-default credentials.
    """

    def __init__(self, specs: Sequence[str], interval: float = 300, gcp_conn_id: str | None = None) -> None:
        super().__init__()
        self.specs, self.interval, self.gcp_conn_id = list(specs), interval, gcp_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        fields = {"specs": self.specs, "interval": self.interval, "gcp_conn_id": self.gcp_conn_id}
        return f"{type(self).__module__}.{type(self).__qualname__}", fields

    async def run(self) -> AsyncIterator[TriggerEvent]:
        told: set[str] = set()
        while True:
            for spec in self.specs:
                judgement = await WindowTrigger(spec, 0, 0, 0, self.gcp_conn_id).look()
                if judgement.verdict == "ready" and judgement.digest not in told:
                    told.add(judgement.digest)
                    yield TriggerEvent({"manifest": judgement.manifest})
            await asyncio.sleep(self.interval)


def build_wakeup_dag(
    dag_id: str,
    runs: Sequence[Mapping[str, Any]],
    *,
    starts: str = "relex",
    cron: str = "*/30 * * * *",
    watcher: BaseEventTrigger | None = None,
    gcp_conn_id: str | None = None,
    **options: Any,
) -> DAG:
    """Start the DAG `starts` for every complete window of `runs` that is not decided on.

    Args:
        runs: parameters of runs of that DAG: base, trajectory, t_cut, spec, ...
        cron: the time-table that wakes it up in any case.
        watcher: what else wakes it up, for example MessageQueueTrigger on a bucket's notifications; None: it looks at
            the storage every five minutes.
        gcp_conn_id: connection whose account reads the storage; None: application-default credentials.
        options: of `airflow.sdk.DAG`, in place of the usual ones; the schedule is its own.
    """
    forms = [{name: param.value for name, param in params_of({}).items()} | dict(run) for run in runs]
    specs = [resolve(form).model_dump_json(exclude_defaults=True) for form in forms]
    trigger = watcher or AnyWindowTrigger(specs, gcp_conn_id=gcp_conn_id)
    woken = Asset(name=f"{dag_id}_wakeup", watchers=[AssetWatcher(name=f"{dag_id}_watcher", trigger=trigger)])
    usual = {
        "start_date": datetime(2026, 1, 1),
        "catchup": False,
        "max_active_runs": 1,
        "doc_md": __doc__,
        "tags": ["relex"],
    }
    with DAG(
        dag_id,
        schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable(cron, timezone="UTC"), assets=[woken]),
        **(usual | options),
    ) as dag:
        TriggerDagRunOperator.partial(
            task_id="start", trigger_dag_id=starts, skip_when_already_exists=True, retries=2
        ).expand_kwargs(task(due, task_id="due", retries=2)(forms, gcp_conn_id))
    return dag


def due(forms: Sequence[Mapping[str, Any]], gcp_conn_id: str | None = None) -> list[dict[str, Any]]:
    """The runs to start: their parameters, and a name that is the same for the same window, spec and questions."""
    found = []
    with google_credentials(gcp_conn_id):
        for form in forms:
            spec = resolve(form)
            judgement = judge(spec)
            print(f"{spec.run_root}: {judgement.verdict} {judgement.message}")
            if judgement.verdict == "ready":
                found.append({"conf": dict(form), "trigger_run_id": _name(spec, judgement.digest)})
    return found


def _name(spec: RunSpec, window: str) -> str:
    facts = {"run": spec.run_root, "spec": spec_digest(spec), "window": window, "questions": questions_digest(spec)}
    return f"relex-{short_digest(facts)}"
