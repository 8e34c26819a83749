"""The dtypes of safetensors as numpy spells them; bfloat16 by ml_dtypes."""

import ml_dtypes
import numpy as np

NUMPY_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """Stored bytes as float32, or float64 where they are; exact.

    Args:
        data: uint8.
        dtype: as safetensors spells it; one of the floats.
    """
    values: np.ndarray = data.view(NUMPY_DTYPES[dtype])
    return values if dtype in ("F64", "F32") else values.astype(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as stored bytes (uint8), rounded to nearest, ties to even; too large ones become Inf."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(NUMPY_DTYPES[dtype])).reshape(-1).view(np.uint8)


def finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; array: of any float dtype."""
    if array.dtype == NUMPY_DTYPES["BF16"]:  # its exponent is all ones then; ten times faster than isfinite
        bits = np.bitwise_and(array.view(np.uint16), 0x7FFF)
        return not bits.size or bool(bits.max() < 0x7F80)
    return bool(np.isfinite(array).all())


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(array).view(np.uint8)).cast("B")
