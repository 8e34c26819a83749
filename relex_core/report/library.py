"""The drawing library of a page: Vega, Vega-Lite and Vega-Embed as one script.

vl-convert brings them along and bundles them, which takes two seconds and gives the same bytes for one version. So the
script is kept in the user's cache folder, $XDG_CACHE_HOME or ~/.cache, with its digest before it. A cache that is
missing, damaged or not writable costs these two seconds, nothing else.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert

from relex_core.errors import StorageError
from relex_core.manifest import digest_of
from relex_core.storage import Store, open_store, read_bytes, write_bytes

GLOBAL = "window.vegaEmbed = vegaEmbed;"


@cache
def library() -> str:
    """The script; it sets window.vegaEmbed."""
    store, name = _cache(), f"vega-{digest_of([version('vl-convert-python'), GLOBAL]).removeprefix('sha256:')}.js"
    kept = _kept(store, name) if store else None
    if kept is not None:
        return kept
    script: str = vl_convert.javascript_bundle(GLOBAL)
    if any(end in script.lower() for end in ("</script", "<!--", "\r")):
        raise AssertionError("this version of the drawing library cannot stand inside a page")
    if store:
        with suppress(StorageError):
            write_bytes(store, name, _digest(script.encode()) + b"\n" + script.encode())
    return script


def _cache() -> Store | None:
    """The user's cache folder for relex; None without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return open_store(str(folder / "relex"))


def _kept(store: Store, name: str) -> str | None:
    """The script as an earlier process left it."""
    try:
        digest, _, script = read_bytes(store, name).partition(b"\n")
    except StorageError:
        return None
    return script.decode() if digest == _digest(script) else None


def _digest(script: bytes) -> bytes:
    return b"// sha256:" + hashlib.sha256(script).hexdigest().encode()
