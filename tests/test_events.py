"""The run's log: no line is lost by writers at the same time, and none of them fails because of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from gcs.faults import faulty_front, lost_answer
from gcs.server import fake_gcs, new_bucket  # noqa: F401

from relex_core import events, layout
from relex_core.events import record_event
from relex_core.storage import ObjectInfo, Store, open_store, read_bytes
from relex_core.storage.local import LocalStore

WRITER = """
import sys
from relex_core.events import record_event
run, writer = sys.argv[1:]
print("ready", flush=True)
sys.stdin.read()
for number in range(20):
    record_event(run, "counted", writer=writer, number=number)
"""

HOLDER = """
import fcntl, sys
with open(sys.argv[1], "r+b") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["local", "gcs"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a run directory without a log."""
    if request.param == "local":
        return str(tmp_path / "run")
    url = request.getfixturevalue("fake_gcs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    return f"gs://{new_bucket(url)}/run"


def lines(run: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in read_bytes(open_store(run), layout.EVENTS).decode().splitlines()]


def test_processes_that_write_at_the_same_time_lose_no_line(run: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, run, str(writer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for writer in range(8)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.close()  # type: ignore[union-attr]
    said = [process.stderr.read() for process in processes]  # type: ignore[union-attr]
    assert [process.wait() for process in processes] == [0] * 8
    assert said == [b""] * 8
    found = [(line["writer"], line["number"]) for line in lines(run)]
    assert len(found) == 160
    assert {*found} == {(str(writer), number) for writer in range(8) for number in range(20)}
    for writer in range(8):  # in the order in which it wrote them
        assert [number for name, number in found if name == str(writer)] == list(range(20))


def test_another_line_comes_between_reading_and_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, replace = str(tmp_path), LocalStore.replace

    def late(store: LocalStore, key: str, data: bytes, generation: int) -> ObjectInfo:
        monkeypatch.setattr(LocalStore, "replace", replace)
        record_event(run, "between")
        return replace(store, key, data, generation)

    record_event(run, "first")
    monkeypatch.setattr(LocalStore, "replace", late)
    record_event(run, "last")
    assert [line["event"] for line in lines(run)] == ["first", "between", "last"]


def test_a_line_whose_answer_was_lost_is_there_once(
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = new_bucket(fake_gcs)
    with faulty_front(fake_gcs) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        run = f"gs://{bucket}/run"
        for kind, count in (("created", 1), ("replaced", 2)):
            front.plan("create", layout.EVENTS, lost_answer)
            record_event(run, kind)
            assert len(lines(run)) == count
            assert len(front.seen("create", layout.EVENTS)) == 2 * count, "it was sent again"


def test_a_process_suspended_while_it_writes_blocks_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = str(tmp_path), tmp_path / layout.EVENTS
    record_event(run, "first")
    monkeypatch.setattr(events, "PATIENCE", 0.2)
    suspended = [sys.executable, "-c", HOLDER, str(log)]
    with subprocess.Popen(suspended, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"locked\n"
        recording = threading.Thread(target=record_event, args=(run, "second"))
        recording.start()
        recording.join(30)
        waits = recording.is_alive()
    recording.join()
    assert not waits
    assert '"event": "second"' in caplog.text and "another process is replacing the file" in caplog.text
    record_event(run, "third")
    assert [line["event"] for line in lines(run)] == ["first", "third"]


def test_a_log_that_cannot_be_written_is_a_warning_that_holds_the_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING, "relex"):
        record_event(str(tmp_path / "run"), "fitted", seconds=1.5)
    assert '"event": "fitted", "seconds": 1.5' in caplog.text
    caplog.clear()

    def never(store: Store, line: bytes) -> None:
        from relex_core.errors import CheckpointChanged

        raise CheckpointChanged("always another one")

    monkeypatch.setattr(events, "_append", never)
    monkeypatch.setattr(events, "PATIENCE", 0.2)
    record_event(str(tmp_path), "fitted", seconds=2.5)
    assert '"seconds": 2.5' in caplog.text
