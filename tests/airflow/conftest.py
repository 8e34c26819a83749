"""These tests run in Airflow's environment (`make test-airflow`), without torch; elsewhere they are not collected."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from airflow_support import RELEX_PYTHON, ROOT, environment

sys.path.append(str(ROOT / "tests"))  # what is shared with the other tests, and needs neither torch nor kfp

if find_spec("relex_airflow") and find_spec("kubernetes_validate"):
    # Before airflow is imported: a home that is not this user's.
    home = tempfile.mkdtemp(prefix="relex-airflow-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update({name: value for name, value in environment(Path(home)).items() if name.startswith("AIRFLOW_")})
else:
    collect_ignore_glob = ["test_*.py"]


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
    command = [RELEX_PYTHON, "-m", "relex_core", "report", "--help"]
    if subprocess.run(command, capture_output=True, check=False, cwd="/").returncode:
        pytest.skip("there is no report yet")
