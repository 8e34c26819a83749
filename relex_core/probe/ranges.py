"""Which bytes a probe reads: ranges of every tensor, the same at every step. Pure; imports neither numpy nor torch.

A tensor is split into n equal parts, and one range is drawn from each: the sample is stratified by tensor and spread
over it. Ranges are as long as an object store likes them; so a tensor of a few ranges' length is read whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from relex_core.checkpoints.contents import TensorInfo
from relex_core.checkpoints.safetensors_file import FLOATS, ITEM_BYTES

FRACTION = 0.01
RANGE_BYTES = 64 * 1024
"""Of the shortest range."""
GROUPS = 8
"""Ranges of one tensor at most; longer ones beyond that. The jackknife leaves out one group at a time."""
FEWEST = 2
"""Ranges of a tensor that is not read whole: one would not tell how much ranges differ."""


@dataclass(frozen=True)
class Range:
    """Weights `start` to `stop` of a tensor."""

    tensor: str
    start: int
    stop: int
    group: int
    """Of the jackknife, below GROUPS; no two ranges of a tensor have the same."""


@dataclass(frozen=True)
class Sample:
    """The ranges of one tensor."""

    tensor: str
    numel: int
    ranges: tuple[Range, ...]

    @property
    def weights(self) -> int:
        """Read at every step."""
        return sum(part.stop - part.start for part in self.ranges)

    @property
    def share(self) -> float:
        """Of the tensor's weights; 1: it has no sampling error."""
        return self.weights / self.numel


def choose_samples(tensors: Iterable[TensorInfo], fraction: float, seed: int, range_bytes: int) -> list[Sample]:
    """Ranges of every float tensor that has weights.

    Args:
        fraction: of a tensor's bytes; more where its ranges would be too short.
        range_bytes: of the shortest range.
    """
    draw = random.Random(seed)
    return [
        Sample(tensor.name, tensor.numel, _ranges(tensor, fraction, range_bytes, draw))
        for tensor in tensors
        if tensor.dtype in FLOATS and tensor.numel
    ]


def _ranges(tensor: TensorInfo, fraction: float, range_bytes: int, draw: random.Random) -> tuple[Range, ...]:
    item = ITEM_BYTES[tensor.dtype]
    count = min(max(round(fraction * tensor.nbytes / range_bytes), FEWEST), GROUPS)
    length = max(range_bytes // item, round(fraction * tensor.numel / count))
    if 2 * count * length > tensor.numel:  # gaps shorter than the ranges are not worth the requests
        return (Range(tensor.name, 0, tensor.numel, 0),)
    groups = draw.sample(range(GROUPS), count)
    edges = [tensor.numel * part // count for part in range(count + 1)]
    starts = [draw.randint(edges[part], edges[part + 1] - length) for part in range(count)]
    return tuple(Range(tensor.name, s, s + length, g) for s, g in zip(starts, groups, strict=True))
