"""Candidates of a LoRA run as adapters: cut to a rank, written so that PEFT loads exactly these matrices.

    L R = U Σ Vᵀ (factors.compress)    B = U √Σ, A = √Σ Vᵀ, the first r terms    alpha / r = 1, so Δ = B A

The first r terms are the best approximation of that rank (Eckart–Young); what they and the written dtype lose is in
relex.json, for each tensor and for all of them together.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.candidate import DTYPE_NAMES, Output
from relex_core.checkpoints.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from relex_core.checkpoints.contents import StoredTensor, TensorInfo
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.errors import DataError
from relex_core.lora.factors import LowRank, added, balanced, compress
from relex_core.lora.floats import decode, encode
from relex_core.lora.sources import AdapterSources
from relex_core.lora.window import StepAdapter, open_adapter
from relex_core.manifest import TensorRecord, WindowManifest
from relex_core.parallel import ordered_map
from relex_core.spec import CandidatesSpec
from relex_core.storage import Store, open_store, write_bytes

log = logging.getLogger("relex")

MERGED = "merged"
"""`candidates.write`."""


@dataclass(frozen=True)
class AdapterForm:
    """How adapters are written; the same for all candidates of a spec."""

    ranks: Mapping[str, int]
    """By low-rank weight of the base."""
    dtypes: Mapping[str, str]
    """Of the written tensors, by the base's names."""


@dataclass(frozen=True)
class WrittenFactors:
    """One tensor of an adapter, as bytes, and what it loses."""

    a: np.ndarray
    b: np.ndarray
    norm: float
    """Frobenius norm of the candidate's displacement."""
    lost: float
    """Frobenius norm of the difference between it and what PEFT makes of the bytes."""


def adapter_form(
    spec: CandidatesSpec, manifest: WindowManifest, base: Mapping[str, StoredTensor]
) -> AdapterForm | None:
    """What adapters are written; None where candidates are complete checkpoints.

    Raises:
        CheckpointChanged: the last observed adapter is not the one that was collected.
    """
    if not manifest.adapters or spec.write == MERGED:
        return None
    last = _last(manifest)
    targets = last.adapter.targets
    ranks = {name: spec.adapter_rank or target.rank for name, target in targets.items()}
    own = {name: last.reader.tensors[target.b].dtype for name, target in targets.items()}
    own |= {name: last.reader.tensors[there].dtype for name, there in last.adapter.whole.items()}
    if spec.dtype == "base":
        own = {name: base[name].dtype for name in own}
    elif spec.dtype != "checkpoint":
        own = dict.fromkeys(own, DTYPE_NAMES[spec.dtype])
    return AdapterForm(ranks, own)


def whole_model(manifest: WindowManifest, base: Iterable[TensorInfo]) -> WindowManifest:
    """The manifest with all tensors of the base, which a merged candidate has; that of full weights as it is."""
    if not manifest.adapters:
        return manifest
    tensors = tuple(TensorRecord(name=t.name, shape=t.shape, dtype=t.dtype) for t in base)
    return manifest.model_copy(update={"tensors": tensors})


def clear_other_form(store: Store, output: Output, form: AdapterForm | None) -> None:
    """Delete what a candidate of this name left there in the other form: both together would be understood wrongly."""
    adapter = {f"{output.folder}/{name}" for name in (WEIGHTS_FILE, CONFIG_FILE)}
    for info in list(store.list(output.folder)):
        if (info.name in adapter) != (form is not None):
            store.delete(info.name)


