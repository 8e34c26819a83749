"""Objects as files of a local (or mounted) folder."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from relex_core.errors import AccessDenied, CheckpointChanged, ObjectExists, ObjectNotFound, StorageError
from relex_core.storage.atomic import PARTIAL, remove_abandoned, remove_if_abandoned, sync, temporary_file
from relex_core.storage.base import ObjectInfo, Writer

# So much is written before the disk is told to begin with it.
WRITE_BACK_BYTES = 16 * 2**20

COLLECT_AGAIN = "collect again into a new run directory, once the trainer has stopped writing there"


class LocalStore:
    """A folder. Writes go to a hidden temporary name in the same folder, are synced, and then renamed.

    What a killed writer left under such a name is removed by whoever meets it: `list` does so, too.
    """

    def __init__(self, root: str) -> None:
        self.uri = root
        self._root = Path(root)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        top = self._path(prefix)
        found = []
        with _storage_errors(top):
            # A step folder may be a link to another disk; one that leads back to a folder above it is left out.
            for folder, subfolders, names in os.walk(top, onerror=_unless_missing, followlinks=True):
                subfolders[:] = [name for name in subfolders if not _leads_back(Path(folder, name))]
                for name in names:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):  # a live trainer deletes old checkpoints while we list
                        if name.endswith(PARTIAL):
                            remove_if_abandoned(path)
                        else:
                            found.append(_info(path.relative_to(self._root).as_posix(), _regular(path.stat())))
        return iter(sorted(found, key=lambda info: info.name))

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _storage_errors(path):
            return _info(key, _regular(path.stat()))

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        with closing(self.open_file(key, generation)) as file, _storage_errors(file.path):
            _pread_all(file.descriptor, offset, buffer.cast("B"), file.path)

    def open_file(self, key: str, generation: int, size: int | None = None) -> OpenFile:
        """A file to be read by its descriptor.

        Args:
            size: bytes that it must have; None: any.

        Raises:
            As `Store.read_into`.
        """
        return OpenFile(self._path(key), generation, size)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        path = self._path(key)
        with _storage_errors(path), temporary_file(path) as (temporary, stream):
            stream.write(data)
            sync(stream)
            try:
                os.link(temporary, path)  # unlike rename, refuses a taken name, atomically
            except FileExistsError:
                raise ObjectExists("the name is taken", where=str(path)) from None
            return _info(key, os.fstat(stream.fileno()))

    def replace(self, key: str, data: bytes, generation: int) -> ObjectInfo:
        path = self._path(key)
        with _storage_errors(path), path.open("r+b") as current:  # NFS locks only what may be written
            _lock(path, current)  # the file that is replaced: who comes later finds another one
            _require(path, _regular(path.stat()), generation)
            with temporary_file(path) as (temporary, stream):
                stream.write(data)
                sync(stream)
                # File systems' clocks tick every few milliseconds; two files of one tick must differ.
                newer = max(os.fstat(stream.fileno()).st_mtime_ns, generation + 1)
                os.utime(stream.fileno(), ns=(newer, newer))
                temporary.replace(path)
                return _info(key, os.fstat(stream.fileno()))

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        path = self._path(key)
        with ExitStack() as stack:
            with _storage_errors(path):
                temporary, stream = stack.enter_context(temporary_file(path))
            yield _CheckedWriter(path, stream)  # outside of _storage_errors: the caller's own errors pass through
            with _storage_errors(path):
                sync(stream)
                temporary.replace(path)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _storage_errors(path), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            remove_abandoned(path)  # else the folder, left empty, could not be dropped
            path.unlink()
            with suppress(OSError):  # folders exist only as parts of keys: drop those left empty
                for parent in path.relative_to(self._root).parents[:-1]:
                    (self._root / parent).rmdir()

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise StorageError("the name leaves its folder", where=f"{self.uri}/{key}", expected="a name below it")
        return self._root / key


class OpenFile:
    """A file that is open for reading, until its last reference is gone. A file that is deleted, or whose name another
    one takes, keeps its bytes as long."""

    def __init__(self, path: Path, generation: int, size: int | None) -> None:
        self.path, self._generation, self._size = path, generation, size
        with _storage_errors(path):
            self.descriptor = os.open(path, os.O_RDONLY)
            self.close = weakref.finalize(self, os.close, self.descriptor)
            self.check()

    def check(self) -> None:
        """See that nothing was written into it.

        Raises:
            CheckpointChanged: something was.
            StorageError: the storage failed.
        """
        with _storage_errors(self.path):
            status = _regular(os.fstat(self.descriptor))
            _require(self.path, status, self._generation)
            if self._size not in (None, status.st_size):  # ext4 cuts a file first, and changes its time afterwards
                raise CheckpointChanged(
                    f"the file was cut or grew while it was in use: {status.st_size} bytes",
                    where=str(self.path),
                    expected=f"{self._size} bytes, as first seen",
                    next_step=COLLECT_AGAIN,
                )


class _CheckedWriter:
    """A stream whose failures are ours, and whose data are on their way to the disk while more of them are made."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._written = self._on_their_way = 0  # bytes

    def write(self, data: memoryview | bytes) -> None:
        with _storage_errors(self._path):
            self._stream.write(data)
            self._written += memoryview(data).nbytes
            if self._written - self._on_their_way >= WRITE_BACK_BYTES:
                self._write_back()

    def _write_back(self) -> None:
        # Linux starts to write such pages and, as they are in use, keeps them in its cache. Else nothing is written
        # before the sync at the end, and a candidate of 1 GB took a third longer.
        if hasattr(os, "posix_fadvise"):
            size = self._written - self._on_their_way
            os.posix_fadvise(self._stream.fileno(), self._on_their_way, size, os.POSIX_FADV_DONTNEED)
        self._on_their_way = self._written


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in (parent.resolve() for parent in folder.parents)


