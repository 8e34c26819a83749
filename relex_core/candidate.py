"""A candidate's folder, apart from its weights: provenance, config, tokenizer and index files. Needs no extra."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from relex_core import __version__, layout
from relex_core.checkpoints.checkpoint import CONFIG, INDEX
from relex_core.checkpoints.safetensors_file import FLOATS, ITEM_BYTES
from relex_core.errors import DataError, ObjectNotFound
from relex_core.fit import FitArtifact
from relex_core.guidance import Guidance
from relex_core.manifest import WindowManifest, digest_of
from relex_core.recipes import GUIDED, Recipe
from relex_core.spec import CandidatesSpec
from relex_core.storage import Store, open_store, read_bytes, write_bytes

DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Candidate(BaseModel):
    """RUN/candidates/<name>/relex.json: where a checkpoint comes from. Written last."""

    model_config = ConfigDict(frozen=True)

    name: str
    method: str
    target_step: int | None
    scale: float | None
    alpha: float | None
    count: int | None
    spatial_rank: int | str | None = None
    """Singular vectors kept of each matrix of the direction; null: all."""
    spatial_ranks: dict[str, int] = {}
    """The same by tensor, where it cuts something."""
    drift_shares: dict[str, float] = {}
    """φ by module type, from the forecast, where the weights depend on it."""
    predictors: dict[str, str] = {}
    """What `auto` did, by module type."""
    adapter_ranks: dict[str, int] = {}
    """Of the written adapter, by weight; empty where full weights are written."""
    truncation_error: float | None = None
    """What those ranks and the dtype lose of the displacement of all these weights: relative Frobenius norm."""
    truncation_errors: dict[str, float] = {}
    """The same by weight."""
    window_digest: str
    base_digest: str
    fit_key: str
    key: str
    """Digest of everything the bytes depend on."""
    files: dict[str, int]
    """Bytes of every file."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Output:
    """One candidate in work."""

    recipe: Recipe
    key: str
    folder: str
    """Below the run root."""
    dtypes: Mapping[str, str]
    """Of the written tensors."""
    spatial_ranks: Mapping[str, int] = field(default_factory=dict)
    """Of the matrices whose direction is cut."""
    drift_shares: Mapping[str, float] = field(default_factory=dict)
    """φ by module type, if the weights depend on it."""
    predictors: Mapping[str, str] = field(default_factory=dict)
    """What `auto` does, by module type."""
    adapter_ranks: Mapping[str, int] = field(default_factory=dict)
    """By weight, where an adapter is written."""
    truncation_error: float | None = None
    truncation_errors: Mapping[str, float] = field(default_factory=dict)


def not_finite(output: Output, tensor: str) -> DataError:
    """What refuses a candidate whose weights are too large for their dtype, or NaN."""
    return DataError(
        f"candidate {output.recipe.name} is not finite in tensor {tensor}",
        where=f"{output.folder}, dtype {output.dtypes[tensor]}",
        expected="finite weights",
        next_step="choose a nearer target step or a smaller scale, or candidates.dtype: float32",
    )


def output_dtypes(spec: CandidatesSpec, manifest: WindowManifest, base_dtypes: Mapping[str, str]) -> dict[str, str]:
    """Dtype of each tensor of every candidate, as safetensors spells it."""
    dtypes = {}
    for tensor in manifest.tensors:
        if spec.dtype == "checkpoint" or tensor.dtype not in FLOATS:
            dtypes[tensor.name] = tensor.dtype
        else:
            own = base_dtypes[tensor.name]
            dtypes[tensor.name] = own if spec.dtype == "base" else DTYPE_NAMES[spec.dtype]
    return dtypes


def plan_output(
    recipe: Recipe,
    manifest: WindowManifest,
    fit: FitArtifact,
    dtypes: Mapping[str, str],
    guidance: Guidance | None,
    spatial_ranks: Mapping[str, int],
    adapter_ranks: Mapping[str, int],
) -> Output:
    """Where a candidate goes, and the digest that tells a finished one from another under the same name."""
    used = guidance if guidance is not None and recipe.method in GUIDED else Guidance()
    predictors = used.predictors if recipe.method == "auto" else {}
    key = digest_of(
        {
            "recipe": asdict(recipe),
            "window": manifest.digest,
            "fit": fit.fit_key,
            "dtypes": dict(dtypes),
            "spatial_ranks": dict(spatial_ranks),
            "drift_shares": dict(used.drift_shares),
            "predictors": dict(predictors),
            "version": __version__,
            **({"adapter_ranks": dict(adapter_ranks)} if adapter_ranks else {}),
        }
    )
    folder = layout.candidate(recipe.name)
    return Output(recipe, key, folder, dtypes, spatial_ranks, used.drift_shares, predictors, adapter_ranks)


