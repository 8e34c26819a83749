"""The DAG, run by Airflow from end to end: every stage a process of its own, in the environment that has torch."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow_support import (
    DEFERRED,
    RELEX_PYTHON,
    ROOT,
    dags_test,
    events,
    gives_what_relex_run_gives,
    go_on,
    hold_back,
    make_run,
    states,
)

from relex_airflow.params import resolve
from relex_core.manifest import spec_digest
from relex_core.questions import questions_digest

pytestmark = pytest.mark.usefixtures("relex_reports")
T_CUT = 8


def run_dag(home: Path, params: dict[str, Any], folder: Path, **environment: str) -> str:
    """Run it once; what was held back of the trajectory comes when the sensor has deferred. Returns the log."""
    log = []
    with dags_test(home, params, **environment) as process:
        assert process.stdout
        for line in process.stdout:
            log.append(line)
            if DEFERRED in line and "each_" not in line:
                go_on(folder)
        assert process.wait() == 0, "".join(log[-100:])
    return "".join(log)


def test_the_window_completes_while_the_sensor_is_deferred_and_a_candidate_is_promoted(
    airflow_home: Path, tmp_path: Path
) -> None:
    params = make_run(tmp_path, candidates=0.9, last_observed=0.3, targets=[20]) | {"shards": 2}
    hold_back(tmp_path, T_CUT)
    log = run_dag(airflow_home, params, tmp_path)
    assert log.count(DEFERRED) == 1
    seen = states(airflow_home)
    assert (seen["promote"], seen["keep_observed"], seen["undecided"]) == ("success", "skipped", "skipped")
    assert {state for task, state in seen.items() if task not in ("keep_observed", "undecided")} == {"success"}
    outcome = json.loads((tmp_path / "run/published.json").read_text())
    assert (outcome["decision"], outcome["training_steps_saved"]) == ("promote", 12)
    assert (tmp_path / "run/report.html").stat().st_size
    [event] = [event for event in events(airflow_home) if event["run"] == params["run_root"]]
    assert event["decision"] == "promote" and event.items() <= {"run": params["run_root"], **outcome}.items()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    log = run_dag(airflow_home, params, tmp_path)
    assert DEFERRED not in log
    seen = states(airflow_home)
    assert (seen["start"], seen["collect.run"], seen["publish.run"], seen["outcome"]) == (
        "success",
        "skipped",
        "skipped",
        "success",
    )
    assert events(airflow_home)[-2:] == [event, event], "an outcome that is there already is told again"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


OUTCOME = """
from airflow.sdk import DAG, task
from relex_airflow.params import params_of
from relex_airflow.tasks import OUTLET, resolve_params, tell_outcome

with DAG("relex_outcome", params=params_of({}), schedule=None) as dag:
    told = task(tell_outcome, task_id="outcome", outlets=[OUTLET])(None)
    task(resolve_params, task_id="resolve", multiple_outputs=True)() >> told
"""
"""The two tasks by themselves."""


def told(home: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The values of all outcomes so far, and the `extra` of all events of the asset."""
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        query = "select value from xcom where task_id = 'outcome' and key = 'return_value' order by dag_run_id"
        values = [json.loads(value) for (value,) in database.execute(query).fetchall()]
        query = "select asset_event.extra from asset_event join asset on asset.id = asset_id where name = ? order by 1"
        events = database.execute(query, ["relex_published"]).fetchall()
    return values, [json.loads(extra) for (extra,) in events]


def test_an_outcome_of_another_spec_is_not_told(airflow_home: Path, tmp_path: Path) -> None:
    places = {"AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags")}
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/outcome.py").write_text(OUTCOME)
    splits = {name: {"task": {"name": name, "file": str(tmp_path / f"{name}.jsonl")}} for name in ("select", "confirm")}
    for name in splits:
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    params = {"base": "/b", "trajectory": "/t", "t_cut": 8, "run_root": str(tmp_path / "run")}
    params |= {"spec": {"evaluation": splits}}
    spec = resolve({"shards": 1, **params})
    digests = {"spec_digest": spec_digest(spec), "questions_digest": questions_digest(spec)}
    fields = {"decision": "promote", "candidate": "a", "checkpoint_uri": "/a", "training_steps_saved": 12}
    fields |= {"window_digest": "sha256:1"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/published.json").write_text(json.dumps(fields | digests))
    before = told(airflow_home)[1]
    with dags_test(airflow_home, params, "relex_outcome", **places) as process:
        log, _ = process.communicate()
        assert process.returncode == 0, log[-3000:]
    values, events = told(airflow_home)
    assert values[-1] == fields
    assert [event for event in events if event not in before] == [{"run": params["run_root"], **fields}]

    other = params | {"spec": {"evaluation": splits, "decision": {"min_gain": 0.1}}}
    with dags_test(airflow_home, other, "relex_outcome", **places) as process:
        log, _ = process.communicate()
        assert process.returncode == 0, log[-3000:]
    values, after = told(airflow_home)
    assert [values[-1][name] for name in ("decision", "candidate", "checkpoint_uri")] == ["not_ready", "", ""]
    assert after == events


IMPATIENT = """# Airflow reads only files in which both its name and "dag" occur.
import runpy
from datetime import timedelta

dag = runpy.run_path("{ready}")["dag"]
for task in dag.tasks:
    task.retry_delay = timedelta(seconds=1)
"""
"""The ready DAG; a task that failed waits for a second, not for a minute."""

KILLED_ONCE = """#!/bin/sh
if [ "$3" = fit ] && [ ! -e {folder}/killed ]; then
  touch {folder}/killed
  {python} "$@" & fit=$!
  while [ -z "$(ls {folder}/run/fit 2>/dev/null)" ] && kill -0 $fit; do sleep 0.05; done
  kill -9 $fit
  kill -9 $$
fi
exec {python} "$@"
"""


def test_a_task_that_was_killed_is_tried_again_and_the_result_is_that_of_relex_run(
    airflow_home: Path, tmp_path: Path
) -> None:
    params = make_run(tmp_path, candidates=0.1, last_observed=0.5, targets=[20])
    wrapper = tmp_path / "python"
    wrapper.write_text(KILLED_ONCE.format(folder=tmp_path, python=RELEX_PYTHON))
    wrapper.chmod(0o755)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/impatient.py").write_text(IMPATIENT.format(ready=ROOT / "pipelines/dags/relex_dag.py"))
    changed = {"RELEX_PYTHON": str(wrapper), "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags")}
    log = run_dag(airflow_home, params, tmp_path, **changed)
    assert "relex fit ended with status -9" in log
    seen = states(airflow_home)
    assert (seen["promote"], seen["keep_observed"]) == ("skipped", "success")

    gives_what_relex_run_gives(params)
