"""The DAG for those whose stages run on Kubeflow Pipelines or Vertex AI: it waits, submits the pipeline, and waits.

1. resolve, wait_for_window, start: as in dag.py.
2. submit: `python -m relex_kfp submit`, which submits the same window once, whoever asks and how often.
3. wait_for_outcome: deferred until RUN/published.json is there for this spec. The orchestrator is asked as well: a
   pipeline that ended without an outcome fails this task, with the orchestrator's message.
4. outcome: what to use, as the task's value and as an asset event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, TriggerRule, chain, task

from relex_airflow.operators import LocalStage
from relex_airflow.outcomes import OutcomeSensor, Target
from relex_airflow.params import params_of
from relex_airflow.sensors import WindowSensor
from relex_airflow.tasks import OUTLET, RESOLVED, SPEC, claim, resolve_params, tell_outcome

SUBMITTED = "{{ ti.xcom_pull(task_ids='submit') }}"


def build_submission_dag(
    dag_id: str,
    target: Target,
    python: str,
    environment: Mapping[str, str],
    *,
    spec: Mapping[str, Any] | None = None,
    gcp_conn_id: str | None = None,
    window_hours: float = 7 * 24,
    outcome_hours: float = 4 * 24,
    poke_seconds: float = 60,
    **options: Any,
) -> DAG:
    """One run of this DAG has one RL run decided on by a pipeline elsewhere.

    Args:
        python: interpreter of an environment with relex, for Kubeflow with its extra `kfp`: not Airflow's own.
        environment: RELEX_PIPELINE, KF_PIPELINES_ENDPOINT and so on (docs/kubeflow.md). RELEX_SHARDS is in the form.
        spec: as much of the spec as all runs share; shown in the form.
        gcp_conn_id: connection whose account reads the storage, and submits; None: application-default credentials.
        window_hours, outcome_hours: how long the two sensors wait.
        options: of `airflow.sdk.DAG`, in place of the usual ones.
    """
    waiting = {"spec": RESOLVED, "poke_interval": poke_seconds, "gcp_conn_id": gcp_conn_id}
    usual = {
        "schedule": None,
        "start_date": datetime(2026, 1, 1),
        "catchup": False,
        "params": params_of(spec or {}),
        "doc_md": __doc__,
        "tags": ["relex"],
    }
    with DAG(
        dag_id,
        default_args={"retries": 2, "retry_delay": timedelta(seconds=30), **options.pop("default_args", {})},
        **(usual | options),
    ) as dag:
        resolved = task(resolve_params, task_id="resolve", multiple_outputs=True, retries=0)()
        window = WindowSensor(task_id="wait_for_window", timeout=3600 * window_hours, **waiting)
        started = task.branch(claim, task_id="start")(gcp_conn_id, goes_on="submit")
        submit = LocalStage(
            task_id="submit",
            python=python,
            module="relex_kfp",
            answers=True,
            arguments=["submit", target, SPEC],
            environment={**environment, "RELEX_SHARDS": "{{ params.shards }}"},
            gcp_conn_id=gcp_conn_id,
            doc_md="Submits the compiled pipeline, unless it was submitted for this window, spec and image before.",
        )
        decided = OutcomeSensor(
            task_id="wait_for_outcome",
            target=target,
            pipeline_run=SUBMITTED,
            python=python,
            environment=dict(environment),
            timeout=3600 * outcome_hours,
            **waiting,
        )
        outcome = task(
            tell_outcome, task_id="outcome", outlets=[OUTLET], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
        )(gcp_conn_id)
        chain(resolved, window, started, submit, decided, outcome)
        started >> outcome  # type: ignore[operator]
    return dag
