"""gs:// URIs, file:// URIs and paths, told apart and joined in one place."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from relex_core.errors import SpecError


def absolute_uri(uri: str, folder: Path) -> str:
    """Normalise a location: gs:// stays as it is, file:// becomes a path, relative paths start from `folder`.

    No ".." is left in it, so that one folder has one name: run directories are held against each other by name.

    Raises:
        SpecError: the scheme is neither gs nor file, or lacks a slash, or the URI names no bucket, another host,
            another user's home that is not known, or holds a NUL.
    """
    if "\0" in uri or "%00" in uri:
        raise SpecError("a location with a NUL character", where=repr(uri)[:200])
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise SpecError("an empty location", expected="a path, file:// or gs:// URI")
        if uri.startswith(("gs:", "file:")):
            raise SpecError(
                "a URI without its two slashes",
                where=uri,
                expected="gs://BUCKET/FOLDER or file:///FOLDER",
                next_step="where it is a folder of that name, write ./ before it",
            )
        return _normal(folder / _at_home(uri))
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise SpecError("a file:// URI of another host", where=uri, expected="file:///FOLDER, with three slashes")
        return _normal(Path(unquote(f"/{path}")))
    if scheme == "gs":
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise SpecError("a gs:// URI without a bucket", where=uri, expected="gs://BUCKET/FOLDER")
        return f"gs://{bucket}/{_without_dots(key.strip('/'), uri)}".rstrip("/")
    raise SpecError(f"unknown scheme {scheme}://", where=uri, expected="a path, file:// or gs:// URI")


def _at_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SpecError(f"{error}", where=path, expected="a path, file:// or gs:// URI") from None


def _normal(path: Path) -> str:
    """The absolute path; up to its last ".." links are followed, as the system does: LINK/.. is not where LINK lies."""
    path = path.absolute()
    if ".." not in path.parts:
        return str(path)
    last = len(path.parts) - path.parts[::-1].index("..")
    return str(Path(*path.parts[:last]).resolve().joinpath(*path.parts[last:]))


def _without_dots(key: str, uri: str) -> str:
    """A key whose "." and ".." are resolved; a bucket has no links."""
    parts: list[str] = []
    for part in key.split("/"):
        if part == "..":
            if not parts:
                raise SpecError("a gs:// URI that leaves its bucket", where=uri, expected="gs://BUCKET/FOLDER")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def join_uri(uri: str, name: str) -> str:
    """`name` inside the folder `uri`."""
    return f"{uri.rstrip('/')}/{name}" if name else uri


def split_uri(uri: str) -> tuple[str, str]:
    """The folder and the last name of a location: "gs://b/a/c.json" -> ("gs://b/a", "c.json")."""
    folder, _, name = uri.rpartition("/")
    return folder, name
