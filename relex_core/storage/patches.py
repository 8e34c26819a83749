"""A captured checkpoint: its files in blocks, each whole or as a patch against the same block of an earlier step.

One object holds one step:

    stored blocks, one after the other | index (JSON) | 8 bytes: length of the index | 8 bytes: MAGIC

The index comes last because the lengths of the stored blocks are only known when they are written. A patch is what
`zstd --patch-from` makes: the block, compressed with the earlier one as dictionary. RL steps in bfloat16 change 1-3 %
of the weights; such a patch takes 1/88 to 1/32 of the bytes and is unpacked at 1-2 GB/s a core, outside of the
interpreter's lock (benchmarks/capture.py). An exclusive or followed by zstd is no smaller, and Python's holds the lock.

Nothing here trusts an index: lengths are held against the object's size, and a block's declared size against what it
must be, before anything is read or allocated by their word.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Literal, NamedTuple

import google_crc32c
import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from relex_core.errors import DataError
from relex_core.storage.base import ObjectInfo, Store

BLOCK_BYTES = 2**20
MAGIC = b"relexpt1"
TRAILER_BYTES = 16
# A checkpoint of 2 TB has an index of about 60 MB.
MAX_INDEX_BYTES = 2**28

# Level 3 is the lowest that finds the short matches between two changed weights (levels 1 and 2: ratio 1.5), and the
# fastest that does. The window spans the block and its dictionary.
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(3, window_log=22)

LATER_STEPS = (
    "the captured steps after it, which may be patches of it: those that the trainer still has are captured again, "
    "the others are lost"
)

Count = Annotated[int, Field(ge=0, lt=2**53)]


class Block(NamedTuple):
    """How one block is stored."""

    kind: Literal["raw", "zstd", "patch", "same"]
    """As it is; compressed; against the parent's block; equal to the parent's block."""
    stored: Count
    """Bytes in the object; 0 for `same`."""
    crc32c: Annotated[int, Field(ge=0, lt=2**32)]
    """Of the unpacked block."""


class CapturedFile(BaseModel):
    """One file of the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    size: Count
    crc32c: str
    """Of the whole file, as Google Cloud Storage writes it."""
    generation: int | None = None
    """Of the original; None: an earlier version of relex captured it."""
    blocks: tuple[Block, ...]

    def block_bytes(self, number: int) -> int:
        """Unpacked bytes of one block: BLOCK_BYTES, or what is left for the last one."""
        return min(BLOCK_BYTES, self.size - number * BLOCK_BYTES)

    def copies(self, info: ObjectInfo) -> bool:
        """Whether the original, as it is listed now, is still the file that was copied."""
        if info.crc32c is not None:  # content that was uploaded again is the same content
            return (info.size, info.crc32c) == (self.size, self.crc32c)
        return info.size == self.size and self.generation in (None, info.generation)


