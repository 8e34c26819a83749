"""Writing safetensors files as streams: the header first, then each tensor's bytes in order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from relex_core.checkpoints.safetensors_file import ITEM_BYTES, build_header
from relex_core.storage import Store, Writer

TensorDescription = tuple[str, str, tuple[int, ...]]
"""Name, dtype as safetensors spells it, shape."""


@contextmanager
def safetensors_writer(
    store: Store, key: str, tensors: Sequence[TensorDescription], metadata: Mapping[str, str]
) -> Iterator[Writer]:
    """A stream that expects the bytes of `tensors`, in that order; the file appears when the block ends.

    Raises:
        ValueError: other than the promised number of bytes was written; no file appears then.
    """
    header = build_header(tensors, metadata)
    with store.open_write(key) as stream:
        stream.write(header)
        counted = _CountingWriter(stream)
        yield counted
        expected = sum(_nbytes(tensor) for tensor in tensors)
        if counted.count != expected:
            raise ValueError(f"{key}: {counted.count} bytes of tensors written, {expected} promised by the header")


def _nbytes(tensor: TensorDescription) -> int:
    _, dtype, shape = tensor
    return math.prod(shape) * ITEM_BYTES[dtype]


class _CountingWriter:
    def __init__(self, stream: Writer) -> None:
        self._stream = stream
        self.count = 0

    def write(self, data: memoryview | bytes) -> None:
        self.count += memoryview(data).nbytes
        self._stream.write(data)
