"""The errors a user can cause or meet, each with the exit status of the command line.

Every error says *what* is wrong, *where*, what was *expected*, and what to do *next*. Each class also
inherits the standard exception a Python caller would reach for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class RelexError(Exception):
    """Base of all errors that relex raises on purpose.

    Args:
        what: one sentence, the fact.
        where: the file, URI, step, tensor or field concerned.
        expected: what would have been right.
        next_step: what the user can do now.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", next_step: str = "") -> None:
        self.what, self.where, self.expected, self.next_step = what, where, expected, next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where:    {self.where}")
        if self.expected:
            parts.append(f"  expected: {self.expected}")
        if self.next_step:
            parts.append(f"  next:     {self.next_step}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.next_step))


def _rebuild(cls: type[RelexError], what: str, where: str, expected: str, next_step: str) -> RelexError:
    return cls(what, where=where, expected=expected, next_step=next_step)


class SpecError(RelexError, ValueError):
    """The spec or the command line is wrong."""

    exit_code = 2


class WindowNotReady(RelexError, RuntimeError):
    """The observation window is not complete yet; trying again later can help."""

    exit_code = 3


class DataError(RelexError, ValueError):
    """The input data are wrong; trying again cannot help."""

    exit_code = 4


class WindowError(DataError):
    """The checkpoints found cannot form an observation window.

    Args:
        problems: every problem found, one line each, by step and tensor; all are shown at once, up to MAX_PROBLEMS.
    """

    MAX_PROBLEMS = 200
    """A wrong base of a large model has one problem for each step and tensor: tens of thousands."""

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        next_step: str = "",
        problems: Sequence[str] = (),
    ) -> None:
        if problems:
            lines = [f"  - {problem}" for problem in problems[: self.MAX_PROBLEMS]]
            if len(problems) > len(lines):
                lines.append(f"  - ... and {len(problems) - len(lines)} more")
            what = "\n".join([what, *lines])
        super().__init__(what, where=where, expected=expected, next_step=next_step)


class CheckpointChanged(DataError):
    """A file is no longer the one that window.json recorded."""


class StorageError(RelexError, OSError):
    """The storage failed, after retries."""

    exit_code = 5


class AccessDenied(StorageError, PermissionError):
    """The storage refuses these credentials, or a permission is lacking; trying again cannot help."""


class ObjectNotFound(StorageError, FileNotFoundError):
    """There is no object of that name."""


class ObjectExists(StorageError, FileExistsError):
    """An atomic create found the name taken."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with our error's message on stderr and its exit status, as the command line does.

    Raises:
        SystemExit: in place of a RelexError. Anything else is a defect, and keeps its traceback.
    """
    try:
        yield
    except RelexError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from error
