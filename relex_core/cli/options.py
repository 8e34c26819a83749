"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from relex_core.errors import SpecError
from relex_core.storage.uri import absolute_uri


def location(uri: str) -> str:
    """A path or URI that a user typed, as an absolute one."""
    return absolute_uri(uri, Path.cwd())


def _run_directory(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return location(value)
    except SpecError as error:  # here, unlike in a stage, nothing else turns it into a message
        raise click.BadParameter(str(error)) from None


def shard_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """The value of --shard."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"{value!r} is not a shard; expected i/N with 1 <= i <= N, for example 2/8")
    return int(match[1]), int(match[2])


def size_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """The value of --memory-budget, in bytes."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return None if value is None else TypeAdapter(ByteSize).validate_python(value)
    except ValidationError:
        raise click.BadParameter(f"{value!r} is no size; expected a number with a unit, for example 2GiB") from None


def refuse_unused(needed: str, *names: str) -> None:
    """Refuse options of the running command that would be ignored, because `needed` was not given with them.

    Args:
        needed: for example "--probe".
        names: of the command's parameters.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in names and typed:
            raise click.UsageError(f"{parameter.opts[0]} needs {needed}")


class _SpecPath(click.Path):
    """A file, or the gs:// URI of a stored spec."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        stored = isinstance(value, str) and value.startswith("gs://")
        return value if stored else super().convert(value, param, ctx)


spec_argument = click.argument("spec", type=_SpecPath(exists=True, dir_okay=False))
run_argument = click.argument("run", callback=_run_directory)
out_option = click.option("--out", metavar="RUN", help="Run directory; overrides the spec's run_root.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