def write_adapters(
    store: Store,
    manifest: WindowManifest,
    base: Mapping[str, TensorInfo],
    sources: AdapterSources,
    outputs: Sequence[Output],
    advance: Callable[[int], object],
) -> list[Output]:
    """Write adapters, each file whole or not at all.

    Args:
        base: tensors of the base.
        advance: called with the number of adapted weights done.

    Returns:
        The outputs, with what they lose.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, threadpool_limits(1):
        return [_write_adapter(store, manifest, base, sources, output, pool, advance) for output in outputs]


def _write_adapter(
    store: Store,
    manifest: WindowManifest,
    base: Mapping[str, TensorInfo],
    sources: AdapterSources,
    output: Output,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], object],
) -> Output:
    last = sources.last.adapter
    described: list[TensorDescription] = []
    for name, target in last.targets.items():
        (rows, columns), rank = target.shape[:: -1 if target.transposed else 1], output.adapter_ranks[name]
        described.append((target.a, output.dtypes[name], (rank, columns)))
        described.append((target.b, output.dtypes[name], (rows, rank)))
    described += [(there, output.dtypes[name], base[name].shape) for name, there in last.whole.items()]
    norms, lost = {}, {}
    key, metadata = f"{output.folder}/{WEIGHTS_FILE}", {"format": "pt", "relex_key": output.key}
    with safetensors_writer(store, key, described, metadata) as stream:
        found = ordered_map(pool, partial(_factors, sources, output), last.targets, ahead=1)
        for (name, target), factors in zip(last.targets.items(), found, strict=True):
            stream.write(memoryview(factors.a))
            stream.write(memoryview(factors.b))
            norms[name], lost[name] = factors.norm, factors.lost
            advance(target.shape[0] * target.shape[1])
        for name in last.whole:
            for piece in sources.pieces(base[name], [output]):
                count, [data] = sources.mix(piece, [output])
                stream.write(data)
                advance(count)
    write_bytes(store, f"{output.folder}/{CONFIG_FILE}", _config(_observed_config(manifest), sources.last, output))
    total = float(np.linalg.norm(list(norms.values())))
    errors = {name: lost[name] / norm if norm else 0.0 for name, norm in norms.items()}
    whole = float(np.linalg.norm(list(lost.values()))) / total if total else 0.0
    log.info("%s: as an adapter it loses %.2g of its displacement", output.recipe.name, whole)
    return replace(output, truncation_error=whole, truncation_errors=errors)


def _factors(sources: AdapterSources, output: Output, name: str) -> WrittenFactors:
    """One tensor's factors, best for their rank.

    Raises:
        DataError: they are not finite in their dtype.
    """
    target, dtype = sources.last.adapter.targets[name], output.dtypes[name]
    wanted = compress(sources.displacement(name, output))
    product = wanted.transposed() if target.transposed else wanted
    b, a = balanced(product, output.adapter_ranks[name])
    stored_b, stored_a = encode(b, dtype), encode(a, dtype)
    written = LowRank(
        decode(stored_b, dtype).reshape(b.shape).astype(np.float64),
        decode(stored_a, dtype).reshape(a.shape).astype(np.float64),
    )
    if not written.finite:
        raise DataError(
            f"candidate {output.recipe.name} is not finite in tensor {name}",
            where=f"{output.folder}, dtype {dtype}",
            expected="finite weights",
            next_step="choose a nearer target step or a smaller scale, or candidates.dtype: float32",
        )
    return WrittenFactors(stored_a, stored_b, wanted.norm, added([product, written.scaled(-1.0)]).norm)


def _observed_config(manifest: WindowManifest) -> bytes:
    last = manifest.last_observed
    [record] = (file for file in last.files if file.name == CONFIG_FILE)
    data = bytearray(record.size)
    open_store(last.uri).read_into(record.name, record.generation, 0, memoryview(data))
    return bytes(data)


def _config(data: bytes, last: StepAdapter, output: Output) -> bytes:
    """The last observed adapter_config.json with the written ranks, and alphas that make every scaling 1."""
    config: dict[str, Any] = json.loads(data)
    targets = last.adapter.targets
    ranks = {target.module: output.adapter_ranks[name] for name, target in targets.items()}
    common = max(ranks.values(), key=list(ranks.values()).count)
    # Anchored: PEFT would take the key for any module whose name ends so.
    pattern = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != common}
    config |= {"r": common, "lora_alpha": common, "use_rslora": False, "rank_pattern": pattern}
    config |= {"alpha_pattern": pattern, "inference_mode": True}
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def _last(manifest: WindowManifest) -> StepAdapter:
    record = manifest.last_observed
    return open_adapter(f"step {record.step}", open_store(record.uri), [file.info() for file in record.files])
