"""One worker out of many: a claim on an object store, kept alive by a heartbeat, taken over when its owner died.

    watch/<key>/claim-00001.json      created atomically by the first owner, rewritten as its heartbeat
    watch/<key>/claim-00002.json      created atomically by the one that took over: the highest number holds the claim

No clock is compared between machines. A worker that stands by notes when it last saw the newest claim change, by its
own clock; if it stays unchanged for a lease, its owner is taken for dead. An owner that was only stalled finds the
higher number at its next heartbeat, or when it asks before it acts, and steps back.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from relex_core.errors import CheckpointChanged, ObjectExists, ObjectNotFound, StorageError
from relex_core.storage import ObjectInfo, Store, read_bytes, write_bytes

log = logging.getLogger("relex")

CLAIM_NAME = re.compile(r"claim-(\d{5,9})\.json")
BEATS_PER_LEASE = 4


class ClaimLost(Exception):
    """Another worker holds the claim now."""


class ClaimRecord(BaseModel):
    """Content of a claim object."""

    model_config = ConfigDict(frozen=True)

    owner: str
    beat: int = 0
    released: bool = False


@dataclass(frozen=True)
class _Seen:
    """The newest claim, and when it was first seen in this state."""

    name: str
    generation: int
    at: float


def this_worker() -> str:
    """Who a claim's owner is, for people: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Claim:
    """A worker's view of one claim.

    Args:
        folder: key of the claim's folder in the store.
        lease: seconds without a heartbeat after which an owner is taken for dead.
        owner: how this worker is called.
    """

    def __init__(self, store: Store, folder: str, *, lease: float, owner: str = "") -> None:
        self._store, self._folder, self._lease = store, folder, lease
        self.owner = owner or this_worker()
        self.holder = ""
        """Owner of the newest claim, as last seen by `try_take`."""
        self._mine = 0
        self._beat = 0
        self._seen: _Seen | None = None

    def try_take(self) -> bool:
        """Whether this worker holds the claim now; never waits.

        Raises:
            StorageError: the storage failed.
        """
        newest, number = self._newest()
        if newest is not None and self._alive(newest):
            return False
        record = ClaimRecord(owner=self.owner)
        try:
            self._store.create(self._name(number + 1), _encode(record))
        except ObjectExists:  # another worker was faster
            return False
        self._mine, self.holder = number + 1, self.owner
        return True

    def require(self) -> None:
        """Show that this worker is alive, and that the claim is still its own.

        Raises:
            ClaimLost: another worker took it over.
            StorageError: the storage failed.
        """
        _, number = self._newest()
        if not self._mine or number != self._mine:
            raise ClaimLost(f"{self.owner} lost {self._store.uri}/{self._folder}")
        self._beat += 1
        write_bytes(self._store, self._name(self._mine), _encode(ClaimRecord(owner=self.owner, beat=self._beat)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the claim alive in the background while the block runs, and give it back at the end."""
        stop = threading.Event()
        thread = threading.Thread(target=self._keep_alive, args=(stop,), name="relex-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._release()

    def _keep_alive(self, stop: threading.Event) -> None:
        while not stop.wait(self._lease / BEATS_PER_LEASE):
            try:
                self.require()
            except ClaimLost:  # the block finds it out by itself when it asks
                return
            except (StorageError, CheckpointChanged) as error:  # the next beat may succeed
                log.warning("no heartbeat: %s", error)

    def _release(self) -> None:
        try:
            if self._newest()[1] == self._mine:
                record = ClaimRecord(owner=self.owner, beat=self._beat + 1, released=True)
                write_bytes(self._store, self._name(self._mine), _encode(record))
        except StorageError as error:  # the lease will end it
            log.warning("cannot give the claim back: %s", error)
        self._mine = 0

    def _newest(self) -> tuple[ObjectInfo | None, int]:
        newest, highest = None, 0
        for info in self._store.list(self._folder):
            match = CLAIM_NAME.fullmatch(info.name.rpartition("/")[2])
            if match and int(match[1]) > highest:
                newest, highest = info, int(match[1])
        return newest, highest

    def _alive(self, newest: ObjectInfo) -> bool:
        record = self._read(newest)
        if record is not None:
            self.holder = record.owner
            if record.released:
                return False
        now = time.monotonic()
        if self._seen is None or (self._seen.name, self._seen.generation) != (newest.name, newest.generation):
            self._seen = _Seen(newest.name, newest.generation, now)
        return now - self._seen.at < self._lease

    def _read(self, info: ObjectInfo) -> ClaimRecord | None:
        """None if it cannot be read at this moment: then its age alone counts."""
        try:
            return ClaimRecord.model_validate_json(read_bytes(self._store, info.name))
        except (ValidationError, ObjectNotFound, CheckpointChanged):
            return None

    def _name(self, number: int) -> str:
        return f"{self._folder}/claim-{number:05d}.json"


def _encode(record: ClaimRecord) -> bytes:
    return json.dumps(record.model_dump()).encode()
