"""Candidates of a LoRA run as adapters: cut to a rank, written so that PEFT loads exactly these matrices.

    L R = U Σ Vᵀ (factors.compress)    B = U √Σ, A = √Σ Vᵀ, the first r terms    alpha / r = 1, so Δ = B A

The first r terms are the best approximation of that rank (Eckart–Young); what they and the written dtype lose is in
relex.json, for each tensor and for all of them together.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.candidate import DTYPE_NAMES, Output, not_finite
from relex_core.checkpoints.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from relex_core.checkpoints.contents import Adapter, LowRankTarget, StoredTensor, TensorInfo
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes, rounded
from relex_core.lora.factors import LowRank, added, balanced, compress
from relex_core.lora.gram import low_rank_gram
from relex_core.lora.sources import AdapterSources
from relex_core.lora.window import StepAdapter, open_adapter
from relex_core.manifest import TensorRecord, WindowManifest
from relex_core.parallel import cores, ordered_map
from relex_core.spec import CandidatesSpec
from relex_core.storage import Store, Writer, open_store, write_bytes

log = logging.getLogger("relex")

MERGED = "merged"
"""`candidates.write`."""
NOTHING = np.empty(0)


@dataclass(frozen=True)
class AdapterForm:
    """How adapters are written; the same for all candidates of a spec."""

    ranks: Mapping[str, int]
    """By low-rank weight of the base."""
    dtypes: Mapping[str, str]
    """Of the written tensors, by the base's names."""


@dataclass(frozen=True)
class WrittenFactors:
    """One tensor of an adapter, in its dtype, and what it loses."""

    a: np.ndarray
    b: np.ndarray
    square: float
    """Of the Frobenius norm of the candidate's displacement."""
    lost: float
    """Likewise of the difference between it and what PEFT makes of the bytes."""


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
    last, config = sources.last.adapter, _observed_config(manifest)
    written: list[dict[str, WrittenFactors]] = [{} for _ in outputs]
    with ThreadPoolExecutor(cores()) as pool, threadpool_limits(1), ExitStack() as stack:
        streams = [stack.enter_context(_writer(store, last, base, output)) for output in outputs]
        found = ordered_map(pool, partial(_factors, sources, outputs), last.targets, ahead=1)
        for (name, target), several in zip(last.targets.items(), found, strict=True):
            for stream, factors, kept in zip(streams, several, written, strict=True):
                stream.write(as_bytes(factors.a))
                stream.write(as_bytes(factors.b))
                kept[name] = replace(factors, a=NOTHING, b=NOTHING)
            advance(target.shape[0] * target.shape[1])
        for name in last.whole:
            for piece in sources.pieces(base[name], outputs):
                mixed = sources.mix(piece, outputs)
                for stream, weights in zip(streams, mixed.data, strict=True):
                    stream.write(as_bytes(weights))
                sources.done(mixed)
                advance(mixed.count)
    for output in outputs:
        write_bytes(store, f"{output.folder}/{CONFIG_FILE}", _config(config, last, output))
    return [_with_errors(output, kept) for output, kept in zip(outputs, written, strict=True)]


def _writer(
    store: Store, last: Adapter, base: Mapping[str, TensorInfo], output: Output
) -> AbstractContextManager[Writer]:
    described: list[TensorDescription] = []
    for name, target in last.targets.items():
        (rows, columns), rank = target.shape[:: -1 if target.transposed else 1], output.adapter_ranks[name]
        described.append((target.a, output.dtypes[name], (rank, columns)))
        described.append((target.b, output.dtypes[name], (rows, rank)))
    described += [(there, output.dtypes[name], base[name].shape) for name, there in last.whole.items()]
    metadata = {"format": "pt", "relex_key": output.key}
    return safetensors_writer(store, f"{output.folder}/{WEIGHTS_FILE}", described, metadata)


def _factors(sources: AdapterSources, outputs: Sequence[Output], name: str) -> list[WrittenFactors]:
    """One tensor's factors for every output, best for their rank."""
    moves = sources.displacements(name, outputs)
    return [
        _written(sources.last.adapter.targets[name], move, output) for move, output in zip(moves, outputs, strict=True)
    ]


def _written(target: LowRankTarget, move: LowRank, output: Output) -> WrittenFactors:
    """One tensor's factors.

    Raises:
        DataError: they are not finite in their dtype.
    """
    dtype = output.dtypes[target.weight]
    whole = move.transposed() if target.transposed else move
    b, a = balanced(compress(whole), output.adapter_ranks[target.weight])
    stored_b, stored_a = rounded(b, dtype), rounded(a, dtype)
    product = LowRank(stored_b.astype(np.float64), stored_a.astype(np.float64))  # what PEFT will read
    if not product.finite:
        raise not_finite(output, target.weight)
    if not whole.rank:
        return WrittenFactors(stored_a, stored_b, 0.0, 0.0)
    (square, inner), (_, own) = low_rank_gram(added([whole, product]), [whole.rank, product.rank])
    return WrittenFactors(stored_a, stored_b, float(square), max(float(square - 2 * inner + own), 0.0))


def _with_errors(output: Output, written: Mapping[str, WrittenFactors]) -> Output:
    errors = {name: math.sqrt(f.lost / f.square) if f.square else 0.0 for name, f in written.items()}
    square, lost = (sum(getattr(f, part) for f in written.values()) for part in ("square", "lost"))
    whole = math.sqrt(lost / square) if square else 0.0
    log.info("%s: as an adapter it loses %.2g %% of its displacement", output.recipe.name, 100 * whole)
    return replace(output, truncation_error=whole, truncation_errors=errors)


def _observed_config(manifest: WindowManifest) -> bytes:
    last = manifest.last_observed
    [record] = (file for file in last.files if file.name == CONFIG_FILE)
    data = bytearray(record.size)
    open_store(last.uri).read_into(record.name, record.generation, 0, memoryview(data))
    return bytes(data)


def _config(data: bytes, last: Adapter, output: Output) -> bytes:
    """The last observed adapter_config.json with the written ranks, and alphas that make every scaling 1."""
    config: dict[str, Any] = json.loads(data)
    targets = last.targets
    ranks = {target.module: output.adapter_ranks[name] for name, target in targets.items()}
    common = max(ranks.values(), key=list(ranks.values()).count)
    # Anchored: PEFT would take the key for any module whose name ends so.
    pattern = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != common}
    config |= {"r": common, "lora_alpha": common, "use_rslora": False, "rank_pattern": pattern}
    config |= {"alpha_pattern": pattern, "inference_mode": True}
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def _last(manifest: WindowManifest) -> StepAdapter:
    record = manifest.last_observed
    return open_adapter(open_store(record.uri), record)
