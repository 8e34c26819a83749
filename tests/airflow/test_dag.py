"""The DAG as Airflow sees it: imported, serialized, held against the stage table, with a form that refuses nonsense."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.definitions.param import ParamsDict, ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from airflow_support import ROOT

from relex_airflow.dag import build_dag
from relex_airflow.links import report_url
from relex_airflow.operators import CheckStage
from relex_airflow.params import params_of, resolve
from relex_airflow.places import STARTUP_MINUTES, Local, Pods
from relex_airflow.tasks import BRANCHES, RUN, SPEC
from relex_core.errors import SpecError
from relex_core.stages import BY_NAME, STAGES

EVALUATION = {
    "select": {"task": {"name": "a", "file": "/q/a.jsonl"}},
    "confirm": {"task": {"name": "b", "file": "/q/b.jsonl"}},
}
PLACES = {"local": Local(python="/venv/bin/python"), "pods": Pods(image="registry.example/relex@sha256:0")}


@pytest.fixture(params=PLACES)
def dag(request: pytest.FixtureRequest) -> DAG:
    return build_dag("relex", PLACES[request.param])


def stage_tasks(dag: DAG) -> dict[str, Any]:
    """Every task that runs a stage, by its id; each is followed by its check."""
    checks = [task for task in dag.tasks if task.task_type == "CheckStage"]
    pairs = [(task, check) for check in checks for task in check.upstream_list]
    return {task.task_id: (task, check) for task, check in pairs if hasattr(task, "arguments")}


def test_the_ready_dag_is_imported_without_errors() -> None:
    bag = DagBag(str(ROOT / "pipelines/dags"))
    assert not bag.import_errors
    assert "relex" in bag.dags


def test_it_survives_serialization(dag: DAG) -> None:
    stored = json.dumps(DagSerialization.to_dict(dag))
    again = DagSerialization.from_dict(json.loads(stored))
    assert [task.task_id for task in again.tasks] == [task.task_id for task in dag.tasks]
    for task in dag.tasks:
        assert again.get_task(task.task_id).downstream_task_ids == task.downstream_task_ids
    assert len(stored) < 120_000


def test_every_stage_of_the_table_but_the_gate_is_run_and_checked(dag: DAG) -> None:
    found = stage_tasks(dag)
    stages = [check.stage for _, check in found.values()]
    assert sorted(set(stages)) == sorted(stage.name for stage in STAGES if stage.name != "gate")
    assert stages.count("measure") == 2, "candidates and references"
    for runs, check in found.values():
        stage = BY_NAME[check.stage]
        known = {"spec": SPEC, "run": RUN}
        for part, given in zip(stage.command, runs.arguments, strict=True):
            if part.strip("{}") in ("shard", "candidate"):
                assert not isinstance(given, str), "known when the task runs"
            else:
                assert given == (known[part[1:-1]] if part.startswith("{") else part)
        assert runs.retries == stage.retries
        startup = 0 if runs.task_type == "LocalStage" else STARTUP_MINUTES
        assert runs.execution_timeout == timedelta(minutes=stage.minutes + startup)
        assert stage.name in check.stage and runs.doc_md and "killed" in runs.doc_md


def test_the_order_is_the_tables(dag: DAG) -> None:
    def before(task_id: str) -> set[str]:
        return {name.partition(".")[0] for name in dag.get_task(task_id).get_flat_relative_ids(upstream=True)}

    order = ["resolve", "wait_for_window", "start", "collect", "each_shard", "merge_fit", "each_candidate", "evaluate"]
    order += ["decide", "branch", "report", "publish", "outcome"]
    firsts = {"each_shard": "each_shard.fit", "each_candidate": "each_candidate.extrapolate"}
    for place, name in enumerate(order):
        task_id = firsts.get(name, f"{name}.run" if name in BY_NAME else name)
        assert set(order[:place]) <= before(task_id), name
    assert "forecast" in before("report.run")
    assert "each_reference" in before("evaluate.run")
    assert dag.get_task("branch").downstream_task_ids == set(BRANCHES.values())


def test_candidates_are_bounded() -> None:
    dag = build_dag("relex", PLACES["pods"], parallelism=3)
    for name in ("each_candidate.extrapolate", "each_candidate.measure", "each_reference.measure"):
        assert dag.get_task(name).max_active_tis_per_dagrun == 3


def params(**given: Any) -> dict[str, Any]:
    return filled({}, **{"base": "/m", "trajectory": "/t", "t_cut": 5, "spec": {"evaluation": EVALUATION}, **given})


def filled(defaults: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The form with some fields filled in."""
    form = ParamsDict(params_of(defaults))
    form.update(given)
    return form.validate()


def test_the_form_gives_a_spec() -> None:
    spec = resolve(params(run_root="gs://b/run"))
    assert (spec.base, spec.trajectory, spec.window.t_cut, spec.run_root) == ("/m", "/t", 5, "gs://b/run")
    shared = {"base": "gs://b/m", "window": {"t_cut": 7, "first": 3}, "evaluation": EVALUATION}
    spec = resolve(filled(shared, trajectory="gs://b/t"))
    assert (spec.base, spec.window.first, spec.window.t_cut, spec.run_root) == ("gs://b/m", 3, 7, "gs://b/t/relex")
    spec = resolve(filled({**shared, "window": {"t_cut": "0100"}}, trajectory="gs://b/t"))  # as YAML leaves it
    assert spec.window.t_cut == 100


@pytest.mark.parametrize(
    "wrong", [{"base": "relative"}, {"t_cut": 0}, {"t_cut": "many"}, {"shards": 0}, {"spec": {"evaluations": {}}}]
)
def test_the_form_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParamValidationError):
        params(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"spec": {}}, "no evaluation"), ({"t_cut": None}, "window"), ({"base": ""}, "base: required")],
)
def test_the_first_task_refuses_the_rest(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(params(**wrong))


def test_the_report_link() -> None:
    assert report_url("gs://rl runs/a") == "https://storage.cloud.google.com/rl%20runs/a/report.html"
    assert report_url("/data/run") == "file:///data/run/report.html"
    check = CheckStage(task_id="check", stage="report", run="gs://b/run")
    [link] = check.operator_extra_links
    assert link.get_link(check, ti_key=None) == "https://storage.cloud.google.com/b/run/report.html"
