"""`relex run --dry-run`: what a run would read, write and hold in memory. Reads headers only; writes nothing."""

from __future__ import annotations

import math
import os

from pydantic import BaseModel, ConfigDict

from relex_core.candidate import output_dtypes
from relex_core.checkpoints.reader import base_dtypes_of
from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.collect import find_window
from relex_core.plan import plan_fit, window_bytes
from relex_core.recipes import recipes_of
from relex_core.spec import RunSpec


class RunPlan(BaseModel):
    """What `relex run` is going to do. Sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[int, ...]
    tensors: int
    weights: int
    """Parameters of the model."""
    window_bytes: int
    fit_reads: int
    """Window and base, with the second reads of tensors that do not fit the memory budget."""
    read_twice: tuple[str, ...]
    """Those tensors."""
    fit_writes: int
    """Stored directions, at most."""
    candidate_writes: int
    """All candidates, before losers are deleted."""
    memory: int
    """Peak resident memory of the fit, at most."""
    candidates: tuple[str, ...]


def plan_run(spec: RunSpec) -> RunPlan:
    """Plan a run.

    Raises:
        WindowNotReady, WindowError, DataError, SpecError: as the run itself would.
    """
    manifest = find_window(spec)
    base_dtypes = base_dtypes_of(manifest)
    plan = plan_fit(manifest, base_dtypes, spec.fit, int(spec.fit.memory_budget), workers=len(os.sched_getaffinity(0)))
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
