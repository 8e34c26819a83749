"""Base and adapter as one checkpoint of full weights, merged piece by piece as they are read.

    W = round(W_0 + s B A)                 in the base's dtype, from float32 sums; frozen tensors are the base's bytes

This is PEFT's merge_and_unload, without its rounding of the product where the adapter is bfloat16 itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

from relex_core.checkpoints.contents import StoredTensor
from relex_core.checkpoints.reader import Piece, TensorReader
from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.dtypes import as_bytes, rounded
from relex_core.elements import read_floats
from relex_core.lora.factors import LowRank
from relex_core.lora.window import StepAdapter

ELEMENTS = 4 * 2**20
"""Weights that are merged at a time."""


class MergedReader:
    """A Reader of the merged weights."""

    def __init__(self, base: TensorReader, observed: StepAdapter) -> None:
        self.label = observed.reader.label
        self._base, self._observed = base, observed
        self._delta_of = lru_cache(maxsize=1)(self._delta)  # pieces come tensor by tensor

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self._base.tensors

    @property
    def bytes_read(self) -> int:
        return self._base.bytes_read + self._observed.reader.bytes_read

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        """Whole weights only: pieces begin and end between two of them."""
        for piece in pieces:
            part = buffer[piece.at : piece.at + piece.stop - piece.start]
            if piece.tensor in self._observed.adapter.trained:
                self._merge(piece, part)
            else:
                self._base.read([Piece(piece.tensor, piece.start, piece.stop, 0)], part)

    def file_range(self, pieces: Iterable[Piece]) -> None:
        return None  # merged weights lie nowhere

    def _merge(self, piece: Piece, part: memoryview) -> None:
        dtype = self.tensors[piece.tensor].dtype
        item = ITEM_BYTES[dtype]
        first, last = piece.start // item, piece.stop // item
        for start in range(first, last, ELEMENTS):
            stop = min(start + ELEMENTS, last)
            weights = rounded(self._merged(piece.tensor, start, stop), dtype)
            part[(start - first) * item : (stop - first) * item] = as_bytes(weights)

    def _merged(self, name: str, start: int, stop: int) -> np.ndarray:
        if name in self._observed.adapter.whole:
            return self._observed.whole(name, start, stop)
        moved: np.ndarray = read_floats(self._base, name, start, stop) + self._delta_of(name).elements(start, stop)
        return moved

    def _delta(self, name: str) -> LowRank:
        """The update, in the precision of the sum."""
        wide = self.tensors[name].dtype == "F64"
        return self._observed.delta(name).astype(np.dtype(np.float64 if wide else np.float32))
