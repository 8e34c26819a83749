"""From finished tensor groups to the artifact.

Groups may come from one process or from many (`relex fit --shard i/N` in N pods); no weight is read here, unless two
steps look identical, and nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relex_core import layout
from relex_core.checkpoints.reader import base_dtypes_of
from relex_core.errors import WindowNotReady
from relex_core.events import record_event
from relex_core.fit.artifact import FitArtifact
from relex_core.fit.checks import (
    refuse_another_base,
    refuse_base_of_a_later_step,
    refuse_identical_steps,
    warn_of_a_later_base,
)
from relex_core.fit.columns import stored_columns
from relex_core.fit.files import GroupResult, finished_group, write_grams
from relex_core.fit.key import fit_key
from relex_core.fit.summary import finite_sum, summarise
from relex_core.groups import Group, plan_groups
from relex_core.manifest import WindowManifest, load_manifest
from relex_core.spec import RunSpec, load_spec_of
from relex_core.storage import Store, open_store, write_bytes


def merge_groups(run: str) -> FitArtifact:
    """See `relex_core.fit.merge`."""
    spec, manifest, store = load_spec_of(run), load_manifest(run), open_store(run)
    key = fit_key(spec, manifest)
    groups = plan_groups(manifest, base_dtypes_of(manifest), spec.fit)
    results = _finished_groups(run, store, groups, key)
    merged = GroupResult(
        grams={name: gram for result in results for name, gram in result.grams.items()},
        base_squares={name: square for result in results for name, square in result.base_squares.items()},
    )
    total = sum(merged.grams.values(), np.zeros((len(manifest.steps),) * 2))
    refuse_another_base(total, finite_sum(merged.base_squares.values()), manifest.steps, manifest.base.uri)
    refuse_identical_steps(total, manifest)
    refuse_base_of_a_later_step(total, manifest)
    warn_of_a_later_base(total, manifest)
    artifact = _artifact(spec, manifest, merged, results, key)
    write_grams(store, layout.GRAM, merged, key)
    write_bytes(store, layout.FIT, artifact.model_dump_json(indent=1).encode())
    for group in groups:
        store.delete(layout.group_gram(group.number, len(groups)))
    record_event(run, "fitted", seconds=round(artifact.seconds, 1), bytes_read=artifact.bytes_read)
    return artifact


def _finished_groups(run: str, store: Store, groups: Sequence[Group], key: str) -> list[GroupResult]:
    found = {group.number: finished_group(store, groups, group, key) for group in groups}
    missing = [str(number) for number, result in found.items() if result is None]
    if missing:
        raise WindowNotReady(
            f"{len(missing)} of {len(groups)} tensor groups are not fitted yet: {', '.join(missing[:20])}",
            where=run,
            next_step=f"relex fit {run} (or the shards that are missing), then merge again",
        )
    return [result for result in found.values() if result is not None]


def _artifact(
    spec: RunSpec,
    manifest: WindowManifest,
    merged: GroupResult,
    results: Sequence[GroupResult],
    key: str,
) -> FitArtifact:
    tensors = {name: tensor for result in results for name, tensor in result.tensors.items()}
    return FitArtifact(
        window_digest=manifest.digest,
        fit_key=key,
        steps=manifest.steps,
        t_cut=manifest.t_cut,
        basis=spec.fit.basis,
        rank=spec.fit.rank,
        degree=spec.fit.degree,
        columns=stored_columns(spec.fit),
        tensors=tensors,
        summary=summarise(tensors, merged.grams, merged.base_squares),
        seconds=sum(result.seconds for result in results),
        bytes_read=sum(result.bytes_read for result in results),
        peak_rss_bytes=max((result.peak_rss_bytes for result in results), default=0),
        device="; ".join(dict.fromkeys(result.device for result in results)),
    )
