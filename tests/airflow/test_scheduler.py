"""A real Airflow of one machine, with scheduler, triggerer and REST: wake-ups, a task cleared, two runs at once.

The submitted pipelines are run by `relex run`, behind a server that imitates Kubeflow's API.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow_support import RELEX_PYTHON, ROOT, environment, gives_what_relex_run_gives, go_on, hold_back, make_run
from fake_pipelines import FakeApi, fake_api

sys.path.append(str(ROOT / "examples"))
from airflow_standalone import free_port, session_of, standalone

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relex_reports")]

DAGS = """
import json, os
from pathlib import Path
from relex_airflow.dag import build_dag
from relex_airflow.params import params_of, resolve
from relex_airflow.places import Local
from relex_airflow.submission import build_submission_dag
from relex_airflow.wakeups import AnyWindowTrigger, build_wakeup_dag

settings = json.loads(Path(os.environ["TEST_SETTINGS"]).read_text())
told, untold = settings["told"], settings["untold"]
spec = resolve({name: param.value for name, param in params_of({}).items()} | told).model_dump_json()

relex = build_dag("relex", Local(python=settings["python"]), poke_seconds=1)
there = build_submission_dag("there", "kfp", settings["python"], settings["cluster"], poke_seconds=1)
woken = {"runs": [told, untold], "starts": "there"}
by_event = build_wakeup_dag("by_event", cron="0 0 1 1 *", watcher=AnyWindowTrigger([spec], interval=2), **woken)
by_time = build_wakeup_dag("by_time", cron="* * * * *", watcher=AnyWindowTrigger([], interval=3600), **woken)
"""


class Rest:
    """What is asked of Airflow's REST API."""

    def __init__(self, session: requests.Session, url: str) -> None:
        self.session, self.url = session, f"{url}/api/v2/dags"

    def ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self.session.request(method, f"{self.url}/{path}", json=body or None, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def start(self, dag: str, params: dict[str, Any]) -> str:
        return str(self.ask("POST", f"{dag}/dagRuns", logical_date=None, conf=params)["dag_run_id"])

    def runs(self, dag: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", f"{dag}/dagRuns")["dag_runs"]
        return found

    def state(self, dag: str, run: str) -> str:
        return str(self.ask("GET", f"{dag}/dagRuns/{run}")["state"])

    def tasks(self, dag: str, run: str) -> dict[tuple[str, int], dict[str, Any]]:
        """The task instances, by id and index."""
        found = self.ask("GET", f"{dag}/dagRuns/{run}/taskInstances?limit=200")["task_instances"]
        return {(task["task_id"], task["map_index"]): task for task in found}


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    with fake_api() as server:
        yield server


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three RL runs: one whose completion an event tells of, one without an event, one for the main DAG."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("told", "untold", "main")}
    for folder in found.values():
        params = make_run(folder, candidates=0.9, last_observed=0.3, targets=[20]) | {"shards": 2}
        (folder / "params.json").write_text(json.dumps(params))
    for name in ("told", "untold"):
        hold_back(found[name], 8)
    return found


def params_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "params.json").read_text())
    return found


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path], api: FakeApi) -> Iterator[Rest]:
    home = tmp_path_factory.mktemp("scheduler")
    (home / "dags").mkdir()
    (home / "dags/tested.py").write_text(DAGS)
    pipeline = ROOT / "pipelines/relex_pipeline/compiled/relex-kubernetes.yaml"
    settings = {
        "python": RELEX_PYTHON,
        "cluster": {"KF_PIPELINES_ENDPOINT": api.url, "RELEX_PIPELINE": str(pipeline)},
        "told": params_of(runs["told"]),
        "untold": params_of(runs["untold"]),
    }
    (home / "settings.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(home, TEST_SETTINGS=str(home / "settings.json")).items():
            patch.setenv(name, value)
        with standalone(home, free_port(), home / "dags") as url:
            yield Rest(session_of(url), url)


def until(condition: Callable[[], object], patience: float = 900) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(2)


def cluster(api: FakeApi, folder: Path, stop: threading.Event) -> None:
    """Runs what is submitted, one after the other, as a cluster would."""
    done: set[str] = set()
    while not stop.wait(0.2):
        for run in [run for run in api.made["runs"] if run["run_id"] not in done]:
            api.states[run["run_id"]] = {"state": "RUNNING"}
            spec = folder / f"{run['run_id']}.json"
            spec.write_text(run["runtime_config"]["parameters"]["spec"])
            command = [RELEX_PYTHON, "-m", "relex_core", "run", str(spec)]
            ended = subprocess.run(command, check=False, capture_output=True, cwd="/").returncode
            api.states[run["run_id"]] = {"state": "FAILED" if ended else "SUCCEEDED"}
            done.add(run["run_id"])


def test_an_event_wakes_it_and_the_time_table_finds_what_no_event_told_of(
    rest: Rest, runs: dict[str, Path], api: FakeApi, tmp_path: Path
) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=cluster, args=(api, tmp_path, stop))
    thread.start()
    try:
        for dag in ("there", "by_event"):
            rest.ask("PATCH", dag, is_paused=False)
        # Airflow makes up for the last time that a new time-table missed, here New Year; nothing is complete yet.
        until(lambda: [(run["run_type"], run["state"]) for run in rest.runs("by_event")] == [("scheduled", "success")])
        assert rest.runs("there") == []

        go_on(runs["told"])
        until(lambda: [run["state"] for run in rest.runs("there")] == ["success"])
        woken = [(run["run_type"], run["state"]) for run in rest.runs("by_event")]
        assert sorted(woken) == [("asset_triggered", "success"), ("scheduled", "success")]
        [first] = rest.runs("there")
        assert first["conf"] == params_of(runs["told"])

        go_on(runs["untold"])
        rest.ask("PATCH", "by_time", is_paused=False)
        until(lambda: [run["state"] for run in rest.runs("there")] == ["success"] * 2)
        ticks = len(rest.runs("by_time"))
        assert {run["run_type"] for run in rest.runs("by_time")} == {"scheduled"}
        rest.start("by_event", {})  # another wake-up, for which nothing is left to do
        until(lambda: len([run for run in rest.runs("by_time") if run["state"] == "success"]) > ticks)
        until(lambda: [run["state"] for run in rest.runs("by_event")] == ["success"] * 3)
    finally:
        rest.ask("PATCH", "by_time", is_paused=True)
        stop.set()
        thread.join()
    started = sorted(run["conf"]["run_root"] for run in rest.runs("there"))
    assert started == sorted(params_of(runs[name])["run_root"] for name in ("told", "untold"))
    submitted = [json.loads(run["runtime_config"]["parameters"]["spec"])["run_root"] for run in api.made["runs"]]
    assert sorted(submitted) == started


