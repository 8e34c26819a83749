"""Where objects lie: one protocol, a local and a Google Cloud Storage backend.

store = open_store("gs://rl-runs/math-17")
store = open_store("/data/rl-runs/math-17")
for info in store.list():
    print(info.name, info.size)
"""

from __future__ import annotations

from pathlib import Path

from relex_core.storage.base import ObjectInfo, Store, Writer, exists, read_bytes, write_bytes
from relex_core.storage.local import LocalStore
from relex_core.storage.uri import absolute_uri, join_uri, split_uri

__all__ = [
    "ObjectInfo",
    "Store",
    "Writer",
    "absolute_uri",
    "exists",
    "join_uri",
    "open_store",
    "read_bytes",
    "split_uri",
    "write_bytes",
]


def open_store(uri: str) -> Store:
    """The store whose root is the folder `uri`.

    Args:
        uri: as `absolute_uri` gives it; a file:// URI will do, too.

    Raises:
        SpecError: an unknown scheme.
        StorageError: there are no Google Cloud credentials for a gs:// URI.
    """
    if uri.startswith("gs://"):
        from relex_core.storage.gcs import GcsStore  # imports google-cloud-storage, which takes half a second

        return GcsStore(uri)
    is_path = uri.startswith("/") or "://" not in uri
    return LocalStore(uri if is_path else absolute_uri(uri, Path.cwd()))
