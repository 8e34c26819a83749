"""The loop over tensors, in the order of the base's files:

    read the T slices (stream.py) -> Gram matrix (gram.py) -> eigenvectors, line (basis.py, line.py)
      -> directions from the slices still in memory (gram.mix) -> RUN/fit/direction-*.safetensors

Memory: resident memory stays below `FitPlan.peak_bytes`, which stays below `fit.memory_budget`: stripes of T slices
(`plan.buffers` of them), one float32 tile per thread, and the directions of one tensor group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relex_core import __version__, layout
from relex_core.checkpoints.reader import TensorReader, open_checkpoint_reader
from relex_core.collect import load_spec_of
from relex_core.errors import SpecError
from relex_core.events import record_event
from relex_core.fit.artifact import FitArtifact, load_fit
from relex_core.fit.basis import Basis, decompose, joined, rank_basis, trailing_average_basis, trend_basis
from relex_core.fit.checks import refuse_another_base, refuse_identical_steps, refuse_non_finite
from relex_core.fit.device import choose_device, one_thread_per_call, peak_resident_bytes, resident_bytes
from relex_core.fit.files import GroupFiles, GroupResult, read_grams, write_grams
from relex_core.fit.gram import mix
from relex_core.fit.stream import Part, WindowStream
from relex_core.fit.summary import summarise, tensor_fit
from relex_core.manifest import WindowManifest, digest_of, load_manifest
from relex_core.parallel import ordered_map
from relex_core.plan import FitPlan, Group, PlannedTensor, plan_fit
from relex_core.progress import progress
from relex_core.spec import FitSpec
from relex_core.storage import Store, exists, open_store, write_bytes


@dataclass(frozen=True)
class FitContext:
    """What every group needs."""

    spec: FitSpec
    manifest: WindowManifest
    plan: FitPlan
    base: TensorReader
    observed: tuple[TensorReader, ...]
    store: Store
    key: str
    device: torch.device
    pool: ThreadPoolExecutor
    workers: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored directions."""
        return torch.bfloat16 if self.spec.direction_dtype == "bfloat16" else torch.float32

    def files(self, group: Group) -> GroupFiles:
        dtype = "BF16" if self.dtype == torch.bfloat16 else "F32"
        metadata = {"format": "pt", "window_digest": self.manifest.digest, "fit_key": self.key}
        return GroupFiles(self.store, group, len(self.plan.groups), dtype, metadata)


def fit_window(run: str) -> FitArtifact:
    """See `relex_core.fit.fit`."""
    started = time.monotonic()
    spec, manifest = load_spec_of(run).fit, load_manifest(run)
    store = open_store(run)
    key = digest_of({"window": manifest.digest, "fit": load_spec_of(run).identity()["fit"], "version": __version__})
    if exists(store, layout.FIT):
        artifact = load_fit(run)
        if artifact.fit_key == key:
            return artifact
    _refuse_impossible(spec, manifest)
    device = choose_device(spec.device)
    workers = len(os.sched_getaffinity(0))
    base, observed = _open_readers(manifest)
    base_dtypes = {name: stored.entry.dtype for name, stored in base.tensors.items()}
    plan = plan_fit(manifest, base_dtypes, spec, workers=workers, resident=resident_bytes())
    with ThreadPoolExecutor(workers, thread_name_prefix="fit") as pool, one_thread_per_call():
        context = FitContext(spec, manifest, plan, base, observed, store, key, device, pool, workers)
        results = _fit_groups(context)
    artifact = _artifact(context, results, started)
    write_grams(store, layout.GRAM, results, key)
    write_bytes(store, layout.FIT, artifact.model_dump_json(indent=1).encode())
    for group in plan.groups:
        store.delete(layout.group_gram(group.number, len(plan.groups)))
    record_event(run, "fitted", seconds=round(artifact.seconds, 1), bytes_read=artifact.bytes_read)
    return artifact


def _refuse_impossible(spec: FitSpec, manifest: WindowManifest) -> None:
    steps = len(manifest.steps)
    if spec.degree >= steps:
        raise SpecError(f"fit.degree={spec.degree} needs {spec.degree + 1} checkpoints, the window holds {steps}")
    for count in spec.trailing_averages:
        if count > steps:
            raise SpecError(
                f"fit.trailing_averages: the last {count} checkpoints, but the window holds {steps}",
                next_step=f"use at most {steps}",
            )


def _open_readers(manifest: WindowManifest) -> tuple[TensorReader, tuple[TensorReader, ...]]:
    base = open_checkpoint_reader("base", manifest.base.uri, manifest.base.files)
    with ThreadPoolExecutor(16) as pool:
        observed = pool.map(lambda c: open_checkpoint_reader(f"step {c.step}", c.uri, c.files), manifest.checkpoints)
        return base, tuple(observed)


