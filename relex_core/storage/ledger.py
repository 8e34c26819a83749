"""The checksums of the ranges read so far, and the proof of an object once its ranges tile it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from threading import Lock

from relex_core.errors import DataError
from relex_core.storage.base import ObjectInfo
from relex_core.storage.crc32c import combine, encode


@dataclass(frozen=True, order=True)
class _Run:
    """Bytes `start` to `stop` of an object, and their crc32c."""

    start: int
    stop: int
    crc: int

    def joined(self, following: _Run) -> _Run:
        return _Run(self.start, following.stop, combine(self.crc, following.crc, following.stop - following.start))


class ChecksumLedger:
    """Collects the crc32c of ranges; a store says nothing about a range alone, only about the whole object.

    Ranges come in any order and from any thread. Neighbours are joined at once, so an object costs one entry for
    each gap that is left in it. A range that overlaps an earlier one is left out: its bytes are counted already.
    """

    def __init__(self, uri: str = "") -> None:
        self._uri = uri
        self._runs: dict[tuple[str, int], list[_Run]] = {}
        self._lock = Lock()
        self.verified: set[tuple[str, int]] = set()
        """(name, generation) of the objects whose content was proved."""

    def record(self, info: ObjectInfo, offset: int, length: int, crc: int) -> None:
        """Note the crc32c of `length` bytes from `offset`, as received.

        Raises:
            DataError: the ranges now tile the object, and their joint checksum is not `info.crc32c`.
        """
        if info.crc32c is None or length == 0:
            return
        identity = (info.name, info.generation)
        with self._lock:
            runs = self._runs.setdefault(identity, [])
            _insert(runs, _Run(offset, offset + length, crc))
            if (runs[0].start, runs[0].stop) != (0, info.size):
                return
            whole = self._runs.pop(identity)[0]
            if encode(whole.crc) == info.crc32c:
                self.verified.add(identity)
                return
        raise DataError(
            f"the bytes received have crc32c {encode(whole.crc)}: they were changed on the way or in memory",
            where=f"{self._uri}/{info.name}" if self._uri else info.name,
            expected=f"crc32c {info.crc32c}, as the store gives for the object (generation {info.generation})",
            next_step="run the command again; if it happens again, check this machine's memory and network",
        )


def _insert(runs: list[_Run], new: _Run) -> None:
    """Put a range in its place among the disjoint, ordered `runs`, joined with the neighbours that it touches."""
    at = bisect_left(runs, new)
    before = runs[at - 1] if at > 0 else None
    after = runs[at] if at < len(runs) else None
    if (before and before.stop > new.start) or (after and after.start < new.stop):
        return
    if before and before.stop == new.start:
        new, at = before.joined(new), at - 1
        del runs[at]
    if after and after.start == new.stop:
        new = new.joined(after)
        del runs[at]
    runs.insert(at, new)