def finished_candidate(store: Store, output: Output) -> Candidate | None:
    """The candidate, if an earlier run of the same recipe completed it and all its files are still there.

    After a decision the losers' weights are deleted and relex.json stays: such a candidate has to be written again.
    """
    candidate = _read(store, f"{output.folder}/{layout.PROVENANCE}")
    return candidate if candidate and candidate.key == output.key and _whole(store, output.folder, candidate) else None


def whole_candidates(store: Store) -> list[Candidate]:
    """All candidates, of whatever recipes, whose files are still there; by name."""
    marks = [info.name for info in store.list(layout.CANDIDATES) if info.name.endswith(f"/{layout.PROVENANCE}")]
    found = [(mark.rpartition("/")[0], _read(store, mark)) for mark in marks]
    return [candidate for folder, candidate in found if candidate and _whole(store, folder, candidate)]


def _read(store: Store, mark: str) -> Candidate | None:
    try:
        return Candidate.model_validate_json(read_bytes(store, mark))
    except (ObjectNotFound, ValueError):
        return None


def _whole(store: Store, folder: str, candidate: Candidate) -> bool:
    if not any(name.endswith(".safetensors") for name in candidate.files):
        return False  # an earlier version listed what was left after a decision
    sizes = {info.name.removeprefix(f"{folder}/"): info.size for info in store.list(folder)}
    return all(sizes.get(name) == size for name, size in candidate.files.items())


def write_companions(store: Store, manifest: WindowManifest, output: Output) -> None:
    """Config, tokenizer and index files: the base's, except for what the written dtype changes in them."""
    source = open_store(manifest.base.uri)
    for record in manifest.base.files:
        if record.name.endswith(".safetensors"):
            continue
        data = bytearray(record.size)
        source.read_into(record.name, record.generation, 0, memoryview(data))
        if record.name == INDEX:
            data = bytearray(_index(bytes(data), manifest, output))
        elif record.name == CONFIG:
            data = bytearray(_config(bytes(data), output))
        write_bytes(store, f"{output.folder}/{record.name}", bytes(data))


def _index(data: bytes, manifest: WindowManifest, output: Output) -> bytes:
    index = json.loads(data)
    sizes = [math.prod(tensor.shape) * ITEM_BYTES[output.dtypes[tensor.name]] for tensor in manifest.tensors]
    index.setdefault("metadata", {})["total_size"] = sum(sizes)
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def _config(data: bytes, output: Output) -> bytes:
    """The base's config.json, with the dtype that the weights really have."""
    config = json.loads(data)
    names = {code: name for name, code in DTYPE_NAMES.items()}
    dtypes = {dtype for dtype in output.dtypes.values() if dtype in FLOATS}
    written = names.get(next(iter(dtypes))) if len(dtypes) == 1 else None
    field = next((name for name in ("dtype", "torch_dtype") if name in config), None)
    if field is None or written is None or config[field] == written:
        return data
    return json.dumps({**config, field: written}, indent=2).encode() + b"\n"


def write_provenance(
    store: Store, manifest: WindowManifest, fit: FitArtifact, output: Output, weights: Collection[str]
) -> None:
    """Write relex.json, the marker that the candidate is complete.

    Args:
        weights: names of its weight files.

    Raises:
        ObjectNotFound: they are there no more; no marker is written.
    """
    prefix = f"{output.folder}/"
    files = {info.name.removeprefix(prefix): info.size for info in store.list(output.folder)}
    if gone := sorted(set(weights) - files.keys()):
        raise ObjectNotFound(
            f"the weights of candidate {output.recipe.name} were deleted before it was complete: {', '.join(gone[:5])}",
            where=f"{store.uri}/{output.folder}",
            expected="a run directory in which nobody else publishes meanwhile",
            next_step="run the same command again: it takes a finished run as it is, or writes the candidate anew",
        )
    files.pop(layout.PROVENANCE, None)  # of a process that writes the same candidate
    candidate = Candidate(
        name=output.recipe.name,
        **asdict(output.recipe),
        spatial_ranks=dict(output.spatial_ranks),
        drift_shares=dict(output.drift_shares),
        predictors=dict(output.predictors),
        adapter_ranks=dict(output.adapter_ranks),
        truncation_error=output.truncation_error,
        truncation_errors=dict(output.truncation_errors),
        window_digest=manifest.digest,
        base_digest=digest_of(manifest.base.model_dump(mode="json")),
        fit_key=fit.fit_key,
        key=output.key,
        files=files,
        versions={"relex": __version__, "numpy": version("numpy")},
    )
    write_bytes(store, prefix + layout.PROVENANCE, candidate.model_dump_json(indent=1).encode())