class PatchIndex(BaseModel):
    """What one captured step holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Annotated[int, Field(ge=0, lt=2**53)]
    source: str
    """Folder that the files were copied from."""
    layout: str
    """How the trainer's layout is called."""
    parent: Annotated[str, Field(pattern=r"^step-[0-9]+\.relexpatch$")] | None
    """Name of the object whose blocks are patched, beside this one; None: every block stands by itself."""
    parent_crc32c: str | None
    """Checksum of the parent's index."""
    depth: Annotated[int, Field(ge=0, le=10_000)]
    """How many patches are applied, at most, to read a block."""
    files: tuple[CapturedFile, ...]

    @model_validator(mode="after")
    def _consistent(self) -> PatchIndex:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names) or any("/" in name or name.startswith(".") for name in names):
            raise ValueError("file names that are not unique names in one folder")
        if (self.parent is None) != (self.parent_crc32c is None) or (self.parent is None) != (self.depth == 0):
            raise ValueError("parent, parent_crc32c and depth contradict each other")
        for file in self.files:
            if len(file.blocks) != -(-file.size // BLOCK_BYTES):
                raise ValueError(f"{file.name}: {len(file.blocks)} blocks for {file.size} bytes")
            for number, block in enumerate(file.blocks):
                if block.kind == "raw" and block.stored != file.block_bytes(number):
                    raise ValueError(f"{file.name}: a raw block of {block.stored} bytes")
                if block.kind == "same" and block.stored:
                    raise ValueError(f"{file.name}: an unchanged block with bytes")
                if block.kind in ("patch", "same") and self.parent is None:
                    raise ValueError(f"{file.name}: a patch without a parent")
        return self

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored blocks."""
        return sum(block.stored for file in self.files for block in file.blocks)

    def offsets(self) -> dict[str, list[int]]:
        """Where each file's blocks start in the object."""
        ends = accumulate((b.stored for f in self.files for b in f.blocks), initial=0)
        return {file.name: [next(ends) for _ in file.blocks] for file in self.files}


def encode_index(index: PatchIndex) -> bytes:
    """What follows the blocks."""
    text = index.model_dump_json().encode()
    return text + len(text).to_bytes(8, "little") + MAGIC


def read_index(store: Store, info: ObjectInfo) -> tuple[PatchIndex, str]:
    """The index of one captured step, checked, and the checksum by which a child knows it.

    Raises:
        DataError: this is no captured step, or it is damaged.
    """
    where = f"{store.uri}/{info.name}"
    trailer = bytearray(TRAILER_BYTES)
    if info.size >= TRAILER_BYTES:
        store.read_into(info.name, info.generation, info.size - TRAILER_BYTES, memoryview(trailer))
    length = int.from_bytes(trailer[:8], "little")
    if trailer[8:] != MAGIC or length > min(info.size - TRAILER_BYTES, MAX_INDEX_BYTES):
        raise _damaged("it does not end like a captured step", where)
    start = info.size - TRAILER_BYTES - length
    text = bytearray(length)
    store.read_into(info.name, info.generation, start, memoryview(text))
    index = parse_index(bytes(text), where)
    if index.stored_bytes != start:
        raise _damaged(f"{index.stored_bytes} bytes of blocks promised, {start} there", where)
    return index, checksum(text)


def parse_index(text: bytes, where: str) -> PatchIndex:
    """The index, held against the format.

    Raises:
        DataError: it breaks the format.
    """
    try:
        return PatchIndex.model_validate_json(text)
    except (ValidationError, RecursionError) as error:
        raise _damaged(f"its index is not valid: {str(error)[:300]}", where) from None


def pack(block: memoryview, earlier: bytes | None) -> tuple[Block, bytes]:
    """Store one block in the shortest way.

    Args:
        block: up to BLOCK_BYTES.
        earlier: the same block of the parent.
    """
    crc = google_crc32c.value(bytes(block))
    if earlier is not None and earlier == block:
        return Block("same", 0, crc), b""
    choices = [("raw", bytes(block))]
    if earlier:
        choices.append(("patch", _compress(block, earlier)))
    if len(choices[-1][1]) > len(block) / 2:  # weights alone never shrink that much
        choices.append(("zstd", _compress(block, None)))
    kind, data = min(choices, key=lambda choice: len(choice[1]))
    return Block(kind, len(data), crc), data  # type: ignore[arg-type]


def unpack(block: Block, data: bytes, earlier: bytes | None, size: int, where: str) -> bytes:
    """The block of `size` bytes that `pack` stored.

    Raises:
        DataError: it is damaged, or unpacks to another size than it must have.
    """
    if block.kind == "same":
        content = earlier or b""
    elif block.kind == "raw":
        content = data
    else:
        content = _decompress(data, earlier if block.kind == "patch" else None, size, where)
    if len(content) != size or google_crc32c.value(content) != block.crc32c:
        raise _damaged("a block does not have the checksum that was recorded when it was captured", where)
    return content


def checksum(data: bytes | bytearray) -> str:
    """crc32c as text."""
    return f"{google_crc32c.value(bytes(data)):08x}"


def _compress(block: memoryview, earlier: bytes | None) -> bytes:
    return zstandard.ZstdCompressor(compression_params=_PARAMETERS, dict_data=_dictionary(earlier)).compress(block)


def _decompress(data: bytes, earlier: bytes | None, size: int, where: str) -> bytes:
    try:
        # The frame says how much is allocated; a hostile one could say anything.
        if zstandard.frame_content_size(data) != size:
            raise _damaged(f"a block claims to unpack to {zstandard.frame_content_size(data)} bytes, not {size}", where)
        return zstandard.ZstdDecompressor(dict_data=_dictionary(earlier)).decompress(data)
    except zstandard.ZstdError as error:
        raise _damaged(f"a block cannot be unpacked: {error}", where) from None


def _dictionary(earlier: bytes | None) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(earlier, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if earlier else None


def _damaged(what: str, where: str) -> DataError:
    return DataError(
        f"a captured step is damaged: {what}",
        where=where,
        expected="a file that `relex watch --capture` wrote",
        next_step=f"restore the file from a copy, or remove it and {LATER_STEPS}",
    )
