"""The command `relex`, and how errors become exit statuses."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from relex_core import __version__
from relex_core.errors import RelexError
from relex_core.extras import EXTRA_OF, EXTRA_OF_COMMAND, install

P = ParamSpec("P")
R = TypeVar("R")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relex")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only results and errors.")
def main(quiet: bool) -> None:
    """Extrapolate RLVR checkpoints, and promote one only when it is shown to help.

    \b
    relex demo              a tiny real RLVR run, and the whole pipeline on it
    relex inspect URI       what lies in a trajectory
    relex run SPEC          every stage; resumes where it stopped
    """
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "google"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # relex shows its own
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # idle threads of numpy sleep, else they spin for 0.1 s
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else it looks through all that is installed for some
    atexit.register(gc.freeze)  # else the interpreter's end looks through everything for cycles, for nothing


def stage(function: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into a message on stderr and the exit status of their class."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RelexError as error:
            _fail(f"{type(error).__name__}: {error}", error.exit_code)
        except ModuleNotFoundError as error:
            _fail(_missing_module(error, function.__name__), 2)

    return wrapped


def _fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


def _missing_module(error: ModuleNotFoundError, command: str) -> str:
    name = (error.name or "").partition(".")[0]
    if name not in EXTRA_OF:
        raise error
    return f"{name} is not installed\n  next:     {install(EXTRA_OF_COMMAND.get(command, EXTRA_OF[name]))}"


def show(data: Any, text: Callable[[], str], as_json: bool) -> None:
    """Print a result: as JSON for scripts, else as text."""
    click.echo(json.dumps(data, indent=1) if as_json else text())
