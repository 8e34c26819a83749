"""Submissions, against servers on loopback that keep what they got: exactly once, exactly what was meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from click.testing import CliRunner, Result
from fake_pipelines import FakeApi, fake_api
from kfp_support import make_spec, scripted_run, spec_data

from relex_core.collect import collect, find_window
from relex_core.errors import DataError, SpecError, StorageError
from relex_core.spec import RunSpec
from relex_core.storage import Store, open_store
from relex_kfp.__main__ import main
from relex_kfp.pipelines.relex_pipeline.compile import COMPILED, compile_pipeline
from relex_kfp.pipelines.relex_pipeline.profiles import Settings
from relex_kfp.pipelines.trigger.kfp_api import Cluster, kfp_state, submit_kfp
from relex_kfp.pipelines.trigger.once import submit_once
from relex_kfp.pipelines.trigger.schedule import schedule
from relex_kfp.pipelines.trigger.submission import plan_submission
from relex_kfp.pipelines.trigger.vertex import Project, submit_vertex, vertex_state

KUBERNETES, VERTEX = COMPILED / "relex-kubernetes.yaml", COMPILED / "relex-vertex.yaml"


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as server:
        yield server


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return make_spec(scripted_run(tmp_path, candidates=0.9, last_observed=0.3))


def to_kfp(api: FakeApi, spec: RunSpec, pipeline: Path = KUBERNETES, **options: Any) -> str:
    return submit_kfp(spec, find_window(spec), pipeline, Cluster(api.url, service_account="relex"), shards=2, **options)


def project(api: FakeApi) -> Project:
    return Project("my-project", "europe-west4", "gs://artifacts/relex", "sa@my-project", endpoint=api.url)


def to_vertex(api: FakeApi, spec: RunSpec, pipeline: Path = VERTEX, **options: Any) -> str:
    window, session = find_window(spec), requests.Session()
    return submit_vertex(spec, window, pipeline, project(api), shards=2, session=session, **options)


TARGETS = [pytest.param(to_kfp, "runs", id="kfp"), pytest.param(to_vertex, "jobs", id="vertex")]
Target = Callable[..., str]


def test_kubeflow_gets_the_pipeline_and_its_arguments(api: FakeApi, spec: RunSpec) -> None:
    run_id = to_kfp(api, spec)
    [run], [experiment] = api.made["runs"], api.made["experiments"]
    pipeline, platform = yaml.safe_load_all(KUBERNETES.read_text())
    assert run == {
        "display_name": plan_submission(spec, find_window(spec), KUBERNETES).name,
        "experiment_id": experiment["experiment_id"],
        "pipeline_spec": {"pipeline_spec": pipeline, "platform_spec": platform},
        "runtime_config": {"parameters": {"spec": spec.model_dump_json(), "shards": 2}},
        "service_account": "relex",
        "run_id": run_id,
    }
    assert experiment["display_name"] == "relex"


def test_vertex_gets_the_pipeline_and_its_arguments(api: FakeApi, spec: RunSpec) -> None:
    job_name = to_vertex(api, spec)
    [job] = api.made["jobs"]
    name = plan_submission(spec, find_window(spec), VERTEX).name
    assert job_name == f"projects/my-project/locations/europe-west4/pipelineJobs/{name}"
    assert job == {
        "name": job_name,
        "displayName": name,
        "pipelineSpec": next(yaml.safe_load_all(VERTEX.read_text())),
        "runtimeConfig": {
            "gcsOutputDirectory": "gs://artifacts/relex",
            "parameterValues": {"spec": spec.model_dump_json(), "shards": 2},
        },
        "serviceAccount": "sa@my-project",
    }


@pytest.mark.parametrize(("submit", "kind"), TARGETS)
def test_of_many_submitters_one_submits(submit: Target, kind: str, api: FakeApi, spec: RunSpec) -> None:
    find_window(spec)
    start, ids = threading.Barrier(3), []

    def one() -> None:
        start.wait()
        ids.append(submit(api, spec))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ids), len(set(ids)), len(api.made[kind])) == (3, 1, 1)
    assert submit(api, spec) == ids[0]
    assert len(api.made[kind]) == 1


def test_two_processes_submit_once(api: FakeApi, spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**spec_data(), "run_root": "run"}))
    command = [sys.executable, "-m", "relex_kfp", "submit", "kfp", str(tmp_path / "spec.json")]
    environment = {**os.environ, "KF_PIPELINES_ENDPOINT": api.url, "RELEX_PIPELINE": str(KUBERNETES)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    [run] = api.made["runs"]
    assert [printed for printed, _ in said] == [f"{run['run_id']}\n"] * 2
    assert all(f"submitted as run {run['run_id']}" in log for _, log in said)

    command = [sys.executable, "-m", "relex_kfp", "status", "kfp", run["run_id"]]
    api.states[run["run_id"]] = {"state": "RUNNING"}
    printed = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert json.loads(printed) == {"run": run["run_id"], "state": "RUNNING", "message": "", "ended": False}


@pytest.fixture
def command_line(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`python -m relex_kfp COMMAND ... SPEC OPTIONS` in this process, for the cluster that `api` imitates."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
    monkeypatch.setenv("RELEX_PIPELINE", str(KUBERNETES))
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({**spec_data(), "run_root": "run"}))
    return lambda *command, options=(): CliRunner().invoke(main, [*command, str(file), *options])


def test_a_collected_window_stays_submitted_when_the_trainer_deletes_its_steps(
    api: FakeApi, spec: RunSpec, tmp_path: Path, command_line: Callable[..., Result]
) -> None:
    first = command_line("submit", "kfp")
    assert first.exit_code == 0, first.output
    collect(spec)  # as the run that was submitted does
    for step in (2, 4, 6, 8):
        shutil.rmtree(tmp_path / f"trajectory/global_step_{step}")
        again = command_line("submit", "kfp")
        assert (again.exit_code, again.stdout) == (0, first.stdout), again.output
    assert len(api.made["runs"]) == 1


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("kfp", {}, "KF_PIPELINES_ENDPOINT is not set"),
        ("kfp", {"KF_PIPELINES_ENDPOINT": "http://there"}, "RELEX_PIPELINE is not set"),
        ("kfp", {"KF_PIPELINES_ENDPOINT": "http://there", "RELEX_PIPELINE": "none.yaml"}, "not a file"),
        ("vertex", {"GOOGLE_CLOUD_PROJECT": "p", "RELEX_PIPELINE": str(KUBERNETES)}, "GOOGLE_CLOUD_REGION is not set"),
    ],
)
def test_a_watch_refuses_missing_settings_before_it_waits(
    target: str, settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**spec_data(), "run_root": "run"}))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RELEX_", "KF_", "GOOGLE_"))}
    command = [sys.executable, "-m", "relex_core", "watch", "spec.json", "--timeout", "1", "--then", target]
    result = subprocess.run(command, env=clean | settings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("submit", "kind"), TARGETS)
def test_another_spec_other_questions_or_other_code_are_another_submission(
    submit: Target, kind: str, api: FakeApi, spec: RunSpec, tmp_path: Path
) -> None:
    submit(api, spec)
    submit(api, spec.model_copy(update={"decision": spec.decision.model_copy(update={"min_gain": 0.1})}))
    other = tmp_path / "other.yaml"
    compile_pipeline("vertex" if kind == "jobs" else "kubernetes", Settings("relex@sha256:" + "1" * 64), other)
    submit(api, spec, other)
    assert len(api.made[kind]) == 3
    questions = tmp_path / "confirm.jsonl"
    questions.write_text(questions.read_text().replace('"answer": "0"', '"answer": "zero"'))
    submit(api, spec)
    assert len(api.made[kind]) == 4


@pytest.mark.parametrize(("submit", "kind"), TARGETS)
def test_a_run_that_was_deleted_is_submitted_again_at_once(
    submit: Target, kind: str, api: FakeApi, spec: RunSpec
) -> None:
    submit(api, spec)
    api.made[kind].clear()
    submit(api, spec)
    assert len(api.made[kind]) == 1


@pytest.mark.parametrize(("submit", "kind"), TARGETS)
def test_a_failed_submission_can_be_tried_again_at_once(submit: Target, kind: str, api: FakeApi, spec: RunSpec) -> None:
    api.fail_with = [503, 400]
    for error in (StorageError, SpecError):
        with pytest.raises(error, match="as wished"):
            submit(api, spec)
    submit(api, spec)
    assert len(api.made[kind]) == 1


STATES = [
    pytest.param("PENDING", False, id="pending"),
    pytest.param("RUNNING", False, id="running"),
    pytest.param("SUCCEEDED", True, id="succeeded"),
    pytest.param("FAILED", True, id="failed"),
]


@pytest.mark.parametrize(("state", "ended"), STATES)
def test_what_became_of_a_run(state: str, ended: bool, api: FakeApi, spec: RunSpec) -> None:
    run, job = to_kfp(api, spec), to_vertex(api, spec)
    error = {"error": {"code": 9, "message": "a pod failed"}} if state == "FAILED" else {}
    api.states = {run: {"state": state, **error}, job: {"state": f"PIPELINE_STATE_{state}", **error}}
    for found in (kfp_state(run, Cluster(api.url)), vertex_state(job, project(api), session=requests.Session())):
        assert (found.state, found.ended, found.message) == (state, ended, "a pod failed" if error else "")


def test_the_state_of_a_run_that_is_gone_and_of_an_api_that_is_gone(api: FakeApi) -> None:
    with pytest.raises(DataError, match="there is no run 1"):
        kfp_state("1", Cluster(api.url))
    with pytest.raises(DataError, match="there is no run projects/p/1"):
        vertex_state("projects/p/1", project(api), session=requests.Session())
    with fake_api() as gone:
        pass
    with pytest.raises(StorageError):
        kfp_state("1", Cluster(gone.url))
    with pytest.raises(StorageError):
        vertex_state("projects/p/1", project(gone), session=requests.Session())


@pytest.mark.parametrize("submit", [to_kfp, to_vertex])
def test_an_api_that_is_not_there_is_a_storage_error(submit: Target, spec: RunSpec) -> None:
    with fake_api() as gone:
        pass
    with pytest.raises(StorageError):
        submit(gone, spec)


class Runs:
    """An API that lists what it accepted after `late` seconds, as files of a folder, so that processes share it."""

    def __init__(self, folder: Path, *, late: float = 0.0, slow: float = 0.0) -> None:
        self.folder, self.late, self.slow = folder, late, slow
        folder.mkdir(exist_ok=True)

    def find(self) -> str | None:
        return next((run.name for run in self.folder.iterdir() if time.time() >= float(run.read_text() or "inf")), None)

    def submit(self) -> str:
        time.sleep(self.slow)
        run = self.folder / f"run-{uuid.uuid4()}"
        run.write_text(str(time.time() + self.late))
        return run.name

    def asked_by_four(self, store: Store, lease: float) -> None:
        """Four submitters at the same time all get the one run."""
        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(lambda _: submit_once(store, "a", self.find, self.submit, lease=lease), range(4)))
        [run] = self.folder.iterdir()
        assert ids == [run.name] * 4


DIES = """
import sys
from relex_core.storage import Store, open_store
from relex_kfp.pipelines.trigger.once import submit_once

