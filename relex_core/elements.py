"""Elements of stored tensors as arrays, out of any reader."""

from __future__ import annotations

import numpy as np

from relex_core.checkpoints.reader import Piece, Reader
from relex_core.checkpoints.safetensors_file import ITEM_BYTES
from relex_core.dtypes import NUMPY_DTYPES, widened


def read_stored(reader: Reader, tensor: str, start: int, stop: int) -> np.ndarray:
    """Elements `start` to `stop` of a tensor, flattened, in the dtype they are stored in.

    Raises:
        CheckpointChanged, DataError, StorageError: as the reader does.
    """
    dtype = reader.tensors[tensor].dtype
    item = ITEM_BYTES[dtype]
    buffer = np.empty((stop - start) * item, np.uint8)
    reader.read([Piece(tensor, start * item, stop * item, 0)], memoryview(buffer))
    return buffer.view(NUMPY_DTYPES[dtype])


def read_floats(reader: Reader, tensor: str, start: int, stop: int) -> np.ndarray:
    """As `read_stored`, but float32, or float64 where they are stored so: exact."""
    return widened(read_stored(reader, tensor, start, stop))


def read_tensor(reader: Reader, tensor: str) -> np.ndarray:
    """A whole tensor, in its shape: float32, or float64 where it is stored so."""
    entry = reader.tensors[tensor]
    return read_floats(reader, tensor, 0, entry.numel).reshape(entry.shape)
