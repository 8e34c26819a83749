"""RUN/events.jsonl: what happened when, and how long it took. For people, and for the cost in the decision."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from relex_core import layout
from relex_core.errors import ObjectNotFound
from relex_core.storage import open_store, read_bytes, write_bytes


def record_event(run: str, event: str, **details: object) -> None:
    """Add one line to the run's log: {"time", "event", ...details}; `details` are plain data."""
    store = open_store(run)
    try:
        before = read_bytes(store, layout.EVENTS)
    except ObjectNotFound:
        before = b""
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = json.dumps({"time": time, "event": event, **details}) + "\n"
    write_bytes(store, layout.EVENTS, before + line.encode())  # an object store cannot append
