"""What a fit of a LoRA window stores: for each tensor group and column, factors and, of whole tensors, directions.

    fit/direction.factors-00001-of-00003.safetensors    NAME.left "m k" = U Σ and NAME.right "k n" = Vᵀ
    fit/direction-00001-of-00003.safetensors            NAME, as in a fit of full weights: modules_to_save and biases

Files of the second kind mean what they always mean, so whatever reads whole directions finds no factors among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from relex_core import layout
from relex_core.checkpoints.writer import TensorDescription, safetensors_writer
from relex_core.dtypes import as_bytes, rounded
from relex_core.fit.basis import Basis
from relex_core.groups import Group, PlannedTensor
from relex_core.lora.factors import LowRank
from relex_core.storage import Store

LEFT, RIGHT = ".left", ".right"

Rows = list[np.ndarray]


class AdapterFiles:
    """The stored files of one group. Directions are kept until its end; those of a group of one tensor are not."""

    def __init__(self, store: Store, group: Group, groups: int, dtype: str, metadata: Mapping[str, str]) -> None:
        self._store, self._number, self._groups = store, group.number, groups
        self._dtype, self._metadata = dtype, metadata
        self._alone = len(group.tensors) == 1
        self._factors: dict[str, dict[str, LowRank]] = {}
        self._whole: dict[str, list[tuple[PlannedTensor, Rows]]] = {}

    def add_factors(self, tensor: PlannedTensor, columns: Mapping[str, LowRank]) -> None:
        """Take the directions of a low-rank tensor."""
        for column, direction in columns.items():
            stored = LowRank(direction.left.astype(np.float32), direction.right.astype(np.float32))
            self._factors.setdefault(column, {})[tensor.name] = stored

    def add_whole(self, tensor: PlannedTensor, basis: Basis, directions: Iterator[np.ndarray]) -> None:
        """Take the directions of a tensor that was trained whole: "columns n" a piece, in order."""
        if self._alone:
            described = [(tensor.name, self._dtype, tensor.shape)]
            keys = [layout.stored_column(name, self._number, self._groups) for name in basis.names]
            with ExitStack() as stack:
                writers = [
                    stack.enter_context(safetensors_writer(self._store, key, described, self._metadata)) for key in keys
                ]
                for piece in directions:
                    for writer, row in zip(writers, piece, strict=True):
                        writer.write(as_bytes(rounded(row, self._dtype)))
            return
        pieces = [piece.astype(np.float32) for piece in directions]
        for column, name in enumerate(basis.names):
            self._whole.setdefault(name, []).append((tensor, [piece[column] for piece in pieces]))

    def finish(self) -> None:
        """Write what was kept."""
        for column, tensors in self._factors.items():
            key = layout.stored_factors(column, self._number, self._groups)
            sides = {name + side: part for name, d in tensors.items() for side, part in _sides(d)}
            self._write(key, [(name, self._dtype, part.shape) for name, part in sides.items()], list(sides.values()))
        for column, kept in self._whole.items():
            key = layout.stored_column(column, self._number, self._groups)
            described = [(tensor.name, self._dtype, tensor.shape) for tensor, _ in kept]
            self._write(key, described, [row for _, rows in kept for row in rows])

    def _write(self, key: str, described: Sequence[TensorDescription], parts: Rows) -> None:
        with safetensors_writer(self._store, key, described, self._metadata) as stream:
            for part in parts:
                stream.write(as_bytes(rounded(part, self._dtype)))


def _sides(direction: LowRank) -> tuple[tuple[str, np.ndarray], ...]:
    return (LEFT, direction.left), (RIGHT, direction.right)
