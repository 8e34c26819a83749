"""Grading: a pass of its own, after generation. Another grader, or another version of one, reuses the completions.

    with open_grader("math", seconds=10) as grader:
        grader.gold_fault(r"\\frac{1}{2}")                # None: it can be graded against
        grader.grade(r"... \\boxed{0.5}", r"\\frac{1}{2}")  # "correct"

Statuses: correct; wrong; no_answer (nothing to grade, such as no \\boxed{}: counts as not correct); timeout and
unparseable_gold (nothing is known: left out of the mean, counted apart, and `decide` checks that they do not matter).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from relex_core.errors import SpecError
from relex_core.evaluate.grading.text import Choice, Exact, Grader, Status
from relex_core.evaluate.process import Child, ChildDied
from relex_core.extras import install

__all__ = ["Grader", "Status", "grader_key", "open_grader", "refuse_unusable"]

# Raised whenever a change of ours can change a status: it makes everything be graded again, not generated.
VERSION = 1
IN_PROCESS: Mapping[str, type[Exact | Choice]] = {"exact": Exact, "choice": Choice}
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "math": ("math-verify", "latex2sympy2_extended", "sympy"),
    "paper": ("latex2sympy2_extended", "sympy"),
}
UNKNOWN: frozenset[str] = frozenset({"timeout", "unparseable_gold"})
"""Statuses that say nothing about the answer."""

# The worker ends itself by processor time; this multiple of it on the clock is for what sleeps instead of computing.
PATIENCE = 30


def grader_key(name: str, seconds: float) -> dict[str, object]:
    """What a status depends on besides completion and gold answer."""
    key: dict[str, object] = {"name": name, "version": VERSION}
    if name not in IN_PROCESS:
        key |= {"seconds": seconds, "libraries": {library: _version(library) for library in LIBRARIES.get(name, ())}}
    if ":" in name:
        key["source"] = _source_digest(name)
    return key


@contextmanager
def open_grader(name: str, seconds: float) -> Iterator[Grader]:
    """A grader for the length of a block.

    Args:
        name: exact, choice, math, paper, or "package.module:function".
        seconds: of processor time an answer may take before it is a time-out.

    Raises:
        SpecError: the libraries it needs are not installed, or the function's module is not there.
    """
    if name in IN_PROCESS:
        yield IN_PROCESS[name]()
        return
    refuse_unusable(name)
    worker = _Remote(name, seconds)
    try:
        yield worker
    finally:
        worker.close()


def refuse_unusable(name: str) -> None:
    """Look for what a grader imports, without importing it.

    Raises:
        SpecError: as `open_grader`.
    """
    for library in LIBRARIES.get(name, ()):
        if importlib.util.find_spec(library.replace("-", "_")) is None:
            raise SpecError(
                f"the grader {name} needs {library}",
                where="evaluation.*.task.grader",
                next_step=install("eval"),
            )
    if ":" in name:
        _source_digest(name)


class _Remote:
    """A grader in a child process, which is replaced when an answer kills it. Equal questions are asked once."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._child: Child | None = None
        self._known: dict[tuple[str, str], Status] = {}

    def grade(self, completion: str, answer: str) -> Status:
        asked = (completion, answer)
        if asked not in self._known:
            given = self._ask({"completion": completion, "answer": answer}, "timeout")
            self._known[asked] = given  # type: ignore[assignment]  # the worker returns statuses
        return self._known[asked]

    def gold_fault(self, answer: str) -> str | None:
        return self._ask({"answer": answer}, f"reading it takes more than {self._seconds:g} s")

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, request: Mapping[str, str], otherwise: str) -> str | None:
        if self._child is None:
            # Fixed hashes: the order in which sympy tries things depends on them, and so might a label.
            arguments = [self._name, str(self._seconds)]
            environment = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._child = Child("relex_core.evaluate.grading.worker", arguments, environment=environment)
        try:
            answer: str | None = self._child.ask(request, PATIENCE * self._seconds)
        except (ChildDied, TimeoutError):
            self.close()
            return otherwise
        return answer


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _source_digest(path: str) -> str:
    """Of the file that holds a user's function, without running it."""
    module = path.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise SpecError(
            f"the grader's module {module} cannot be found",
            where=f"evaluation.*.task.grader: {path}",
            next_step="install it, or set PYTHONPATH",
        )
    return "sha256:" + hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
