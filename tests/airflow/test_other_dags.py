"""The DAG that submits a compiled pipeline, and the one that is woken up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow_support import go_on, hold_back
from test_sensor import T_CUT, folder, sensor, spec_of  # noqa: F401

from relex_airflow.dag import build_dag
from relex_airflow.places import Local
from relex_airflow.submission import build_submission_dag
from relex_airflow.wakeups import AnyWindowTrigger, build_wakeup_dag, due
from relex_core.collect import collect
from relex_core.manifest import spec_digest
from relex_core.questions import questions_digest


def form(folder: Path) -> dict[str, Any]:  # noqa: F811
    """Parameters of a run of the main DAG; of the questions only their bytes count here."""
    splits = {name: {"task": {"name": name, "file": str(folder / f"{name}.jsonl")}} for name in ("select", "confirm")}
    for name in splits:
        (folder / f"{name}.jsonl").touch()
    spec = spec_of(folder)
    places = {"base": spec.base, "trajectory": spec.trajectory, "run_root": spec.run_root}
    return {**places, "t_cut": T_CUT, "shards": 1, "spec": {"evaluation": splits}}


@pytest.mark.parametrize("target", ["kfp", "vertex"])
def test_the_pipeline_is_submitted_between_two_sensors(target: Literal["kfp", "vertex"]) -> None:
    dag = build_submission_dag("relex_there", target, "/venv/bin/python", {"RELEX_PIPELINE": "/relex.yaml"})
    json.dumps(DagSerialization.to_dict(dag))
    submit = dag.get_task("submit")
    assert (submit.module, submit.arguments[:2]) == ("relex_kfp", ["submit", target])
    assert submit.environment["RELEX_PIPELINE"] == "/relex.yaml"
    assert submit.upstream_task_ids == {"start"}
    assert submit.downstream_task_ids == {"wait_for_outcome"}
    assert dag.get_task("wait_for_outcome").until == "published"


def test_the_outcome_is_waited_for(folder: Path) -> None:  # noqa: F811
    from test_sensor import deferred, fired

    spec = spec_of(folder)
    collect(spec)
    made = sensor(folder, until="published")
    trigger = deferred(made)
    outcome = {"decision": "keep_observed", "candidate": "last_observed", "checkpoint_uri": "/x"}
    outcome |= {"training_steps_saved": 0, "window_digest": "sha256:1", "spec_digest": spec_digest(spec)}
    outcome |= {"questions_digest": questions_digest(spec)}
    (folder / "run/published.json").write_text(json.dumps(outcome))
    assert made.resume_execution("resumed", {"event": fired(trigger)}, {})["verdict"] == "done"


def test_what_is_due_is_listed_anew_and_always_has_the_same_name(folder: Path) -> None:  # noqa: F811
    hold_back(folder, T_CUT)
    assert due([form(folder)]) == []
    go_on(folder)
    [one] = due([form(folder)])
    assert one["conf"] == form(folder)
    assert due([form(folder)] * 2) == [one, one], "Airflow skips the second run of a name"
    collect(spec_of(folder))
    assert due([form(folder)]) == [one]
    [other] = due([{**form(folder), "spec": {**form(folder)["spec"], "decision": {"min_gain": 0.1}}}])
    assert other["trigger_run_id"] != one["trigger_run_id"]
    corrected = form(folder)
    (folder / "confirm.jsonl").write_text("corrected")
    [again] = due([corrected])
    assert again["trigger_run_id"] != one["trigger_run_id"]


def test_the_watcher_tells_of_a_window_once(folder: Path) -> None:  # noqa: F811
    hold_back(folder, T_CUT)
    trigger = AnyWindowTrigger([spec_of(folder).model_dump_json()], interval=0.05)
    path, arguments = trigger.serialize()
    assert path == "relex_airflow.wakeups.AnyWindowTrigger"

    async def events() -> list[dict[str, Any]]:
        found, stream = [], AnyWindowTrigger(**json.loads(json.dumps(arguments))).run()
        waiting = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait([waiting], timeout=3)
        assert not done
        go_on(folder)
        found.append((await waiting).payload)
        second = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait([second], timeout=3)
        assert not done
        second.cancel()
        with suppress(asyncio.CancelledError):
            await second
        return found

    assert asyncio.run(events()) == [{"manifest": str(folder / "run/window.json")}]


def test_the_woken_dag_starts_one_run_a_window(folder: Path) -> None:  # noqa: F811
    dag = build_wakeup_dag("relex_wakeups", [form(folder)])
    stored = DagSerialization.to_dict(dag)
    assert "AssetOrTimeSchedule" in stored["dag"]["timetable"]["__type"]
    DagSerialization.from_dict(json.loads(json.dumps(stored)))
    start = dag.get_task("start")
    assert start.partial_kwargs["skip_when_already_exists"] is True
    assert start.partial_kwargs["trigger_dag_id"] == "relex"


OPTIONS = {
    "catchup": True,
    "default_args": {"owner": "rl"},
    "description": "ours",
    "doc_md": "our own page",
    "max_active_runs": 3,
    "start_date": datetime(2026, 3, 1, tzinfo=timezone.utc),
    "tags": {"rl"},
}
BUILDERS: dict[str, Callable[..., DAG]] = {
    "stages": lambda **options: build_dag("relex", Local(python="/python"), **options),
    "submission": lambda **options: build_submission_dag("relex", "kfp", "/python", {}, **options),
    "wakeups": lambda **options: build_wakeup_dag("relex", [], **options),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_options_of_a_dag_take_the_place_of_the_usual_ones(name: str) -> None:
    usual, ours = BUILDERS[name](), BUILDERS[name](**OPTIONS)
    for option, value in OPTIONS.items():
        found = getattr(ours, option)
        assert found == (value if option != "default_args" else {**usual.default_args, "owner": "rl"}), option
        assert found != getattr(usual, option), option
    assert ours.task_ids == usual.task_ids
