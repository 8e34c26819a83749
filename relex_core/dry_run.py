"""`relex run --dry-run`: what a run would read, write and hold in memory. Reads headers only; writes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from relex_core.candidate import output_dtypes
from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Adapter
from relex_core.checkpoints.reader import open_base
from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.collect import find_window
from relex_core.fit.columns import stored_columns
from relex_core.groups import direction_item_bytes
from relex_core.lora.plan import stored_numbers, workers_within
from relex_core.manifest import CheckpointRecord, WindowManifest
from relex_core.parallel import cores
from relex_core.plan import TYPICAL_RESIDENT_BYTES, plan_fit, refuse_impossible, window_bytes
from relex_core.recipes import recipes_of
from relex_core.spec import RunSpec
from relex_core.storage import open_store


class RunPlan(BaseModel):
    """What `relex run` is going to do. Sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[int, ...]
    tensors: int
    weights: int
    """Parameters of the model."""
    window_bytes: int
    fit_reads: int
    """Window and base, with second reads of tensors that do not fit the memory budget; less if few weights change."""
    read_twice: tuple[str, ...]
    """Those tensors."""
    fit_writes: int
    """Stored directions, at most."""
    candidate_writes: int
    """All candidates together; losers may be deleted after a decision."""
    memory: int
    """Peak resident memory of the fit, at most."""
    candidates: tuple[str, ...]


def plan_run(spec: RunSpec) -> RunPlan:
    """Plan a run.

    Raises:
        WindowNotReady, WindowError, DataError, SpecError: as the run itself would.
    """
    manifest = find_window(spec)
    base_dtypes = open_base(manifest).dtypes
    if manifest.adapters:
        return _plan_adapters(spec, manifest, base_dtypes)
    plan = plan_fit(manifest, base_dtypes, spec.fit, int(spec.fit.memory_budget), workers=cores())
    recipes = recipes_of(spec, manifest)
    dtypes = output_dtypes(spec.candidates, manifest, base_dtypes)
    candidate_bytes = sum(math.prod(t.shape) * ITEM_BYTES[dtypes[t.name]] for t in manifest.tensors)
    tensors = [tensor for group in plan.groups for tensor in group.tensors]
    return RunPlan(
        steps=manifest.steps,
        tensors=len(tensors),
        weights=sum(tensor.numel for tensor in tensors),
        window_bytes=window_bytes(manifest),
        fit_reads=plan.bytes_to_read,
        read_twice=tuple(tensor.name for tensor in tensors if not plan.read_once(tensor)),
        fit_writes=plan.bytes_to_write,
        candidate_writes=candidate_bytes * len(recipes),
        memory=plan.peak_bytes,
        candidates=tuple(recipe.name for recipe in recipes),
    )


def _plan_adapters(spec: RunSpec, manifest: WindowManifest, base_dtypes: Mapping[str, str]) -> RunPlan:
    """The same for a LoRA window: factors are read once, whole tensors twice, the base once."""
    refuse_impossible(spec.fit, manifest.steps)
    adapters = [_adapter(checkpoint) for checkpoint in manifest.checkpoints]
    numel = {tensor.name: math.prod(tensor.shape) for tensor in manifest.tensors}
    item = {name: ITEM_BYTES[base_dtypes[name]] for name in numel}
    budget = int(spec.fit.memory_budget)
    _, memory = workers_within(spec.fit, budget, numel, adapters, cores(), TYPICAL_RESIDENT_BYTES)
    window = sum(file.size for checkpoint in manifest.checkpoints for file in checkpoint.files)
    again = sum(numel[name] * item[name] * (len(adapters) + 1) for name in adapters[0].whole)
    stored = sum(stored_numbers(name, adapters, numel[name]) for name in numel)
    recipes = recipes_of(spec, manifest)
    if spec.candidates.write == "merged":
        written = sum(file.size for file in manifest.base.files)
    else:
        last = adapters[-1]
        ranks = {name: spec.candidates.adapter_rank or target.rank for name, target in last.targets.items()}
        written = 4 * sum(ranks[name] * sum(target.shape) for name, target in last.targets.items())
        written += 4 * sum(numel[name] for name in last.whole)
    return RunPlan(
        steps=manifest.steps,
        tensors=len(numel),
        weights=sum(numel.values()),
        window_bytes=window,
        fit_reads=window + again + sum(numel[name] * item[name] for name in numel),
        read_twice=tuple(adapters[0].whole),
        fit_writes=stored * len(stored_columns(spec.fit)) * direction_item_bytes(spec.fit),
        candidate_writes=written * len(recipes),
        memory=memory,
        candidates=tuple(recipe.name for recipe in recipes),
    )


def _adapter(record: CheckpointRecord) -> Adapter:
    checkpoint = open_checkpoint(open_store(record.uri), [file.info() for file in record.files])
    assert checkpoint.adapter is not None, "find_window looked at it"
    return checkpoint.adapter
