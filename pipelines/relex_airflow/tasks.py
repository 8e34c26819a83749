"""The small tasks between the stages: functions that Airflow calls, each in a process of its own."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, AssetAlias, get_current_context
from airflow.sdk.exceptions import AirflowFailException

from relex_airflow.checks import read_json
from relex_airflow.credentials import google_credentials
from relex_airflow.params import resolve
from relex_core import layout
from relex_core.collect import claim_run_directory
from relex_core.errors import SpecError
from relex_core.manifest import load_manifest
from relex_core.publish import NOTHING_YET, finished_outcome
from relex_core.spec import RunSpec
from relex_core.stages import Work, plan_work

RESOLVED = "{{ ti.xcom_pull(task_ids='resolve', key='spec') }}"
PUBLISHED = Asset(name="relex_published", uri="relex://published")
"""An event when a run of the DAG has its outcome, which is in the event's `extra`."""
OUTLET = AssetAlias(name="relex_published")
"""Of the task `outcome`: every success of a task is an event of its assets, but of an alias only those that it adds."""

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
    seen = get_current_context()["ti"].xcom_pull(task_ids="wait_for_window")
    if seen["verdict"] == "done":
        return "outcome"
    try:
        with google_credentials(gcp_conn_id):
            claim_run_directory(_spec())
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
    spec = _spec()
    with google_credentials(gcp_conn_id):
        return plan_work(spec, load_manifest(spec.run_root), get_current_context()["params"]["shards"])


def follow_decision(gcp_conn_id: str | None) -> str:
    """Follow the decision."""
    with google_credentials(gcp_conn_id):
        return BRANCHES[read_json(_run(), layout.DECISION)["decision"]]


def tell_outcome(gcp_conn_id: str | None) -> dict[str, Any]:
    """Which checkpoint to use: RUN/published.json. One of another spec or other questions is none, and no event."""
    spec = _spec()
    with google_credentials(gcp_conn_id):
        found = finished_outcome(spec)
    told = (found or NOTHING_YET).model_dump(exclude={"spec_digest", "questions_digest"})
    if found is not None:
        get_current_context()["outlet_events"][OUTLET].add(PUBLISHED, extra={"run": spec.run_root, **told})
    return told


def _spec() -> RunSpec:
    return RunSpec.model_validate_json(get_current_context()["ti"].xcom_pull(task_ids="resolve", key="spec"))


def _run() -> str:
    return str(get_current_context()["ti"].xcom_pull(task_ids="resolve", key="run"))
