"""Objects as files of a local (or mounted) folder."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from relex_core.errors import CheckpointChanged, ObjectExists, ObjectNotFound, StorageError
from relex_core.storage.base import ObjectInfo

PARTIAL = ".relex-partial"


class LocalStore:
    """A folder. Writes go to a hidden temporary name in the same folder, are synced, and then renamed."""

    def __init__(self, root: str) -> None:
        self.uri = root
        self._root = Path(root)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        top = self._root / prefix
        found = []
        for folder, _, names in os.walk(top):
            for name in names:
                if not name.endswith(PARTIAL):
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):  # a live trainer deletes old checkpoints while we list
                        found.append(_info(path.relative_to(self._root).as_posix(), path.stat()))
        return iter(sorted(found, key=lambda info: info.name))

    def stat(self, key: str) -> ObjectInfo:
        with _storage_errors(self._root / key):
            return _info(key, (self._root / key).stat())

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        path = self._root / key
        with _storage_errors(path):
            handle = os.open(path, os.O_RDONLY)
            try:
                found = os.fstat(handle).st_mtime_ns
                if found != generation:
                    raise CheckpointChanged(
                        f"the file was replaced while it was in use (modified at {found} ns)",
                        where=str(path),
                        expected=f"the file as first seen (modified at {generation} ns)",
                        next_step="collect again into a new run directory, once the trainer has stopped writing there",
                    )
                _pread_all(handle, offset, buffer, path)
            finally:
                os.close(handle)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        path = self._root / key
        with _storage_errors(path), _temporary(path) as (temporary, stream):
            stream.write(data)
            _sync(stream)
            try:
                os.link(temporary, path)  # unlike rename, refuses a taken name, atomically
            except FileExistsError:
                raise ObjectExists("the name is taken", where=str(path)) from None
            return _info(key, path.stat())

    @contextmanager
    def open_write(self, key: str) -> Iterator[BinaryIO]:
        path = self._root / key
        with _storage_errors(path), _temporary(path) as (temporary, stream):
            yield stream
            _sync(stream)
            temporary.replace(path)

    def delete(self, key: str) -> None:
        path = self._root / key
        with _storage_errors(path), suppress(FileNotFoundError):
            path.unlink()
            with suppress(OSError):  # folders exist only as parts of keys: drop those left empty
                for parent in path.relative_to(self._root).parents[:-1]:
                    (self._root / parent).rmdir()


def _info(name: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(name, stat.st_size, stat.st_mtime_ns)


def _pread_all(handle: int, offset: int, buffer: memoryview, path: Path) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(handle, [buffer[done:]], offset + done)
        if count == 0:
            raise StorageError(
                f"the file ends at byte {offset + done}",
                where=str(path),
                expected=f"{len(buffer)} bytes from byte {offset}",
            )
        done += count


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """An open, locked temporary file beside `path`; whatever is left of it is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with temporary.open("xb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # shows other processes that the owner lives
        try:
            yield temporary, stream
        finally:
            temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of killed writers to `path`: those that nobody holds a lock on."""
    for leftover in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        with suppress(OSError), leftover.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours, with the path and an advice."""
    try:
        yield
    except StorageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ObjectNotFound("no such file", where=str(path)) from None
    except OSError as error:
        advice = {
            errno.ENOSPC: "free disk space, then run the same command again: finished work is kept",
            errno.EACCES: "give this user access to the folder",
        }
        raise StorageError(
            f"{os.strerror(error.errno or 0)}", where=str(path), next_step=advice.get(error.errno or 0, "")
        ) from error
