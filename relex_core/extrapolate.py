"""extrapolate: FitArtifact -> checkpoints. Base + mixed directions, written as complete Hugging Face checkpoints.

    for each shard of the base: for each piece of its tensors:
        read the base, the stored directions and the observed slices that any candidate needs, once
        -> W_0 + Σ a_j D_j + Σ b_t Δ_t for every candidate -> one stream per candidate

The window is not read again; only first-update, weight-extrapolation, ExPO, pinned and drift candidates need one or
two observed checkpoints (`auto` may need those of an average). A killed run goes on with the next shard. Memory: a few
pieces of mix_sources.PIECE weights per candidate; with a spatial rank also one whole direction (spatial.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

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
from relex_core.checkpoints.adapter_config import WEIGHTS_FILE
from relex_core.checkpoints.contents import StoredTensor, TensorInfo
from relex_core.checkpoints.reader import TensorReader, open_base
from relex_core.checkpoints.safetensors_file import read_header
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes
from relex_core.errors import DataError, ObjectNotFound
from relex_core.events import record_event
from relex_core.fit import FitArtifact, load_fit
from relex_core.fit.key import refuse_another_fit
from relex_core.forecast import forecast
from relex_core.guidance import Guidance, guidance_of
from relex_core.lora.output import AdapterForm, adapter_form, clear_other_form, whole_model, write_adapters
from relex_core.lora.sources import AdapterSources, no_automatic_ranks
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.mix_sources import Sources
from relex_core.parallel import cores, ordered_map
from relex_core.progress import progress
from relex_core.recipes import GUIDED, Recipe, candidate_recipes, choose_recipes, relex_recipes, worth_writing
from relex_core.spatial_rank import automatic_ranks, ranks_of
from relex_core.spec import CandidatesSpec, RunSpec, load_spec_of
from relex_core.storage import Store, Writer, open_store


def extrapolate(
    run: str, *, target_steps: Sequence[int] = (), scales: Sequence[float] = (), names: Sequence[str] = ()
) -> list[Candidate]:
    """Write candidates of a fitted run; those that are complete already are left as they are.

    Args:
        run: URI of the run directory.
        target_steps: RELEX candidates to these optimizer steps instead of the spec's candidates.
        scales: their scales, or the scales of the spec's RELEX candidates.
        names: only these of the candidates named so far. Processes may write different ones at the same time.

    A candidate that takes something from the forecast has it made, where it is missing.

    Raises:
        SpecError: there is no candidate of a given name.
        WindowNotReady: nothing is collected or fitted yet.
        DataError: a candidate's weights are not finite in their dtype; or the base changed since collect.
        StorageError: the storage failed, or another process published meanwhile, and deleted weights as a loser's;
            run again to go on.
    """
    started = time.monotonic()
    spec, manifest, fit = load_spec_of(run), load_manifest(run), load_fit(run)
    refuse_another_fit(run, spec, manifest, fit)
    recipes = _recipes(spec, manifest, fit, target_steps, scales)
    recipes = choose_recipes(recipes, names) if names else recipes
    guidance = guidance_of(forecast(run)) if any(recipe.method in GUIDED for recipe in recipes) else None
    inputs = _Inputs(run, spec.candidates, manifest, fit, open_base(manifest), guidance)
    outputs = _planned(inputs, recipes if names else worth_writing(recipes, guidance))
    store = open_store(run)
    pending = [output for output in outputs if finished_candidate(store, output) is None]
    if pending:
        _write(inputs, pending)
        written, seconds = [output.recipe.name for output in pending], round(time.monotonic() - started, 1)
        record_event(run, "extrapolated", seconds=seconds, candidates=written)
    return [candidate for output in outputs if (candidate := finished_candidate(store, output)) is not None]


@dataclass(frozen=True)
class _Inputs:
    """What candidates are made from."""

    run: str
    spec: CandidatesSpec
    manifest: WindowManifest
    fit: FitArtifact
    base: TensorReader
    guidance: Guidance | None

    @cached_property
    def form(self) -> AdapterForm | None:
        """Of the adapters; None where candidates are complete checkpoints."""
        return adapter_form(self.spec, self.manifest, self.base.tensors)

    @property
    def model(self) -> WindowManifest:
        """With all tensors of complete checkpoints."""
        return whole_model(self.manifest, self.base.tensors.values())


def _recipes(
    spec: RunSpec, manifest: WindowManifest, fit: FitArtifact, target_steps: Sequence[int], scales: Sequence[float]
) -> list[Recipe]:
    candidates = spec.candidates
    if target_steps:
        return relex_recipes(target_steps, scales or candidates.scales, candidates.spatial_ranks)
    if scales:
        candidates = candidates.model_copy(update={"scales": tuple(scales)})
    return candidate_recipes(candidates, manifest.steps, manifest.t_cut, spec.fit.trailing_averages, fit.basis)


def _planned(inputs: _Inputs, recipes: Sequence[Recipe]) -> list[Output]:
    """Where every candidate goes, in which dtypes and ranks."""
    manifest, fit, form, tensors = inputs.manifest, inputs.fit, inputs.form, list(inputs.base.tensors.values())
    dtypes = form.dtypes if form else output_dtypes(inputs.spec, inputs.model, inputs.base.dtypes)
    automatic = any(recipe.spatial_rank == "auto" for recipe in recipes)
    if automatic and manifest.adapters:
        raise no_automatic_ranks()
    chosen = automatic_ranks(inputs.run, fit, tensors) if automatic else {}
    adapter_ranks = form.ranks if form else {}
    return [
        plan_output(recipe, manifest, fit, dtypes, inputs.guidance, ranks_of(recipe, chosen, tensors), adapter_ranks)
        for recipe in recipes
    ]


def _write(inputs: _Inputs, outputs: Sequence[Output]) -> None:
    """Write weights, then companions, then what says that the candidate is complete."""
    store, manifest = open_store(inputs.run), inputs.manifest
    for output in outputs:
        store.delete(f"{output.folder}/{layout.PROVENANCE}")  # of another recipe under the same name
        if manifest.adapters:
            clear_other_form(store, output, inputs.form)
    mixed = AdapterSources if manifest.adapters else Sources
    sources = mixed(inputs.run, manifest, inputs.fit, inputs.base, inputs.guidance)
    weights = {WEIGHTS_FILE} if inputs.form else set(_shards(inputs.base))
    if inputs.form:
        assert isinstance(sources, AdapterSources)
        outputs = _write_adapters(store, sources, inputs.base, outputs, manifest)
    else:
        _write_weights(store, sources, inputs.base, outputs)
        for output in outputs:
            write_companions(store, inputs.model, output)
    deleted = []
    for output in outputs:
        try:
            write_provenance(store, manifest, inputs.fit, output, weights)
        except ObjectNotFound as error:  # of a loser; the winner, whose mark this process deleted, gets it back
            deleted.append(error)
    if deleted:
        raise deleted[0]


def _write_adapters(
    store: Store,
    sources: AdapterSources,
    base: TensorReader,
    outputs: Sequence[Output],
    manifest: WindowManifest,
) -> list[Output]:
    weights = len(outputs) * sum(math.prod(tensor.shape) for tensor in manifest.tensors)
    with progress("extrapolate", weights, unit="weights") as advance:
        return write_adapters(store, manifest, base.tensors, sources, outputs, advance)


def _write_weights(
    store: Store, sources: Sources | AdapterSources, base: TensorReader, outputs: Sequence[Output]
) -> None:
    """Write all shards of all candidates, shard by shard of the base."""
    shards = _shards(base)
    total = sum(stored.numel for stored in base.tensors.values())
    workers = cores()
    with progress("extrapolate", total, unit="weights") as advance, ThreadPoolExecutor(workers) as pool:
        for shard, entries in shards.items():
            entries.sort(key=lambda entry: entry.extents[0].offset)
            left = [output for output in outputs if not _shard_is_written(store, shard, output)]
            pieces = (piece for entry in entries for piece in sources.pieces(entry, left)) if left else iter(())
            with ExitStack() as stack:
                streams = [stack.enter_context(_shard_writer(store, shard, entries, output)) for output in left]
                for mixed in ordered_map(pool, partial(sources.mix, outputs=left), pieces, ahead=workers + 1):
                    for stream, weights in zip(streams, mixed.data, strict=True):
                        stream.write(as_bytes(weights))
                    sources.done(mixed)
                    advance(mixed.count)


def _shards(base: TensorReader) -> dict[str, list[StoredTensor]]:
    """Tensors by the file of the base that they begin in, which is the candidate's file, too."""
    shards: dict[str, list[StoredTensor]] = {}
    for stored in base.tensors.values():
        shards.setdefault(stored.extents[0].file.name, []).append(stored)
    return shards


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
