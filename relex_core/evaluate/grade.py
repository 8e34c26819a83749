"""Graders: one completion and its gold answer in, one status out. Grading is a pass of its own, after generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["correct", "wrong", "no_answer"]
Grader: TypeAlias = Callable[[str, str], Status]


def exact(completion: str, answer: str) -> Status:
    """Equal once both are stripped of surrounding white space; "no_answer" for an empty completion."""
    given = completion.strip()
    if not given:
        return "no_answer"
    return "correct" if given == answer.strip() else "wrong"


GRADERS: Mapping[str, Grader] = {"exact": exact}
"""By the name that `task.grader` gives them."""
