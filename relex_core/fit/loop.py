"""The loop over tensors, in the order of the base's files:

    read the T slices (stream.py) -> Gram matrix (gram.py) -> eigenvectors, line (basis.py, line.py)
      -> directions from the slices still in memory, or read once more (gram.mix) -> RUN/fit/direction-*.safetensors

Memory: resident memory stays below `FitPlan.peak_bytes`, which stays below `fit.memory_budget`: stripes of T slices
(`plan.buffers` of them), one float32 tile per thread, and the directions of one tensor group.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from relex_core.checkpoints.reader import Reader, TensorReader, open_base, open_window_readers
from relex_core.dtypes import NUMPY_DTYPES
from relex_core.errors import DataError
from relex_core.fit.basis import Basis, Spectrum, decompose, stored_basis
from relex_core.fit.checks import FittedSoFar, refuse_non_finite, refuse_non_finite_directions
from relex_core.fit.device import choose_memory, one_thread_per_call, peak_resident_bytes, resident_bytes
from relex_core.fit.files import GroupFiles
from relex_core.fit.gram import mix
from relex_core.fit.group_results import GroupResult, GroupResults
from relex_core.fit.key import FIT_KEY, fit_key
from relex_core.fit.memory import Memory
from relex_core.fit.packing import Part
from relex_core.fit.row_reads import row_reads
from relex_core.fit.stream import WindowStream
from relex_core.fit.summary import tensor_fit
from relex_core.groups import Group, PlannedTensor, shard_groups
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.parallel import cores, ordered_map
from relex_core.plan import FitPlan, plan_fit
from relex_core.progress import progress
from relex_core.spec import FitSpec, load_spec_of
from relex_core.storage import Store, open_store
from relex_core.stripes import Segment


@dataclass(frozen=True)
class FitContext:
    """What every group needs."""

    spec: FitSpec
    manifest: WindowManifest
    plan: FitPlan
    base: Reader
    observed: tuple[Reader, ...]
    store: Store
    key: str
    results: GroupResults
    memory: Memory
    pool: ThreadPoolExecutor
    rows: ThreadPoolExecutor | None
    workers: int

    @property
    def dtype(self) -> str:
        """Of the stored directions."""
        return "BF16" if self.spec.direction_dtype == "bfloat16" else "F32"

    def files(self, group: Group) -> GroupFiles:
        metadata = {"format": "pt", "window_digest": self.manifest.digest, FIT_KEY: self.key}
        return GroupFiles(self.store, group, len(self.plan.groups), self.dtype, metadata)


def fit_groups(run: str, shard: int, shards: int, memory_budget: int | None) -> None:
    """Fit the tensor groups of one shard that are not done yet; `merging.merge_groups` makes the artifact of all.

    Args:
        run: URI of the run directory.
        shard: from 1 to `shards`.
        memory_budget: bytes; None: the spec's.

    Raises:
        As `relex_core.fit.fit`.
    """
    spec, manifest = load_spec_of(run), load_manifest(run)
    budget = int(memory_budget or spec.fit.memory_budget)
    memory = choose_memory(spec.fit.device)
    workers = cores()
    base, observed = _open_readers(manifest)
    plan = plan_fit(manifest, base.dtypes, spec.fit, budget, workers=workers, resident=resident_bytes())
    groups = shard_groups(plan.groups, shard, shards)
    with ThreadPoolExecutor(workers, thread_name_prefix="fit") as pool, row_reads(manifest) as rows:
        key, store = fit_key(spec, manifest), open_store(run)
        results = GroupResults(store, len(plan.groups), key)
        context = FitContext(spec.fit, manifest, plan, base, observed, store, key, results, memory, pool, rows, workers)
        with one_thread_per_call():
            _fit_left(context, groups)


def _open_readers(manifest: WindowManifest) -> tuple[TensorReader, tuple[Reader, ...]]:
    base = open_base(manifest)
    with ThreadPoolExecutor(16) as pool:
        return base, tuple(open_window_readers(manifest.checkpoints, pool))


def _fit_left(context: FitContext, groups: Sequence[Group]) -> None:
    """Fit those of `groups` that no earlier run has finished."""
    left = [group for group in groups if not context.results.finished(group)]
    so_far = FittedSoFar(context.manifest)
    with progress("fit", sum(map(context.plan.group_bytes, left)), unit="bytes") as advance:
        stripes = (stripe for group in left for stripe in context.plan.stripes(group))
        stream = WindowStream(
            context.plan, stripes, context.base, context.observed, context.pool, context.memory, advance, context.rows
        )
        meter = _Meter(context)
        fitted = (_fit_group(context, group, stream) for group in left)
        # A thread of its own brings finished groups to the storage, while the next one is fitted.
        with ThreadPoolExecutor(1, thread_name_prefix="store") as background:
            for result in ordered_map(background, partial(_store_group, context, meter), fitted, ahead=1):
                so_far.add(result)


class _Meter:
    """What was spent since it was last read."""

    def __init__(self, context: FitContext) -> None:
        self._readers = (context.base, *context.observed)
        self._bytes, self._time = 0, time.monotonic()

    def spent(self) -> tuple[float, int]:
        """(seconds, weight bytes read)."""
        bytes_read, now = sum(reader.bytes_read for reader in self._readers), time.monotonic()
        spent = now - self._time, bytes_read - self._bytes
        self._time, self._bytes = now, bytes_read
        return spent


@dataclass(frozen=True)
class _FittedGroup:
    """A group whose files have not appeared yet."""

    group: Group
    result: GroupResult
    spectra: dict[str, Spectrum]
    """By tensor."""
    files: GroupFiles


def _fit_group(context: FitContext, group: Group, stream: WindowStream) -> _FittedGroup:
    result = GroupResult(device=context.memory.name)
    spectra, written = dict[str, Spectrum](), context.files(group)
    for tensor in group.tensors:
        if not tensor.floating:
            if (state := _changed_state(tensor, stream)) is not None:
                written.add_state(tensor, state)
                result.changed_state.append(tensor.name)
            continue
        grams, square = np.zeros((context.plan.steps, context.plan.steps)), 0.0
        parts: list[Part | Segment] = []
        for part in stream.parts(tensor):
            assert part.grams is not None and part.base_squares is not None
            _refuse_non_finite(part, context.manifest)
            for gram, base_square in zip(part.grams, part.base_squares, strict=True):
                grams += gram
                square += float(base_square)
            if part.kept:
                parts.append(replace(part, grams=None, base_squares=None))
            else:
                parts.append(part.segment)
                stream.done(part)
        result.grams[tensor.name], result.base_squares[tensor.name] = grams, square
        spectra[tensor.name] = spectrum = decompose(grams, context.spec.rank)
        basis = stored_basis(spectrum, context.manifest.steps, context.spec)
        if basis is None:
            for part in stream.again(tensor, [part for part in parts if isinstance(part, Part)]):
                stream.done(part)
        else:
            directions = _directions(context, stream.again(tensor, parts), basis, stream)
            if not np.isfinite(square):
                directions = _checked(tensor, directions, context.manifest)
            written.add(tensor, basis, directions)
    return _FittedGroup(group, result, spectra, written)


def _refuse_non_finite(part: Part, manifest: WindowManifest) -> None:
    try:
        refuse_non_finite(part, manifest)
    except DataError:
        part.stripe.check()  # a file that is being written to says nothing about the run
        raise


def _store_group(context: FitContext, meter: _Meter, fitted: _FittedGroup) -> GroupResult:
    """Let a group's files appear, the Gram matrices last: they say that the group is finished."""
    group, result = fitted.group, fitted.result
    fitted.files.finish()
    for tensor in group.tensors:
        if spectrum := fitted.spectra.get(tensor.name):
            gram, square = result.grams[tensor.name], result.base_squares[tensor.name]
            fit = tensor_fit(spectrum, gram, square, tensor.numel, context.manifest.steps, context.spec)
            result.tensors[tensor.name] = fit
    result.seconds, result.bytes_read = meter.spent()
    result.peak_rss_bytes = peak_resident_bytes()
    context.results.write(group, result)
    return result


