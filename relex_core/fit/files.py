"""What a fit stores: one file per tensor group and column of directions, and the Gram matrices with what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import numpy as np

from relex_core import layout
from relex_core.checkpoints.safetensors_file import read_header
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes
from relex_core.errors import CheckpointChanged, ObjectNotFound
from relex_core.fit.artifact import TensorFit
from relex_core.fit.basis import Basis
from relex_core.fit.columns import STATE_COLUMN
from relex_core.groups import Group, PlannedTensor
from relex_core.storage import Store, Writer


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
    seconds: float = 0.0
    bytes_read: int = 0
    peak_rss_bytes: int = 0
    device: str = ""


class GroupFiles:
    """The stored files of one group: one file per column, each with the tensors that have it.

    A safetensors header comes before the data, and which tensors moved is known only when their Gram matrices are;
    so the directions of a group are kept until its end. A group of one tensor is written as it is computed.
    """

    def __init__(self, store: Store, group: Group, groups: int, dtype: str, metadata: Mapping[str, str]) -> None:
        self._store, self._group, self._groups = store, group, groups
        self._dtype, self._metadata = dtype, metadata
        self._alone = len(group.tensors) == 1
        self._written = ExitStack()
        self._kept: dict[str, list[tuple[PlannedTensor, list[np.ndarray]]]] = {}
        self._state: list[tuple[PlannedTensor, bytes]] = []

    def add(self, tensor: PlannedTensor, basis: Basis, directions: Iterator[np.ndarray]) -> None:
        """Take one tensor's directions: "columns n" a piece, in order."""
        if self._alone:
            with ExitStack() as stack:
                streams = [stack.enter_context(self._writer(name, [tensor])) for name in basis.names]
                for piece in directions:
                    for stream, row in zip(streams, piece, strict=True):
                        stream.write(as_bytes(row))
                self._written = stack.pop_all()
            return
        pieces = list(directions)
        for column, name in enumerate(basis.names):
            self._kept.setdefault(name, []).append((tensor, [piece[column] for piece in pieces]))

    def add_state(self, tensor: PlannedTensor, data: bytes | None) -> None:
        if data is not None:
            self._state.append((tensor, data))

    def finish(self) -> None:
        """Write what was kept, and let all files appear."""
        self._written.close()
        for name, kept in self._kept.items():
            with self._writer(name, [tensor for tensor, _ in kept]) as stream:
                for _, rows in kept:
                    for row in rows:
                        stream.write(as_bytes(row))
        if self._state:
            described: list[TensorDescription] = [
                (tensor.name, tensor.dtype, tensor.shape) for tensor, _ in self._state
            ]
            with safetensors_writer(self._store, self._key(STATE_COLUMN), described, self._metadata) as stream:
                for _, data in self._state:
                    stream.write(data)

    def _writer(self, name: str, tensors: Sequence[PlannedTensor]) -> AbstractContextManager[Writer]:
        described: list[TensorDescription] = [(tensor.name, self._dtype, tensor.shape) for tensor in tensors]
        return safetensors_writer(self._store, self._key(name), described, self._metadata)

    def _key(self, name: str) -> str:
        return layout.stored_column(name, self._group.number, self._groups)


def write_grams(store: Store, key: str, result: GroupResult, fit_key: str) -> None:
    """Write Gram matrices, with everything else that is known about their tensors in the file's metadata."""
    facts = {name: value for name, value in vars(result).items() if name not in ("grams", "tensors")}
    facts["tensors"] = {name: tensor.model_dump() for name, tensor in result.tensors.items()}
    metadata = {"format": "pt", "fit_key": fit_key, "facts": json.dumps(facts)}
    described: list[TensorDescription] = [(name, "F64", gram.shape) for name, gram in result.grams.items()]
    with safetensors_writer(store, key, described, metadata) as stream:
        for gram in result.grams.values():
            stream.write(as_bytes(gram))


def finished_group(store: Store, groups: Sequence[Group], group: Group, fit_key: str) -> GroupResult | None:
    """The result of a group that an earlier run, or another shard, of the same fit finished."""
    while True:
        try:
            return _read_grams(store, layout.group_gram(group.number, len(groups)), fit_key)
        except ObjectNotFound:
            return None
        except CheckpointChanged:  # by a process that does the same: look at its file
            continue


def _read_grams(store: Store, key: str, fit_key: str) -> GroupResult | None:
    info = store.stat(key)
    header = read_header(store, info)
    if header.metadata.get("fit_key") != fit_key:
        return None
    facts = json.loads(header.metadata["facts"])
    if "tensors" not in facts:  # of a version between two releases
        return None
    tensors = {name: TensorFit.model_validate(tensor) for name, tensor in facts.pop("tensors").items()}
    result = GroupResult(tensors=tensors, **facts)
    for entry in header.tensors:
        gram = np.empty(entry.shape, dtype=np.float64)
        if gram.nbytes:
            store.read_into(key, info.generation, entry.offset, memoryview(gram).cast("B"))
        result.grams[entry.name] = gram
    return result