def submit():
    print("submitting", flush=True)
    sys.stdin.read()

submit_once(open_store(sys.argv[1]), "a", lambda: None, submit, lease=1.0)
"""


def test_a_submitter_that_was_killed_is_followed_by_one_other(tmp_path: Path) -> None:
    store, command = open_store(str(tmp_path / "run")), [sys.executable, "-c", DIES, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"submitting\n"
        process.kill()
    Runs(tmp_path / "runs").asked_by_four(store, lease=1.0)
    claims = [info.name.rpartition("/")[2] for info in store.list("submissions/a")]
    assert claims == ["claim-00001.json", "claim-00002.json"]


def test_a_submitter_that_is_slower_than_a_lease_is_waited_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    Runs(tmp_path / "runs", slow=4.5).asked_by_four(store, lease=2.0)
    assert [info.name for info in store.list("submissions/a")] == ["submissions/a/claim-00001.json"]


def test_a_run_that_is_listed_late_is_made_once(tmp_path: Path) -> None:
    store, runs = open_store(str(tmp_path / "run")), Runs(tmp_path / "runs", late=1.5)
    runs.asked_by_four(store, lease=8.0)
    assert submit_once(store, "a", runs.find, runs.submit) == runs.find()


def test_the_schedule_is_made_once_and_never_catches_up(api: FakeApi, spec: RunSpec) -> None:
    cluster = Cluster(api.url, pipeline_root="gs://artifacts")
    first = schedule(spec, KUBERNETES, cluster, shards=3)
    assert schedule(spec, KUBERNETES, cluster, shards=3) == first
    [made] = api.made["recurringruns"]
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == (1, True, "ENABLE")
    assert made["trigger"] == {"cron_schedule": {"cron": "0 */10 * * * *"}}
    assert made["runtime_config"]["parameters"] == {"spec": spec.model_dump_json(), "shards": 3}
    with pytest.raises(SpecError, match="has 5 fields"):
        schedule(spec, KUBERNETES, cluster, cron="*/10 * * * *")


def test_another_schedule_of_the_same_spec_is_refused(api: FakeApi, spec: RunSpec, tmp_path: Path) -> None:
    cluster, other = Cluster(api.url), tmp_path / "other.yaml"
    compile_pipeline("kubernetes", Settings("relex@sha256:" + "1" * 64), other)
    first = schedule(spec, KUBERNETES, cluster)
    for again in (
        partial(schedule, spec, KUBERNETES, cluster, cron="0 0 * * * *"),
        partial(schedule, spec, KUBERNETES, cluster, shards=3),
        partial(schedule, spec, other, cluster),
        partial(schedule, spec, KUBERNETES, Cluster(api.url, service_account="other")),
    ):
        with pytest.raises(SpecError, match="scheduled already, with other settings") as refused:
            again()
        assert first in refused.value.where
    assert schedule(spec, KUBERNETES, cluster) == first
    assert len(api.made["recurringruns"]) == 1


@pytest.mark.parametrize("name", ["spec.json", "relex-kubernetes-resources.yaml", "renamed.txt"])
def test_only_a_compiled_pipeline_is_scheduled_or_submitted(
    name: str,
    api: FakeApi,
    spec: RunSpec,
    tmp_path: Path,
    command_line: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(KUBERNETES, tmp_path / "renamed.txt")
    shutil.copy(COMPILED / "relex-kubernetes-resources.yaml", tmp_path)
    monkeypatch.setenv("RELEX_PIPELINE", str(tmp_path / name))
    scheduled = command_line("schedule", options=["--pipeline", str(tmp_path / name)])
    for done in (scheduled, command_line("submit", "kfp")):
        assert (done.exit_code, "SpecError: no compiled pipeline" in done.output) == (2, True), done.output
    assert not api.made["recurringruns"] and not api.made["runs"]


def test_what_is_no_compiled_pipeline_is_refused(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "text.yaml").write_text("hello")
    for path in (tmp_path / "none.yaml", tmp_path / "text.yaml", tmp_path / "select.jsonl"):
        with pytest.raises(SpecError, match="no compiled pipeline"):
            plan_submission(spec, find_window(spec), path)


def test_missing_settings_are_named(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**spec_data(), "run_root": "run"}))
    command = [sys.executable, "-m", "relex_kfp", "submit", "vertex", str(tmp_path / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "GOOGLE_CLOUD_PROJECT is not set" in done.stderr) == (2, True)
