"""The small tasks between the stages: functions that Airflow calls, each in a process of its own."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, get_current_context
from airflow.sdk.exceptions import AirflowFailException

from relex_airflow.checks import read_json
from relex_airflow.credentials import google_credentials
from relex_airflow.params import resolve
from relex_core import layout
from relex_core.collect import claim_run_directory
from relex_core.errors import SpecError
from relex_core.manifest import load_manifest
from relex_core.publish import published
from relex_core.spec import RunSpec
from relex_core.stages import Work, plan_work

RESOLVED = "{{ ti.xcom_pull(task_ids='resolve', key='spec') }}"
PUBLISHED = Asset(name="relex_published", uri="relex://published")
"""An event when a run of the DAG has its outcome, which is in the event's `extra`."""

RUN = "{{ ti.xcom_pull(task_ids='resolve', key='run') }}"
SPEC = f"{RUN}/{layout.SPEC}"
DIGEST = "{{ ti.xcom_pull(task_ids='collect.check')['digest'] }}"
BRANCHES = {"promote": "promote", "keep_observed": "keep_observed", "not_ready": "undecided"}


def resolve_params() -> dict[str, str]:
    """The spec of this run of the DAG, from its parameters."""
    try:
        spec = resolve(get_current_context()["params"])
    except SpecError as error:
        raise AirflowFailException(f"SpecError: {error}") from error
    return {"spec": spec.model_dump_json(exclude_defaults=True), "run": spec.run_root}


def claim(gcp_conn_id: str | None, goes_on: str = "collect.run") -> str:
    """Claim the run directory, and go on; or end with the outcome, if this spec's is published already."""
    pull = get_current_context()["ti"].xcom_pull
    if pull(task_ids="wait_for_window")["verdict"] == "done":
        return "outcome"
    try:
        with google_credentials(gcp_conn_id):
            claim_run_directory(RunSpec.model_validate_json(pull(task_ids="resolve", key="spec")))
    except SpecError as error:  # another spec's
        raise AirflowFailException(f"SpecError: {error}") from error
    return goes_on


def shard_names(gcp_conn_id: str | None) -> list[str]:
    """The parts of the fit: "1/3", "2/3", "3/3"."""
    return list(_planned(gcp_conn_id).shards)


def candidate_names(gcp_conn_id: str | None) -> list[str]:
    """The candidates to write and measure."""
    return list(_planned(gcp_conn_id).candidates)


def _planned(gcp_conn_id: str | None) -> Work:
    context = get_current_context()
    spec = RunSpec.model_validate_json(context["ti"].xcom_pull(task_ids="resolve", key="spec"))
    with google_credentials(gcp_conn_id):
        return plan_work(spec, load_manifest(spec.run_root), context["params"]["shards"])


def follow_decision(gcp_conn_id: str | None) -> str:
    """Follow the decision."""
    with google_credentials(gcp_conn_id):
        return BRANCHES[read_json(_run(), layout.DECISION)["decision"]]


def tell_outcome(gcp_conn_id: str | None) -> dict[str, Any]:
    """Which checkpoint to use: RUN/published.json."""
    with google_credentials(gcp_conn_id):
        found = published(_run()).model_dump(exclude={"spec_digest"})
    get_current_context()["outlet_events"][PUBLISHED].extra = {"run": _run(), **found}
    return found


def _run() -> str:
    return str(get_current_context()["ti"].xcom_pull(task_ids="resolve", key="run"))
