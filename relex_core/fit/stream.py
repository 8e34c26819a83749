"""Stripes of the window, read ahead in threads while earlier ones are in work.

    readers -> buffers -> (Gram matrices, in the same thread) -> parts of tensors, in order

There are as many buffers as the plan allows; a buffer goes back as soon as every tensor in it is done, and the next
stripe is read into it. The order of stripes is fixed, so the main thread can wait for them one by one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from relex_core.checkpoints.reader import Piece, Reader
from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.dtypes import NUMPY_DTYPES
from relex_core.fit.gram import Tiles, block_grams
from relex_core.fit.memory import Memory
from relex_core.plan import FitPlan, PlannedTensor, Segment, Stripe


@dataclass
class Buffers:
    """Memory of one stripe: a row of bytes per step, and one for the base."""

    rows: np.ndarray
    base: np.ndarray


@dataclass
class LoadedStripe:
    """A stripe in memory."""

    buffers: Buffers
    waiting: int
    """Parts that are not done yet."""


@dataclass(frozen=True)
class Part:
    """One segment of a tensor, in memory."""

    segment: Segment
    slices: np.ndarray
    """"T n", in the checkpoints' dtype."""
    base: np.ndarray
    """"n", in the base's dtype."""
    grams: np.ndarray | None
    """"b T T", float64: Gram matrices by block, where the plan asked for them."""
    base_squares: np.ndarray | None
    stripe: LoadedStripe = field(repr=False)


class ThreadTiles(threading.local):
    """Each thread's own scratch memory."""

    def __init__(self, steps: int, memory: Memory) -> None:
        self.tiles = Tiles(steps, memory)


class WindowStream:
    """The window's stripes, in order.

    Args:
        visits: stripes in reading order, each with whether its Gram matrices are wanted (`FitPlan.visits`).
        base: reader of the base.
        observed: readers of the T checkpoints, by step.
        on_read: called with the number of weight bytes of each stripe read.
        rows: reads a stripe's steps at the same time, where a request takes much longer than its bytes; None: one
            after the other, in the thread of the stripe.
    """

    def __init__(
        self,
        plan: FitPlan,
        visits: Iterator[tuple[Stripe, bool]],
        base: Reader,
        observed: Sequence[Reader],
        pool: ThreadPoolExecutor,
        memory: Memory,
        on_read: Callable[[int], object],
        rows: Executor | None = None,
    ) -> None:
        self._plan, self._visits = plan, visits
        self._base, self._observed = base, observed
        self._pool, self._on_read = pool, on_read
        self._map_rows = rows.map if rows else map
        self.memory, self.scratch = memory, ThreadTiles(plan.steps, memory)
        self._unused = plan.buffers
        self._free: list[Buffers] = []
        self._loading: deque[Future[list[Part]]] = deque()
        self._parts: deque[Part] = deque()
        self._read_ahead()

    def parts(self, tensor: PlannedTensor) -> Iterator[Part]:
        """The tensor's segments from first to last; call `done` for each as soon as its data are not needed."""
        reached = 0
        while reached < tensor.numel:
            if not self._parts:
                self._parts.extend(self._loading.popleft().result())
            part = self._parts.popleft()
            assert part.segment.tensor is tensor, "parts are taken in the order of the plan"
            reached = part.segment.stop
            yield part

    def done(self, part: Part) -> None:
        """Give the part's memory back; only for the main thread."""
        part.stripe.waiting -= 1
        if not part.stripe.waiting:
            self._free.append(part.stripe.buffers)
            self._read_ahead()

    def _read_ahead(self) -> None:
        while self._free or self._unused:
            visit = next(self._visits, None)
            if visit is None:
                return
            self._loading.append(self._pool.submit(self._load, *visit, self._take_buffers()))

    def _take_buffers(self) -> Buffers:
        if self._free:
            return self._free.pop()
        self._unused -= 1
        rows = self.memory.buffer((self._plan.steps, self._plan.row_bytes))
        return Buffers(rows, self.memory.buffer((self._plan.base_row_bytes,)))

    def _load(self, stripe: Stripe, wanted: bool, buffers: Buffers) -> list[Part]:
        """Read one stripe at every step and in the base; runs in a thread of the pool."""
        pieces = [_piece(segment, ITEM_BYTES[segment.tensor.dtype], segment.at) for segment in stripe.segments]
        rows = buffers.rows
        for _ in self._map_rows(lambda reader, row: reader.read(pieces, memoryview(row)), self._observed, rows):
            pass
        base_pieces = [
            _piece(segment, ITEM_BYTES[segment.tensor.base_dtype], segment.base_at) for segment in stripe.segments
        ]
        self._base.read(base_pieces, memoryview(buffers.base))
        read = sum(len(rows) * (p.stop - p.start) for p in pieces) + sum(p.stop - p.start for p in base_pieces)
        self._on_read(read)
        loaded = LoadedStripe(buffers, len(stripe.segments))
        with self.memory.in_order():
            return [self._part(segment, wanted, loaded) for segment in stripe.segments]

    def _part(self, segment: Segment, wanted: bool, loaded: LoadedStripe) -> Part:
        tensor, count = segment.tensor, segment.stop - segment.start
        rows, base_row = loaded.buffers.rows, loaded.buffers.base
        width, base_width = count * ITEM_BYTES[tensor.dtype], count * ITEM_BYTES[tensor.base_dtype]
        slices = rows[:, segment.at : segment.at + width].view(NUMPY_DTYPES[tensor.dtype])
        base = base_row[segment.base_at : segment.base_at + base_width].view(NUMPY_DTYPES[tensor.base_dtype])
        grams = squares = None
        if wanted and tensor.floating:
            grams, squares = block_grams(slices, base, self.scratch.tiles)
        return Part(segment, slices, base, grams, squares, loaded)


def _piece(segment: Segment, item: int, at: int) -> Piece:
    return Piece(segment.tensor.name, segment.start * item, segment.stop * item, at)
