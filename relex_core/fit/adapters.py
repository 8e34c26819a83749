"""The fit of a LoRA window: `loop.py` for adapters, tensor by tensor in threads.

    factors of all steps -> Gram matrix (lora.gram) -> eigenvectors, line (basis.py, line.py)
      -> mixed directions, as factors at their numerical rank (lora.factors) -> RUN/fit/direction.factors-*.safetensors

The base's part is read once, for its norms. Tensors that were trained whole (modules_to_save, biases) are read in
tiles, twice.
Results do not depend on the number of threads: each tensor is one thread's work, with one BLAS thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.checkpoints.reader import Reader, open_base
from relex_core.elements import read_floats
from relex_core.errors import DataError
from relex_core.fit.adapter_files import AdapterFiles
from relex_core.fit.artifact import TensorFit
from relex_core.fit.basis import Basis, decompose, stored_basis
from relex_core.fit.checks import FittedSoFar, unsound_base
from relex_core.fit.device import peak_resident_bytes, resident_bytes
from relex_core.fit.group_results import GroupResult, GroupResults
from relex_core.fit.key import FIT_KEY, fit_key
from relex_core.fit.row_reads import row_reads
from relex_core.fit.summary import tensor_fit
from relex_core.groups import Group, PlannedTensor, plan_groups, shard_groups
from relex_core.lora.factors import LowRank, added, triangles
from relex_core.lora.gram import low_rank_gram
from relex_core.lora.plan import WHOLE_TILE, workers_within
from relex_core.lora.window import StepAdapter, not_finite, open_adapters
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.parallel import cores, ordered_map
from relex_core.plan import refuse_impossible
from relex_core.progress import progress
from relex_core.spec import FitSpec, load_spec_of
from relex_core.storage import Store, open_store

BASE_TILE = 1024 * 1024
"""Weights of the base that are read at a time."""


@dataclass(frozen=True)
class AdapterFit:
    """What every tensor needs."""

    spec: FitSpec
    manifest: WindowManifest
    base: Reader
    observed: Sequence[StepAdapter]
    store: Store
    key: str
    groups: Sequence[Group]
    results: GroupResults
    workers: int
    rows: ThreadPoolExecutor | None
    """Reads the steps of a tensor at the same time, where a request takes much longer than its bytes."""

    @property
    def bytes_read(self) -> int:
        return sum(reader.bytes_read for reader in (self.base, *(step.reader for step in self.observed)))

    def files(self, group: Group) -> AdapterFiles:
        dtype = "BF16" if self.spec.direction_dtype == "bfloat16" else "F32"
        metadata = {"format": "pt", "window_digest": self.manifest.digest, FIT_KEY: self.key}
        return AdapterFiles(self.store, group, len(self.groups), dtype, metadata)


@dataclass(frozen=True)
class FittedTensor:
    """One tensor's fit, before it is written."""

    tensor: PlannedTensor
    gram: np.ndarray
    base_square: float
    fit: TensorFit
    basis: Basis | None
    """None if it never moved."""
    columns: dict[str, LowRank] = field(default_factory=dict)
    """Mixed directions of a low-rank tensor."""


def fit_adapters(run: str, shard: int, shards: int, memory_budget: int | None = None) -> None:
    """Fit the tensor groups of one shard that are not done yet; as `loop.fit_groups` for full weights.

    Args:
        memory_budget: bytes, instead of the spec's.

    Raises:
        As `relex_core.fit.fit`.
    """
    spec, manifest, store = load_spec_of(run), load_manifest(run), open_store(run)
    refuse_impossible(spec.fit, manifest.steps)
    base = open_base(manifest)
    with ThreadPoolExecutor(16) as pool:
        observed = open_adapters(manifest.checkpoints, pool)
    groups = plan_groups(manifest, base.dtypes, spec.fit)
    adapters = [step.adapter for step in observed]
    names = [tensor.name for tensor in manifest.tensors]
    budget = memory_budget or int(spec.fit.memory_budget)
    workers, _ = workers_within(spec.fit, budget, names, adapters, cores(), resident_bytes())
    key = fit_key(spec, manifest)
    with threadpool_limits(1), row_reads(manifest) as rows:
        results = GroupResults(store, len(groups), key)
        context = AdapterFit(spec.fit, manifest, base, observed, store, key, groups, results, workers, rows)
        _fit_left(context, shard_groups(groups, shard, shards))


def _fit_left(context: AdapterFit, groups: Sequence[Group]) -> None:
    """Fit those of `groups` that no earlier run has finished."""
    left = [group for group in groups if not context.results.finished(group)]
    tensors = [tensor for group in left for tensor in group.tensors]
    so_far = FittedSoFar(context.manifest)
    with (
        progress("fit", sum(tensor.numel for tensor in tensors), unit="weights") as advance,
        ThreadPoolExecutor(context.workers, thread_name_prefix="fit") as pool,
    ):
        fitted = ordered_map(pool, partial(_fit_tensor, context), tensors, ahead=context.workers - 1)
        started, read = time.monotonic(), 0
        for group in left:
            result = _write_group(context, group, fitted)
            result.seconds, result.bytes_read = time.monotonic() - started, context.bytes_read - read
            started, read = time.monotonic(), context.bytes_read
            context.results.write(group, result)
            advance(sum(tensor.numel for tensor in group.tensors))
            so_far.add(result)


