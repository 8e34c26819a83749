"""Stripes of the window, read ahead in threads while earlier ones are in work.

    files -> buffers -> (Gram matrices and packing, in the same thread) -> parts of tensors, in order

There are as many buffers as the plan allows; a buffer goes back as soon as every tensor in it is done, and the next
stripe is read into it. Stripes that are not to be packed are mapped where they lie in files (rows.py): what is in the
page cache need not be copied. The order of stripes is fixed, so the main thread can wait for them one by one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

from relex_core.checkpoints.reader import Piece, Reader
from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.dtypes import NUMPY_DTYPES
from relex_core.fit.buffers import Buffers, LoadedStripe
from relex_core.fit.gram import Tiles, block_grams
from relex_core.fit.memory import Memory
from relex_core.fit.packing import Packing, Part
from relex_core.groups import PlannedTensor
from relex_core.plan import FitPlan
from relex_core.rows import Rows
from relex_core.stripes import Segment, Stripe


class ThreadTiles(threading.local):
    """Each thread's own scratch memory."""

    def __init__(self, steps: int, memory: Memory) -> None:
        self.tiles = Tiles(steps, memory)


class WindowStream:
    """The window's stripes, in order.

    Args:
        stripes: in reading order (`FitPlan.stripes`).
        base: reader of the base.
        observed: readers of the T checkpoints, by step.
        on_read: called with the number of weight bytes of each stripe read, or not to be read again.
        rows: reads a stripe's steps at the same time, where a request takes much longer than its bytes; None: one
            after the other, in the thread of the stripe.
    """

    def __init__(
        self,
        plan: FitPlan,
        stripes: Iterator[Stripe],
        base: Reader,
        observed: Sequence[Reader],
        pool: ThreadPoolExecutor,
        memory: Memory,
        on_read: Callable[[int], object],
        rows: Executor | None = None,
    ) -> None:
        self._plan, self._stripes = plan, stripes
        self._base, self._observed = base, observed
        self._pool, self._on_read = pool, on_read
        self._map_rows = rows.map if rows else map
        self.memory, self.scratch = memory, ThreadTiles(plan.steps, memory)
        self._unused = plan.buffers
        self._free: list[Buffers] = []
        self._loading: deque[Future[tuple[list[Part], Buffers | None]]] = deque()
        self._parts: deque[Part] = deque()
        self._again: deque[Segment] = deque()
        self._undecided = False  # whether all of a tensor was asked for, and what is to be read again is not known yet
        self._packing: tuple[PlannedTensor, Packing] | None = None
        self._read_ahead()

    def parts(self, tensor: PlannedTensor) -> Iterator[Part]:
        """The tensor's segments from first to last; call `done` for each as soon as its data are not needed.

        A part that was not kept is to be done before `again` is called.
        """
        reached = 0
        while reached < tensor.numel:
            part = self._next()
            assert part.segment.tensor is tensor, "parts are taken in the order of the plan"
            reached = part.segment.stop
            yield part

    def again(self, tensor: PlannedTensor, parts: Sequence[Part | Segment]) -> Iterator[Part]:
        """`parts` from first to last; those segments among them are read once more. For every floating tensor.

        Args:
            parts: all that is wanted of the tensor.
        """
        if not self._plan.read_once(tensor):
            segments = [part for part in parts if isinstance(part, Segment)]
            self._on_read(self._plan.again_bytes(tensor) - sum(map(self._plan.segment_bytes, segments)))
            self._again.extend(segments)
            self._undecided = False
            self._read_ahead()
        return (part if isinstance(part, Part) else self._next() for part in parts)

    def done(self, part: Part) -> None:
        """Give the part's memory back; only for the main thread.

        Raises:
            CheckpointChanged: what it was made of changed while it was in use.
            StorageError: it could not be read.
        """
        part.stripe.waiting -= 1
        if not part.stripe.waiting:
            part.stripe.check()
            self._free.append(part.stripe.buffers)
            self._read_ahead()

    def _next(self) -> Part:
        if not self._parts:
            parts, free = self._loading.popleft().result()
            self._parts.extend(parts)
            if free is not None:
                self._free.append(free)
            self._read_ahead()
        return self._parts.popleft()

    def _read_ahead(self) -> None:
        while (self._free or self._unused) and len(self._loading) < self._plan.read_ahead:
            if self._again:
                self._loading.append(self._pool.submit(self._reload, self._again.popleft(), self._take_buffers()))
                continue
            stripe = None if self._undecided else next(self._stripes, None)
            if stripe is None:
                return
            last = stripe.segments[-1]
            self._undecided = last.stop == last.tensor.numel and not self._plan.read_once(last.tensor)
            packing = self._packing_of(stripe)
            self._loading.append(self._pool.submit(self._load, stripe, self._take_buffers(), packing))

    def _take_buffers(self) -> Buffers:
        if self._free:
            return self._free.pop()
        self._unused -= 1
        plan, buffer = self._plan, self.memory.buffer
        return Buffers(Rows(plan.steps, plan.row_bytes, buffer), Rows(1, plan.base_row_bytes, buffer))

    def _packing_of(self, stripe: Stripe) -> Packing | None:
        """Where the stripe waits for its tensor, if it holds some of one tensor."""
        first = stripe.segments[0]
        if len(stripe.segments) > 1 or first.stop - first.start == first.tensor.numel or not first.tensor.floating:
            return None
        if self._packing is None or self._packing[0] is not first.tensor:
            most, whole = self._plan.kept_buffers(first.tensor), self._plan.keeps_whole(first.tensor)
            self._packing = first.tensor, Packing(most, whole)
        return self._packing[1]

    def _load(self, stripe: Stripe, buffers: Buffers, packing: Packing | None) -> tuple[list[Part], Buffers | None]:
        """Read one stripe and compute its Gram matrices; runs in a thread of the pool.

        Returns:
            (its parts, buffers that are free again)
        """
        # Only what is packed is written to: nothing of a tensor that is held, or that turned out not to be packed.
        held = all(self._plan.held(segment.tensor) for segment in stripe.segments)
        loaded = self._read(stripe, buffers, may_map=held or (packing is not None and packing.in_vain))
        tiles = self.scratch.tiles
        parts, changed = list[Part](), None
        with self.memory.in_order():
            for segment in stripe.segments:
                part = _part(segment, loaded)
                if segment.tensor.floating:
                    grams, squares, changed = block_grams(part.slices, part.base, tiles)
                    part = replace(part, grams=grams, base_squares=squares)
                parts.append(part)
        if packing is None:
            return parts, None
        kept, free = packing.keep(parts[0], changed, tiles.kernels)
        if free is not None:
            loaded.check()  # its bytes lie elsewhere now
        return [kept], free

    def _reload(self, segment: Segment, buffers: Buffers) -> tuple[list[Part], None]:
        """Read a segment once more; runs in a thread of the pool."""
        return [_part(segment, self._read(Stripe((segment,)), buffers, may_map=True))], None

    def _read(self, stripe: Stripe, buffers: Buffers, may_map: bool) -> LoadedStripe:
        """Read one stripe at every step and in the base."""
        item = max(ITEM_BYTES[segment.tensor.dtype] for segment in stripe.segments)
        base_item = max(ITEM_BYTES[segment.tensor.base_dtype] for segment in stripe.segments)
        pieces = [_piece(segment, ITEM_BYTES[segment.tensor.dtype], segment.at) for segment in stripe.segments]
        base_pieces = [
            _piece(segment, ITEM_BYTES[segment.tensor.base_dtype], segment.base_at) for segment in stripe.segments
        ]
        may_map = may_map and self.memory.maps
        steps = buffers.steps.load(self._observed, pieces, item, may_map=may_map, each=self._map_rows)
        base = buffers.base.load([self._base], base_pieces, base_item, may_map=may_map)
        self._on_read(sum(map(self._plan.segment_bytes, stripe.segments)))
        return LoadedStripe(buffers, steps, base, len(stripe.segments))


def _part(segment: Segment, loaded: LoadedStripe) -> Part:
    tensor, count = segment.tensor, segment.stop - segment.start
    rows, base_row = loaded.steps.rows, loaded.base.rows[0]
    width, base_width = count * ITEM_BYTES[tensor.dtype], count * ITEM_BYTES[tensor.base_dtype]
    slices = rows[:, segment.at : segment.at + width].view(NUMPY_DTYPES[tensor.dtype])
    base = base_row[segment.base_at : segment.base_at + base_width].view(NUMPY_DTYPES[tensor.base_dtype])
    return Part(segment, slices, base, None, None, loaded)


def _piece(segment: Segment, item: int, at: int) -> Piece:
    return Piece(segment.tensor.name, segment.start * item, segment.stop * item, at)
