"""fit: WindowManifest -> FitArtifact. One direction and one line per weight tensor, in one read of the window.

    artifact = fit("run/")                       # reads RUN/spec.json and RUN/window.json
    artifact.tensors["lm_head.weight"].slope     # change of the coefficient per optimizer step

`loop.py` goes over the tensors; `gram.py`, `basis.py` and `line.py` are the arithmetic. numpy, and for CUDA torch, are
loaded by the first call, so that an artifact can be read back without them.
"""

from __future__ import annotations

from relex_core import layout
from relex_core.errors import DataError, WindowNotReady
from relex_core.fit.artifact import FitArtifact, delete_group_results, load_fit
from relex_core.manifest import load_manifest, refuse_other_window
from relex_core.spec import load_spec_of
from relex_core.storage import exists, open_store

__all__ = ["FitArtifact", "fit", "fit_shard", "load_fit", "merge"]


def fit(run: str, *, memory_budget: int | None = None) -> FitArtifact:
    """Fit the window of a run directory; a fit that was interrupted goes on with the next tensor group.

    Args:
        run: URI of the run directory.
        memory_budget: bytes, instead of the spec's; the result is the same.

    Raises:
        WindowNotReady: nothing is collected yet.
        WindowError, DataError: the weights are not those of a training run (checks.py), or changed since collect.
        SpecError: the spec asks for more than this window or machine has.
        StorageError: the storage failed; run again to go on.
    """
    finished = _finished(run)
    if finished is not None:
        return finished
    fit_shard(run, 1, 1, memory_budget=memory_budget)
    return merge(run)


def fit_shard(run: str, shard: int, shards: int, *, memory_budget: int | None = None) -> None:
    """Fit one of `shards` parts of the tensors; any machine may take any part. `merge` then makes the artifact.

    Args:
        shard: from 1 to `shards`.
        memory_budget: bytes, instead of the spec's.

    Raises:
        As `fit`.
    """
    if _finished(run) is not None:
        return
    manifest = load_manifest(run)
    refuse_other_window(load_spec_of(run), manifest)
    if manifest.adapters:
        from relex_core.fit.adapters import fit_adapters

        fit_adapters(run, shard, shards, memory_budget)
    else:
        from relex_core.fit.loop import fit_groups

        fit_groups(run, shard, shards, memory_budget)
    _finished(run)  # if another process did the same and was faster: what it has no use for


def merge(run: str) -> FitArtifact:
    """Make the artifact of a fit whose shards are all done. Reads Gram matrices, no weights.

    Raises:
        WindowNotReady: a shard is not done yet.
        WindowError: only all tensors together show that the input is wrong (checks.py).
    """
    from relex_core.fit.merging import merge_groups

    if finished := _finished(run):
        return finished
    try:
        return merge_groups(run)
    except WindowNotReady:  # another process did the same, was faster, and deleted the groups' files
        if finished := _finished(run):
            return finished
        raise


def _finished(run: str) -> FitArtifact | None:
    """The artifact of this very fit, if it is complete.

    Then group results are deleted: of a merge that was killed, or of a process that did the same and was slower.
    """
    from relex_core.fit.key import fit_key

    store = open_store(run)
    if not exists(store, layout.FIT):
        return None
    try:
        artifact = load_fit(run)
    except DataError:  # changed by hand, or of another version: to be made again
        return None
    if artifact.fit_key != fit_key(load_spec_of(run), load_manifest(run)):
        return None
    delete_group_results(store)
    return artifact
