"""Weights between bytes and numbers, without torch; bfloat16 by ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np

NUMPY_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """Stored bytes as float32, or float64 where they are; exact.

    Args:
        data: uint8.
        dtype: as safetensors spells it; one of the floats.
    """
    values: np.ndarray = data.view(NUMPY_TYPES[dtype])
    return values if dtype in ("F64", "F32") else values.astype(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as stored bytes (uint8), rounded to nearest, ties to even; too large ones become Inf."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(NUMPY_TYPES[dtype])).reshape(-1).view(np.uint8)
