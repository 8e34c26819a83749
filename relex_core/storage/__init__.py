"""Where objects lie: one protocol, a local and a Google Cloud Storage backend.

store = open_store("gs://rl-runs/math-17")
store = open_store("/data/rl-runs/math-17")
for info in store.list():
    print(info.name, info.size)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from relex_core.errors import SpecError
from relex_core.storage.base import (
    ObjectInfo,
    Store,
    Writer,
    exists,
    find,
    read_bytes,
    replace_seen,
    write_bytes,
)
from relex_core.storage.local import LocalStore, OpenFile
from relex_core.storage.uri import absolute_uri, join_uri, split_uri

PATCH_SUFFIX = ".relexpatch"
"""Of the objects that hold captured steps."""

__all__ = [
    "PATCH_SUFFIX",
    "LocalStore",
    "ObjectInfo",
    "OpenFile",
    "Store",
    "Writer",
    "absolute_uri",
    "exists",
    "find",
    "is_distant",
    "join_uri",
    "open_store",
    "open_stores",
    "read_bytes",
    "refuse_file",
    "replace_seen",
    "split_uri",
    "write_bytes",
]


def open_store(uri: str) -> Store:
    """The store whose root is the folder `uri`; a captured step is a folder, too.

    Args:
        uri: as `absolute_uri` gives it; a file:// URI will do, too.

    Raises:
        SpecError: an unknown scheme.
        StorageError: there are no Google Cloud credentials for a gs:// URI.
    """
    return open_stores([uri])[0]


def open_stores(uris: Sequence[str]) -> list[Store]:
    """Several stores; captured steps of one folder share what they unpack, so that each patch is read once.

    Raises:
        StorageError: as for `open_store`.
    """
    if not any(uri.endswith(PATCH_SUFFIX) for uri in uris):
        return [_open_folder(uri) for uri in uris]
    from relex_core.storage.captured import CapturedSteps, CapturedStore  # imports zstandard, which few runs need

    folders = {split_uri(uri)[0] for uri in uris if uri.endswith(PATCH_SUFFIX)}
    captured = {folder: CapturedSteps(_open_folder(folder)) for folder in folders}
    return [
        CapturedStore(uri, captured[split_uri(uri)[0]]) if uri.endswith(PATCH_SUFFIX) else _open_folder(uri)
        for uri in uris
    ]


def is_distant(uri: str) -> bool:
    """Whether a read waits for a network much longer than it takes, so that many at a time are faster."""
    return uri.startswith("gs://") and not uri.endswith(PATCH_SUFFIX)


def refuse_file(uri: str, folder: str, advice: str) -> None:
    """Say it where nothing is found in a local "folder" because it is a file: waiting for it would not help.

    Args:
        folder: what was expected: "a run directory".

    Raises:
        SpecError: it is a file.
    """
    if not uri.startswith("gs://") and os.path.isfile(_path(uri)):  # noqa: PTH113  # Path.is_file raises if not allowed
        raise SpecError(f"this is a file, not {folder}", where=uri, next_step=advice)


def _open_folder(uri: str) -> Store:
    if uri.startswith("gs://"):
        from relex_core.storage.gcs import GcsStore  # imports google-cloud-storage, which takes half a second

        return GcsStore(uri)
    return LocalStore(_path(uri))


def _path(uri: str) -> str:
    """Of a local folder, given as a path or a file:// URI."""
    is_path = uri.startswith("/") or "://" not in uri
    return uri if is_path else absolute_uri(uri, Path.cwd())
