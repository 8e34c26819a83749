"""Successive halving: most candidates are so far behind that a part of the selection questions shows it.

    64 candidates on 1/16 of the questions -> 16 on 1/4 -> 4 on all          10 instead of 64 full evaluations

A quarter goes on to four times as many questions (Karnin, Koren & Somekh 2013, with a factor of 4), never fewer than
four. Only those that get to the end can be finalists, all on the same questions. What a candidate has answered it never
answers again. benchmarks/simulate_decisions.py measures what that costs: see docs/evaluation.md.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

FACTOR = 4
FINALISTS = 4
HALVE_ABOVE = 8
"""Candidates; up to that many, all get all questions (search: auto)."""


@dataclass(frozen=True)
class Round:
    """One round of the search."""

    candidates: int
    """How many take part: the best of the round before."""
    share: float
    """Of the selection questions."""


def rounds(candidates: int, batches: int, search: Literal["auto", "halving", "full"]) -> list[Round]:
    """The rounds of a search; the last is on all questions.

    Args:
        candidates: how many there are.
        batches: of the smallest selection task; a round's questions are whole batches.
        search: as in the spec.
    """
    halve = search == "halving" or (search == "auto" and candidates > HALVE_ABOVE)
    plan = [Round(candidates, 1.0)]
    while halve and plan[-1].candidates > FINALISTS and batches >= FACTOR ** len(plan):
        plan.append(Round(max(math.ceil(plan[-1].candidates / FACTOR), FINALISTS), 1.0))
    return [Round(one.candidates, FACTOR ** -(len(plan) - 1 - index)) for index, one in enumerate(plan)]


def part(batches: int, share: float, seed: int) -> frozenset[int] | None:
    """Which batches a share of the questions is; None for all. Smaller shares are parts of larger ones.

    Drawn by the seed, not the first ones: files are often sorted by subject or difficulty.
    """
    if share == 1:
        return None
    order = list(range(batches))
    random.Random(seed).shuffle(order)
    return frozenset(order[: math.ceil(share * batches)])
