"""The units of a fit: blocks of columns, whose Gram matrices are summed; stripes, which are read; tiles, in the cache.

A *stripe* is up to `columns` weights, taken from neighbouring tensors of a group, at every step of the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.groups import Group, PlannedTensor

# Gram matrices are summed block by block in a fixed order, and segments of tensors are cut only at multiples of a
# block, so that the result does not depend on stripes, budget or threads.
BLOCK_COLUMNS = 32 * 1024


@dataclass(frozen=True)
class Segment:
    """Elements `start` to `stop` of a tensor, and where their bytes lie in a row of the stripe's buffers."""

    tensor: PlannedTensor
    start: int
    stop: int
    at: int
    base_at: int


@dataclass(frozen=True)
class Stripe:
    """What is read together."""

    segments: tuple[Segment, ...]


def most_segments(groups: Sequence[Group], columns: int) -> int:
    """Upper bound of the segments in a stripe: consecutive tensors of a group that fit into one, and one more at each
    end."""
    most = 0
    for group in groups:
        first, held = 0, 0
        for last, tensor in enumerate(group.tensors):
            held += tensor.numel
            while held > columns:
                held -= group.tensors[first].numel
                first += 1
            most = max(most, last + 1 - first)
    return most + 2


def stripe_count(tensor: PlannedTensor, columns: int) -> int:
    """Stripes of up to `columns` weights that a tensor takes."""
    return -(-tensor.numel // columns)


def cut_stripes(tensors: Sequence[PlannedTensor], columns: int, held_limit: int) -> Iterator[Stripe]:
    """Stripes of a group's tensors, in the order of reading.

    Args:
        held_limit: a tensor of more stripes shares none of them with its neighbours.
    """
    segments: list[Segment] = []
    free, at, base_at = columns, 0, 0
    for tensor in tensors:
        alone = stripe_count(tensor, columns) > held_limit
        item, base_item = ITEM_BYTES[tensor.dtype], ITEM_BYTES[tensor.base_dtype]
        start = 0
        while start < tensor.numel:
            aligned_at, aligned_base = -(-at // item) * item, -(-base_at // base_item) * base_item
            # Alignment may cost a few bytes where dtypes mix; keep them out of the columns that are still free.
            lost = max(-(-(aligned_at - at) // item), -(-(aligned_base - base_at) // base_item))
            take = min(tensor.numel - start, free - lost)
            if take < tensor.numel - start:
                take = take // BLOCK_COLUMNS * BLOCK_COLUMNS
            if take <= 0 or (alone and start == 0 and segments):
                yield Stripe(tuple(segments))
                segments, free, at, base_at = [], columns, 0, 0
                continue
            segments.append(Segment(tensor, start, start + take, aligned_at, aligned_base))
            at, base_at = aligned_at + take * item, aligned_base + take * base_item
            free -= take + lost
            start += take
        if alone:
            yield Stripe(tuple(segments))
            segments, free, at, base_at = [], columns, 0, 0
    if segments:
        yield Stripe(tuple(segments))


def tile_bytes(steps: int) -> int:
    """Bytes of one worker's scratch memory: numpy's tile of deltas, and that of kernels.c with its float64 sums."""
    rows, pitch = -(-steps // 12) * 12, 784  # as in kernels.c
    return 4 * (steps + 1) * tile_columns(steps) + rows * (4 * pitch + 8 * rows) + 8192


def tile_columns(steps: int) -> int:
    """Columns of the float32 tile "T m" that one of numpy's products takes.

    Measured on one core of an AMD EPYC (512 KiB of L2, 32 MiB of L3), Gram matrix and direction, G weights a second:

        columns    2 Ki   4 Ki   8 Ki   16 Ki   32 Ki
        T = 24     0.45   0.53   0.63   0.65    0.69
        T = 75     0.37   0.36   0.42   0.42    0.42
        T = 150    0.28   0.30   0.32   0.31    0.23

    From 1 to 5 MiB the calls' overhead is gone and the cache still holds a tile. It depends on T alone, because where
    tiles end is part of the rounding of the result.
    """
    columns = BLOCK_COLUMNS
    while columns > 1024 and columns * steps * 4 > 5 * 2**20:
        columns //= 2
    return columns
