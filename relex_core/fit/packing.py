"""Stripes that wait in memory for the end of their tensor, reduced to the columns that changed.

Reinforcement learning in bfloat16 changes few weights. The columns in which a step differs from the base, if they are
at most a third, are put side by side, with their numbers. They stay in the stripe's own buffer, where there is room for
the next stripes' too, so that packing takes no memory of its own:

    buffer of stripe 1: [ columns of 1 | columns of 2 | columns of 3 |    ]     buffers of stripes 2 and 3: free again
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from relex_core.fit.buffers import Buffers, LoadedStripe
from relex_core.kernels import Kernels
from relex_core.stripes import Segment

ALIGNMENT = 8
"""Bytes; of arrays in a buffer."""


@dataclass(frozen=True)
class Part:
    """One segment of a tensor, in memory."""

    segment: Segment
    slices: np.ndarray
    """"T n", in the checkpoints' dtype; if packed, "T k"."""
    base: np.ndarray
    """"n", in the base's dtype; if packed, "k"."""
    grams: np.ndarray | None
    """"b T T", float64: Gram matrices by block, where the plan asked for them."""
    base_squares: np.ndarray | None
    stripe: LoadedStripe = field(repr=False)
    kept: bool = True
    """It stays in memory until it is done; otherwise it has to be read again for the direction."""
    columns: np.ndarray | None = None
    """If packed: which columns of the segment these are, uint32 "k". Nothing changed in the others."""

    def spread(self, directions: np.ndarray) -> np.ndarray:
        """Mixed directions of the whole segment "r n", from those of `slices`: zero where nothing changed."""
        if self.columns is None:
            return directions
        whole = np.zeros((len(directions), self.segment.stop - self.segment.start), directions.dtype)
        whole[:, self.columns] = directions
        return whole


class Packing:
    """Keeps the parts of one tensor in as few of their own buffers as possible. Several threads may use it.

    Args:
        most: buffers to keep.
        whole: keep parts of which most columns changed, too.
    """

    def __init__(self, most: int, whole: bool) -> None:
        self.in_vain = False
        """Whether a part was met that cannot be packed: most of its columns changed, or no kernel told which did."""
        self._left, self._whole = most, whole
        self._rooms: list[_Room] = []
        self._lock = Lock()

    def keep(self, part: Part, changed: np.ndarray | None, kernels: Kernels | None) -> tuple[Part, Buffers | None]:
        """Keep a part that has its stripe for itself, packed if few columns changed and as long as there is room.

        Args:
            changed: those columns, as `relex_core.fit.gram.block_grams` returns them.

        Returns:
            (the part, whose arrays replace the former ones; its buffers, if they are not needed any more)
        """
        # Values that are not finite may stand in columns that did not change: the direction shows them, if it is whole.
        sound = part.base_squares is not None and np.isfinite(part.base_squares).all()
        if kernels is None or changed is None or not sound or part.stripe.steps.files:
            self.in_vain = self.in_vain or changed is None
            return replace(part, kept=self._whole and self._take_buffers()), None
        size = sum(
            map(_aligned, _sizes(part, len(changed)))
        )  # of a third of the columns, from T = 2 on: less than a buffer
        room = self._reserve(size)
        if room is not None:
            return _packed(part, changed, kernels, *room), part.stripe.buffers
        if not self._take_buffers():
            return replace(part, kept=False), None
        packed = _packed(part, changed, kernels, part.stripe, 0)
        with self._lock:
            self._rooms.append(_Room(part.stripe, size))
        return packed, None

    def _take_buffers(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _reserve(self, size: int) -> tuple[LoadedStripe, int] | None:
        """(stripe, first byte in its buffer) of memory for one part more."""
        with self._lock:
            for room in self._rooms:
                at = room.used
                if at + size <= room.stripe.steps.rows.nbytes:
                    room.used += size
                    room.stripe.waiting += 1
                    return room.stripe, at
        return None


@dataclass
class _Room:
    """Buffers in which parts are packed."""

    stripe: LoadedStripe
    used: int
    """Bytes of its rows."""


def _sizes(part: Part, columns: int) -> tuple[int, int, int]:
    """Bytes of slices, base and column numbers of a packed part."""
    return len(part.slices) * columns * part.slices.itemsize, columns * part.base.itemsize, columns * 4


def _packed(part: Part, changed: np.ndarray, kernels: Kernels, stripe: LoadedStripe, at: int) -> Part:
    memory, arrays = stripe.steps.rows.reshape(-1), list[np.ndarray]()
    dtypes = part.slices.dtype, part.base.dtype, changed.dtype
    for size, dtype in zip(_sizes(part, len(changed)), dtypes, strict=True):
        arrays.append(memory[at : at + size].view(dtype))
        at += _aligned(size)
    rows, base, columns = arrays[0].reshape(len(part.slices), len(changed)), arrays[1], arrays[2]
    kernels.gather(part.slices, part.base, changed, rows, base)
    columns[:] = changed
    return replace(part, slices=rows, base=base, columns=columns, stripe=stripe)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
