"""The sensor and its trigger: what they wait for, what they refuse, and what comes back."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferred
from airflow.triggers.base import TriggerEvent
from airflow_support import ROOT, go_on, hold_back

from relex_airflow.credentials import VARIABLE, google_environment
from relex_airflow.judgement import judge
from relex_airflow.sensors import WindowSensor
from relex_airflow.triggers import WindowTrigger
from relex_core.collect import collect
from relex_core.errors import SpecError
from relex_core.spec import RunSpec, spec_from_json

SMALL = ROOT / "tests/data/small/run"
T_CUT = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose checkpoints are links: nothing here reads a weight."""
    for path in SMALL.rglob("*"):
        if path.is_file():
            link = tmp_path / "trajectory" / path.relative_to(SMALL)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link) if path.stat().st_dev == tmp_path.stat().st_dev else link.write_bytes(path.read_bytes())
    return tmp_path


def spec_of(folder: Path) -> RunSpec:
    data = {"base": str(folder / "trajectory/base"), "trajectory": str(folder / "trajectory")}
    return spec_from_json(json.dumps(data), run_root=str(folder / "run"), t_cut=T_CUT)


def sensor(folder: Path, **given: Any) -> WindowSensor:
    spec = spec_of(folder).model_dump_json(exclude_defaults=True)
    return WindowSensor(task_id="wait", **{"spec": spec, "timeout": 60, "poke_interval": 0.05, **given})


def deferred(made: WindowSensor) -> WindowTrigger:
    """The trigger that a triggerer would run: made anew from what Airflow stores."""
    with pytest.raises(TaskDeferred) as found:
        made.execute({})
    path, arguments = found.value.trigger.serialize()
    assert path == "relex_airflow.triggers.WindowTrigger"
    assert len(json.dumps(arguments)) < 2000
    assert found.value.method_name == "resumed"
    return WindowTrigger(**json.loads(json.dumps(arguments)))


def fired(trigger: WindowTrigger) -> dict[str, Any]:
    async def first() -> TriggerEvent:
        async for event in trigger.run():
            return event
        raise AssertionError("it ended without an event")

    event: dict[str, Any] = json.loads(json.dumps(asyncio.run(first()).payload))
    return event


def test_a_complete_window_needs_no_trigger(folder: Path) -> None:
    answer = sensor(folder).execute({})
    assert answer["verdict"] == "ready"
    assert answer["manifest"] == str(folder / "run/window.json")
    assert not (folder / "run").exists(), "it writes nothing"
    assert answer["digest"] == collect(spec_of(folder)).digest


def test_a_window_that_completes_while_the_sensor_is_deferred(folder: Path) -> None:
    hold_back(folder, T_CUT)
    made = sensor(folder)
    trigger = deferred(made)
    waiting = asyncio.run(trigger.look())
    assert (waiting.verdict, waiting.digest) == ("waiting", "")
    assert "step 7" in waiting.message
    go_on(folder)
    event = fired(trigger)
    answer = made.resume_execution("resumed", {"event": event}, {})
    assert answer["digest"] == collect(spec_of(folder)).digest


@pytest.mark.parametrize(("soft_fail", "error"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_time_is_up(folder: Path, soft_fail: bool, error: type[Exception]) -> None:
    hold_back(folder, T_CUT)
    made = sensor(folder, timeout=0, soft_fail=soft_fail)
    event = fired(deferred(made))
    with pytest.raises(error, match=r"not complete after 0 s; last seen: WindowNotReady: (.|\n)*step 7"):
        made.resume_execution("resumed", {"event": event}, {})


@pytest.mark.parametrize("soft_fail", [False, True])
def test_wrong_data_fail_at_once_with_the_message(folder: Path, soft_fail: bool) -> None:
    hold_back(folder, T_CUT)
    made = sensor(folder, soft_fail=soft_fail)
    trigger = deferred(made)
    torn = folder / "trajectory/global_step_4/actor/huggingface/model.safetensors"
    data = torn.read_bytes()
    torn.unlink()
    torn.write_bytes(data[:-100])
    event = fired(trigger)
    assert event["verdict"] == "refused"
    for answer in (lambda: made.resume_execution("resumed", {"event": event}, {}), lambda: made.execute({})):
        with pytest.raises(AirflowFailException, match=r"WindowError: incomplete(.|\n)*step 4"):
            answer()


def test_a_wrong_spec_fails_at_once() -> None:
    with pytest.raises(AirflowFailException, match="SpecError: the spec is wrong"):
        WindowSensor(task_id="wait", base="/m", t_cut=3).execute({})


def test_a_judgement_that_is_killed_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_back(folder, T_CUT)
    trigger = deferred(sensor(folder))
    go_on(folder)
    wrapper = folder / "python"
    first = f"[ -e {folder}/second ] || {{ touch {folder}/second; kill -9 $$; }}"
    wrapper.write_text(f'#!/bin/sh\n{first}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(wrapper))
    assert fired(trigger)["verdict"] == "ready"
    assert (folder / "second").exists()


def test_a_trigger_that_is_cancelled_ends_its_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, pid = folder / "python", folder / "pid"
    wrapper.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 600\n")
    wrapper.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(wrapper))
    trigger = WindowTrigger(spec_of(folder).model_dump_json(), 1, 1, time.time() + 60)

    async def cancelled() -> None:
        looking = asyncio.create_task(trigger.look())
        while not pid.exists() or not pid.read_text().strip():
            await asyncio.sleep(0.01)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        await asyncio.sleep(0.2)

    asyncio.run(cancelled())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_published_run_is_done_without_its_checkpoints(folder: Path) -> None:
    from relex_core.manifest import spec_digest
    from relex_core.questions import questions_digest

    spec = spec_of(folder)
    collect(spec)
    outcome = {"decision": "keep_observed", "candidate": "last_observed", "checkpoint_uri": "/x"}
    outcome |= {"training_steps_saved": 0, "window_digest": "sha256:1", "spec_digest": spec_digest(spec)}
    outcome |= {"questions_digest": questions_digest(spec)}
    (folder / "run/published.json").write_text(json.dumps(outcome))
    assert judge(spec).verdict == "done"
    assert sensor(folder).execute({})["digest"] == "sha256:1"


def test_fields_are_templates() -> None:
    assert {"spec", "base", "trajectory", "t_cut", "run_root", "gcp_conn_id"} == set(WindowSensor.template_fields)


def test_credentials_of_a_connection() -> None:
    with google_environment({}) as variables:
        assert variables == {}
    with google_environment({"key_path": "/k.json"}) as variables:
        assert variables == {VARIABLE: "/k.json"}
    with google_environment({"extra__google_cloud_platform__keyfile_dict": '{"a": 1}'}) as variables:
        file = Path(variables[VARIABLE])
        assert json.loads(file.read_text()) == {"a": 1}
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not file.exists()
    with pytest.raises(SpecError, match="impersonation_chain"), google_environment({"impersonation_chain": "a@b"}):
        pass
