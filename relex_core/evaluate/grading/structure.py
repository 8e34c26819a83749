"""Answers that are told apart by how they are written, before algebra is asked.

math-verify calls (1, 2) and {1, 2}, 101 in base 2 and in base 3, 5 m and 5 cm, 3:30 and 6:60, 1e-7 and 2e-7 equal.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from relex_core.evaluate.grading.normalise import split_unit

CLOCK = re.compile(r"\s*([01]?\d|2[0-4])\s*:\s*([0-5]\d)\s*(?:\\text\s*\{)?\s*((?:[ap]\.?m\.?)?)\s*\}?\s*", re.I)
BASE = re.compile(r"\s*([0-9A-Fa-f]+)\s*_\s*\{?\s*(?:\\text\s*\{\s*)?(\d+|[a-z]+)\s*\}?\s*\}?\s*")
BASE_NAMES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
BASE_NAMES |= {"ten": "10", "twelve": "12", "sixteen": "16"}
TIMES_LETTER = re.compile(r"(?<![\\a-zA-Z\d.])(\d+(?:\.\d+)?)([a-zA-Z])(?![a-zA-Z])")
INEQUALITY = re.compile(r"<|>|\\(?:le|ge|lt|gt|leq|geq|leqslant|geqslant)(?![a-zA-Z])")
OR = re.compile(r"\s*(?:\\(?:text|textrm|mathrm)\s*\{\s*or\s*\}|\\lor|\\vee|(?<![a-z])or(?![a-z]))\s*", re.I)


def without_units(given: str, gold: str) -> tuple[str, str] | None:
    """Both values without their units; None if their units differ."""
    (value, unit), (gold_value, gold_unit) = split_unit(given), split_unit(gold)
    if unit and gold_unit and unit != gold_unit:
        return None
    if "degree" in (unit, gold_unit) and r"\pi" in value + gold_value:
        return None  # 30 degrees are pi/6, and 30 is not
    return value, gold_value


def decided(given: str, gold: str) -> bool | None:
    """Whether the two are equal, where their form alone decides that; None where algebra must."""
    if given.replace(" ", "") == gold.replace(" ", ""):
        return True
    for rule in (_clock, _base, _numbers, _brackets):
        if (equal := rule(given, gold)) is not None:
            return equal
    return None


def for_algebra(given: str, gold: str) -> tuple[str, str]:
    """The two as math-verify reads them rightly."""
    if gold.startswith("(") and _is_bare_list(given):
        given = f"({given})"  # a point, whose order matters
    return _letters(given), _letters(gold)


def alternatives(answer: str) -> list[str]:
    """ "x < 2 or x > 5" -> both inequalities; anything else is its only one."""
    parts = OR.split(answer)
    return parts if len(parts) > 1 and all(INEQUALITY.search(part) for part in parts) else [answer]


def _clock(given: str, gold: str) -> bool | None:
    """Times of the day; 3:30 is one, and 1:2 is a ratio. A time is equal to nothing but itself."""
    a, b = CLOCK.fullmatch(given), CLOCK.fullmatch(gold)
    if a is None or b is None:
        return False if b and ":" in given else None
    same_half = not (a[3] and b[3]) or a[3][0].lower() == b[3][0].lower()
    return int(a[1]) == int(b[1]) and a[2] == b[2] and same_half


def _base(given: str, gold: str) -> bool | None:
    """Numerals with a base as index. Where one has none, the question names it, and the digits must agree."""
    a, b = BASE.fullmatch(given), BASE.fullmatch(gold)
    if a is None and b is None:
        return None
    digits = [match[1] if match else text.replace(" ", "") for match, text in ((a, given), (b, gold))]
    if not all(re.fullmatch(r"[0-9A-Fa-f]+", text) for text in digits):
        return None
    bases = {BASE_NAMES.get(match[2], match[2]) for match in (a, b) if match}
    return len(bases) == 1 and digits[0].lstrip("0").lower() == digits[1].lstrip("0").lower()


def _numbers(given: str, gold: str) -> bool | None:
    """Two plain numbers, compared exactly: math-verify rounds to six decimals."""
    a, b = _decimal(given), _decimal(gold)
    return None if a is None or b is None else a == b


def _decimal(text: str) -> Decimal | None:
    text = (
        re.sub(r"\s*(\\times|\\cdot)\s*", r"\1", text.strip())
        .removeprefix(r"\$")
        .removeprefix("$")
        .removeprefix("+")
        .strip()
    )
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\\(?:times|cdot)10\^\{?([+-]?\d+)\}?", text)
    text = f"{match[1]}e{match[2]}" if match else text
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    try:
        return Decimal(text) if re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", text) else None
    except InvalidOperation:
        return None


def _brackets(given: str, gold: str) -> bool | None:
    """A set is no point and no interval."""
    kinds = {"{": "set", "(": "ordered", "[": "ordered"}
    a, b = kinds.get(given.replace("\\", "")[:1]), kinds.get(gold.replace("\\", "")[:1])
    both_lists = "," in given and "," in gold and not re.search(r"\\cup|\\cap|\|", given + gold)
    return False if both_lists and a and b and a != b else None


def _is_bare_list(text: str) -> bool:
    inside = not re.search(r"=|<|>|\\(?:in|cup|cap|begin)(?![a-zA-Z])", text)
    return "," in text and inside and text[:1] not in "([{" and not text.startswith("\\{")


def _letters(text: str) -> str:
    """2m -> 2{m}: math-verify drops what looks like a unit."""
    return TIMES_LETTER.sub(r"\1{\2}", text)
