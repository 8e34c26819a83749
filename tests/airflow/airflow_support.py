"""A home of Airflow's own for the tests, runs that complete while the sensor is deferred, and `airflow dags test`."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RELEX_PYTHON = os.environ.get("RELEX_PYTHON", str(ROOT / ".venv/bin/python"))
"""The other environment: relex with torch, without Airflow. `make test-airflow` names it."""

LATER = "later"
DEFERRED = "running trigger in line"
"""What `airflow dags test` logs after a task has deferred, before its trigger runs."""

MAKE_RUN = """
import json, sys
from pathlib import Path
from kfp_support import scripted_run, spec_data
from relex_core.spec import DecisionSpec
folder, candidates, last = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
scripted_run(folder, candidates=candidates, last_observed=last)
rule = {"beat_base": False} if "beat_base" in DecisionSpec.model_fields else {}  # candidates answer as the base does
print(json.dumps(spec_data(decision=rule)))
"""

SAME = """
import sys
from pathlib import Path
from kfp_support import result_files
one, other = (result_files(Path(run)) for run in sys.argv[1:])
different = [name for name in {*one, *other} - {"report.html"} if one.get(name) != other.get(name)]
assert "fit/fit.json" in one and "published.json" in one, sorted(one)
sys.exit(f"these differ: {different}" if different else 0)
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """For processes of Airflow: its files below `home`, the DAGs of this repository, stages as processes."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "pipelines/dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "RELEX_AIRFLOW_PLACE": "local",
        "RELEX_PYTHON": RELEX_PYTHON,
        "RELEX_POKE_SECONDS": "1",
        **more,
    }


def make_run(folder: Path, *, candidates: float, last_observed: float, targets: list[int]) -> dict[str, Any]:
    """A run whose models answer from scripts (tests/kfp_support.py), and the parameters of a run of the DAG on it."""
    data = json.loads(in_relex(MAKE_RUN, str(folder), str(candidates), str(last_observed)))
    for split in ("select", "confirm"):
        data["evaluation"][split]["task"]["file"] = str(folder / f"{split}.jsonl")
    rest = {name: data[name] for name in ("fit", "evaluation", "decision")} | {"candidates": {"target_steps": targets}}
    return {
        "base": str(folder / "trajectory/base"),
        "trajectory": str(folder / "trajectory"),
        "t_cut": data["window"]["t_cut"],
        "run_root": str(folder / "run"),
        "spec": rest,
    }


def gives_what_relex_run_gives(params: dict[str, Any]) -> None:
    """Hold a finished run directory against one that `relex run` fills from the same parameters."""
    run = Path(params["run_root"])
    spec = {**params["spec"], **{name: params[name] for name in ("base", "trajectory")}}
    (run.parent / "spec.json").write_text(json.dumps({**spec, "window": {"t_cut": params["t_cut"]}}))
    other = run.parent / f"{run.name}-by-relex-run"
    command = [RELEX_PYTHON, "-m", "relex_core", "run", str(run.parent / "spec.json"), "--out", str(other)]
    subprocess.run(command, check=True, capture_output=True, cwd=run.parent)
    in_relex(SAME, str(run), str(other))


def hold_back(folder: Path, step: int) -> None:
    """The trainer has not come as far as `step` yet."""
    (folder / LATER).mkdir()
    for path in (folder / "trajectory").glob("global_step_*"):
        if _step(path) >= step:
            path.rename(folder / LATER / path.name)


def go_on(folder: Path) -> None:
    """The trainer saves what was held back."""
    for path in sorted((folder / LATER).iterdir(), key=_step):
        path.rename(folder / "trajectory" / path.name)


def _step(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


@contextmanager
def dags_test(home: Path, params: dict[str, Any], dag: str = "relex", **more: str) -> Iterator[subprocess.Popen[str]]:
    """`airflow dags test`, with its log on stdout."""
    command = [sys.executable, "-m", "airflow", "dags", "test", dag, "--conf", json.dumps(params)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment(home, **more), cwd=home, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def states(home: Path) -> dict[str, str]:
    """The state of every task of the last run of a DAG."""
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        query = "select task_id, state from task_instance where run_id = (select run_id from dag_run order by id desc)"
        return dict(database.execute(query).fetchall())


def events(home: Path) -> list[dict[str, Any]]:
    """The `extra` of every event of the asset `relex_published`, oldest first."""
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        found = database.execute(
            "select asset_event.extra from asset_event join asset on asset.id = asset_event.asset_id"
            " where asset.name = 'relex_published' order by asset_event.id"
        )
        return [json.loads(extra) for (extra,) in found.fetchall()]


def in_relex(script: str, *arguments: str) -> str:
    """Run a script in the other environment; its output."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", str(ROOT))])
    command = [RELEX_PYTHON, "-c", script, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}  # the working directory would come before it
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
