"""What a framework's own markers say about a step: that it is finished, or why it is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from relex_core.checkpoints.layouts import StepFolder
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound
from relex_core.storage import ObjectInfo, Store, read_bytes

LONGEST_STEP = 64
"""Bytes of a last-step file that count."""


def last_complete_steps(store: Store, folders: Iterable[StepFolder]) -> dict[str, int | None]:
    """The step that each last-step file of a trajectory names; None while it is being rewritten.

    Each file is read once, so that all folders are held against the same number.
    """
    files = {folder.last_step_file for folder in folders if folder.last_step_file}
    return {info.name: _last_complete_step(store, info) for info in files}


def unfinished(store: Store, folder: StepFolder, last_complete: Mapping[str, int | None]) -> str:
    """Why the framework's own marker says that a step is not complete; "" if it does not say so.

    Args:
        store: rooted at the trajectory.
        last_complete: what `last_complete_steps` gave.

    Raises:
        DataError: the marker contradicts the folder's name.
    """
    layout = folder.layout
    if layout.step_marker and folder.step_marker is None:
        why = f"{layout.step_marker}, the marker of {layout.name}, is not there"
        return f"{why}; {layout.advice}" if layout.advice else why
    if layout.step_field and folder.step_marker is not None:
        _check_step_field(store, folder, folder.step_marker)
    if folder.last_step_file is not None:
        name = folder.last_step_file.name
        last = last_complete[name]
        if last is None:
            return f"{name} names no step yet"
        if folder.step > last:
            return f"{name} says that step {last} is the last complete one"
    return ""


def _check_step_field(store: Store, folder: StepFolder, marker: ObjectInfo) -> None:
    """The HF Trainer writes its step into the marker; a renamed or copied folder shows itself there."""
    key = f"{folder.name}/{marker.name}"
    try:
        state = json.loads(_read_listed(store, key, marker))
    except (ValueError, RecursionError, CheckpointChanged, ObjectNotFound):  # being written, or just deleted
        return
    said = state.get(folder.layout.step_field) if isinstance(state, Mapping) else None
    if said is not None and said != folder.step:
        raise DataError(
            f"the folder's name says step {folder.step}, its trainer state says step {said!r:.40}",
            where=f"{store.uri}/{key}",
            next_step="give every checkpoint the folder name of its own step",
        )


def _last_complete_step(store: Store, info: ObjectInfo) -> int | None:
    """None while the file is being rewritten: nothing is known to be complete at that moment."""
    try:
        text = read_bytes(store, info.name)[:LONGEST_STEP].strip()  # as it is now: the trainer rewrites it
    except (ObjectNotFound, CheckpointChanged):
        return None
    return int(text) if text.isdigit() else None


def _read_listed(store: Store, key: str, info: ObjectInfo) -> bytes:
    """A listed object in one request; `read_bytes` needs another one to learn its size and generation."""
    data = bytearray(info.size)
    store.read_into(key, info.generation, 0, memoryview(data))
    return bytes(data)
