"""Two schedulers on one database: every task runs once, and what two RL runs leave is what `relex run` leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from airflow_support import ROOT, environment, gives_what_relex_run_gives, make_run
from postgres import binaries, postgres

sys.path.append(str(ROOT / "examples"))
from airflow_standalone import free_port, session_of, standalone
from test_scheduler import Rest, finished, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("relex_reports"),
    pytest.mark.skipif(not (binaries() and find_spec("psycopg2")), reason="needs PostgreSQL's server and psycopg2"),
]


@pytest.fixture
def database() -> Iterator[sqlalchemy.Engine]:
    with postgres(free_port()) as url:
        yield sqlalchemy.create_engine(url)


@pytest.fixture
def rest(tmp_path: Path, database: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rest]:
    """Airflow with a second scheduler beside the one of `airflow standalone`."""
    home, url = tmp_path / "home", str(database.url)
    parallel = {"AIRFLOW__CORE__PARALLELISM": "2", "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "1"}  # work for both
    for name, value in environment(home, AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=url, **parallel).items():
        monkeypatch.setenv(name, value)
    with standalone(home, port := free_port()) as server:
        session = session_of(server)
        more = {**os.environ, "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/"}
        with (home / "second.log").open("wb") as log:
            command = [sys.executable, "-m", "airflow", "scheduler"]
            second = subprocess.Popen(command, env=more, stdout=log, stderr=log, start_new_session=True)
            try:
                yield Rest(session, server)
            finally:
                os.killpg(second.pid, signal.SIGKILL)
                second.wait()


def rows(database: sqlalchemy.Engine, query: str) -> list[Any]:
    with database.connect() as connection:
        return list(connection.execute(sqlalchemy.text(query)))


def test_two_schedulers_give_one_result(rest: Rest, database: sqlalchemy.Engine, tmp_path: Path) -> None:
    alive = "select id from job where job_type = 'SchedulerJob' and state = 'running'"
    until(lambda: len(rows(database, alive)) == 2)
    folders = {"promote": tmp_path / "promote", "keep_observed": tmp_path / "keep"}
    given = {}
    for decision, folder in folders.items():
        folder.mkdir()
        answers = (0.9, 0.3) if decision == "promote" else (0.1, 0.5)
        given[decision] = make_run(folder, candidates=answers[0], last_observed=answers[1], targets=[20])
        given[decision] |= {"shards": 2}
    rest.ask("PATCH", "relex", is_paused=False)
    runs = [rest.start("relex", params) for params in given.values()]
    for run in runs:
        until(lambda run=run: finished(rest, run))
    for decision, params in given.items():
        assert json.loads((folders[decision] / "run/published.json").read_text())["decision"] == decision
        gives_what_relex_run_gives(params)

    tries = rows(database, "select task_id, try_number from task_instance where state = 'success'")
    assert len(tries) > 20 and {number for _, number in tries} == {1}, tries
    queued = rows(database, "select distinct queued_by_job_id from task_instance where queued_by_job_id is not null")
    assert {job for (job,) in queued} == {job for (job,) in rows(database, alive)}  # both had a part in it
