"""How a fit goes through the window: how wide its stripes are, how many there are, and what waits in them.

A tensor whose stripes all fit the memory budget is read once: its stripes stay in memory from the Gram matrix to the
direction. Stripes of a larger one stay as long as there is room, if few of their weights changed
(fit/packing.py) or if reads are dear; the others are read twice.

Pure arithmetic on names and sizes; needs the bare install only, and so does `relex run --dry-run`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.errors import SpecError
from relex_core.fit.columns import stored_columns
from relex_core.groups import Group, PlannedTensor, direction_item_bytes, plan_groups
from relex_core.manifest import WindowManifest
from relex_core.spec import FitSpec
from relex_core.storage import PATCH_SUFFIX, is_distant
from relex_core.stripes import BLOCK_COLUMNS, Segment, Stripe, cut_stripes, most_segments, stripe_count, tile_bytes

# 1 MiB a row in bf16: long enough that mapping it, or opening the file, costs nothing beside its use.
MAX_STRIPE_COLUMNS = 512 * 1024

# The largest share of a polynomial's value that may be rounding.
CANCELLED = 1e-6

# Python with numpy and the Google Cloud client loaded, as measured; the fit itself uses the true figure.
TYPICAL_RESIDENT_BYTES = 80 * 2**20


@dataclass(frozen=True)
class FitPlan:
    """The whole fit."""

    groups: tuple[Group, ...]
    steps: int
    """T: checkpoints in the window."""
    columns: int
    """Most weights in a stripe."""
    row_bytes: int
    """Bytes of a stripe's row for one step: its weights, and a page more."""
    base_row_bytes: int
    buffers: int
    """Stripes held at the same time."""
    ahead: int
    """Buffers that are left for reading, whatever waits in the others."""
    dear_reads: bool
    """A second read costs as much as the first one: it comes from a bucket, or is unpacked once more. From a disk it
    comes out of the page cache."""
    stored_columns: int
    """Directions stored per tensor."""
    direction_item_bytes: int
    peak_bytes: int
    """Promise: resident memory stays below this, interpreter and pages of mapped files included."""

    def stripes(self, group: Group) -> Iterator[Stripe]:
        """The group's stripes in the order of reading; those of a tensor that is not `held` are its own."""
        return cut_stripes(group.tensors, self.columns, self._stripe_limit)

    def held(self, tensor: PlannedTensor) -> bool:
        """Whether all stripes of the tensor fit into memory together."""
        return stripe_count(tensor, self.columns) <= self._stripe_limit

    def read_once(self, tensor: PlannedTensor) -> bool:
        """Whether one pass is enough, whatever changed: all is held, or there is no direction to mix (integers)."""
        return self.held(tensor) or not tensor.floating

    @property
    def _stripe_limit(self) -> int:
        # A tensor may begin in a stripe that it shares with the one before.
        return self.buffers - 1

    @property
    def read_ahead(self) -> int:
        """Stripes that are read before the first of them is needed. A bucket should never wait; for a disk there is no
        reason to take memory."""
        return self.buffers if self.dear_reads else self.ahead

    def keeps_whole(self, tensor: PlannedTensor) -> bool:
        """Whether stripes wait for the tensor's end even if most of their weights changed."""
        return self.held(tensor) or self.dear_reads

    def kept_buffers(self, tensor: PlannedTensor) -> int:
        """Buffers in which stripes of a tensor may wait for its end; the others are for reading."""
        return self.buffers if self.held(tensor) else max(self.buffers - self.ahead, 0)

    def segment_bytes(self, segment: Segment) -> int:
        """Bytes of some weights at all steps and in the base."""
        return (segment.stop - segment.start) * self._weight_bytes(segment.tensor)

    def tensor_bytes(self, tensor: PlannedTensor) -> int:
        """Bytes of a tensor's weights at all steps and in the base."""
        return tensor.numel * self._weight_bytes(tensor)

    def _weight_bytes(self, tensor: PlannedTensor) -> int:
        return self.steps * ITEM_BYTES[tensor.dtype] + ITEM_BYTES[tensor.base_dtype]

    def again_bytes(self, tensor: PlannedTensor) -> int:
        """Bytes of a tensor that are read a second time, at most: fewer if few weights change."""
        if self.read_once(tensor):
            return 0
        kept = self.kept_buffers(tensor) if self.keeps_whole(tensor) else 0
        stripes = stripe_count(tensor, self.columns) - kept
        return min(tensor.numel, stripes * self.columns) * self._weight_bytes(tensor)

    def group_bytes(self, group: Group) -> int:
        """Bytes read for a group, at most: its weights at all steps and in the base, second reads included."""
        return sum(self.tensor_bytes(tensor) + self.again_bytes(tensor) for tensor in group.tensors)

    @property
    def bytes_to_read(self) -> int:
        """Of all groups, at most."""
        return sum(map(self.group_bytes, self.groups))

    @property
    def bytes_to_write(self) -> int:
        """Upper bound of the stored directions (tensors that never moved store none)."""
        elements = sum(tensor.numel for group in self.groups for tensor in group.tensors if tensor.floating)
        return elements * self.stored_columns * self.direction_item_bytes


