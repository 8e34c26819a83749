"""Show the DAG on a real Airflow of one machine: start it, trigger the DAG through REST, wait, stop everything.

    .venv-airflow/bin/python examples/airflow_standalone.py HOME PARAMS.json [--screenshot GRID.png]

HOME is a folder for Airflow's files; PARAMS.json holds the parameters of the run (base, trajectory, t_cut, spec, ...).
Stages run as processes of $RELEX_PYTHON. `airflow standalone` leaves its children behind when it is stopped, so it gets
a process group of its own, which is ended as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

DAGS = Path(__file__).parents[1] / "pipelines/dags"
FINISHED = {"success", "failed"}


@contextmanager
def standalone(home: Path, port: int, dags: Path = DAGS) -> Iterator[str]:
    """A running Airflow with the DAGs of that folder; its URL."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # of this machine only: the server listens on loopback
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "RELEX_AIRFLOW_PLACE": "local",
    }
    home.mkdir(parents=True, exist_ok=True)
    with (home / "standalone.log").open("wb") as log:
        command = [sys.executable, "-m", "airflow", "standalone"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            for end in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, end)
                    time.sleep(5)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def session_of(url: str, patience: float = 300) -> requests.Session:
    """Signed in, once the server answers and has read the DAG."""
    session, deadline = requests.Session(), time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            answer = session.get(f"{url}/auth/token", timeout=10)
            answer.raise_for_status()
            session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            session.get(f"{url}/api/v2/dags/relex", timeout=10).raise_for_status()
        except requests.RequestException:
            time.sleep(2)
        else:
            return session
    raise SystemExit("Airflow did not come up: see standalone.log")


def run_dag(session: requests.Session, url: str, params: dict[str, Any]) -> tuple[str, str]:
    """Trigger the DAG and wait; its run's id and state."""
    dag = f"{url}/api/v2/dags/relex"
    session.patch(dag, json={"is_paused": False}, timeout=30).raise_for_status()
    answer = session.post(f"{dag}/dagRuns", json={"logical_date": None, "conf": params}, timeout=30)
    answer.raise_for_status()
    run, state = answer.json()["dag_run_id"], ""
    while state not in FINISHED:
        time.sleep(5)
        state = session.get(f"{dag}/dagRuns/{run}", timeout=30).json()["state"]
    tasks = session.get(f"{dag}/dagRuns/{run}/taskInstances", params={"limit": 200}, timeout=30).json()
    for task in tasks["task_instances"]:
        print(f"{task['state']:8} {task['task_id']} {task['map_index'] if task['map_index'] >= 0 else ''}")
    return run, state


def screenshot(url: str, token: str, run: str, path: Path) -> None:
    """Of the run's grid; needs playwright and chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.context.add_cookies([{"name": "_token", "value": token, "url": url}])
        page.goto(f"{url}/dags/relex/runs/{run}", wait_until="networkidle")
        page.wait_for_timeout(3000)
        page.screenshot(path=str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("params", type=Path)
    parser.add_argument("--screenshot", type=Path)
    given = parser.parse_args()
    with standalone(given.home.absolute(), free_port()) as url:
        session = session_of(url)
        run, state = run_dag(session, url, json.loads(given.params.read_text()))
        print(f"{state}: {run}")
        if given.screenshot:
            screenshot(url, str(session.headers["Authorization"]).removeprefix("Bearer "), run, given.screenshot)
    sys.exit(state != "success")


if __name__ == "__main__":
    main()
