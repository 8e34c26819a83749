"""What a checkpoint folder holds: tensors, each with the byte ranges that make it up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.storage import ObjectInfo

if TYPE_CHECKING:
    from relex_core.checkpoints.adapter_config import AdapterConfig

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Extent:
    """Consecutive bytes of one file."""

    file: ObjectInfo
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a tensor is."""

    name: str
    dtype: str
    """As safetensors spells it: "BF16", "F32", "I64", ..."""
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorInfo):
    """Where a tensor of a checkpoint lies."""

    extents: tuple[Extent, ...]
    """Joined, the tensor's bytes in C order. A safetensors tensor has one, a sharded one has one for each shard."""

    def ranges(self, start: int, stop: int) -> list[tuple[ObjectInfo, int, int]]:
        """(file, offset in it, bytes) of bytes `start` to `stop` of the tensor, in order."""
        if len(self.extents) == 1:  # of every safetensors tensor, many thousand times in a fit
            [extent] = self.extents
            return [(extent.file, extent.offset + start, stop - start)]
        found, begin = [], 0
        for extent in self.extents:
            end = begin + extent.nbytes
            first, last = max(start, begin), min(stop, end)
            if first < last:
                found.append((extent.file, extent.offset + first - begin, last - first))
            begin = end
        return found


@dataclass(frozen=True)
class LowRankTarget:
    """The update of one weight of the base: Δ = scaling · B A, or its transpose."""

    weight: str
    """Name in the base."""
    a: str
    """Name of A "r n" in the adapter's file."""
    b: str
    """Name of B "m r"."""
    rank: int
    scaling: float
    transposed: bool
    shape: tuple[int, int]
    """Of Δ."""
    embedding: bool = False

    @property
    def module(self) -> str:
        return self.weight.removesuffix(WEIGHT)


@dataclass(frozen=True)
class Adapter:
    """What an adapter's file holds, by the names of the base."""

    config: AdapterConfig
    targets: Mapping[str, LowRankTarget] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    """Tensors that were trained whole: name in the base -> name in the file."""
    frozen: Mapping[str, str] = field(default_factory=dict)
    """Copies of the base's own tensors, likewise."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Tensors of the base that the run changes."""
        return (*self.targets, *self.whole)


@dataclass
class Checkpoint:
    """What a folder holds, and what is wrong with it."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    """By name, in the order of the files and of the bytes within them."""
    tied: dict[str, str] = field(default_factory=dict)
    """Tensors stored beside the one whose bytes they repeat, because the config ties them: "lm_head.weight" -> that.
    Where there is no config, equal bytes alone: then the base's config says whether they are tied."""
    config: Mapping[str, object] = field(default_factory=dict)
    files: list[ObjectInfo] = field(default_factory=list)
    """What the weights need: the shards, and their index where there is one."""
    adapter: Adapter | None = None
    """What the tensors are to the base, where they are a LoRA adapter's; they then have the names of its file."""
    incomplete: list[str] = field(default_factory=list)
    """Problems that more writing could cure: a missing or short shard."""
    wrong: list[str] = field(default_factory=list)
    """Problems that it could not."""

    @property
    def problems(self) -> list[str]:
        return [*self.wrong, *self.incomplete]
