"""Did a stage leave what it is there for? A pod that ended is no proof: its result object is. Knows no Airflow."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from relex_core import layout
from relex_core.errors import DataError, ObjectNotFound
from relex_core.manifest import load_manifest
from relex_core.spec import load_spec_of
from relex_core.stages import Stage, markers
from relex_core.storage import join_uri, open_store, read_bytes


def check_stage(run: str, stage: Stage, *, candidate: str = "", digest: str = "") -> dict[str, str]:
    """Read the result objects of a stage that has ended.

    Args:
        candidate: of a stage that runs once for each.
        digest: the window's, as it was collected by this very run of the DAG; empty for collect itself.

    Returns:
        digest: the window's; and the SHA-256 of every result object by its key.

    Raises:
        DataError: a result is missing, is not JSON though it should be, or belongs to another window.
    """
    window = load_manifest(run).digest  # refuses a manifest that does not match its own digest
    if digest and window != digest:
        raise _another_window(run, layout.WINDOW, window, digest)
    found = {"digest": window}
    for key in _expected(run, stage, candidate):
        data = _result(run, stage, key)
        recorded = _fields(run, key, data).get("window_digest", window) if key.endswith(".json") else window
        if recorded != window:
            raise _another_window(run, key, recorded, window)
        found[key] = "sha256:" + hashlib.sha256(data).hexdigest()
    return found


def read_json(run: str, key: str) -> dict[str, Any]:
    """A result object; small ones only.

    Raises:
        DataError: it is no JSON object.
        ObjectNotFound: it is not there.
    """
    return _fields(run, key, read_bytes(open_store(run), key))


def _expected(run: str, stage: Stage, candidate: str) -> list[str]:
    undecided = stage.name == "publish" and read_json(run, layout.DECISION).get("decision") == "not_ready"
    return [] if undecided else markers(stage, load_spec_of(run), candidate)


def _result(run: str, stage: Stage, key: str) -> bytes:
    try:
        data = read_bytes(open_store(run), key)
    except ObjectNotFound:
        data = b""
    if not data:
        raise DataError(
            f"{stage.name} ended, but its result is not there",
            where=join_uri(run, key),
            next_step=f"clear the task {stage.name}: its pod was lost, and running it again goes on where it stopped",
        )
    return data


def _fields(run: str, key: str, data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise DataError("no JSON object", where=join_uri(run, key), next_step="delete it, and clear its task")
    return fields


def _another_window(run: str, key: str, found: str, expected: str) -> DataError:
    return DataError(
        f"this belongs to the window {found}",
        where=join_uri(run, key),
        expected=f"the window {expected}",
        next_step="was the run directory deleted or collected anew meanwhile? Start a new run of the DAG",
    )
