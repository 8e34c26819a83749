"""Which folder is which optimizer step: the layouts of the trainers people use, as data.

A layout says how step folders are called, where in them the weights lie, and what shows that a step is complete.
To add a trainer, add a row to LAYOUTS (and its section to docs/trainers.md).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from relex_core.errors import DataError
from relex_core.storage import ObjectInfo

# 15 digits bound the step far above any real run and far below what an integer field could not hold.
STEP = r"(?P<step>[0-9]{1,15})(?![0-9])"

SAFETENSORS = r"(adapter_)?model[^/]*\.safetensors(\.index\.json)?"
ADAPTER = r"adapter_model\.safetensors"


@dataclass(frozen=True)
class Layout:
    """How one framework lays out its trajectory."""

    name: str
    step_folder: str
    """Name of a step folder: `{step}` stands for the step, with or without leading zeros, `*` for anything."""
    weights: str
    """Folder of the weights inside the step folder; "" is the step folder itself."""
    step_marker: str = ""
    """File of the step folder that is written last; "" where the framework has none."""
    step_field: str = ""
    """Field of that file (JSON) that repeats the step; "" where there is none."""
    last_step_file: str = ""
    """File of the trajectory that holds the last complete step; it may be missing (copied trajectories)."""
    weight_files: str = SAFETENSORS
    """Regular expression of the names of weight files."""
    refused: str = ""
    """Why relex cannot read what the framework leaves there."""
    advice: str = ""
    """What to do instead, or, where it is not refused, if the marker does not come."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        parts = re.split(r"(\{step\}|\*)", self.step_folder)
        # After a `*`, the step takes all of its digits.
        wild = {"{step}": f"(?<![0-9]){STEP}" if "*{step}" in self.step_folder else STEP, "*": "[^/]*"}
        return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))

    def step_of(self, folder: str) -> int | None:
        """The step of a folder's name; None if it is no step folder of this layout."""
        match = self.pattern.fullmatch(folder)
        return int(match["step"]) if match else None

    def __str__(self) -> str:
        return f"{self.step_folder}/{self.weights}".rstrip("/")


DCP_ADVICE = (
    "convert each step with NeMo-RL's examples/converters/convert_dcp_to_hf.py into a folder step_N of one new "
    'trajectory, and give that one `layout: {step_folder: "step_{step}"}`'
)
COPIED_ADVICE = 'if the trajectory was copied without it, give the spec `layout: {step_folder: "step_{step}"}`'

# Several rows can match one folder's name. The first whose weights are there wins; without any weights, the first whose
# weights folder has begun to appear. So of rows with the same step_folder the deeper ones come first.
LAYOUTS = (
    Layout("verl", "global_step_{step}", "actor/huggingface", last_step_file="latest_checkpointed_iteration.txt"),
    Layout(
        "verl (Megatron)",
        "global_step_{step}",
        "actor/model/huggingface",
        last_step_file="latest_checkpointed_iteration.txt",
    ),
    # Before the shards: of a LoRA run they hold base and adapter side by side, under PEFT's names.
    Layout(
        "verl, LoRA adapters",
        "global_step_{step}",
        "actor/lora_adapter",
        last_step_file="latest_checkpointed_iteration.txt",
        weight_files=ADAPTER,
    ),
    Layout(
        "verl, FSDP shards",
        "global_step_{step}",
        "actor",
        weight_files=r"model_world_size_\d+_rank_\d+\.pt",
        last_step_file="latest_checkpointed_iteration.txt",
    ),
    Layout("SkyRL", "global_step_{step}", "policy"),
    Layout("RELEX authors", "global_step_{step}", ""),
    Layout("OpenRLHF", "global_step{step}_hf", ""),
    Layout("HF Trainer / TRL", "checkpoint-{step}", "", step_marker="trainer_state.json", step_field="global_step"),
    Layout(
        "NeMo-RL",
        "step_{step}",
        "policy/weights",
        weight_files=r"(.*/)?(\.metadata|[^/]*\.distcp)",
        refused="NeMo-RL's torch DCP checkpoints are not read: their weights are no safetensors",
        advice=DCP_ADVICE,
    ),
    Layout("prime-rl", "step_{step}", "", step_marker="STABLE", advice=COPIED_ADVICE),
)


