"""Which kinds of weights a folder holds, from the names of its files: the code that reads a kind is loaded with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from relex_core.manifest import ADAPTER_WEIGHTS

FSDP_SHARD = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt")


def holds_adapter(names: Iterable[str]) -> bool:
    """Whether a folder's files are a LoRA adapter's, complete or not."""
    return ADAPTER_WEIGHTS in names


def holds_shards(names: Iterable[str]) -> bool:
    """Whether there is an FSDP shard among these."""
    return any(FSDP_SHARD.fullmatch(name) for name in names)
