"""From finished tensor groups to the artifact.

Groups may come from one process or from many (`relex fit --shard i/N` in N pods); no weight is read here, unless two
steps look identical, and nothing is computed again. One group's Gram matrices are held at a time: a large model's
together may take more memory than the fit had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from relex_core import layout
from relex_core.checkpoints.reader import open_base
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes
from relex_core.errors import WindowNotReady
from relex_core.events import record_event
from relex_core.fit.artifact import FitArtifact, delete_group_results
from relex_core.fit.checks import FittedSoFar
from relex_core.fit.columns import stored_columns
from relex_core.fit.group_results import GroupResult, GroupResults
from relex_core.fit.key import FIT_KEY, fit_key
from relex_core.fit.summary import summarise
from relex_core.groups import Group, PlannedTensor, plan_groups
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.spec import RunSpec, load_spec_of
from relex_core.storage import open_store, write_bytes


def merge_groups(run: str) -> FitArtifact:
    """See `relex_core.fit.merge`."""
    spec, manifest, store = load_spec_of(run), load_manifest(run), open_store(run)
    key = fit_key(spec, manifest)
    groups = plan_groups(manifest, open_base(manifest).dtypes, spec.fit)
    stored = GroupResults(store, len(groups), key)
    missing = [group for group in groups if not stored.finished(group)]
    if missing:
        raise _not_fitted(run, missing, len(groups))
    results, traces, so_far = list[GroupResult](), dict[str, float](), FittedSoFar(manifest)
    described: list[TensorDescription] = [(tensor.name, "F64", so_far.gram.shape) for tensor in _weights(groups)]
    metadata = {"format": "pt", "window_digest": manifest.digest, FIT_KEY: key}
    with safetensors_writer(store, layout.GRAM, described, metadata) as stream:
        for group in groups:
            result = stored.read(group)
            if result is None:
                raise _not_fitted(run, [group], len(groups))
            so_far.add(result)
            for tensor in _weights([group]):
                gram = result.grams[tensor.name]
                traces[tensor.name] = float(np.trace(gram))
                stream.write(as_bytes(gram))
            results.append(replace(result, grams={}))
        so_far.complete()
    artifact = _artifact(spec, manifest, results, traces, so_far.gram)
    write_bytes(store, layout.FIT, artifact.model_dump_json(indent=1).encode())
    delete_group_results(store)
    record_event(run, "fitted", seconds=round(artifact.seconds, 1), bytes_read=artifact.bytes_read)
    return artifact


def _weights(groups: Sequence[Group]) -> list[PlannedTensor]:
    """All tensors that have a Gram matrix."""
    return [tensor for group in groups for tensor in group.tensors if tensor.floating]


def _not_fitted(run: str, missing: Sequence[Group], groups: int) -> WindowNotReady:
    numbers = ", ".join(str(group.number) for group in missing[:20])
    return WindowNotReady(
        f"{len(missing)} of {groups} tensor groups are not fitted yet: {numbers}",
        where=run,
        next_step=f"relex fit {run} (or the shards that are missing), then merge again",
    )


def _artifact(
    spec: RunSpec,
    manifest: WindowManifest,
    results: Sequence[GroupResult],
    traces: Mapping[str, float],
    gram: np.ndarray,
) -> FitArtifact:
    tensors = {name: tensor for result in results for name, tensor in result.tensors.items()}
    base_squares = {name: square for result in results for name, square in result.base_squares.items()}
    return FitArtifact(
        window_digest=manifest.digest,
        fit_key=fit_key(spec, manifest),
        steps=manifest.steps,
        t_cut=manifest.t_cut,
        basis=spec.fit.basis,
        rank=spec.fit.rank,
        degree=spec.fit.degree,
        columns=stored_columns(spec.fit),
        tensors=tensors,
        changed_state=tuple(name for result in results for name in result.changed_state),
        summary=summarise(tensors, traces, gram, base_squares),
        seconds=sum(result.seconds for result in results),
        bytes_read=sum(result.bytes_read for result in results),
        peak_rss_bytes=max((result.peak_rss_bytes for result in results), default=0),
        device="; ".join(dict.fromkeys(result.device for result in results)),
    )
