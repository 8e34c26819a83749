"""The zip container that torch.save writes: where each of its members lies, from the central directory alone.

    member 0 | member 1 | ... | central directory | zip64 end record | its locator | end record

Members are stored uncompressed, so that a storage is a byte range of the file. A local header (30 bytes, name, padding)
stands before each member's bytes and may pad them; reading thousands of them over a network would cost more than the
weights of a small model. But torch.save pads in one way only, up to the next multiple of 64 bytes, and leaves nothing
between members. So each member's place follows from its header's offset, must agree with where the next one begins, and
a file whose members do not tile it in this way is refused: that leaves no room for overlaps, gaps and hidden members.

Torch's own `torch.serialization` calculates the same offsets (`calculate_storage_offsets`). The format is PKWARE's
APPNOTE.TXT, sections 4.3.7 to 4.3.16 and 4.5.3 (zip64, which torch.save always writes, since files exceed 4 GiB).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from relex_core.checkpoints.safetensors_file import TornFile
from relex_core.errors import DataError
from relex_core.storage import ObjectInfo, Store

END64 = struct.Struct("<4sQHHLLQQQQ")
LOCATOR = struct.Struct("<4sLQL")
END = struct.Struct("<4sHHHHLLH")
ENTRY = struct.Struct("<4sHHHHHHLLLHHHHHLL")
END_BYTES = END64.size + LOCATOR.size + END.size

LOCAL_HEADER_BYTES = 30
ALIGNMENT = 64
DESCRIPTOR_FOLLOWS, UTF8_NAME = 0x0008, 0x0800
SATURATED_16, SATURATED_32 = 0xFFFF, 0xFFFFFFFF

# A mixture-of-experts model has some ten thousand tensors, of about 90 bytes each here.
MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive."""

    offset: int
    """Of its first byte, from the start of the zip."""
    size: int
    crc32: int
    """0: torch did not compute it (`torch.serialization.set_crc32_options(False)`), or there are no bytes."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record of the central directory."""

    header: int
    """Offset of the local header."""
    name: bytes
    size: int
    crc32: int
    descriptor: int
    """Bytes of the data descriptor behind the member's bytes."""

    @property
    def start(self) -> int:
        """First byte of the member, by the rule that torch.save pads by."""
        start = self.header + LOCAL_HEADER_BYTES + len(self.name) + 4
        if self.size >= SATURATED_32 or self.header >= SATURATED_32:
            start += 4 + 16 * (self.size >= SATURATED_32) + 8 * (self.header >= SATURATED_32)
        return -(-start // ALIGNMENT) * ALIGNMENT


def read_members(store: Store, info: ObjectInfo) -> dict[str, Member]:
    """All members by name, without the archive's own folder ("data.pkl", "data/0", ...); no member is read.

    Raises:
        TornFile: the end of the archive is not there: still being written, or cut off.
        DataError: it is no archive as torch.save writes it.
    """
    where = f"{store.uri}/{info.name}"
    if info.size < END_BYTES:
        raise TornFile(f"{info.size} bytes are no torch.save archive", where=where)
    count, length = _end(_read(store, info, info.size - END_BYTES, END_BYTES), info, where)
    start = info.size - END_BYTES - length
    entries = sorted(_entries(_read(store, info, start, length), count, where), key=lambda entry: entry.header)
    members: dict[str, Member] = {}
    follows = [*(entry.header for entry in entries[1:]), start]
    expected = 0
    for entry, following in zip(entries, follows, strict=True):
        if entry.header != expected or entry.start + entry.size + entry.descriptor != following:
            raise _wrong(f"member {entry.name[:80]!r} does not lie as torch.save lays members out", where)
        expected = following
        members[_name(entry.name, entries[0].name, where)] = Member(entry.start, entry.size, entry.crc32)
    if len(members) < count:
        raise _wrong("two members have the same name", where)
    return members


def read_member(store: Store, info: ObjectInfo, member: Member) -> bytes:
    """A small member's bytes."""
    return _read(store, info, member.offset, member.size)


def _end(data: bytes, info: ObjectInfo, where: str) -> tuple[int, int]:
    """(members, bytes of the central directory), with the three end records held against each other and the file."""
    record, locator = END64.unpack_from(data), LOCATOR.unpack_from(data, END64.size)
    end = END.unpack_from(data, END64.size + LOCATOR.size)
    if end[0] != b"PK\5\6":
        raise TornFile("no end of an archive: cut off, still being written, or no torch.save file", where=where)
    at = info.size - END_BYTES
    count, length = record[7], record[8]
    sound = (
        record == (b"PK\6\6", 44, *record[2:4], 0, 0, count, count, length, at - length)
        and locator == (b"PK\6\7", 0, at, 1)
        and end[1:3] == (0, 0)
        and end[3:5] == (min(count, SATURATED_16),) * 2
        and end[5:] == (min(length, SATURATED_32), min(at - length, SATURATED_32), 0)
    )
    if not sound:
        raise _wrong("the archive's end records contradict each other or the file's size", where)
    if not 0 < count <= MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise _wrong(f"the archive claims {count} members in a directory of {length} bytes", where)
    return count, length


def _entries(data: bytes, count: int, where: str) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if at + ENTRY.size > len(data):
            raise _wrong("the central directory ends early", where)
        fields = ENTRY.unpack_from(data, at)
        signature, flags, method, crc32, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
        name_bytes, extra_bytes, comment_bytes, disk, header = *fields[10:14], fields[16]
        name = data[at + ENTRY.size : at + ENTRY.size + name_bytes]
        at += ENTRY.size + name_bytes
        extra = data[at : at + extra_bytes]
        at += extra_bytes
        if signature != b"PK\1\2" or at > len(data) or comment_bytes or disk:
            raise _wrong("the central directory is damaged", where)
        if method or flags & ~(DESCRIPTOR_FOLLOWS | UTF8_NAME) or packed != size:
            raise _wrong(f"member {name[:80]!r} is compressed or encrypted", where)
        wide = size == SATURATED_32 or header == SATURATED_32
        size, header = _wide(extra, size, header, where)
        descriptor = (24 if wide else 16) if flags & DESCRIPTOR_FOLLOWS else 0
        yield _Entry(header, name, size, crc32, descriptor)
    if at != len(data):
        raise _wrong("the central directory is longer than its members", where)


def _wide(extra: bytes, size: int, header: int, where: str) -> tuple[int, int]:
    """(size, offset), from the zip64 field where 32 bits do not hold them."""
    values = 2 * (size == SATURATED_32) + (header == SATURATED_32)
    if not values:
        return size, header
    if len(extra) < 4 + 8 * values or extra[:4] != struct.pack("<HH", 1, 8 * values):
        raise _wrong("a zip64 field is missing or damaged", where)
    numbers = struct.unpack_from(f"<{values}Q", extra, 4)
    if size == SATURATED_32:
        if numbers[0] != numbers[1]:
            raise _wrong("a member is compressed", where)
        size = numbers[0]
    return size, numbers[-1] if header == SATURATED_32 else header


def _name(name: bytes, first: bytes, where: str) -> str:
    """A member's name below the archive's folder, which is the same for all."""
    folder, separator, rest = name.partition(b"/")
    if not separator or folder != first.partition(b"/")[0]:
        raise _wrong(f"member {name[:80]!r} lies outside the archive's folder", where)
    try:
        return rest.decode()
    except UnicodeDecodeError:
        raise _wrong(f"member {name[:80]!r} has no UTF-8 name", where) from None


def _read(store: Store, info: ObjectInfo, offset: int, count: int) -> bytes:
    data = bytearray(count)
    store.read_into(info.name, info.generation, offset, memoryview(data))
    return bytes(data)


def _wrong(what: str, where: str) -> DataError:
    return DataError(what, where=where, expected="a file that torch.save wrote, with its default options")
