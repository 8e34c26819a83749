"""The safetensors container: an 8-byte length, a JSON header, then the tensors' bytes without gaps.

The header is checked completely before anything is read or allocated by its word, because it may come from a
half-written or hostile file. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from relex_core.errors import DataError
from relex_core.storage import ObjectInfo, Store

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

# The safetensors library refuses longer headers too.
MAX_HEADER_BYTES = 100_000_000
# numpy and torch know no more. It also bounds the product of a hostile shape.
MAX_DIMENSIONS = 64
# The length, then exactly the header: a first read that reached into the tensors would overlap their ranges, and an
# object store proves a checksum only for ranges that lie side by side.
FIRST_READ_BYTES = 8
# What is remembered of headers: more would hold memory that the fit has plans for.
KEPT_HEADER_BYTES, KEPT_HEADERS = 256 * 1024, 64


class TornFile(DataError):
    """The file is shorter than its header says: still being written, or cut off."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in its file."""

    name: str
    dtype: str
    """As safetensors spells it: "BF16", "F32", "I64", ..."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """All tensors of one file, in the order of their bytes."""

    tensors: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


def read_header(store: Store, info: ObjectInfo) -> Header:
    """Read and check a file's header; no tensor is read.

    Raises:
        TornFile: the file is shorter than the header says.
        DataError: the header breaks the format in any other way.
    """
    where = f"{store.uri}/{info.name}"
    if info.size < FIRST_READ_BYTES:
        raise TornFile(f"{info.size} bytes are no safetensors file", where=where)
    first = bytearray(FIRST_READ_BYTES)
    store.read_into(info.name, info.generation, 0, memoryview(first))
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise DataError(f"the header claims {length} bytes", where=where, expected=f"at most {MAX_HEADER_BYTES}")
    if FIRST_READ_BYTES + length > info.size:
        raise TornFile(f"the header claims {length} bytes, the file has {info.size}", where=where)
    text = bytearray(length)
    if length:
        store.read_into(info.name, info.generation, FIRST_READ_BYTES, memoryview(text))
    if not text.strip(b"\0"):  # writers that reserve the whole file first leave zeros until the header is there
        raise TornFile("the header is not written yet: its place holds zeros", where=where)
    return parse_header(bytes(text), file_size=info.size, where=where)


def parse_header(text: bytes, *, file_size: int, where: str) -> Header:
    """Check a header's JSON against the size of its file.

    Args:
        text: the JSON, without the 8 bytes before it.
        file_size: bytes of the whole file.

    Raises:
        TornFile, DataError: as for `read_header`.
    """
    try:
        return _parsed_before(text, file_size) if len(text) <= KEPT_HEADER_BYTES else _parsed(text, file_size)
    except DataError as error:
        place = f"{where}, {error.where}" if error.where else where
        raise type(error)(error.what, where=place, expected=error.expected, next_step=error.next_step) from None


def _parsed(text: bytes, file_size: int) -> Header:
    """`where` of its errors is the tensor's part alone."""
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the header is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError("the header is not a JSON object")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DataError("__metadata__ is not a map of strings")
    start = 8 + len(text)
    entries = sorted((_entry(name, value, start) for name, value in data.items()), key=lambda e: (e[0], e[1]))
    end = start
    for offset, stop, entry in entries:
        if offset != end:
            raise DataError(f"tensor {entry.name[:200]} starts at byte {offset}", expected=f"{end}: no gap, no overlap")
        end = stop
    if end > file_size:
        raise TornFile(f"the header promises {end} bytes, the file has {file_size}")
    if end < file_size:
        raise DataError(f"{file_size - end} bytes follow the last tensor", expected=f"{end} bytes")
    return Header(tuple(entry for _, _, entry in entries), metadata)


# The steps of a run have equal headers.
_parsed_before = lru_cache(maxsize=KEPT_HEADERS)(_parsed)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a name stands twice")
    "".join(data).encode()  # a lone surrogate, which JSON can spell and UTF-8 cannot, fails here
    return data


def _entry(name: str, value: Any, start: int) -> tuple[int, int, TensorEntry]:
    """(first byte, last byte + 1, entry) of one tensor, with shape and size held against each other."""
    where = f"tensor {name[:200]}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise DataError("a malformed header entry", where=where, expected="dtype, shape, data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise DataError(
            f"dtype {dtype!r:.40} is not supported",
            where=where,
            expected=", ".join(ITEM_BYTES),
            next_step="save the checkpoints unquantised, in bfloat16, float16 or float32",
        )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise DataError("shape and data_offsets are not lists of sizes", where=where)
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise DataError(
            f"{offsets[1] - offsets[0]} bytes for shape {shape} of {dtype}", where=where, expected=f"{nbytes}"
        )
    entry = TensorEntry(name, dtype, tuple(shape), start + offsets[0])
    return start + offsets[0], start + offsets[1], entry


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file that holds `tensors` (name, dtype, shape) in the given order.

    The header is padded with spaces to a multiple of 8 bytes, so that the tensors are aligned.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
