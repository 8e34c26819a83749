"""Which spatial rank each matrix of a candidate's direction is cut to; RUN/spatial.json for `auto`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from relex_core import layout
from relex_core.checkpoints.contents import TensorInfo
from relex_core.elements import read_tensor
from relex_core.errors import ObjectNotFound
from relex_core.fit import FitArtifact
from relex_core.mix_sources import column_readers
from relex_core.progress import progress
from relex_core.recipes import Recipe
from relex_core.spatial import noise_edge_rank, spectrum
from relex_core.storage import open_store, read_bytes, write_bytes


class SpatialRanks(BaseModel):
    """RUN/spatial.json."""

    model_config = ConfigDict(frozen=True)

    fit_key: str
    rule: str = "noise edge of the first direction (Gavish & Donoho 2014)"
    ranks: dict[str, int]
    """By tensor; those that never moved, or are no matrices, have none."""


def ranks_of(recipe: Recipe, chosen: Mapping[str, int], tensors: Iterable[TensorInfo]) -> dict[str, int]:
    """The spatial rank of every matrix that a recipe cuts; a rank that cuts nothing is left out.

    Args:
        chosen: by tensor, for `auto`.
    """
    if recipe.spatial_rank is None:
        return {}
    ranks = {}
    for tensor in tensors:
        wanted = chosen.get(tensor.name) if recipe.spatial_rank == "auto" else recipe.spatial_rank
        if len(tensor.shape) == 2 and isinstance(wanted, int) and wanted < min(tensor.shape):
            ranks[tensor.name] = wanted
    return ranks


def automatic_ranks(run: str, fit: FitArtifact, tensors: Iterable[TensorInfo]) -> dict[str, int]:
    """The rank of every matrix that moved, by the noise edge; read back from RUN/spatial.json where it is of this fit.

    Reads the stored first directions once, one tensor at a time.
    """
    store = open_store(run)
    try:
        found = SpatialRanks.model_validate_json(read_bytes(store, layout.SPATIAL))
        if found.fit_key == fit.fit_key:
            return found.ranks
    except (ObjectNotFound, ValidationError):
        pass
    directions = column_readers(run, fit)["direction"]
    matrices = [t for t in tensors if len(t.shape) == 2 and t.name in fit.tensors and fit.tensors[t.name].moved]
    ranks = {}
    with progress("spatial ranks", sum(entry.numel for entry in matrices), unit="weights") as advance:
        for entry in matrices:
            values = spectrum(read_tensor(directions, entry.name)).values
            ranks[entry.name] = noise_edge_rank(values, max(entry.shape))
            advance(entry.numel)
    write_bytes(
        store, layout.SPATIAL, SpatialRanks(fit_key=fit.fit_key, ranks=ranks).model_dump_json(indent=1).encode()
    )
    return ranks