def _fit_groups(context: FitContext) -> list[GroupResult]:
    """Fit every group that is not done yet."""
    groups = context.plan.groups
    done = {group.number: _finished_group(context, group) for group in groups}
    left = [group for group in groups if done[group.number] is None]
    total = np.zeros((context.plan.steps, context.plan.steps))
    base_square, checked = 0.0, False
    results = []
    with progress("fit", context.plan.bytes_to_read, unit="bytes") as advance:
        visits = (visit for group in left for visit in context.plan.visits(group))
        stream = WindowStream(
            context.plan, visits, context.base, context.observed, context.pool, context.device, advance
        )
        for group in groups:
            result = done[group.number] or _fit_group(context, group, stream)
            results.append(result)
            total += sum(result.grams.values())
            base_square += sum(result.base_squares.values())
            refuse_another_base(total, base_square, context.manifest.steps, context.manifest.base.uri)
            if not checked and total.any():  # as soon as the Gram shows it ...
                refuse_identical_steps(total, context.manifest, context.observed)
                checked = True
    refuse_identical_steps(total, context.manifest, context.observed)  # ... and when all of it is there
    return results


def _fit_group(context: FitContext, group: Group, stream: WindowStream) -> GroupResult:
    """Fit one group and write its files, the Gram matrices last."""
    result = GroupResult()
    written = context.files(group)
    for tensor in group.tensors:
        if not tensor.floating:
            written.add_state(tensor, _changed_state(tensor, stream))
            continue
        held = context.plan.held(tensor)
        parts: list[Part] = []
        grams, square = np.zeros((context.plan.steps, context.plan.steps)), 0.0
        for part in stream.parts(tensor):
            assert part.grams is not None and part.base_squares is not None
            refuse_non_finite(part, context.manifest.steps)
            for gram, base_square in zip(part.grams, part.base_squares, strict=True):
                grams += gram
                square += float(base_square)
            if held:
                parts.append(part)
            else:
                stream.done(part)
        result.grams[tensor.name], result.base_squares[tensor.name] = grams, square
        basis = stored_basis(grams, context.manifest.steps, context.spec)
        again: Iterable[Part] = parts if held else stream.parts(tensor)
        if basis is None:
            for part in again:
                stream.done(part)
        else:
            written.add(tensor, basis, _directions(context, again, basis, stream))
    written.finish()
    number, groups = group.number, len(context.plan.groups)
    write_grams(context.store, layout.group_gram(number, groups), [result], context.key)
    return result


def stored_basis(gram: np.ndarray, steps: Sequence[int], spec: FitSpec) -> Basis | None:
    """Which directions are stored for a tensor with this Gram matrix; None if it never moved."""
    spectrum = decompose(gram, spec.rank)
    if not spectrum.moved:
        return None
    main = trend_basis(steps, spec.degree) if spec.basis == "per_parameter" else rank_basis(spectrum)
    return joined([main, *(trailing_average_basis(count, len(steps)) for count in spec.trailing_averages)])


def _directions(context: FitContext, parts: Iterable[Part], basis: Basis, stream: WindowStream) -> Iterator[Tensor]:
    """The mixed directions of one tensor, "columns n" a part, in order."""

    def mixed(part: Part) -> tuple[Part, Tensor]:
        with torch.cuda.stream(stream.scratch.stream):
            slices, base = stream.on_device(part.slices), stream.on_device(part.base)
            return part, mix(slices, base, basis.mixing, stream.scratch.tiles, context.dtype)

    # Parts that wait for their turn hold their stripes: leave a buffer to read the next one into.
    ahead = min(context.workers + 1, context.plan.buffers - 1)
    for part, directions in ordered_map(context.pool, mixed, parts, ahead=ahead):
        stream.done(part)
        yield directions


def _changed_state(tensor: PlannedTensor, stream: WindowStream) -> bytes | None:
    """The last observed bytes of an integer tensor, if they are not the base's."""
    same, last = True, []
    for part in stream.parts(tensor):
        row = part.slices[-1].view(torch.uint8)
        same = same and torch.equal(row, part.base.view(torch.uint8))
        last.append(row.numpy().tobytes())
        stream.done(part)
    return None if same else b"".join(last)


def _finished_group(context: FitContext, group: Group) -> GroupResult | None:
    """The result of a group that an earlier run of the same fit finished."""
    key = layout.group_gram(group.number, len(context.plan.groups))
    result = read_grams(context.store, key)
    return None if result is None or result[1] != context.key else result[0]


def _artifact(context: FitContext, results: Sequence[GroupResult], started: float) -> FitArtifact:
    manifest, spec = context.manifest, context.spec
    grams = {name: gram for result in results for name, gram in result.grams.items()}
    squares = {name: square for result in results for name, square in result.base_squares.items()}
    numel = {tensor.name: tensor.numel for group in context.plan.groups for tensor in group.tensors}
    tensors = {name: tensor_fit(gram, squares[name], numel[name], manifest.steps, spec) for name, gram in grams.items()}
    first_basis = next((b for g in grams.values() if (b := stored_basis(g, manifest.steps, spec))), None)
    readers = (context.base, *context.observed)
    return FitArtifact(
        window_digest=manifest.digest,
        fit_key=context.key,
        steps=manifest.steps,
        t_cut=manifest.t_cut,
        basis=spec.basis,
        rank=spec.rank,
        degree=spec.degree,
        columns=() if first_basis is None else first_basis.names,
        tensors=tensors,
        summary=summarise(tensors, grams, squares),
        seconds=time.monotonic() - started,
        bytes_read=sum(reader.bytes_read for reader in readers),
        peak_rss_bytes=peak_resident_bytes(),
        device=str(context.device),
    )