def _write_group(context: AdapterFit, group: Group, fitted: Iterator[FittedTensor]) -> GroupResult:
    """Write the directions of one group; its Gram matrices, the marker, are for the caller."""
    result = GroupResult(device="cpu")
    files = context.files(group)
    for tensor in group.tensors:
        found = next(fitted)
        assert found.tensor is tensor, "tensors come in the order of the plan"
        result.grams[tensor.name], result.base_squares[tensor.name] = found.gram, found.base_square
        result.tensors[tensor.name] = found.fit
        if found.columns:
            files.add_factors(tensor, found.columns)
        elif found.basis is not None:
            files.add_whole(tensor, found.basis, _mixed_tiles(context, tensor, found.basis))
    files.finish()
    result.peak_rss_bytes = peak_resident_bytes()
    return result


def _fit_tensor(context: AdapterFit, tensor: PlannedTensor) -> FittedTensor:
    base_square = _base_square(context, tensor)
    if tensor.name in context.observed[0].adapter.whole:
        gram = np.zeros((len(context.observed),) * 2)
        for tile in _tiles(context, tensor):
            gram += tile @ tile.T
        return FittedTensor(tensor, gram, base_square, *_fit_and_basis(context, tensor, gram, base_square))
    _refuse_thawed(context, tensor)
    many = context.rows.map if context.rows else map
    deltas = list(many(lambda step: step.delta(tensor.name), context.observed))
    ranks = [delta.rank for delta in deltas]
    stack = added(deltas)
    del deltas
    gram = low_rank_gram(stack, ranks)
    fit, basis = _fit_and_basis(context, tensor, gram, base_square)
    if basis is None:
        return FittedTensor(tensor, gram, base_square, fit, None)
    orthogonal = triangles(stack)
    columns = {
        name: orthogonal.mixed(np.repeat(weights, ranks))
        for name, weights in zip(basis.names, basis.mixing.T, strict=True)
    }
    return FittedTensor(tensor, gram, base_square, fit, basis, columns)


def _fit_and_basis(
    context: AdapterFit, tensor: PlannedTensor, gram: np.ndarray, base_square: float
) -> tuple[TensorFit, Basis | None]:
    steps, spec = context.manifest.steps, context.spec
    spectrum = decompose(gram, spec.rank)
    return tensor_fit(spectrum, gram, base_square, tensor.numel, steps, spec), stored_basis(spectrum, steps, spec)


def _base_square(context: AdapterFit, tensor: PlannedTensor) -> float:
    """‖W_0‖² of one tensor."""
    square = 0.0
    for start in range(0, tensor.numel, BASE_TILE):
        tile = read_floats(context.base, tensor.name, start, min(start + BASE_TILE, tensor.numel)).astype(np.float64)
        square += float(tile @ tile)
    if not np.isfinite(square):
        raise unsound_base(tensor.name, context.manifest)
    return square


def _tiles(context: AdapterFit, tensor: PlannedTensor) -> Iterator[np.ndarray]:
    """The deltas of a tensor that was trained whole: "T m", float64, from left to right."""
    for start in range(0, tensor.numel, WHOLE_TILE):
        stop = min(start + WHOLE_TILE, tensor.numel)
        base = read_floats(context.base, tensor.name, start, stop).astype(np.float64)
        tile = np.stack([step.whole(tensor.name, start, stop) - base for step in context.observed])
        for step, row in zip(context.observed, tile, strict=True):
            if not np.isfinite(row).all():
                raise not_finite(step.reader.label, tensor.name)
        yield tile


def _mixed_tiles(context: AdapterFit, tensor: PlannedTensor, basis: Basis) -> Iterator[np.ndarray]:
    """Its mixed directions, "columns m" a tile."""
    return (basis.mixing.T @ tile for tile in _tiles(context, tensor))


def _refuse_thawed(context: AdapterFit, tensor: PlannedTensor) -> None:
    """Refuse a weight that is frozen by its name, but not the base's: PEFT saves a copy of an adapted embedding.

    Raises:
        DataError: it differs.
    """
    for step in context.observed:
        own = step.adapter.frozen.get(tensor.name)
        if own is None:
            continue
        for start in range(0, tensor.numel, BASE_TILE):
            stop = min(start + BASE_TILE, tensor.numel)
            copy = read_floats(step.reader, own, start, stop)
            if not np.array_equal(copy, read_floats(context.base, tensor.name, start, stop)):
                raise DataError(
                    f"{step.reader.label}: the frozen weight {tensor.name} is not the base's",
                    where=f"{step.reader.label}, tensor {own}",
                    expected="the weight of the base, below the adapter",
                    next_step="point `base` at the model that the run loaded; a trained one belongs to modules_to_save",
                )
