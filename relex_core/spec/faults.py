"""What is wrong with a spec, in words: every fault with its field, and the known field that is nearest."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from relex_core.spec.evaluation import ONE, SEVERAL
from relex_core.spec.run_spec import RunSpec


def all_faults(error: ValidationError, heading: str = "the spec is wrong:") -> str:
    """All faults of one validation, a line each."""
    lines = [heading]
    for fault in error.errors(include_url=False):
        location = tuple(str(part) for part in fault["loc"] if part not in (ONE, SEVERAL))
        name = ".".join(location) or "spec"
        if fault["type"] == "extra_forbidden":
            lines.append(f"  - {name}: unknown field{_nearest(location)}")
        elif fault["type"] == "missing":
            lines.append(f"  - {name}: required, but not given")
        elif fault["type"] == "too_short":
            if not fault["input"]:  # else only its wrong elements are missing, which have faults of their own
                lines.append(f"  - {name}: an empty list; give at least {fault['ctx']['min_length']}")
        else:
            message = " ".join(fault["msg"].removeprefix("Value error, ").split())
            # A section's fields contradict each other: the message names them, its dump would be cut off before them.
            whole = fault["type"] == "value_error" and isinstance(fault["input"], dict)
            lines.append(f"  - {name}: {message}" + ("" if whole else f" (got {fault['input']!r:.80})"))
    return "\n".join(lines)


def _nearest(location: tuple[str, ...]) -> str:
    """ "; did you mean 't_cut'?" for an unknown field at `location`."""
    section: type[BaseModel] | None = RunSpec
    for part in location[:-1]:
        if part.isdigit():  # one of several
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_of(field.annotation) if field else None
    known = list(section.model_fields) if section else []
    match = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known here: {', '.join(known)}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The Section in an annotation such as `EvaluationSpec | None` or `tuple[GuardSpec, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for option in typing.get_args(annotation) if (found := _section_of(option))), None)
