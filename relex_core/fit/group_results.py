"""What a finished group leaves for the merge: RUN/fit/gram-N-of-M.safetensors, the marker of its group."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from relex_core import layout
from relex_core.checkpoints.safetensors_file import Header, read_header
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes
from relex_core.errors import CheckpointChanged, ObjectNotFound
from relex_core.fit.artifact import TensorFit
from relex_core.fit.key import FIT_KEY
from relex_core.groups import Group
from relex_core.storage import ObjectInfo, Store

T = TypeVar("T")


@dataclass
class GroupResult:
    """Everything that fit.json and the forecast take from a group."""

    grams: dict[str, np.ndarray] = field(default_factory=dict)
    """By tensor: "T T", float64."""
    base_squares: dict[str, float] = field(default_factory=dict)
    """By tensor: ‖W_0‖²."""
    tensors: dict[str, TensorFit] = field(default_factory=dict)
    """By tensor. Made with the stored directions, never again from the Gram matrices: on another machine the same
    eigenvectors may come with other signs or, where two eigenvalues are equal, as others."""
    changed_state: list[str] = field(default_factory=list)
    """Integer tensors whose last observed values are stored, because they are not the base's."""
    seconds: float = 0.0
    bytes_read: int = 0
    peak_rss_bytes: int = 0
    device: str = ""


FACTS = {part.name for part in fields(GroupResult)} - {"grams"}


class GroupResults:
    """The results of one fit's groups, by any process that does the same fit."""

    def __init__(self, store: Store, groups: int, fit_key: str) -> None:
        self._store, self._groups, self._fit_key = store, groups, fit_key

    def write(self, group: Group, result: GroupResult) -> None:
        """Write a group's Gram matrices, with everything else that is known about its tensors in the metadata."""
        facts = {name: value for name, value in vars(result).items() if name not in ("grams", "tensors")}
        facts["tensors"] = {name: tensor.model_dump() for name, tensor in result.tensors.items()}
        metadata = {"format": "pt", FIT_KEY: self._fit_key, "facts": json.dumps(facts)}
        described: list[TensorDescription] = [(name, "F64", gram.shape) for name, gram in result.grams.items()]
        with safetensors_writer(self._store, self._key(group), described, metadata) as stream:
            for gram in result.grams.values():
                stream.write(as_bytes(gram))

    def finished(self, group: Group) -> bool:
        """Whether a process has finished this group; reads no Gram matrix."""
        return _as_it_is_now(lambda: self._facts(group)) is not None

    def read(self, group: Group) -> GroupResult | None:
        """The result of a group, if a process has finished it."""
        return _as_it_is_now(lambda: self._read(group))

    def _read(self, group: Group) -> GroupResult | None:
        if (found := self._facts(group)) is None:
            return None
        info, header, facts = found
        tensors = {name: TensorFit.model_validate(tensor) for name, tensor in facts.pop("tensors").items()}
        return GroupResult(grams=gram_matrices(self._store, info, header), tensors=tensors, **facts)

    def _facts(self, group: Group) -> tuple[ObjectInfo, Header, dict[str, Any]] | None:
        info = self._store.stat(self._key(group))
        header = read_header(self._store, info)
        if header.metadata.get(FIT_KEY) != self._fit_key:
            return None
        facts = json.loads(header.metadata["facts"])
        # Other facts: of a version between two releases.
        return (info, header, facts) if facts.keys() == FACTS else None

    def _key(self, group: Group) -> str:
        return layout.group_gram(group.number, self._groups)


def gram_matrices(store: Store, info: ObjectInfo, header: Header) -> dict[str, np.ndarray]:
    """All Gram matrices of one file, by tensor: "T T", float64."""
    grams = {}
    for entry in header.tensors:
        grams[entry.name] = gram = np.empty(entry.shape, dtype=np.float64)
        if gram.nbytes:
            store.read_into(info.name, info.generation, entry.offset, memoryview(gram).cast("B"))
    return grams


def _as_it_is_now(look: Callable[[], T | None]) -> T | None:
    """What `look` finds in a file that other processes, which do the same, write anew and delete; None: no file."""
    while True:
        try:
            return look()
        except ObjectNotFound:
            return None
        except CheckpointChanged:
            continue