def _directions(context: FitContext, parts: Iterable[Part], basis: Basis, stream: WindowStream) -> Iterator[np.ndarray]:
    """The mixed directions of one tensor, "columns n" a part, in order."""

    dtype = NUMPY_DTYPES[context.dtype]

    def mixed(part: Part) -> tuple[Part, np.ndarray]:
        with context.memory.in_order():
            directions = part.spread(mix(part.slices, part.base, basis.mixing, stream.scratch.tiles))
            return part, directions.astype(dtype, copy=False)

    # Parts that wait for their turn hold their stripes: leave a buffer to read the next one into.
    ahead = min(context.workers + 1, context.plan.buffers - 1)
    for part, directions in ordered_map(context.pool, mixed, parts, ahead=ahead):
        stream.done(part)
        yield directions


def _checked(tensor: PlannedTensor, directions: Iterator[np.ndarray], manifest: WindowManifest) -> Iterator[np.ndarray]:
    for piece in directions:
        refuse_non_finite_directions(tensor.name, piece, manifest)
        yield piece


def _changed_state(tensor: PlannedTensor, stream: WindowStream) -> bytes | None:
    """The last observed bytes of an integer tensor, if they are not the base's."""
    same, last = True, []
    for part in stream.parts(tensor):
        row = part.slices[-1].tobytes()
        same = same and row == part.base.tobytes()
        last.append(row)
        stream.done(part)
    return None if same else b"".join(last)
