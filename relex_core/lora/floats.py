"""Weights between bytes and numbers, without torch: numpy knows no bfloat16."""

from __future__ import annotations

import numpy as np

NUMPY_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """Stored bytes as float32, or float64 where they are; exact.

    Args:
        data: uint8.
        dtype: as safetensors spells it; one of the floats.
    """
    if dtype == "BF16":  # the upper half of a float32
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    values = data.view(NUMPY_TYPES[dtype])
    return values if dtype in ("F64", "F32") else values.astype(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as stored bytes (uint8), rounded to nearest, ties to even; too large ones become Inf."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=NUMPY_TYPES[dtype]).reshape(-1).view(np.uint8)
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # rounding a NaN up could make it Inf
    return np.where(bits & 0x7FFFFFFF > 0x7F800000, quiet, rounded).astype("<u2").view(np.uint8)
