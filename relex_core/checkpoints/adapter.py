"""A LoRA adapter as PEFT saves it: adapter_model.safetensors, adapter_config.json -> which weight has which factors.

    base_model.model.MODULE.lora_A.weight, lora_B.weight        "r n", "m r": Δ of MODULE.weight = scaling · B A
    base_model.model.MODULE.lora_embedding_A, lora_embedding_B  the same, transposed
    base_model.model.TENSOR                                     trained whole: modules_to_save, or a bias
    base_model.model.MODULE.base_layer.bias                     the bias of an adapted module, trained whole
    base_model.model.MODULE.base_layer.weight                   a copy of the frozen weight below an adapter

No tensor of the file is left out: what is none of these is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from relex_core.checkpoints.adapter_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    faults,
    parse_adapter_config,
)
from relex_core.checkpoints.contents import WEIGHT, Adapter, Checkpoint, LowRankTarget, TensorInfo
from relex_core.checkpoints.safetensors_file import FLOATS
from relex_core.errors import CheckpointChanged
from relex_core.storage import ObjectInfo, Store

PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?P<suffix>\.weight)?")
FROZEN, TRAINED_BIAS, BIAS = ".base_layer.weight", ".base_layer.bias", ".bias"


def read_adapter(
    store: Store,
    files: Mapping[str, ObjectInfo],
    checkpoint: Checkpoint,
    read_shard: Callable[[ObjectInfo], None],
) -> Adapter | None:
    """Read an adapter's config and header; problems go into `checkpoint`.

    Args:
        read_shard: reads the header of one safetensors file into `checkpoint`.

    Returns:
        None where there is no config to understand the tensors by.
    """
    if CONFIG_FILE not in files:
        checkpoint.incomplete.append(f"{CONFIG_FILE} is missing beside {WEIGHTS_FILE}")
        return None
    info = files[CONFIG_FILE]
    data = bytearray(info.size)
    try:
        store.read_into(info.name, info.generation, 0, memoryview(data))
        config = parse_adapter_config(bytes(data))
    except CheckpointChanged as error:  # since the listing: it is still being written
        checkpoint.incomplete.append(f"{CONFIG_FILE}: {error.what}")
        return None
    except ValidationError as error:
        checkpoint.wrong.append(f"{CONFIG_FILE} is no config of an adapter: {faults(error)}")
        return None
    except ValueError as error:
        checkpoint.incomplete.append(f"{CONFIG_FILE} is not JSON: {error}")
        return None
    checkpoint.files.append(info)
    read_shard(files[WEIGHTS_FILE])
    if config.problems:
        checkpoint.wrong.extend(config.problems)
        return None
    return _sorted_out(config, checkpoint)


def _sorted_out(config: AdapterConfig, checkpoint: Checkpoint) -> Adapter:
    """Every tensor of the file in its place; what has none goes to `checkpoint.wrong`."""
    factors: dict[tuple[str, bool], dict[str, str]] = {}
    whole, frozen = {}, {}
    for name, stored in checkpoint.tensors.items():
        inner = name.removeprefix(PREFIX)
        match = FACTOR.fullmatch(inner)
        if inner == name or stored.dtype not in FLOATS:
            checkpoint.wrong.append(f"tensor {name[:200]} ({stored.dtype}) of {WEIGHTS_FILE} is not understood")
        elif match and bool(match["embedding"]) != bool(match["suffix"]):
            factors.setdefault((match["module"], bool(match["embedding"])), {})[match["side"]] = name
        elif inner.endswith(FROZEN):
            frozen[inner.removesuffix(FROZEN) + WEIGHT] = name
        elif inner.endswith(TRAINED_BIAS):
            whole[inner.removesuffix(TRAINED_BIAS) + BIAS] = name
        elif "lora_" in inner or ".base_layer." in inner:
            checkpoint.wrong.append(f"tensor {name[:200]} of {WEIGHTS_FILE} is not understood: this kind is not read")
        else:
            whole[inner] = name
    targets = {}
    for (module, embedding), sides in factors.items():
        target = _target(config, module, embedding, sides, checkpoint)
        if target is not None:
            targets[target.weight] = target
    if not checkpoint.wrong and not checkpoint.incomplete and not targets:
        checkpoint.wrong.append(f"{WEIGHTS_FILE} holds no LoRA factors")
    for weight in targets.keys() & whole.keys():
        checkpoint.wrong.append(f"tensor {weight} is in {WEIGHTS_FILE} both whole and as factors")
    for weight in frozen.keys() - targets.keys():
        checkpoint.wrong.append(f"tensor {frozen[weight]} of {WEIGHTS_FILE} has no factors beside it")
    return Adapter(config, targets, whole, frozen)


def _target(
    config: AdapterConfig, module: str, embedding: bool, sides: Mapping[str, str], checkpoint: Checkpoint
) -> LowRankTarget | None:
    missing = {"A", "B"} - sides.keys()
    if missing:
        there, lacking = ("B", "A") if "A" in missing else ("A", "B")
        checkpoint.wrong.append(f"{module} has a factor {there}, but no {lacking}")
        return None
    a, b = checkpoint.tensors[sides["A"]].shape, checkpoint.tensors[sides["B"]].shape
    rank = config.rank(module)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        checkpoint.wrong.append(f"{module} has factors A {list(a)} and B {list(b)}: only matrices of one rank are read")
        return None
    if a[0] != rank:
        checkpoint.wrong.append(f"{module} has rank {a[0]}, {CONFIG_FILE} says {rank}")
        return None
    transposed = embedding or config.fan_in_fan_out
    shape = (a[1], b[0]) if transposed else (b[0], a[1])
    scaling = config.scaling(module)
    return LowRankTarget(module + WEIGHT, sides["A"], sides["B"], rank, scaling, transposed, shape, embedding)


def adapter_differences(checkpoint: Checkpoint, base: Checkpoint, first: Checkpoint) -> list[str]:
    """What keeps an adapter from being a step of a run on `base` whose first step is `first`."""
    adapter, start = checkpoint.adapter, first.adapter
    if checkpoint.problems or first.problems:
        return []  # they are reported as they are
    if adapter is None or start is None:
        kinds = ("full weights", "a LoRA adapter")
        return [f"it holds {kinds[adapter is not None]}, the first step {kinds[start is not None]}"]
    trained, expected = set(adapter.trained), set(start.trained)
    problems = [f"tensor {name} is missing: the first step trains it" for name in sorted(expected - trained)]
    problems += [f"tensor {name} is extra: the first step does not train it" for name in sorted(trained - expected)]
    problems += [problem for name in adapter.trained for problem in _misfits(name, adapter, checkpoint, base)]
    for name, own in adapter.frozen.items():
        shape, there = checkpoint.tensors[own].shape, base.tensors.get(name)
        if there is not None and shape != there.shape:
            problems.append(f"the frozen copy of {name} has shape {list(shape)}, the base {list(there.shape)}")
    return problems + [
        f"tensor {name} is {stored.dtype}, at the first step {first.tensors[name].dtype}"
        for name, stored in checkpoint.tensors.items()
        if name in first.tensors and stored.dtype != first.tensors[name].dtype
    ]


def _misfits(name: str, adapter: Adapter, checkpoint: Checkpoint, base: Checkpoint) -> list[str]:
    """What keeps one update from being one of the base's tensor."""
    there, target = base.tensors.get(name), adapter.targets.get(name)
    if there is None:
        return [f"tensor {name} is trained, but the base has none of that name"]
    shape = target.shape if target else checkpoint.tensors[adapter.whole[name]].shape
    problems = []
    if shape != there.shape:
        problems.append(f"the update of {name} has shape {list(shape)}, the base {list(there.shape)}")
    if there.dtype not in FLOATS:
        problems.append(f"tensor {name} is trained, but {there.dtype} in the base")
    embedding = target.embedding if target else _is_embedding(there, base)
    if embedding and _ties_embeddings(base):
        problems.append(f"tensor {name} is trained, but the base ties it to another one: merge the steps instead")
    return problems


def _ties_embeddings(base: Checkpoint) -> bool:
    said = base.config.get("tie_word_embeddings")
    return bool(said) if said is not None else not any(name.endswith("lm_head.weight") for name in base.tensors)


def _is_embedding(tensor: TensorInfo, base: Checkpoint) -> bool:
    """By its shape, and by its place outside of the numbered layers."""
    numbered = any(part.isdigit() for part in tensor.name.split("."))
    return not numbered and tensor.shape == (base.config.get("vocab_size"), base.config.get("hidden_size"))
