"""`math`: the last ``\\boxed{}`` of the completion, compared with the gold answer by math-verify. Runs in the worker.

Only this file imports math-verify. What it misreads is rewritten before (`normalise`) or decided without it
(`structure`); what stays wrong is listed in tests/data/answer_pairs.yaml.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import EmptySet, Set, Union

from relex_core.evaluate.grading.normalise import normalise, split_unit
from relex_core.evaluate.grading.structure import BASE, CLOCK, alternatives, decided, for_algebra, without_units
from relex_core.evaluate.grading.text import Status, last_box

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

EXTRACTION = [LatexExtractionConfig(boxed_match_priority=0)]
# A whole answer that is words: compared as words, because algebra would multiply their letters. Up to three letters
# without \\text are a product.
WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}|([A-Za-z][a-z]{3,}(?: [a-z]+)*)")


class Mathematics:
    """Strict: no box, no answer."""

    def grade(self, completion: str, answer: str) -> Status:
        given = last_box(completion)
        if not given:
            return "no_answer"
        gold = gold_of(answer)
        if self.gold_fault(answer) is not None:
            return "unparseable_gold"
        return "correct" if equal(given, gold) else "wrong"

    def gold_fault(self, answer: str) -> str | None:
        return _gold_fault(gold_of(answer))


@lru_cache(100_000)
def _gold_fault(gold: str) -> str | None:
    if not gold.strip():
        return "it is empty"
    text = normalise(gold)
    value, _ = split_unit(text)
    if CLOCK.fullmatch(text) or BASE.fullmatch(text) or _words(value) or _parsed(for_algebra("", value)[1]):
        return None
    return "math-verify cannot read it"


def gold_of(answer: str) -> str:
    """The last box of a worked solution, or the answer as it is."""
    boxed = last_box(answer)
    return answer if boxed is None else boxed


def equal(given: str, gold: str) -> bool:
    """Whether two LaTeX answers mean the same."""
    given, gold = normalise(given), normalise(gold)
    if given.endswith("%") or gold.endswith("%"):  # 50 % may be written 50; 0.5 is left to math-verify
        bare = [text.removesuffix("%").removesuffix("\\").strip() for text in (given, gold)]
        if equal(*bare):
            return True
    values = without_units(given, gold)
    if values is None:
        return False
    given, gold = values
    if (answer := decided(given, gold)) is not None:
        return answer
    if (words := _words(gold)) is not None and (others := _words(given)) is not None:
        return words == others
    given, gold = for_algebra(given, gold)
    if (union := _union(given)) is not None:
        return bool(_verified(_parsed(gold), [union]))
    return _verified(_parsed(gold), _parsed(given))


@lru_cache(10_000)
def _parsed(answer: str) -> list[Any]:
    # No fallback to pieces of the answer: a prefix that happens to parse ("12~") is not what was meant.
    found: list[Any] = parse(
        f"\\boxed{{{answer}}}", extraction_config=EXTRACTION, fallback_mode="no_fallback", parsing_timeout=None
    )
    return [expression for expression in found if not isinstance(expression, str)]


def _verified(gold: list[Any], given: list[Any]) -> bool:
    return bool(gold and given) and bool(verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None))


def _union(answer: str) -> Set | None:
    """Inequalities joined by "or", as the union of their intervals."""
    parts = alternatives(answer)
    if len(parts) == 1:
        return None
    union: Set = EmptySet
    for part in parts:
        [relation] = _parsed(part)[:1] or [None]
        if relation is None:
            return None
        union = Union(union, relation.as_set())
    return union


def _words(answer: str) -> str | None:
    match = WORDS.fullmatch(answer)
    if match is None:
        return None
    words = (match[1] if match[1] is not None else match[2]).strip().rstrip(".")
    words = words[1:-1] if re.fullmatch(r"\([A-Za-z]\)", words) else words
    return " ".join(words.lower().split()) or None