def result(folder: Path) -> dict[str, bytes]:
    """Every byte of a run directory but its log's."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "events.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished(rest: Rest, run: str) -> bool:
    state = rest.state("relex", run)
    if state == "failed":
        tasks = rest.tasks("relex", run)
        raise AssertionError([key for key, task in tasks.items() if task["state"] in ("failed", "upstream_failed")])
    return state == "success"


def test_a_cleared_fit_and_what_follows_give_the_same_bytes(rest: Rest, runs: dict[str, Path]) -> None:
    params, run_root = params_of(runs["main"]), runs["main"] / "run"
    rest.ask("PATCH", "relex", is_paused=False)
    run = rest.start("relex", params)
    until(lambda: finished(rest, run))
    before, was = result(run_root), rest.tasks("relex", run)
    assert json.loads(before["published.json"])["decision"] == "promote"

    cleared = rest.ask(
        "POST",
        "relex/clearTaskInstances",
        dry_run=False,
        dag_run_id=run,
        task_ids=["each_shard.fit"],
        include_downstream=True,
        only_failed=False,
    )
    assert {"each_shard.fit", "merge_fit.run", "publish.run"} <= {task["task_id"] for task in cleared["task_instances"]}
    until(lambda: finished(rest, run))
    now = rest.tasks("relex", run)
    again = {key for key, task in now.items() if task["start_date"] != was[key]["start_date"]}
    assert {("each_shard.fit", 0), ("each_shard.fit", 1), ("publish.run", -1)} <= again
    assert ("collect.run", -1) not in again
    after = result(run_root)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} <= {"report.html"}


def test_two_runs_of_the_dag_on_one_rl_run_at_the_same_time_give_one_result(rest: Rest, runs: dict[str, Path]) -> None:
    params = params_of(runs["main"]) | {"run_root": str(runs["main"] / "two")}
    rest.ask("PATCH", "relex", is_paused=False)
    both = [rest.start("relex", params) for _ in range(2)]
    for run in both:
        until(lambda run=run: finished(rest, run))
    gives_what_relex_run_gives(params)
    events = [json.loads(line) for line in (Path(params["run_root"]) / "events.jsonl").read_text().splitlines()]
    assert {event["candidate"] for event in events if event["event"] == "published"} == {"relex-step00020-scale1.00"}
    entry = "taskInstances/outcome/xcomEntries/return_value"
    one, other = (rest.ask("GET", f"relex/dagRuns/{run}/{entry}")["value"] for run in both)
    assert one == other and "promote" in json.dumps(one)
