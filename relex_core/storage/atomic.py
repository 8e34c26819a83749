"""Temporary files that become visible whole, or are removed: by their owner or, if it was killed, by the next process
that writes or deletes a file of that name or lists the folder."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".relex-partial"


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """An open, locked temporary file beside `path`; whatever is left of it is removed at the end.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    remove_abandoned(path)
    temporary, stream = _locked_file(path)
    try:
        yield temporary, stream
    finally:
        with suppress(OSError):  # what was to be kept is synced; on a full disk the rest cannot be written
            stream.close()
        temporary.unlink(missing_ok=True)


def sync(stream: BinaryIO) -> None:
    """Bring what was written to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _locked_file(path: Path, tries: int = 100) -> tuple[Path, BinaryIO]:
    """A new file beside `path`. Its lock shows other processes that the owner lives."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("xb")
    except (FileNotFoundError, FileExistsError):  # a delete took the empty folder away at the same time
        if tries == 0:
            raise
        return _locked_file(path, tries - 1)
    fcntl.flock(stream, fcntl.LOCK_EX)
    if not temporary.exists():  # before it was locked, another writer took it for abandoned
        stream.close()
        return _locked_file(path, tries - 1)
    return temporary, stream


def remove_abandoned(path: Path) -> None:
    """Remove temporary files of killed writers to `path`."""
    with suppress(FileNotFoundError):  # no folder, or no longer
        for leftover in path.parent.glob(f".{escape(path.name)}.*{PARTIAL}"):
            remove_if_abandoned(leftover)


def remove_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file that nobody holds a lock on; one that may not be removed stays."""
    with suppress(OSError), temporary.open("r+b") as stream:  # NFS locks only what may be written
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
