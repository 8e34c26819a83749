"""One checkpoint folder, understood from its file names and headers alone: Hugging Face safetensors, FSDP shards, or a
LoRA adapter."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

from relex_core.checkpoints.contents import Checkpoint, Extent, StoredTensor
from relex_core.checkpoints.kinds import holds_adapter, holds_shards
from relex_core.checkpoints.safetensors_file import TensorEntry, TornFile, read_header
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound
from relex_core.storage import ObjectInfo, Store, read_bytes

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


def open_checkpoint(store: Store, files: Sequence[ObjectInfo]) -> Checkpoint:
    """Read a checkpoint's index, config and shard headers, and list every problem instead of stopping at the first.

    Args:
        store: rooted at the checkpoint's folder.
        files: the objects directly in it.

    Raises:
        StorageError: the storage failed; a file that vanished since the listing is a problem of the checkpoint.
    """
    checkpoint = Checkpoint()
    by_name = {info.name: info for info in files}
    try:
        checkpoint.config = _config(store, by_name, checkpoint)
        if holds_adapter(by_name) and not by_name.keys() & {SINGLE_FILE, INDEX}:
            from relex_core.checkpoints.adapter import read_adapter

            read = partial(_read_shard, store, expected=None, checkpoint=checkpoint)
            checkpoint.adapter = read_adapter(store, by_name, checkpoint, read)
            return checkpoint
        if holds_shards(by_name) and not by_name.keys() & {SINGLE_FILE, INDEX}:
            from relex_core.checkpoints.fsdp import read_shards

            read_shards(store, by_name, checkpoint)
            return checkpoint
        shards = _shards(store, by_name, checkpoint)
        for name, expected in shards.items():
            _read_shard(store, by_name[name], expected, checkpoint)
    except ObjectNotFound as error:
        checkpoint.incomplete.append(f"a file vanished while it was looked at: {error.where}")
    return checkpoint


def _config(store: Store, files: Mapping[str, ObjectInfo], checkpoint: Checkpoint) -> Mapping[str, object]:
    if CONFIG not in files:
        return {}
    try:
        config = json.loads(read_bytes(store, CONFIG))
    except (ValueError, RecursionError) as error:
        checkpoint.incomplete.append(f"{CONFIG} is not JSON: {error}")
        return {}
    return config if isinstance(config, dict) else {}


def _shards(store: Store, files: Mapping[str, ObjectInfo], checkpoint: Checkpoint) -> dict[str, set[str] | None]:
    """Shard files to read, in order, each with the tensors the index expects in it (None: no index)."""
    if SINGLE_FILE in files:  # as transformers does, one file goes before an index
        return {SINGLE_FILE: None}
    if INDEX in files:
        checkpoint.files.append(files[INDEX])
        return _indexed_shards(store, files, checkpoint)
    checkpoint.incomplete.append(_why_no_weights(files))
    return {}


def _why_no_weights(files: Mapping[str, ObjectInfo]) -> str:
    names = sorted(files)
    if any(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in names):
        return f"{INDEX} is missing"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "only pickled weights are there; save safetensors (save_safetensors / safe_serialization)"
    if CONFIG in files:
        return (
            f"weights are missing: {CONFIG} is there, but neither {SINGLE_FILE} nor {INDEX} "
            "(verl writes them only with hf_model in checkpoint.save_contents)"
        )
    return f"no weights: neither {SINGLE_FILE} nor {INDEX} is there"


def _indexed_shards(
    store: Store, files: Mapping[str, ObjectInfo], checkpoint: Checkpoint
) -> dict[str, set[str] | None]:
    try:
        weight_map = json.loads(read_bytes(store, INDEX))["weight_map"]
        items = list(weight_map.items())
        if not items or not all(isinstance(name, str) for pair in items for name in pair):
            raise TypeError("weight_map is empty or not a map of names")
        "".join(name for pair in items for name in pair).encode()  # a lone surrogate fails here
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        checkpoint.incomplete.append(f"{INDEX} cannot be understood: {error}")
        return {}
    tensors: dict[str, set[str]] = defaultdict(set)
    for tensor, name in items:
        tensors[name].add(tensor)
    shards: dict[str, set[str] | None] = {}
    for name, expected in sorted(tensors.items()):
        if "/" in name or "\\" in name or name.startswith("."):
            checkpoint.wrong.append(f"{INDEX} points outside its folder: {name[:200]!r}")
        elif name not in files:
            checkpoint.incomplete.append(f"shard {name[:200]} is missing")
        else:
            shards[name] = expected
    return shards


def _read_shard(store: Store, info: ObjectInfo, expected: set[str] | None, checkpoint: Checkpoint) -> None:
    try:
        header = read_header(store, info)
    except TornFile as error:
        checkpoint.incomplete.append(f"{info.name} is cut off: {error.what}")
        return
    except CheckpointChanged as error:  # since the listing: it is still being written
        checkpoint.incomplete.append(f"{info.name}: {error.what}")
        return
    except DataError as error:
        checkpoint.wrong.append(f"{info.name} is not a valid safetensors file: {error.what} ({error.where})")
        return
    checkpoint.files.append(info)
    found = {entry.name for entry in header.tensors}
    if expected is not None:
        for name in sorted(expected - found):
            checkpoint.wrong.append(f"tensor {name} is not in {info.name}, where {INDEX} puts it")
    for entry in header.tensors:
        if expected is None or entry.name in expected:
            checkpoint.tensors[entry.name] = stored_tensor(info, entry)


def stored_tensor(info: ObjectInfo, entry: TensorEntry) -> StoredTensor:
    """Where a tensor of a safetensors file lies."""
    return StoredTensor(entry.name, entry.dtype, entry.shape, (Extent(info, entry.offset, entry.nbytes),))
