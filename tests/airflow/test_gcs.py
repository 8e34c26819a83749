"""The sensor on a bucket: a real fake-gcs-server, which goes away and comes back while the sensor is deferred."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow_support import go_on, hold_back
from gcs.faults import FaultyFront, faulty_front, status
from gcs.server import fake_gcs_server
from test_sensor import SMALL, T_CUT, deferred, fired

from relex_airflow.sensors import WindowSensor
from relex_core.collect import find_window
from relex_core.spec import RunSpec, spec_from_json
from relex_core.storage.retries import Retries

BUCKET = "rl-runs"
IMPATIENT = "from relex_core.storage.retries import Retries; Retries.__init__.__defaults__ = (0.1, 0.2, 1.0)"
"""The storage is given up after a second of retries, not after two minutes."""
PYTHON = """#!/bin/sh
echo looked >> {looks}
exec {python} -c "{impatient}; from relex_airflow.judgement import main; main()"
"""
DENIED = "relex@my-project.iam.gserviceaccount.com does not have storage.objects.list access to the bucket."


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """What a server's bucket holds when it starts: a run whose last steps are still to come."""
    shutil.copytree(SMALL, tmp_path / "seed" / BUCKET / "trajectory")
    hold_back(tmp_path / "seed" / BUCKET, T_CUT)
    return tmp_path / "seed" / BUCKET


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyFront]:
    """What both the worker and the triggerer take for Google Cloud Storage; nothing is behind it yet."""
    wrapper = tmp_path / "python"
    wrapper.write_text(PYTHON.format(looks=tmp_path / "looks", python=sys.executable, impatient=IMPATIENT))
    wrapper.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(wrapper))
    monkeypatch.setattr(Retries.__init__, "__defaults__", (0.1, 0.2, 1.0))
    with faulty_front("http://127.0.0.1:1") as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        yield front


def spec_of(bucket: str = BUCKET) -> RunSpec:
    root = f"gs://{bucket}"
    data = {"base": f"{root}/trajectory/base", "trajectory": f"{root}/trajectory"}
    return spec_from_json(json.dumps(data), run_root=f"{root}/run", t_cut=T_CUT)


def sensor(spec: RunSpec) -> WindowSensor:
    given = spec.model_dump_json(exclude_defaults=True)
    return WindowSensor(task_id="wait", spec=given, timeout=300, poke_interval=0.05, max_wait=0.5)


def looks(tmp_path: Path) -> int:
    found = tmp_path / "looks"
    return len(found.read_text().splitlines()) if found.exists() else 0


def test_the_server_goes_away_and_comes_back_with_the_whole_window(
    bucket: Path, front: FaultyFront, tmp_path: Path
) -> None:
    made = sensor(spec_of())
    with fake_gcs_server(bucket.parent) as front.upstream:
        trigger = deferred(made)
        seen = asyncio.run(trigger.look())
        assert (seen.verdict, "step 7" in seen.message) == ("waiting", True), seen.message
    down = asyncio.run(trigger.look())
    assert (down.verdict, "StorageError: Google Cloud Storage failed" in down.message) == ("unreachable", True)

    async def waits_until_it_is_back() -> dict[str, str]:
        waiting = asyncio.ensure_future(anext(trigger.run()))
        before = looks(tmp_path)
        while looks(tmp_path) < before + 2:  # the second begins when the first has ended
            await asyncio.sleep(0.05)
        assert not waiting.done()
        go_on(bucket)
        with fake_gcs_server(bucket.parent) as front.upstream:
            answer: dict[str, str] = made.resume_execution("resumed", {"event": (await waiting).payload}, {})
            assert answer["digest"] == find_window(spec_of()).digest
        return answer

    answer = asyncio.run(waits_until_it_is_back())
    assert (answer["verdict"], answer["manifest"]) == ("ready", f"gs://{BUCKET}/run/window.json")


def test_a_storage_that_is_away_when_the_worker_looks_is_waited_for(bucket: Path, front: FaultyFront) -> None:
    made = sensor(spec_of())
    trigger = deferred(made)
    go_on(bucket)
    with fake_gcs_server(bucket.parent) as front.upstream:
        assert made.resume_execution("resumed", {"event": fired(trigger)}, {})["verdict"] == "ready"


def test_what_time_cannot_cure_fails_at_once(bucket: Path, front: FaultyFront) -> None:
    with fake_gcs_server(bucket.parent) as front.upstream:
        with pytest.raises(AirflowFailException, match="ObjectNotFound: there is no such bucket"):
            sensor(spec_of("rl-ruins")).execute({})
        made = sensor(spec_of())
        trigger = deferred(made)
        front.plan_always("list", "", status(403, DENIED))
        event = fired(trigger)
        assert event["verdict"] == "refused"
        with pytest.raises(AirflowFailException, match=r"AccessDenied: relex@my-project(.|\n)*storage\.objects\.list"):
            made.resume_execution("resumed", {"event": event}, {})
