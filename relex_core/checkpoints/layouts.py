"""Which folder is which optimizer step: the layouts of the trainers people use, as data.

A layout says how step folders are called, where in them the weights lie, and what shows that a step is complete.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound
from relex_core.storage import ObjectInfo, Store, read_bytes


@dataclass(frozen=True)
class Layout:
    """How one framework lays out its trajectory."""

    name: str
    step_folder: str
    """Regular expression of a step folder's name; its only group is the step."""
    weights: str
    """Folder of the weights inside the step folder; "" is the step folder itself."""
    weight_file: str = r".*\.safetensors"
    """Regular expression of the names that only weights have there."""
    step_marker: str = ""
    """File of the step folder that is written last; "" where the framework has none."""
    last_step_file: str = ""
    """File of the trajectory that holds the last complete step; it may be missing (copied trajectories)."""


# The first layout whose weights are there wins, so the deeper folders come first. 15 digits bound the step
# far above any real run and far below what an integer field could not hold.
LAYOUTS = (
    Layout("verl", r"global_step_(\d{1,15})", "actor/huggingface", last_step_file="latest_checkpointed_iteration.txt"),
    Layout(
        "verl, FSDP shards",
        r"global_step_(\d{1,15})",
        "actor",
        weight_file=r"model_world_size_\d+_rank_\d+\.pt",
        last_step_file="latest_checkpointed_iteration.txt",
    ),
    Layout("RELEX authors", r"global_step_(\d{1,15})", ""),
    Layout("HF Trainer / TRL", r"checkpoint-(\d{1,15})", "", step_marker="trainer_state.json"),
)


@dataclass(frozen=True)
class StepFolder:
    """One step's folder, as listed."""

    step: int
    name: str
    """Its name below the trajectory."""
    layout: Layout
    files: tuple[ObjectInfo, ...]
    """Objects of the weights folder (not below it), with names relative to it."""
    unfinished: str = ""
    """Why the framework's own marker says that the step is not complete; "" if it does not say so."""

    @property
    def weights(self) -> str:
        """Folder of the weights, below the trajectory."""
        return f"{self.name}/{self.layout.weights}".rstrip("/")


def find_steps(store: Store, listing: Iterable[ObjectInfo]) -> list[StepFolder]:
    """The step folders among a trajectory's objects, ordered by step.

    Raises:
        DataError: two folders claim the same step, or a marker contradicts the folder's name.
    """
    folders: dict[str, list[ObjectInfo]] = defaultdict(list)
    top_files = []
    for info in listing:
        name, separator, rest = info.name.partition("/")
        if separator:
            folders[name].append(ObjectInfo(rest, info.size, info.generation, info.crc32c))
        else:
            top_files.append(info.name)
    found: dict[int, StepFolder] = {}
    for name, files in folders.items():
        folder = _step_folder(store, name, files, top_files)
        if folder is None:
            continue
        if folder.step in found:
            raise DataError(f"step {folder.step} is there twice", where=f"{found[folder.step].name} and {name}")
        found[folder.step] = folder
    return [found[step] for step in sorted(found)]


def _step_folder(store: Store, name: str, files: Sequence[ObjectInfo], top_files: Sequence[str]) -> StepFolder | None:
    candidates = [layout for layout in LAYOUTS if re.fullmatch(layout.step_folder, name)]
    if not candidates:
        return None
    # A folder without any weights still is a step: it takes the first layout that has any file in the right place.
    # Weights go first, since verl writes config and tokenizer into actor/huggingface even where its weights are shards.
    by_layout = {layout: _directly_in(layout.weights, files) for layout in candidates}
    with_weights = (layout for layout, inside in by_layout.items() if _hold_weights(layout, inside))
    with_files = (layout for layout, inside in by_layout.items() if inside)
    layout = next(chain(with_weights, with_files), candidates[0])
    match = re.fullmatch(layout.step_folder, name)
    assert match is not None
    step = int(match.group(1))
    names = {info.name for info in files}
    return StepFolder(
        step, name, layout, tuple(by_layout[layout]), _unfinished(store, layout, step, name, names, top_files)
    )


def _directly_in(folder: str, files: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    prefix = f"{folder}/" if folder else ""
    inside = [info for info in files if info.name.startswith(prefix) and "/" not in info.name[len(prefix) :]]
    return [ObjectInfo(info.name[len(prefix) :], info.size, info.generation, info.crc32c) for info in inside]


def _hold_weights(layout: Layout, files: Iterable[ObjectInfo]) -> bool:
    return any(re.fullmatch(layout.weight_file, info.name) for info in files)


def _unfinished(store: Store, layout: Layout, step: int, name: str, names: set[str], top_files: Sequence[str]) -> str:
    if layout.step_marker:
        if layout.step_marker not in names:
            return f"{layout.step_marker}, which {layout.name} writes last, is not there"
        _check_trainer_state(store, f"{name}/{layout.step_marker}", step)
    if layout.last_step_file in top_files:
        last = _last_complete_step(store, layout.last_step_file)
        if last is None:
            return f"{layout.last_step_file} names no step yet"
        if step > last:
            return f"{layout.last_step_file} says that step {last} is the last complete one"
    return ""


def _check_trainer_state(store: Store, key: str, step: int) -> None:
    """The HF Trainer writes its step into the marker; a renamed or copied folder shows itself there."""
    state = _json(store, key)
    said = state.get("global_step") if isinstance(state, Mapping) else None
    if said is not None and said != step:
        raise DataError(
            f"the folder's name says step {step}, its trainer state says step {said}",
            where=f"{store.uri}/{key}",
            next_step="give every checkpoint the folder name of its own step",
        )


def _last_complete_step(store: Store, key: str) -> int | None:
    """None while the file is being rewritten: nothing is known to be complete at that moment."""
    try:
        text = read_bytes(store, key)[:64].strip()
    except (ObjectNotFound, CheckpointChanged):
        return None
    return int(text) if text.isdigit() else None


def _json(store: Store, key: str) -> object:
    try:
        return json.loads(read_bytes(store, key))
    except (ValueError, RecursionError, ObjectNotFound):  # being written, or deleted by a live trainer
        return None
