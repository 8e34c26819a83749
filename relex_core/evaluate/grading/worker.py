"""The process in which `math`, `paper` and users' graders run: `python -m relex_core.evaluate.grading.worker NAME`.

Computer algebra can take forever, in C code too, where no Python signal handler runs. So every request starts a timer
of this process's own processor time, whose signal nobody handles: the kernel ends the process, and whoever asked sees
that. Processor time, not time on the clock: on a busy machine the same answers get the same labels.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from relex_core.errors import DataError
from relex_core.evaluate.grading.text import Grader, Status
from relex_core.evaluate.process import serve


class Own:
    """A user's function (completion, answer) -> bool or a status; its attribute `gold_fault`, if any, checks golds."""

    def __init__(self, path: str) -> None:
        module, _, name = path.partition(":")
        try:
            self._function: Callable[[str, str], object] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SystemExit(f"the grader {path} cannot be imported: {error}") from None
        self._path = path

    def grade(self, completion: str, answer: str) -> Status:
        try:
            result = self._function(completion, answer)
        except Exception as error:
            raise self._fault(f"raised {type(error).__name__}: {error}", completion) from error
        if isinstance(result, bool):
            return "correct" if result else "wrong"
        if result not in get_args(Status):
            raise self._fault(f"returned {result!r}", completion)
        return result  # type: ignore[return-value]

    def gold_fault(self, answer: str) -> str | None:
        check = getattr(self._function, "gold_fault", None)
        return None if check is None else check(answer)

    def _fault(self, what: str, completion: str) -> DataError:
        return DataError(
            f"the grader {what}",
            where=f"{self._path}, completion {completion!r:.200}",
            expected=f"True, False, or one of {', '.join(get_args(Status))}",
            next_step="correct the function and evaluate again: completions are kept",
        )


def load(name: str) -> Grader:
    """The grader of that name, with all its imports."""
    if name == "math":
        from relex_core.evaluate.grading.mathematics import Mathematics

        return Mathematics()
    if name == "paper":
        from relex_core.evaluate.grading.paper import Paper

        return Paper()
    return Own(name)


def prepare(name: str, seconds: float) -> Callable[[Mapping[str, Any]], Any]:
    """Import the grader; what it then does is timed."""
    grader = load(name)

    def answer(request: Mapping[str, Any]) -> Any:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if "completion" in request:
                return grader.grade(request["completion"], request["answer"])
            return grader.gold_fault(request["answer"])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return answer


if __name__ == "__main__":
    serve(partial(prepare, sys.argv[1], float(sys.argv[2])))
