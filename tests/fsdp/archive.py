"""Archives laid out as torch.save lays them out, with anything wrong that a test wants."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

Tamper = Callable[[list[dict[str, Any]], dict[str, int]], None]


def write_archive(path: Path, members: Mapping[str, bytes | int], tamper: Tamper | None = None) -> Path:
    """Write `members` (content, or the length of a hole of zeros) into a new archive.

    Args:
        tamper: may change the fields of the directory's entries and of the end record before they are written.
    """
    entries: list[dict[str, Any]] = []
    with path.open("wb") as file:
        for name, content in members.items():
            entries.append(_write_member(file, f"archive/{name}".encode(), content))
        end = {"at": file.tell(), "comment": 0}
        if tamper:
            tamper(entries, end)
        count = end.get("count", len(entries))
        for entry in entries:
            file.write(_directory_entry(entry))
        length = file.tell() - end["at"]
        record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 798, 45, 0, 0, count, count, length, end["at"])
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, end["at"] + length, 1)
        short = (min(count, 0xFFFF),) * 2, min(length, 0xFFFFFFFF), min(end["at"], 0xFFFFFFFF)
        file.write(record + locator)
        file.write(struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, *short[0], *short[1:], end["comment"]))
    return path


def _write_member(file: Any, name: bytes, content: bytes | int) -> dict[str, Any]:
    header, size = file.tell(), content if isinstance(content, int) else len(content)
    wide_size, wide_header = size >= 0xFFFFFFFF, header >= 0xFFFFFFFF
    extra = b""
    if wide_size or wide_header:
        values = (size,) * (2 * wide_size) + (header,) * wide_header
        extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
    padding = -(header + 30 + len(name) + len(extra) + 4) % 64
    flags = 0x0808 if size else 0x0800
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 45, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra) + 4 + padding)
    file.write(local + name + extra + struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
    check = 0 if isinstance(content, int) else crc32(content)
    if isinstance(content, int):
        file.truncate(file.tell() + content)
        file.seek(content, 1)
    else:
        file.write(content)
    if size:
        wide = bool(extra)
        file.write(struct.pack("<4sL" + ("QQ" if wide else "LL"), b"PK\7\x08", check, size, size))
    return {
        **{"name": name, "flags": flags, "method": 0, "crc": check, "packed": size, "size": size},
        **{"header": header, "extra": extra, "disk": 0, "comment": 0},
    }


def _directory_entry(entry: Mapping[str, Any]) -> bytes:
    sizes = [min(entry[field], 0xFFFFFFFF) for field in ("packed", "size")]
    lengths = len(entry["name"]), len(entry["extra"]), entry["comment"]
    fields = (entry["flags"], entry["method"], 0, 0, entry["crc"], *sizes, *lengths, entry["disk"], 0, 0)
    head = struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 0, 0, *fields, min(entry["header"], 0xFFFFFFFF))
    return head + bytes(entry["name"]) + bytes(entry["extra"])
