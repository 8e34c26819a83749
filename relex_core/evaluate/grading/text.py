"""What needs no computer algebra: the last box of a completion, and the graders `exact` and `choice`."""

from __future__ import annotations

import re
from typing import Literal, Protocol, TypeAlias

Status: TypeAlias = Literal["correct", "wrong", "no_answer", "unparseable_gold", "timeout"]

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
CHOICE = re.compile(r"\(?([A-J])\)?[.:]?")
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)")


class Grader(Protocol):
    """One way of grading; it keeps no state between answers."""

    def grade(self, completion: str, answer: str) -> Status:
        """The status of one completion."""

    def gold_fault(self, answer: str) -> str | None:
        """Why nothing can be graded against this gold answer; None if it can."""


class Exact:
    """Equal once both are stripped of surrounding white space."""

    def grade(self, completion: str, answer: str) -> Status:
        given = completion.strip()
        if not given:
            return "no_answer"
        return "correct" if given == answer.strip() else "wrong"

    def gold_fault(self, answer: str) -> str | None:
        return None if answer.strip() else "it is empty"


class Choice:
    """One letter A to J: in the last box, or as the whole completion; "(B)" and "B." are B."""

    def grade(self, completion: str, answer: str) -> Status:
        gold, given = _letter(answer), _letter(completion)
        if gold is None:
            return "unparseable_gold"
        if given is None:
            return "no_answer"
        return "correct" if given == gold else "wrong"

    def gold_fault(self, answer: str) -> str | None:
        return None if _letter(answer) else "it is not one letter from A to J"


def _letter(text: str) -> str | None:
    boxed = last_box(text)
    text = text if boxed is None else re.sub(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}", r"\1", boxed)
    match = CHOICE.fullmatch(text.strip())
    return match[1] if match else None


def last_box(text: str) -> str | None:
    """Content of the last complete ``\\boxed{…}``; None if there is none.

    Boxes inside a box belong to the outer one. A box that is never closed (a truncated completion) is none. Escaped
    braces (``\\{``) do not count.
    """
    found, position = None, 0
    while match := BOX.search(text, position):
        end = _closing_brace(text, match.end())
        if end is None:
            position = match.end()
        else:
            found, position = text[match.end() : end], end + 1
    return None if found is None else _unboxed(found).strip()


def _unboxed(text: str) -> str:
    """Boxes within the text replaced by what they hold."""
    while match := BOX.search(text):
        end = _closing_brace(text, match.end())
        if end is None:
            return text
        text = text[: match.start()] + text[match.end() : end] + text[end + 1 :]
    return text


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one just before `start`."""
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 1  # whatever is escaped
        elif text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if not depth:
                return index
        index += 1
    return None


def loose_match(completion: str, answer: str) -> bool:
    """Whether the last number of the completion is the gold number: a diagnostic, never a grade.

    A model that writes random numbers reaches 7 % on questions with small whole answers. A wide gap between this and
    the mean says that the model answers, but not in the form that was asked for.
    """
    numbers = [match[0] for match in NUMBER.finditer(completion) if match[0]]
    gold = answer if (boxed := last_box(answer)) is None else boxed
    if not numbers or not NUMBER.fullmatch(gold.strip()):
        return False
    return float(numbers[-1].replace(",", "")) == float(gold.strip().replace(",", ""))
