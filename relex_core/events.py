"""RUN/events.jsonl: what happened when, and how long it took. For people, and for the cost in the decision.

An object store cannot append, so a line is added by replacing the object, on the condition that it still is the one
that was read. Of many processes that write in the same moment one succeeds; the others read again. No line gets lost.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

from relex_core import layout
from relex_core.errors import CheckpointChanged, ObjectExists, ObjectNotFound, RelexError, StorageError
from relex_core.storage import Store, open_store, read_bytes

log = logging.getLogger("relex")

PATIENCE = 300.0
"""Seconds. Google Cloud Storage takes about one write a second to one object: enough for 64 pods that end together."""


def record_event(run: str, event: str, **details: object) -> None:
    """Add one line to the run's log: {"time", "event", ...details}; `details` are plain data.

    A log that cannot be written is a warning, which holds the line, and never an error of the stage that has just
    finished its work.
    """
    time = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    line = json.dumps({"time": time, "event": event, **details}) + "\n"
    try:
        _append_patiently(open_store(run), line.encode())
    except RelexError as error:
        log.warning("cannot write %s/%s: %s; the line is %s", run, layout.EVENTS, error, line.rstrip())


def read_events(store: Store) -> list[dict[str, Any]]:
    """All lines of the log. What is no event, such as half a line after a full disk, is a warning."""
    try:
        lines = read_bytes(store, layout.EVENTS).decode(errors="replace").splitlines()
    except ObjectNotFound:
        return []
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            log.warning("%s/%s: line %d is no event, and is left out", store.uri, layout.EVENTS, number)
    return events


def _append_patiently(store: Store, line: bytes) -> None:
    try:
        _append(store, line)  # nearly always alone; loading what retries takes longer than this
    except (CheckpointChanged, ObjectExists):
        from google.api_core.exceptions import RetryError
        from google.api_core.retry import Retry, if_exception_type

        overtaken = if_exception_type(CheckpointChanged, ObjectExists)
        try:
            Retry(predicate=overtaken, initial=0.05, maximum=8.0, timeout=PATIENCE)(_append)(store, line)
        except RetryError as error:
            raise StorageError(f"others kept writing for {PATIENCE:g} s: {error}", where=store.uri) from None


def _append(store: Store, line: bytes) -> None:
    """One attempt.

    Raises:
        CheckpointChanged, ObjectExists: another process was faster.
    """
    try:
        info = store.stat(layout.EVENTS)
        before = bytearray(info.size)
        store.read_into(layout.EVENTS, info.generation, 0, memoryview(before))
    except ObjectNotFound:
        store.create(layout.EVENTS, line)
        return
    if line not in before:  # else an earlier attempt stored it, and its answer was lost
        whole = not before or before.endswith(b"\n")  # else a full disk or an editor cut the last line
        store.replace(layout.EVENTS, bytes(before) + (line if whole else b"\n" + line), info.generation)
