"""These tests run in Airflow's environment (`make test-airflow`), which has no torch. Elsewhere they are not collected."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("airflow.sdk") is None if find_spec("airflow") else True:
    collect_ignore_glob = ["test_*.py"]
else:
    from airflow_support import RELEX_PYTHON, environment

    # Before airflow is imported: a home of its own, and nothing of this user's.
    HOME = Path(os.environ.setdefault("RELEX_TEST_HOME", f"/tmp/relex-airflow-{os.getpid()}"))
    os.environ.update({name: value for name, value in environment(HOME).items() if name.startswith("AIRFLOW_")})


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database."""
    home = tmp_path_factory.mktemp("airflow")
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(command, env=environment(home), check=True, capture_output=True)
    return home


@pytest.fixture(scope="session")
def relex_reports() -> None:
    """The other environment's relex has the stage `report`."""
    done = subprocess.run([RELEX_PYTHON, "-m", "relex_core", "report", "--help"], capture_output=True)
    if done.returncode:
        pytest.skip("there is no report yet")