@dataclass(frozen=True)
class StepFolder:
    """One step's folder, as listed."""

    step: int
    name: str
    """Its name below the trajectory."""
    layout: Layout
    everything: tuple[ObjectInfo, ...] = field(repr=False)
    """All objects of the step folder, with names relative to it."""
    last_step_file: ObjectInfo | None = None
    """The trajectory's file of that kind, where the layout has one and it is there."""

    @property
    def weights(self) -> str:
        """Folder of the weights, below the trajectory."""
        return f"{self.name}/{self.layout.weights}".rstrip("/")

    @cached_property
    def files(self) -> tuple[ObjectInfo, ...]:
        """Objects of the weights folder (not below it), with names relative to it."""
        return tuple(info for info in _below(self.layout.weights, self.everything) if "/" not in info.name)

    def file(self, name: str) -> ObjectInfo | None:
        """The object of that name in the weights folder or, with a path, below it."""
        return next((info for info in _below(self.layout.weights, self.everything) if info.name == name), None)

    @cached_property
    def step_marker(self) -> ObjectInfo | None:
        """The marker in the step folder, if the layout has one and it is there."""
        return next((info for info in self.everything if info.name == self.layout.step_marker), None)

    @property
    def marked(self) -> bool:
        """Whether something of the framework's own says when the step is complete."""
        return bool(self.layout.step_marker) or self.last_step_file is not None


@dataclass(frozen=True)
class Trajectory:
    """What a trajectory's listing shows."""

    steps: tuple[StepFolder, ...]
    """Ordered by step."""
    other_folders: tuple[str, ...]
    """Folders directly below the trajectory that are no steps."""
    deeper: tuple[str, ...]
    """Folders below these that hold step folders themselves: perhaps the trajectory that was meant."""


def find_steps(listing: Iterable[ObjectInfo], layouts: Sequence[Layout] = LAYOUTS) -> Trajectory:
    """The step folders among a trajectory's objects.

    Raises:
        DataError: two folders claim the same step.
    """
    folders: dict[str, list[ObjectInfo]] = defaultdict(list)
    top_files: dict[str, ObjectInfo] = {}
    for info in listing:
        name, separator, rest = info.name.partition("/")
        if separator:
            folders[name].append(replace(info, name=rest))
        else:
            top_files[name] = info
    found: dict[int, StepFolder] = {}
    others: list[str] = []
    for name, files in folders.items():
        folder = _step_folder(name, files, top_files, layouts)
        if folder is None:
            others.append(name)
            continue
        if folder.step in found:
            raise DataError(
                f"step {folder.step} is there twice",
                where=f"{found[folder.step].name} and {name}",
                next_step="move one of them out of the trajectory",
            )
        found[folder.step] = folder
    deeper = {parent for name in others for parent in _parents_of_steps(name, folders[name], layouts)}
    return Trajectory(tuple(found[step] for step in sorted(found)), tuple(sorted(others)), tuple(sorted(deeper)))


def _step_folder(
    name: str, files: Sequence[ObjectInfo], top_files: Mapping[str, ObjectInfo], layouts: Sequence[Layout]
) -> StepFolder | None:
    candidates = [(layout, step) for layout in layouts if (step := layout.step_of(name)) is not None]
    if not candidates:
        return None
    layout, step = next(
        (pair for has in (_has_weights, _has_begun) for pair in candidates if has(pair[0], files)), candidates[0]
    )
    return StepFolder(step, name, layout, tuple(files), top_files.get(layout.last_step_file))


def _has_weights(layout: Layout, files: Sequence[ObjectInfo]) -> bool:
    return any(re.fullmatch(layout.weight_files, info.name) for info in _below(layout.weights, files))


def _has_begun(layout: Layout, files: Sequence[ObjectInfo]) -> bool:
    """Whether the first folder on the way to the weights is there: a trainer fills it little by little."""
    return bool(_below(layout.weights.partition("/")[0], files))


def _below(folder: str, files: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """The objects below `folder`, with names relative to it."""
    prefix = f"{folder}/" if folder else ""
    return [replace(info, name=info.name[len(prefix) :]) for info in files if info.name.startswith(prefix)]


def _parents_of_steps(folder: str, files: Sequence[ObjectInfo], layouts: Sequence[Layout]) -> set[str]:
    """Of all folders on the way to `files`, those directly above a step folder."""
    parents = set()
    for info in files:
        parts = [folder, *info.name.split("/")[:-1]]
        for depth in range(1, len(parts)):
            if any(layout.step_of(parts[depth]) is not None for layout in layouts):
                parents.add("/".join(parts[:depth]))
                break
    return parents
