"""How a fit groups tensors: into what is stored together, and shared out to pods.

A *group* is the unit of output and of resuming: up to MAX_GROUP_TENSORS consecutive tensors whose stored directions
take up to `fit.group_size` bytes, or one larger tensor. It does not depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from relex_core.checkpoints.safetensors_file import FLOATS
from relex_core.fit.columns import stored_columns
from relex_core.manifest import WindowManifest
from relex_core.spec import FitSpec

# A group's Gram matrices and fits are held until its end: 46 MB at T = 150.
MAX_GROUP_TENSORS = 256


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the window."""

    name: str
    shape: tuple[int, ...]
    numel: int
    dtype: str
    """Of the observed checkpoints."""
    base_dtype: str

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATS


@dataclass(frozen=True)
class Group:
    """Tensors whose directions are stored together. `number` counts from 1."""

    number: int
    tensors: tuple[PlannedTensor, ...]


def plan_groups(manifest: WindowManifest, base_dtypes: Mapping[str, str], spec: FitSpec) -> list[Group]:
    """The tensor groups of a fit; they depend on the window and the spec alone.

    Args:
        base_dtypes: dtype of each tensor in the base.
    """
    tensors = [
        PlannedTensor(t.name, t.shape, math.prod(t.shape), t.dtype, base_dtypes[t.name]) for t in manifest.tensors
    ]
    return _groups(tensors, int(spec.group_size), len(stored_columns(spec)) * direction_item_bytes(spec))


def shard_groups(groups: Sequence[Group], shard: int, shards: int) -> list[Group]:
    """The groups of shard `shard` (from 1) of `shards`: consecutive groups, of about equal weights.

    Of weights, not of bytes to read: second reads depend on the memory budget, and all pods must share out alike.
    """
    weights = [sum(tensor.numel for tensor in group.tensors) for group in groups]
    total = max(sum(weights), 1)
    # Twice the middle of each group, in whole numbers; a last group without weights ends the last shard.
    middles = [2 * sum(weights[:i]) + weight for i, weight in enumerate(weights)]
    places = [min(middle * shards // (2 * total), shards - 1) for middle in middles]
    return [group for group, place in zip(groups, places, strict=True) if place == shard - 1]


def direction_item_bytes(spec: FitSpec) -> int:
    """Bytes of one stored weight of a direction."""
    return 2 if spec.direction_dtype == "bfloat16" else 4


def _groups(tensors: Sequence[PlannedTensor], limit: int, bytes_per_weight: int) -> list[Group]:
    groups: list[list[PlannedTensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.numel * bytes_per_weight
        if not groups or size > room or len(groups[-1]) == MAX_GROUP_TENSORS:
            groups.append([])
            room = limit
        groups[-1].append(tensor)
        room -= size
    return [Group(number, tuple(group)) for number, group in enumerate(groups, start=1)]
