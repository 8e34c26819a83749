"""The DAG: an observation window in, a decision out.

1. resolve: the spec, from the run's parameters.
2. wait_for_window: deferred until the window is complete.
3. start: nothing is left to do if this spec's outcome is published; else the run directory is claimed.
4. collect; shards and candidates: what can go on in parallel.
5. each_shard: fit; then merge_fit; then forecast.
6. each_candidate: extrapolate, measure; each_reference: measure. At most `parallelism` of each at the same time.
7. evaluate, decide; branch: promote, keep_observed or undecided.
8. report, publish; outcome: what to use, as the task's value and as an asset event.

Every stage of relex_core.stages but the gate, which is the sensor here, is a task group: the stage itself, and a check
of what it left. Weights never pass through Airflow; values are a few hundred bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, TriggerRule, chain, task

from relex_airflow.groups import StageGroups, candidates_of, fits, references_of
from relex_airflow.params import params_of
from relex_airflow.places import Place
from relex_airflow.sensors import WindowSensor
from relex_airflow.tasks import (
    BRANCHES,
    OUTLET,
    RESOLVED,
    candidate_names,
    claim,
    follow_decision,
    resolve_params,
    shard_names,
    tell_outcome,
)
from relex_core.stages import REFERENCES


def build_dag(
    dag_id: str,
    place: Place,
    *,
    spec: Mapping[str, Any] | None = None,
    schedule: Any = None,
    start_date: datetime | None = None,
    parallelism: int = 8,
    gcp_conn_id: str | None = None,
    window_hours: float = 7 * 24,
    poke_seconds: float = 60,
    soft_fail: bool = False,
    params: Mapping[str, Param] | None = None,
    **options: Any,
) -> DAG:
    """One run of this DAG decides on one RL run; runs for different RL runs may go on at the same time.

    Args:
        place: where the stages run (places.py).
        spec: as much of the spec as all runs share; shown in the form, where a run may change it.
        schedule: of Airflow; with one, `spec` must be complete.
        parallelism: candidates that are written and measured at the same time.
        gcp_conn_id: connection with which the sensor, the checks and the small tasks between them read the storage.
            None: application-default credentials. Pods have an identity of their own.
        window_hours: how long the sensor waits.
        poke_seconds: between its first looks.
        soft_fail: an RL run that ends before its window is complete skips the run of the DAG, instead of failing it.
        params: of the form, in place of the usual ones.
        options: of `airflow.sdk.DAG`, in place of the usual ones.
    """
    group = StageGroups(place, gcp_conn_id)
    usual = {"catchup": False, "max_active_runs": 16, "doc_md": __doc__, "tags": ["relex"]}
    with DAG(
        dag_id,
        schedule=schedule,
        start_date=start_date or datetime(2026, 1, 1),
        params=dict(params or params_of(spec or {})),
        default_args={"retries": 2, "retry_delay": timedelta(seconds=30), **options.pop("default_args", {})},
        **(usual | options),
    ) as dag:
        resolved = task(resolve_params, task_id="resolve", multiple_outputs=True, retries=0)()
        window = WindowSensor(
            task_id="wait_for_window",
            spec=RESOLVED,
            timeout=3600 * window_hours,
            poke_interval=poke_seconds,
            soft_fail=soft_fail,
            gcp_conn_id=gcp_conn_id,
            doc_md=WindowSensor.__doc__,
        )
        started = task.branch(claim, task_id="start")(gcp_conn_id)
        collected = group("collect")
        shards = task(shard_names, task_id="shards")(gcp_conn_id)
        names = task(candidate_names, task_id="candidates")(gcp_conn_id)
        merged, forecast, evaluated, decided = (group(n) for n in ("merge_fit", "forecast", "evaluate", "decide"))
        fitted = fits(group, shards)
        candidates = candidates_of(group, names, parallelism)
        references = references_of(group, list(REFERENCES), parallelism)
        branched = task.branch(follow_decision, task_id="branch")(gcp_conn_id)
        branches = [
            EmptyOperator(task_id=name, doc_md=f"After the decision `{key}`.") for key, name in BRANCHES.items()
        ]
        reported = group("report", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
        done = group("publish")
        outcome = task(
            tell_outcome,
            task_id="outcome",
            outlets=[OUTLET],
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        )(gcp_conn_id)

        chain(resolved, window, started, collected, [shards, names, references])
        chain(fitted, merged, [forecast, candidates])
        chain([candidates, references], evaluated, decided, branched, branches, reported, done, outcome)
        chain(forecast, reported)
        started >> outcome  # type: ignore[operator]
    return dag
