"""RUN/events.jsonl: what happened when, and how long it took. For people, and for the cost in the decision."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

from relex_core import layout
from relex_core.errors import CheckpointChanged, ObjectNotFound, StorageError
from relex_core.storage import Store, open_store, read_bytes, write_bytes

log = logging.getLogger("relex")


ATTEMPTS = 5


def record_event(run: str, event: str, **details: object) -> None:
    """Add one line to the run's log: {"time", "event", ...details}; `details` are plain data.

    Another process may write at the same moment: then it is tried again. A log that cannot be written is a warning,
    never an error of the stage that has just finished its work.
    """
    store = open_store(run)
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = json.dumps({"time": time, "event": event, **details}) + "\n"
    for _ in range(ATTEMPTS):
        try:
            write_bytes(store, layout.EVENTS, _before(store) + line.encode())  # an object store cannot append
            return
        except CheckpointChanged:
            continue
        except StorageError as error:
            log.warning("cannot write %s/%s: %s", run, layout.EVENTS, error.what)
            return


def _before(store: Store) -> bytes:
    try:
        return read_bytes(store, layout.EVENTS)
    except ObjectNotFound:
        return b""