def _info(name: str, status: os.stat_result) -> ObjectInfo:
    # The time of the status change is the kernel's own; `cp -p` and `rsync -t` set back the modification time.
    return ObjectInfo(name, status.st_size, status.st_mtime_ns, updated=status.st_ctime)


def _regular(status: os.stat_result) -> os.stat_result:
    """The status of a file; folders, pipes and the like are no objects."""
    if not S_ISREG(status.st_mode):
        raise FileNotFoundError
    return status


def _lock(path: Path, stream: BinaryIO) -> None:
    """Lock a file that is about to be replaced. Nobody waits here for a process that may be suspended."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointChanged(
            "another process is replacing the file",
            where=str(path),
            expected="one process at a time",
            next_step="try again; if it stays so, look for a suspended process of this run",
        ) from None


def _require(path: Path, status: os.stat_result, generation: int) -> None:
    if status.st_mtime_ns != generation:
        raise CheckpointChanged(
            f"the file was replaced while it was in use (modified at {status.st_mtime_ns} ns)",
            where=str(path),
            expected=f"the file as first seen (modified at {generation} ns)",
            next_step=COLLECT_AGAIN,
        )


def _unless_missing(error: OSError) -> None:
    """What `os.walk` does with a folder that it cannot read: a hidden checkpoint must not look like a missing one."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


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


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours, with the path and an advice."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise ObjectNotFound("no such file", where=str(path)) from None
    except NotADirectoryError:
        raise ObjectNotFound("a part of this path is a file, not a folder", where=str(path)) from None
    except OSError as error:
        advice = {
            errno.ENOSPC: "free disk space, then run the same command again: finished work is kept",
            errno.EDQUOT: "free some of your disk quota, then run the same command again: finished work is kept",
            errno.EEXIST: "a part of this path is a file, not a folder: choose another path",
            errno.EROFS: "make the folder writable, or use another run directory",
            errno.EACCES: "give this user access to the folder",
        }
        kind = AccessDenied if isinstance(error, PermissionError) else StorageError
        raise kind(
            f"{os.strerror(error.errno or 0)}", where=_place(error, path), next_step=advice.get(error.errno or 0, "")
        ) from error


def _place(error: OSError, path: Path) -> str:
    """What the operating system refused: `path`, or what lies below it, when a listing goes through its folders."""
    refused = error.filename  # a temporary file beside `path`, or a folder above it, says less than `path` itself
    return refused if isinstance(refused, str) and Path(refused).is_relative_to(path) else str(path)
