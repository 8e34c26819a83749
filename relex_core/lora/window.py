"""The adapters of a window: low-rank deltas, and the tensors that were trained whole, by the names of the base."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Adapter
from relex_core.checkpoints.reader import Reader, TensorReader
from relex_core.elements import read_floats, read_tensor
from relex_core.errors import CheckpointChanged, DataError
from relex_core.lora.factors import LowRank
from relex_core.manifest import CheckpointRecord
from relex_core.storage import Store, open_stores


@dataclass(frozen=True)
class StepAdapter:
    """One observed adapter. Safe to use from several threads."""

    reader: Reader
    """Of its file's tensors, by their names there."""
    adapter: Adapter

    def delta(self, weight: str) -> LowRank:
        """s B A of one weight of the base, as it lies there: float64.

        Raises:
            DataError: a factor is not finite.
        """
        target = self.adapter.targets[weight]
        a, b = (read_tensor(self.reader, name).astype(np.float64) for name in (target.a, target.b))
        delta = LowRank(target.scaling * b, a)
        if not delta.finite:
            raise not_finite(self.reader.label, weight)
        return delta.transposed() if target.transposed else delta

    def whole(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` of a tensor that was trained whole."""
        return read_floats(self.reader, self.adapter.whole[name], start, stop)


def open_adapter(store: Store, record: CheckpointRecord) -> StepAdapter:
    """One adapter of a window.

    Args:
        store: of `record.uri`.

    Raises:
        CheckpointChanged: it is not complete any more, or its files are no longer those of the manifest.
    """
    checkpoint, label = open_checkpoint(store, [file.info() for file in record.files]), f"step {record.step}"
    if checkpoint.problems or checkpoint.adapter is None:
        raise CheckpointChanged(
            f"{label} is not the adapter that was collected: {'; '.join(checkpoint.problems)}",
            where=store.uri,
            next_step="collect again into a new run directory",
        )
    return StepAdapter(TensorReader(label, store, checkpoint.tensors), checkpoint.adapter)


def open_adapters(checkpoints: Sequence[CheckpointRecord], pool: Executor) -> list[StepAdapter]:
    """The adapters of a window; their headers are read in parallel. Errors as for `open_adapter`."""
    return list(pool.map(open_adapter, open_stores([record.uri for record in checkpoints]), checkpoints))


def not_finite(label: str, name: str) -> DataError:
    """The error for NaN or Inf in an observed tensor."""
    return DataError(
        f"{label} holds NaN or Inf in tensor {name}",
        where=f"{label}, tensor {name}",
        expected="finite weights",
        next_step="the run diverged there: set window.t_cut below this step, or remove the checkpoint",
    )
