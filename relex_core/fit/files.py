"""The directions that a fit stores: one file per tensor group and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np

from relex_core import layout
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes
from relex_core.fit.basis import Basis
from relex_core.fit.columns import STATE_COLUMN
from relex_core.groups import Group, PlannedTensor
from relex_core.storage import Store, Writer


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

    def add_state(self, tensor: PlannedTensor, data: bytes) -> None:
        """Take the last observed values of an integer tensor that changed."""
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
