"""Checkpoints as Hugging Face folders on the local disk, for libraries that read nothing else.

    with local_checkpoint("gs://rl-runs/math-17/global_step_75/actor", "gs://models/base") as folder: ...

A local Hugging Face folder is used where it lies. Anything else (gs://, captured steps, FSDP shards, LoRA adapters,
which are merged into the base) is copied for the length of the block: weights as one safetensors file, streamed with
COPY_BYTES of memory, and config and tokenizer from the checkpoint or, where it has none, from the base. Copies lie
below $RELEX_SCRATCH, else the temporary folder ($TMPDIR); there must be room for one checkpoint. They are removed at
the end of the block; one of a killed process is removed by the next process that makes one there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from relex_core.checkpoints.checkpoint import CONFIG, INDEX, SINGLE_FILE, open_checkpoint
from relex_core.checkpoints.contents import Checkpoint, TensorInfo
from relex_core.checkpoints.kinds import holds_adapter, holds_shards
from relex_core.checkpoints.reader import Piece, Reader, TensorReader
from relex_core.checkpoints.writer import safetensors_writer
from relex_core.collect import companion_files
from relex_core.errors import DataError, StorageError
from relex_core.lora.merged import MergedReader
from relex_core.lora.window import StepAdapter
from relex_core.storage import PATCH_SUFFIX, ObjectInfo, Store, open_store, write_bytes

log = logging.getLogger("relex")

SCRATCH = "RELEX_SCRATCH"
PREFIX, LOCK = "relex-copy-", ".lock"

COPY_BYTES = 64 * 2**20
"""Long enough for a far store to fill it with several connections."""


@contextmanager
def local_checkpoint(uri: str, base: str) -> Iterator[str]:
    """The checkpoint as a local Hugging Face folder.

    Args:
        uri: folder of the weights; a path or gs://.
        base: what adapters are merged into; and where config and tokenizer come from, if not from beside the weights.

    Raises:
        DataError: it is not a complete checkpoint.
        StorageError: the storage failed, or the scratch folder has no room.
    """
    if _local(uri) and not _needs_a_copy(_files_of(open_store(uri))):
        yield uri
        return
    weights = _open_weights(uri, base)
    with _scratch_folder() as folder:
        _refuse_without_room(weights.nbytes, folder)
        _copy(weights, base, open_store(str(folder)))
        yield str(folder)


def copy_checkpoint(uri: str, base: str, folder: str) -> None:
    """Write the checkpoint as a Hugging Face folder, anywhere; SINGLE_FILE comes last and shows that it is whole.

    Args:
        uri, base: as for `local_checkpoint`.
        folder: a path or gs://.

    Raises:
        DataError: it is not a complete checkpoint.
        StorageError: the storage failed.
    """
    _copy(_open_weights(uri, base), base, open_store(folder))


@dataclass(frozen=True)
class _Weights:
    """What is copied of a checkpoint."""

    store: Store
    reader: Reader
    tensors: list[TensorInfo]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def _open_weights(uri: str, base: str) -> _Weights:
    """The weights of a checkpoint as Hugging Face folders hold them: merged, and tied ones once."""
    store = open_store(uri)
    checkpoint = _complete(store, _files_of(store))
    reader: Reader = TensorReader(uri, store, checkpoint.tensors)
    if checkpoint.adapter is not None:
        reader = _merged(base, StepAdapter(reader, checkpoint.adapter))
    return _Weights(store, reader, [tensor for name, tensor in reader.tensors.items() if name not in checkpoint.tied])


def _copy(weights: _Weights, base: str, target: Store) -> None:
    own = {info.name for info in companion_files(_files_of(weights.store))}
    if CONFIG not in own or own == {CONFIG}:  # a captured step has its config, the tokenizer is the base's
        _copy_companions(open_store(base), target)
    if CONFIG in own:
        _copy_companions(weights.store, target)
    _copy_weights(weights, target)


def _needs_a_copy(files: Sequence[ObjectInfo]) -> bool:
    names = {info.name: info for info in files}
    return holds_shards(names) or (holds_adapter(names) and not names.keys() & {SINGLE_FILE, INDEX})


def _complete(store: Store, files: Sequence[ObjectInfo]) -> Checkpoint:
    checkpoint = open_checkpoint(store, files)
    if checkpoint.problems:
        raise DataError(f"not a complete checkpoint: {'; '.join(checkpoint.problems)}", where=store.uri)
    return checkpoint


def _merged(base: str, observed: StepAdapter) -> MergedReader:
    """The weights of an adapter on its base."""
    store = open_store(base)
    below = _complete(store, _files_of(store))
    return MergedReader(TensorReader(base, store, below.tensors), observed)


@contextmanager
def local_companions(uri: str) -> Iterator[str]:
    """A local folder with a checkpoint's config and tokenizer; weights are there only if they were local before.

    Raises:
        StorageError: the storage failed, or the scratch folder has no room.
    """
    if _local(uri):
        yield uri
        return
    with _scratch_folder() as folder:
        _copy_companions(open_store(uri), open_store(str(folder)))
        yield str(folder)


def _local(uri: str) -> bool:
    return not uri.startswith("gs://") and not uri.endswith(PATCH_SUFFIX)


def _files_of(store: Store) -> list[ObjectInfo]:
    return [info for info in store.list() if "/" not in info.name]


def _copy_companions(store: Store, target: Store) -> None:
    for info in companion_files(_files_of(store)):
        data = bytearray(info.size)
        store.read_into(info.name, info.generation, 0, memoryview(data))
        write_bytes(target, info.name, bytes(data))


def _copy_weights(weights: _Weights, target: Store) -> None:
    """Stream all tensors into one safetensors file."""
    reader = weights.reader
    described = [(tensor.name, tensor.dtype, tensor.shape) for tensor in weights.tensors]
    buffer = memoryview(bytearray(min(COPY_BYTES, max((tensor.nbytes for tensor in weights.tensors), default=0))))
    log.info("copying %s to %s: %.1f GB", reader.label, target.uri, weights.nbytes / 1e9)
    with safetensors_writer(target, SINGLE_FILE, described, {"format": "pt"}) as stream:
        for tensor in weights.tensors:
            for start in range(0, tensor.nbytes, COPY_BYTES):
                count = min(COPY_BYTES, tensor.nbytes - start)
                reader.read([Piece(tensor.name, start, start + count, 0)], buffer)
                stream.write(buffer[:count])


def _refuse_without_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"the scratch folder has {free / 2**30:.1f} GiB free, the checkpoint takes {needed / 2**30:.1f} GiB",
            where=str(folder.parent),
            expected="room for one checkpoint",
            next_step=f"set {SCRATCH} to a folder on a larger disk, or free space there",
        )


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A new folder, removed at the end. Its lock shows other processes that the owner lives."""
    root = Path(os.environ.get(SCRATCH) or tempfile.gettempdir())
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        folder, lock = _locked_folder(root)
    except OSError as error:
        raise StorageError(
            f"no scratch folder can be made: {error.strerror}",
            where=str(root),
            next_step=f"set {SCRATCH} to a folder that this user may write to",
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(root: Path, tries: int = 100) -> tuple[Path, int]:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / LOCK).exists() and tries:  # before it was locked, another process took it for abandoned
        os.close(lock)
        return _locked_folder(root, tries - 1)
    return folder, lock


def _remove_abandoned(root: Path) -> None:
    """Remove the copies of killed processes: those whose lock nobody holds."""
    for path in root.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):  # another user's, in work, or just removed
            lock = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent)
            finally:
                os.close(lock)