def window_bytes(manifest: WindowManifest) -> int:
    """Bytes of all weights of the window, each step counted once, without the base."""
    return len(manifest.checkpoints) * sum(math.prod(t.shape) * ITEM_BYTES[t.dtype] for t in manifest.tensors)


def plan_fit(
    manifest: WindowManifest,
    base_dtypes: Mapping[str, str],
    spec: FitSpec,
    memory_budget: int,
    *,
    workers: int,
    resident: int = TYPICAL_RESIDENT_BYTES,
) -> FitPlan:
    """Lay out the fit so that its peak memory stays within the budget.

    Args:
        base_dtypes: dtype of each tensor in the base.
        memory_budget: bytes.
        workers: threads that compute.
        resident: bytes the process holds before the fit starts.

    Raises:
        SpecError: the window has too few checkpoints for what the spec asks, or the budget cannot hold even the
            narrowest stripes.
    """
    refuse_impossible(spec, manifest.steps)
    groups = plan_groups(manifest, base_dtypes, spec)
    tensors = [tensor for group in groups for tensor in group.tensors]
    stored, item = len(stored_columns(spec)), direction_item_bytes(spec)
    steps = len(manifest.checkpoints)

    row_item = max((ITEM_BYTES[tensor.dtype] for tensor in tensors), default=4)
    base_item = max((ITEM_BYTES[tensor.base_dtype] for tensor in tensors), default=4)
    largest_group = max((_buffered_bytes(group, int(spec.group_size), stored * item) for group in groups), default=0)
    gram = steps**2 * 8
    results = 3 * max((len(group.tensors) for group in groups), default=0) * gram

    def stripes_of(columns: int) -> _Stripes:
        # Outside the stripes: the directions and Gram matrices of two groups, one in work and one on its way to the
        # storage, where it is once more in a file's buffer; of each thread the tiles, the numbers of the columns that
        # changed, mixed rows of these and of all, and the last ones, of which malloc does not let go; odds and ends.
        scratch = (workers + 2) * (tile_bytes(steps) + 4 * columns * (7 * stored + 1) // 3)
        fixed = resident + 2 * 2**20 + 2 * largest_group + results + scratch
        # One for each block and for each end of a segment, until the tensor is done.
        grams = (columns // BLOCK_COLUMNS + most_segments(groups, columns)) * gram
        size = steps * _row_bytes(columns, row_item) + _row_bytes(columns, base_item) + grams
        return _Stripes(columns, size, fixed, (memory_budget - fixed) // size)

    least, ahead = workers + 2, workers + max(2, workers // 2)  # the second pass holds a stripe per worker and two more
    largest = max((tensor.numel for tensor in tensors if tensor.floating), default=0)
    chosen = _width(stripes_of, largest, least, ahead)
    if chosen.buffers < least:
        raise SpecError(
            f"a memory budget of {memory_budget / 2**20:.0f} MiB is too small for {steps} checkpoints",
            expected=f"at least {-(-(chosen.fixed + least * chosen.bytes) // 2**20)} MiB",
            next_step="raise fit.memory_budget (or --memory-budget), or lower fit.group_size",
        )
    # No more than what the largest tensor and the read-ahead can use: a stripe in work for each thread, and others that
    # wait for their turn. Where stripes are read, one more took 10 to 30 % longer at T = 100 on two cores, to bring its
    # memory forth.
    buffers = min(chosen.buffers, -(-largest // chosen.columns) + ahead)
    return FitPlan(
        groups=tuple(groups),
        steps=steps,
        columns=chosen.columns,
        row_bytes=_row_bytes(chosen.columns, row_item),
        base_row_bytes=_row_bytes(chosen.columns, base_item),
        buffers=buffers,
        ahead=ahead,
        dear_reads=any(is_distant(c.uri) or c.uri.endswith(PATCH_SUFFIX) for c in manifest.checkpoints),
        stored_columns=stored,
        direction_item_bytes=item,
        peak_bytes=chosen.fixed + buffers * chosen.bytes,
    )


def _row_bytes(columns: int, item: int) -> int:
    # A page more than the weights: a mapped row begins and ends within one, and rows a power of two apart would share
    # cache sets: then the Gram matrices of 24 steps took a third longer.
    return columns * item + mmap.PAGESIZE


@dataclass(frozen=True)
class _Stripes:
    """Stripes of one width."""

    columns: int
    bytes: int
    """Of one."""
    fixed: int
    """Bytes of everything else."""
    buffers: int
    """How many fit the budget."""


def _width(stripes_of: Callable[[int], _Stripes], largest: int, least: int, ahead: int) -> _Stripes:
    """The widest stripes of which so many fit that all of the largest tensor can wait for its end, or as many as are
    being read. Where memory is short, those of which most can wait.

    Args:
        largest: weights of the largest tensor.
        least: buffers without which there is no fit.
        ahead: buffers for reading.
    """
    halvings = range((MAX_STRIPE_COLUMNS // BLOCK_COLUMNS).bit_length())
    widths = [stripes_of(MAX_STRIPE_COLUMNS >> halving) for halving in halvings]
    for stripes in widths[:3]:  # narrower ones take longer to read
        all_held = stripes.buffers >= least and stripes.buffers > -(-largest // stripes.columns)
        if all_held or stripes.buffers >= 2 * ahead:
            return stripes
    possible = [stripes for stripes in widths if stripes.buffers >= least]
    return max(possible, key=lambda s: max(s.buffers - ahead, 0) * s.columns, default=widths[-1])


def refuse_impossible(spec: FitSpec, window: Sequence[int]) -> None:
    """Refuse a fit that needs more checkpoints than the window holds, or finer arithmetic than float64.

    Args:
        window: steps, ascending.

    Raises:
        SpecError: it does.
    """
    steps = len(window)
    if spec.degree >= steps:
        raise SpecError(
            f"fit.degree={spec.degree} needs {spec.degree + 1} checkpoints, the window holds {steps}",
            expected=f"at most fit.degree: {steps - 1}",
            next_step="lower fit.degree, or widen the window (window.first, window.t_cut)",
        )
    # Polynomials are stored in powers of the step, whose large terms cancel far from step 0.
    if spec.basis == "rank" and 2.0**-52 * (2 * window[-1] / (window[-1] - window[0])) ** spec.degree > CANCELLED:
        raise SpecError(
            f"fit.degree={spec.degree} cannot be computed at steps {window[0]} to {window[-1]}: rounding would decide",
            expected="a lower degree, or a window that begins nearer to step 0",
            next_step="lower fit.degree",
        )
    for count in spec.trailing_averages:
        if count > steps:
            raise SpecError(
                f"fit.trailing_averages: the last {count} checkpoints, but the window holds {steps}",
                next_step=f"use at most {steps}",
            )


def _buffered_bytes(group: Group, limit: int, bytes_per_weight: int) -> int:
    """Direction bytes that a group keeps in memory: a single tensor's are streamed out."""
    return 0 if len(group.tensors) == 1 else min(limit, sum(t.numel for t in group.tensors) * bytes_per_weight)
