"""The DAG that submits a compiled pipeline, run by Airflow against servers on loopback that imitate both APIs.

The pipeline itself is run here by `relex run`, with the arguments that were submitted: no cluster takes part.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow_support import DEFERRED, RELEX_PYTHON, ROOT, dags_test, make_run, states
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fake_pipelines import FakeApi, fake_api
from test_sensor import folder, spec_of  # noqa: F401

from relex_airflow.outcomes import OutcomeSensor, OutcomeTrigger, Target
from relex_airflow.params import resolve

COMPILED = ROOT / "pipelines/relex_pipeline/compiled"
PIPELINES = {"kfp": COMPILED / "relex-kubernetes.yaml", "vertex": COMPILED / "relex-vertex.yaml"}
KINDS = {"kfp": ("runs", "run_id", ""), "vertex": ("jobs", "name", "PIPELINE_STATE_")}

DAGS = """
import json, os
from relex_airflow.submission import build_submission_dag
for target in ("kfp", "vertex"):
    globals()[target] = build_submission_dag(
        f"relex_{target}", target, os.environ["RELEX_PYTHON"], json.loads(os.environ["TARGET"]), poke_seconds=1
    )
"""


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as server:
        yield server


def account(api: FakeApi, place: Path) -> str:
    """The key of a service account whose tokens come from the server."""
    key = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fields = {"type": "service_account", "client_email": "relex@my-project", "private_key": key.decode()}
    (place / "key.json").write_text(json.dumps({**fields, "token_uri": f"{api.url}/token"}))
    return str(place / "key.json")


def settings(api: FakeApi, target: str, place: Path) -> dict[str, str]:
    """What names the cluster (docs/kubeflow.md)."""
    found = {"RELEX_PIPELINE": str(PIPELINES[target]), "RELEX_SERVICE_ACCOUNT": "relex"}
    if target == "kfp":
        return found | {"KF_PIPELINES_ENDPOINT": api.url}
    project = {"GOOGLE_CLOUD_PROJECT": "my-project", "GOOGLE_CLOUD_REGION": "europe-west4"}
    there = {"RELEX_PIPELINE_ROOT": "gs://artifacts", "RELEX_VERTEX_ENDPOINT": api.url}
    return found | project | there | {"GOOGLE_APPLICATION_CREDENTIALS": account(api, place)}


def arguments(target: str, submitted: dict[str, Any]) -> dict[str, Any]:
    config = submitted["runtime_config" if target == "kfp" else "runtimeConfig"]
    found: dict[str, Any] = config["parameters" if target == "kfp" else "parameterValues"]
    return found


def run_dag(
    home: Path, place: Path, api: FakeApi, target: str, params: dict[str, Any], publishes: bool, state: dict[str, Any]
) -> tuple[int, str]:
    """Run it; while it waits for the outcome the pipeline runs, or does not, and ends. Returns status and log."""
    (place / "dags").mkdir(exist_ok=True)
    (place / "dags/submission.py").write_text(DAGS)
    more = {"AIRFLOW__CORE__DAGS_FOLDER": str(place / "dags"), "TARGET": json.dumps(settings(api, target, place))}
    kind, field, prefix = KINDS[target]
    log = []
    with dags_test(home, params, f"relex_{target}", **more) as process:
        assert process.stdout
        for line in process.stdout:
            log.append(line)
            if DEFERRED not in line:
                continue
            [submitted] = api.made[kind]
            name = submitted[field]
            asked, api.states[name] = api.asked[name], {"state": f"{prefix}RUNNING"}
            while api.asked[name] < asked + 2:  # it was told that the run goes on, and waits
                assert process.poll() is None, "".join(log)
                time.sleep(0.1)
            if publishes:
                (place / "submitted.json").write_text(arguments(target, submitted)["spec"])
                command = [RELEX_PYTHON, "-m", "relex_core", "run", str(place / "submitted.json")]
                subprocess.run(command, check=True, capture_output=True, cwd="/")
            api.states[name] = {**state, "state": f"{prefix}{state['state']}"}
        return process.wait(), "".join(log)


@pytest.mark.usefixtures("relex_reports")
@pytest.mark.parametrize("target", ["kfp", "vertex"])
def test_the_pipeline_is_submitted_once_and_its_outcome_waited_for(
    target: str, airflow_home: Path, tmp_path: Path, api: FakeApi
) -> None:
    params = make_run(tmp_path, candidates=0.9, last_observed=0.3, targets=[20]) | {"shards": 3}
    status, log = run_dag(airflow_home, tmp_path, api, target, params, True, {"state": "SUCCEEDED"})
    assert status == 0, log[-3000:]
    assert log.count(DEFERRED) == 1
    seen = states(airflow_home)
    assert set(seen.values()) == {"success"} and "outcome" in seen

    [submitted] = api.made[KINDS[target][0]]
    assert arguments(target, submitted) == {"spec": resolve(params).model_dump_json(), "shards": 3}
    pipeline, *platform = yaml.safe_load_all(PIPELINES[target].read_text())
    if target == "kfp":
        assert submitted["pipeline_spec"] == {"pipeline_spec": pipeline, "platform_spec": platform[0]}
        assert submitted["service_account"] == "relex"
    else:
        assert submitted["pipelineSpec"] == pipeline
        assert submitted["name"].startswith("projects/my-project/locations/europe-west4/pipelineJobs/relex-")
    assert json.loads((tmp_path / "run/published.json").read_text())["decision"] == "promote"


def test_a_pipeline_that_failed_fails_the_task_with_its_message(
    airflow_home: Path, tmp_path: Path, api: FakeApi
) -> None:
    params = make_run(tmp_path, candidates=0.9, last_observed=0.3, targets=[20]) | {"shards": 1}
    failed = {"state": "FAILED", "error": {"code": 9, "message": "the pod fit was evicted"}}
    status, log = run_dag(airflow_home, tmp_path, api, "kfp", params, False, failed)
    assert status != 0
    seen = states(airflow_home)
    assert (seen["submit"], seen["wait_for_outcome"]) == ("success", "failed")
    run = api.made["runs"][0]["run_id"]
    assert f"the run {run} ended as FAILED without an outcome. the pod fit was evicted" in log
    assert log.count(DEFERRED) == 1, "it is not tried again"


RUNS = {"kfp": "run-1", "vertex": "projects/my-project/locations/europe-west4/pipelineJobs/relex-1"}


@pytest.mark.parametrize(
    ("target", "state", "verdict", "message"),
    [
        ("kfp", "RUNNING", "ready", "the run run-1 is RUNNING"),
        ("kfp", "SUCCEEDED", "refused", "the run run-1 ended as SUCCEEDED without an outcome."),
        ("vertex", "FAILED", "refused", "/relex-1 ended as FAILED without an outcome. quota"),
        ("vertex", "deleted", "refused", "DataError: there is no run projects/my-project"),
        ("kfp", "unreachable", "unreachable", "StorageError: Kubeflow's API failed"),
    ],
)
def test_what_the_trigger_sees(
    target: Target,
    state: str,
    verdict: str,
    message: str,
    folder: Path,  # noqa: F811
    api: FakeApi,
) -> None:
    run, (kind, field, prefix) = RUNS[target], KINDS[target]
    environment = settings(api, target, folder)
    if state == "unreachable":
        with fake_api() as gone:
            environment["KF_PIPELINES_ENDPOINT"] = gone.url
    elif state != "deleted":
        api.made[kind].append({field: run})
        api.states[run] = {"state": prefix + state} | ({"error": {"message": "quota"}} if state == "FAILED" else {})
    made = OutcomeSensor(
        task_id="wait",
        target=target,
        pipeline_run=run,
        python=RELEX_PYTHON,
        environment=environment,
        spec=spec_of(folder).model_dump_json(exclude_defaults=True),
        timeout=60,
    )
    with pytest.raises(TaskDeferred) as deferred:
        made.execute({})
    path, fields = deferred.value.trigger.serialize()
    assert path == "relex_airflow.outcomes.OutcomeTrigger"
    seen = asyncio.run(OutcomeTrigger(**json.loads(json.dumps(fields))).look())
    assert (seen.verdict, message in seen.message) == (verdict, True), seen.message
    if seen.ends("published"):
        with pytest.raises(AirflowFailException, match=re.escape(message)):
            made.resume_execution("resumed", {"event": seen.model_dump()}, {})
