"""Models on an object store, brought to the local disk for as long as a library needs them as files.

The only place where relex downloads weights: generators load from folders. The copy lies in the folder for temporary
files (TMPDIR), which on a cluster should be a scratch volume with room for one model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relex_core.errors import StorageError
from relex_core.storage import ObjectInfo, Store, open_store

CHUNK = 64 * 1024 * 1024
WEIGHTS = (".safetensors", ".safetensors.index.json")
OTHERS = (".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Config and tokenizer. Neither pickles nor code are copied."""


@contextmanager
def on_local_disk(uri: str, *, weights: bool = True) -> Iterator[str]:
    """The folder `uri` as a path: itself if it is one, else a copy that lives as long as the block.

    Args:
        weights: copy them too; without them, config and tokenizer alone.

    Raises:
        DataError, CheckpointChanged: the objects are not what the store keeps of them.
        StorageError: the storage failed, or the disk is full.
    """
    if not uri.startswith("gs://"):
        yield uri
        return
    store = open_store(uri)
    with tempfile.TemporaryDirectory(prefix="relex-model-") as folder:
        for info in store.list():
            heavy = info.name.endswith(WEIGHTS)
            if "/" not in info.name and (weights if heavy else info.name.endswith(OTHERS)):
                _copy(store, info, Path(folder, info.name))
        yield folder


def _copy(store: Store, info: ObjectInfo, path: Path) -> None:
    buffer = memoryview(bytearray(min(CHUNK, info.size)))
    try:
        with path.open("wb") as file:
            for offset in range(0, info.size, CHUNK):
                piece = buffer[: min(CHUNK, info.size - offset)]
                store.read_into(info.name, info.generation, offset, piece)
                file.write(piece)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"the model cannot be copied to the local disk: {error.strerror}",
            where=str(path),
            expected=f"room for {info.size} bytes",
            next_step="set TMPDIR to a larger disk",
        ) from error
