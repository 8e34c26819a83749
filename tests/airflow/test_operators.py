"""The stage as a process: what is tried again, what is not, and that it takes its process along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from relex_airflow.operators import CheckStage, LocalStage


def program(folder: Path, script: str) -> str:
    """An interpreter that ignores what it is asked for."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "permanent"),
    [("exit 2", True), ("exit 3", True), ("exit 4", True), ("exit 1", True), ("exit 5", False), ("kill -9 $$", False)],
)
def test_only_what_another_attempt_can_cure_is_tried_again(tmp_path: Path, script: str, permanent: bool) -> None:
    stage = LocalStage(task_id="fit", python=program(tmp_path, script), arguments=["fit", "/run"])
    with pytest.raises(AirflowException, match="relex fit ended with status") as failed:
        stage.execute({})
    assert isinstance(failed.value, AirflowFailException) is permanent


def test_the_command_line_is_relex(tmp_path: Path) -> None:
    python = program(tmp_path, f'echo "$@ $MORE" > {tmp_path}/said')
    LocalStage(task_id="fit", python=python, arguments=["fit", "/a run"], environment={"MORE": "more"}).execute({})
    assert (tmp_path / "said").read_text() == "-m relex_core fit /a run more\n"


def test_a_task_that_is_killed_takes_its_process_along(tmp_path: Path) -> None:
    python = program(tmp_path, f"echo $$ > {tmp_path}/pid\nexec sleep 600")
    code = (
        "import signal, sys; from relex_airflow.operators import LocalStage; "
        f"stage = LocalStage(task_id='fit', python={python!r}, arguments=['fit']); "
        "signal.signal(signal.SIGTERM, lambda *_: stage.on_kill()); stage.execute({})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as task:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        task.send_signal(signal.SIGTERM)
        task.wait(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_check_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    check = CheckStage(task_id="check", stage="merge_fit", run=str(tmp_path / "none"))
    with pytest.raises(AirflowFailException, match="WindowNotReady: nothing is collected yet"):
        check.execute({})
