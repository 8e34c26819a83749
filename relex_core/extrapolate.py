"""extrapolate: FitArtifact -> checkpoints. Base + mixed directions, written as complete Hugging Face checkpoints.

    for each shard of the base: for each piece of its tensors:
        read the base, the stored directions and the observed slices that any candidate needs, once
        -> W_0 + Σ a_j D_j + Σ b_t Δ_t for every candidate -> one stream per candidate

The window is not read again; only first-update, weight-extrapolation, ExPO and pinned candidates need one or two
observed checkpoints. A killed run goes on with the next shard. Memory: a few pieces of PIECE weights per candidate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from relex_core import layout
from relex_core.candidate import (
    Candidate,
    Output,
    finished_candidate,
    output_dtypes,
    plan_output,
    write_companions,
    write_provenance,
)
from relex_core.checkpoints.contents import StoredTensor, TensorInfo
from relex_core.checkpoints.reader import Piece, Reader, TensorReader, open_checkpoint_reader, open_files_reader
from relex_core.checkpoints.safetensors_file import ITEM_BYTES, read_header
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.collect import load_spec_of
from relex_core.errors import DataError, ObjectNotFound
from relex_core.events import record_event
from relex_core.fit import FitArtifact, load_fit
from relex_core.fit.columns import STATE_COLUMN
from relex_core.fit.dtypes import TORCH_DTYPES
from relex_core.fit.key import refuse_another_fit
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.parallel import ordered_map
from relex_core.progress import progress
from relex_core.recipes import Mix, Recipe, candidate_recipes, choose_recipes, relex_recipes
from relex_core.spec import CandidatesSpec
from relex_core.storage import ObjectInfo, Store, Writer, join_uri, open_store

K = TypeVar("K")

PIECE = 1024 * 1024
"""Weights that are mixed at a time."""


def extrapolate(
    run: str, *, target_steps: Sequence[int] = (), scales: Sequence[float] = (), names: Sequence[str] = ()
) -> list[Candidate]:
    """Write candidates of a fitted run; those that are complete already are left as they are.

    Args:
        run: URI of the run directory.
        target_steps: RELEX candidates to these optimizer steps instead of the spec's candidates.
        scales: their scales, or the scales of the spec's RELEX candidates.
        names: only these of the candidates named so far. Processes may write different ones at the same time.

    Raises:
        SpecError: there is no candidate of a given name.
        WindowNotReady: nothing is collected or fitted yet.
        DataError: a candidate's weights are not finite in their dtype; or the base changed since collect.
        StorageError: the storage failed; run again to go on.
    """
    started = time.monotonic()
    spec, manifest, fit = load_spec_of(run), load_manifest(run), load_fit(run)
    refuse_another_fit(run, spec, manifest, fit)
    recipes = _recipes(spec.candidates, spec.fit.trailing_averages, manifest, fit, target_steps, scales)
    recipes = choose_recipes(recipes, names) if names else recipes
    store = open_store(run)
    base = open_checkpoint_reader("base", manifest.base.uri, manifest.base.files)
    base_dtypes = {name: stored.dtype for name, stored in base.tensors.items()}
    dtypes = output_dtypes(spec.candidates, manifest, base_dtypes)
    outputs = [plan_output(recipe, manifest, fit, dtypes) for recipe in recipes]
    pending = [output for output in outputs if finished_candidate(store, output) is None]
    for output in pending:
        store.delete(f"{output.folder}/{layout.PROVENANCE}")  # of another recipe under the same name
    if pending:
        _write_weights(run, store, manifest, fit, base, pending)
    for output in pending:
        write_companions(store, manifest, output)
        write_provenance(store, manifest, fit, output, torch.__version__)
    if pending:
        names, seconds = [output.recipe.name for output in pending], round(time.monotonic() - started, 1)
        record_event(run, "extrapolated", seconds=seconds, candidates=names)
    return [candidate for output in outputs if (candidate := finished_candidate(store, output)) is not None]


def _recipes(
    spec: CandidatesSpec,
    averages: Sequence[int],
    manifest: WindowManifest,
    fit: FitArtifact,
    target_steps: Sequence[int],
    scales: Sequence[float],
) -> list[Recipe]:
    if target_steps:
        return relex_recipes(target_steps, scales or spec.scales)
    if scales:
        spec = spec.model_copy(update={"scales": tuple(scales)})
    return candidate_recipes(spec, manifest.steps, manifest.t_cut, averages, fit.basis)


def _write_weights(
    run: str,
    store: Store,
    manifest: WindowManifest,
    fit: FitArtifact,
    base: TensorReader,
    outputs: Sequence[Output],
) -> None:
    """Write all shards of all candidates, shard by shard of the base."""
    sources = Sources(run, manifest, fit, base)
    shards: dict[str, list[StoredTensor]] = {}
    for stored in base.tensors.values():
        shards.setdefault(stored.extents[0].file.name, []).append(stored)
    weights = sum(stored.numel for stored in base.tensors.values())
    workers = len(os.sched_getaffinity(0))
    with progress("extrapolate", weights, unit="weights") as advance, ThreadPoolExecutor(workers) as pool:
        for shard, entries in shards.items():
            entries.sort(key=lambda entry: entry.extents[0].offset)
            left = [output for output in outputs if not _shard_is_written(store, shard, output)]
            pieces = (piece for entry in entries for piece in _pieces(entry)) if left else iter(())
            with ExitStack() as stack:
                streams = [stack.enter_context(_shard_writer(store, shard, entries, output)) for output in left]
                mixed = ordered_map(pool, partial(sources.mix, outputs=left), pieces, ahead=workers + 1)
                for count, data in mixed:
                    for stream, part in zip(streams, data, strict=True):
                        stream.write(part)
                    advance(count)


def _shard_is_written(store: Store, shard: str, output: Output) -> bool:
    """Whether an earlier run of the same recipe finished this shard: files appear only when they are whole."""
    try:
        header = read_header(store, store.stat(f"{output.folder}/{shard}"))
    except (ObjectNotFound, DataError):
        return False
    return header.metadata.get("relex_key") == output.key


def _shard_writer(
    store: Store, shard: str, entries: Sequence[TensorInfo], output: Output
) -> AbstractContextManager[Writer]:
    described: list[TensorDescription] = [(entry.name, output.dtypes[entry.name], entry.shape) for entry in entries]
    metadata = {"format": "pt", "relex_key": output.key}
    return safetensors_writer(store, f"{output.folder}/{shard}", described, metadata)


@dataclass(frozen=True)
class _Piece:
    """Weights `start` to `stop` of a tensor."""

    name: str
    start: int
    stop: int


def _pieces(entry: TensorInfo) -> Iterator[_Piece]:
    for start in range(0, entry.numel, PIECE):
        yield _Piece(entry.name, start, min(start + PIECE, entry.numel))


class Sources:
    """Everything candidates are mixed from, opened when first needed. Safe to use from several threads."""

    def __init__(self, run: str, manifest: WindowManifest, fit: FitArtifact, base: TensorReader) -> None:
        self._fit, self._base = fit, base
        store = open_store(run)
        listed = list(store.list("fit"))
        self._columns = {column: _column_reader(store, column, listed, fit) for column in (*fit.columns, STATE_COLUMN)}
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in manifest.checkpoints}
        self._observed: dict[int, Reader] = {}
        self._opening = Lock()

    def mix(self, piece: _Piece, outputs: Sequence[Output]) -> tuple[int, list[memoryview]]:
        """(weights mixed, their bytes for every output)."""
        raw = self._read(self._base, piece)
        tensor = self._fit.tensors.get(piece.name)
        if tensor is None:  # integers: state, not weights
            state = self._columns[STATE_COLUMN]
            kept = self._read(state, piece) if piece.name in state.tensors else raw
            return piece.stop - piece.start, [_bytes(kept)] * len(outputs)
        mixes = [output.recipe.mix(self._fit, tensor) for output in outputs]
        wide = raw.dtype == torch.float64 or any(output.dtypes[piece.name] == "F64" for output in outputs)
        dtype = torch.float64 if wide else torch.float32
        base = raw.to(dtype)
        columns = {name: self._read(self._columns[name], piece).to(dtype) for name in _used(m.columns for m in mixes)}
        deltas = {t: self._read(self._step(t), piece).to(dtype) - base for t in _used(m.observed for m in mixes)}
        return piece.stop - piece.start, [
            _bytes(_mixed(raw, base, columns, deltas, mix, output, piece))
            for mix, output in zip(mixes, outputs, strict=True)
        ]

    def _step(self, step: int) -> Reader:
        """An observed checkpoint, opened when first needed: the trainer may have deleted those that are not."""
        with self._opening:
            if step not in self._observed:
                checkpoint = self._checkpoints[step]
                reader = open_checkpoint_reader(f"step {step}", checkpoint.uri, checkpoint.files)
                self._observed[step] = reader
            return self._observed[step]

    def _read(self, reader: Reader, piece: _Piece) -> Tensor:
        dtype = reader.tensors[piece.name].dtype
        item = ITEM_BYTES[dtype]
        buffer = torch.empty((piece.stop - piece.start) * item, dtype=torch.uint8)
        reader.read([Piece(piece.name, piece.start * item, piece.stop * item, 0)], memoryview(buffer.numpy()))
        return buffer.view(TORCH_DTYPES[dtype])


def _column_reader(store: Store, column: str, listed: Sequence[ObjectInfo], fit: FitArtifact) -> TensorReader:
    files = [info for info in listed if info.name.startswith(f"fit/{column}-")]
    for info in files:
        if read_header(store, info).metadata.get("fit_key") != fit.fit_key:
            raise DataError(
                "a stored direction belongs to another fit",
                where=join_uri(store.uri, info.name),
                next_step="delete RUN/fit and run relex fit again",
            )
    return open_files_reader(f"stored {column}", store, files)


def _used(mappings: Iterable[Mapping[K, float]]) -> set[K]:
    return {key for mapping in mappings for key, value in mapping.items() if value != 0.0}


def _mixed(
    raw: Tensor,
    base: Tensor,
    columns: Mapping[str, Tensor],
    deltas: Mapping[int, Tensor],
    mix: Mix,
    output: Output,
    piece: _Piece,
) -> Tensor:
    """One candidate's weights, "n" in the output's dtype.

    Raises:
        DataError: they are not finite there.
    """
    dtype = TORCH_DTYPES[output.dtypes[piece.name]]
    terms = [(columns[name], value) for name, value in mix.columns.items() if value != 0.0]
    terms += [(deltas[step], value) for step, value in mix.observed.items() if value != 0.0]
    weights = raw.to(dtype)  # without a term bit for bit the base, negative zeros included
    if terms:
        displacement = torch.zeros_like(base)
        for direction, coefficient in terms:
            displacement.add_(direction, alpha=coefficient)
        weights = (base + displacement).to(dtype)
    if not torch.isfinite(weights).all():
        raise DataError(
            f"candidate {output.recipe.name} is not finite in tensor {piece.name}",
            where=f"{output.folder}, dtype {output.dtypes[piece.name]}",
            expected="finite weights",
            next_step="choose a nearer target step or a smaller scale, or candidates.dtype: float32",
        )
    return weights


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy())
