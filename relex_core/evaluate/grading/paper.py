"""`paper`: the conventions of the RELEX authors' own evaluation script, to compare with published numbers.

Written anew after their scripts/eval.py, utils.py and grader.py (github weizhepei/RELEX). Laxer than `math`: without a
box it takes what follows "he answer is", else the last number; x, x / 100 and 100 x are the same; numbers agree within
1e-4 relative; units, percent and degree signs are dropped. Two differences: an expression is read by
latex2sympy2_extended (theirs, latex2sympy2, needs an antlr that excludes math-verify), and a comparison that takes too
long is a time-out, not wrong.
"""

from __future__ import annotations

import math
import re
from typing import Any

from latex2sympy2_extended import latex2sympy
from sympy import N, simplify

from relex_core.evaluate.grading.text import Status

DROPPED = (
    r"\\[! ]|\\left|\\right|\^\{\\circ\}|\^\\circ|\\?\$|\\?%"
    r"|\\cdot|\\mathbf|\\mbox\{.*?\}|x\\in|and|\s|(?<=\d)\.0+(?=\D|$)"
)

WORD = re.compile(r"[A-Za-z]\w+")


class Paper:
    """The authors' conventions."""

    def grade(self, completion: str, answer: str) -> Status:
        given = extracted(completion)
        if not given:
            return "no_answer"
        return "correct" if equal(given, _gold(answer)) else "wrong"

    def gold_fault(self, answer: str) -> str | None:
        return None if _gold(answer) else "nothing is left of it"


def _gold(answer: str) -> str:
    """A worked solution (MATH) is extracted from like a completion; a plain answer stays as it is."""
    return extracted(answer) if "boxed" in answer else answer.strip()


def extracted(text: str) -> str:
    """The last box, complete or not; else what follows the last "he answer is"; else the last number."""
    if "boxed" in text:
        found = _after_box(text.split("boxed")[-1])
    elif "he answer is" in text:
        found = text.split("he answer is")[-1].strip()
    else:
        numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))
        found = numbers[-1] if numbers else ""
    return cleaned(found.split("\n")[0].removeprefix(":").removesuffix(".").removesuffix("/"))


def _after_box(text: str) -> str:
    if not text.startswith("{"):
        return text.split("$")[0].strip()
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:index]
    return text[1:]


def cleaned(text: str) -> str:
    """Without units, signs and spaces; fractions in one form; "k = 5" becomes 5."""
    text = re.sub(r"[dt]frac", "frac", text.strip().rstrip(".").replace("\\\\", "\\"))
    text = re.sub(r"\\text\{.*?\}$", "", text).strip() or text
    text = re.sub(DROPPED, "", text.replace("\\text", ""))
    text = re.sub(r"(^|\{)\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    text = right if equals and "=" not in right and len(left) <= 2 else text
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def equal(given: str, gold: str) -> bool:
    """Their notion of equal."""
    if given == gold or _same_text(given, gold):
        return True
    a, b = _number(given), _number(gold)
    if a is not None and b is not None:  # whatever the factor hides, numbers are compared as numbers only
        return any(math.isclose(a, factor * b, rel_tol=1e-4) for factor in (0.01, 1, 100))
    if any(right is not None and "=" not in other and equal(right, other) for right, other in _assigned(given, gold)):
        return True
    parts, gold_parts = _parts(given), _parts(gold)
    if parts and gold_parts and len(parts) == len(gold_parts):
        return all(equal(x, y) for x, y in zip(parts, gold_parts, strict=True))
    return _same_expression(given, gold)


def _assigned(given: str, gold: str) -> list[tuple[str | None, str]]:
    """What stands right of "k =" on either side, with the other side."""
    pairs = []
    for text, other in ((given, gold), (gold, given)):
        left, equals, right = text.partition("=")
        pairs.append((right if equals and "=" not in right and len(left.strip()) <= 2 else None, other))
    return pairs


def _same_text(given: str, gold: str) -> bool:
    """Without brackets; square and round ones around the whole differ only from each other."""
    outer = given[:1] + given[-1:]
    if (outer == "[]" and not gold.startswith("(")) or (outer == "()" and not gold.startswith("[")):
        given, gold = given.strip("[]()"), gold.strip("[]()")
    return _bare(given) == _bare(gold)


def _bare(text: str) -> str:
    return re.sub(r"[{}()]", "", text).lower()


def _number(text: str) -> float | None:
    """5, 1,000, or a gold answer's 50 % as 0.5."""
    digits = text.replace(",", "")
    percent = digits.removesuffix("%").removesuffix("\\") if digits.endswith("%") else None
    try:
        return float(digits) if percent is None else float(percent) / 100
    except ValueError:
        return None


def _parts(text: str) -> list[str]:
    return text[1:-1].split(",") if re.fullmatch(r"[(\[].+[)\]]", text) else []


def _same_expression(given: str, gold: str) -> bool:
    if WORD.fullmatch(given) or WORD.fullmatch(gold):  # one symbol, no product of letters
        return False
    try:
        a, b = _difference(given), _difference(gold)
        if bool(a.equals(b)) or simplify(a - b) == 0 or ("=" in given and simplify(a + b) == 0):
            return True
        return math.isclose(float(N(a)), float(N(b)), rel_tol=1e-4)
    except Exception:  # theirs: whatever cannot be read or compared is not equal
        return False


def _difference(text: str) -> Any:
    left, equals, right = text.partition("=")
    return latex2sympy(f"{left}-({right})" if equals else text)
