"""From files and JSON text to a RunSpec, with every fault named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from relex_core import layout
from relex_core.errors import SpecError
from relex_core.json_text import DuplicateKey, parse_json
from relex_core.spec.faults import all_faults
from relex_core.spec.run_spec import RunSpec
from relex_core.spec.sections import LayoutSpec
from relex_core.storage import open_store, read_bytes
from relex_core.storage.uri import absolute_uri, join_uri
from relex_core.stored_json import load_stored


def load_spec(path: str | Path, *, out: str | None = None) -> RunSpec:
    """Read a RunSpec from a YAML or JSON file.

    Args:
        path: the file; or the URI of a resolved spec as collect wrote it, gs://.../spec.json.
        out: overrides `run_root`; relative to the working directory.

    Raises:
        SpecError: the file cannot be read, has a wrong field, or lacks one; all faults are listed at once.
        StorageError: a stored spec cannot be read.
    """
    if isinstance(path, str) and path.startswith("gs://"):
        return _load_stored(path, out)
    path = Path(path)
    # Not all JSON is YAML: a tab indents the one and breaks the other.
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8")
        data = parse_json(text) if kind == "JSON" else _parse_yaml(text)
    except OSError as error:
        raise SpecError(
            f"cannot read the spec: {error.strerror}", where=str(path), next_step="give the path of a YAML file"
        ) from error
    except DuplicateKey as error:
        raise _given_twice(error, str(path)) from error
    except UnicodeDecodeError as error:
        raise SpecError(
            f"the spec is no text in UTF-8: {error.reason} at byte {error.start}",
            where=str(path),
            expected="UTF-8",
            next_step="save it as UTF-8, or give the path of a YAML file",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(kind, text, error, str(path)) from error
    return resolve_spec(data, where=str(path), folder=path.resolve().parent, out=out)


def _unreadable(kind: str, text: str, error: Exception, where: str) -> SpecError:
    expected, next_step = "base, trajectory, window: {t_cut: N}", "correct the file; docs/spec.md has every field"
    tab = re.search(r"^ *\t", text, re.MULTILINE) if kind == "YAML" else None
    if tab:  # the parser says neither that it is a tab which is wrong nor what would be right
        line = text.count("\n", 0, tab.start()) + 1
        expected, next_step = f"no tab before a field; there is one in line {line}", "indent with spaces"
    return SpecError(f"the spec is not {kind}: {error}", where=where, expected=expected, next_step=next_step)


def _given_twice(error: DuplicateKey, where: str) -> SpecError:
    return SpecError(f"the spec gives a field twice: {error}", where=where, next_step="keep one of the two")


def _parse_yaml(text: str) -> Any:
    from relex_core.yaml_text import parse_yaml

    return parse_yaml(text)


def _load_stored(uri: str, out: str | None) -> RunSpec:
    """Nothing is relative to a folder of a bucket: what collect wrote holds absolute locations."""
    folder, _, name = uri.rpartition("/")
    return spec_from_json(read_bytes(open_store(folder), name).decode(errors="replace"), run_root=out or "", where=uri)


def load_spec_of(run: str) -> RunSpec:
    """Read RUN/spec.json.

    Raises:
        WindowNotReady: nothing was collected into this directory.
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    return load_stored(
        *(RunSpec, run, layout.SPEC),
        absent="this is no run directory",
        make=f"relex collect SPEC --out {run}",
        repair="collect into a new run directory; do not edit spec.json",
    )


def spec_from_json(
    text: str, *, base: str = "", trajectory: str = "", run_root: str = "", t_cut: int = 0, where: str = "spec"
) -> RunSpec:
    """Read a RunSpec from JSON text, as orchestrators pass it; whatever else is given overrides the text's fields.

    Raises:
        SpecError: as for `load_spec`.
    """
    try:
        data = parse_json(text or "{}")
    except DuplicateKey as error:
        raise _given_twice(error, where) from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the spec is not JSON: {error}", where=where, expected="one JSON object") from None
    if isinstance(data, dict):
        given = {"base": base, "trajectory": trajectory, "run_root": run_root}
        data |= {name: value for name, value in given.items() if value}
        window = data.get("window") or {}
        data |= {"window": {**window, "t_cut": t_cut}} if t_cut and isinstance(window, dict) else {}
    return resolve_spec(data, where=where, folder=Path.cwd())


def resolve_spec(data: object, *, where: str, folder: Path, out: str | None = None) -> RunSpec:
    """Check a spec's data and make every URI in it absolute.

    Args:
        data: what the file holds.
        where: named in errors.
        folder: what relative paths are relative to.
        out: overrides `run_root`.

    Raises:
        SpecError: as for `load_spec`.
    """
    if not isinstance(data, dict):
        raise SpecError("the spec is not a mapping", where=where, expected="base, trajectory, window: {t_cut: N}")
    data = dict(data)
    if out is not None:
        data["run_root"] = absolute_uri(out, Path.cwd())
    elif "run_root" not in data:
        trajectory = data.get("trajectory")
        data["run_root"] = join_uri(trajectory, "relex") if isinstance(trajectory, str) else "relex"
    try:
        # JSON mode: lists become tuples, and text becomes a number where one is due (YAML reads 1e-2 as text).
        return RunSpec.model_validate_json(json.dumps(data), context={"folder": folder})
    except ValidationError as error:
        raise SpecError(all_faults(error), where=where, next_step="see docs/spec.md for every field") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"the spec holds something that is not plain data: {error}", where=where) from None


def resolve_layout(step_folder: str, weights: str = "", marker: str = "") -> LayoutSpec:
    """A layout given outside of a spec, on the command line.

    Raises:
        SpecError: it is no layout.
    """
    try:
        return LayoutSpec(step_folder=step_folder, weights=weights, marker=marker)
    except ValidationError as error:
        raise SpecError(
            all_faults(error, "the layout is wrong:"), next_step="see `layout` in docs/trainers.md"
        ) from None
