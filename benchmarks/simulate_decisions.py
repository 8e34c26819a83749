"""How often are intervals and verdicts right? Simulated runs with known truth; prints the tables of docs/evaluation.md.

    python benchmarks/simulate_decisions.py [--runs 4000] [--only coverage|promote|power|tasks|guards|search] [--seed 0]

The world: question q has difficulty θ_q (logit normal around the last observed checkpoint's accuracy). A model's chance
on it is p = σ(θ_q + shift + 0.7 z), z normal and its own, so that two models of equal accuracy still disagree on many
questions. The truth is a model's mean p over all questions that could be asked, not over those that were. Greedy
answers (k = 1) and sampled ones (k = 8) are Bernoulli draws of p.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from relex_core.evaluate.search import part, rounds
from relex_core.evaluate.statistics import accuracy, p_above, paired_difference

Array = NDArray[np.float64]

DESIGNS = {"30 x 8": (30, 8), "500": (500, 1), "5000": (5000, 1)}
SPREAD, OWN = 1.5, 0.7
"""Standard deviations of difficulty and of a model's own strengths, in logits."""
POPULATION = 200_000


class World:
    """Questions and models of known accuracy."""

    def __init__(self, mean: float) -> None:
        rng = np.random.default_rng(12345)
        self._difficulty = SPREAD * rng.standard_normal(POPULATION)
        self._own = OWN * rng.standard_normal(POPULATION)
        self.centre = self._shift(mean)
        self._shifts = {0.0: self.centre}

    def truth(self, shift: float) -> float:
        return float(_sigmoid(self._difficulty + self._own + shift).mean())

    def _shift(self, mean: float) -> float:
        low, high = -12.0, 12.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.truth(middle) < mean else (low, middle)
        return low

    def shift_for(self, gain: float) -> float:
        """The shift of a model that is better than the centre by `gain`."""
        if gain not in self._shifts:
            self._shifts[gain] = self._shift(self.truth(self.centre) + gain)
        return self._shifts[gain]

    def answers(self, rng: np.random.Generator, n: int, k: int, shifts: list[float]) -> list[Array]:
        """Outcomes "n k" of models with these shifts on the same n new questions."""
        difficulty = SPREAD * rng.standard_normal(n)
        chances = [_sigmoid(difficulty + OWN * rng.standard_normal(n) + shift) for shift in shifts]
        return [(rng.random((n, k)) < p[:, None]).astype(float) for p in chances]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@functools.cache
def _binary(better: int, worse: int, same: int, confidence: float) -> tuple[float, float]:
    first = np.r_[np.ones(better), np.zeros(worse), np.ones(same)][:, None]
    second = np.r_[np.zeros(better), np.ones(worse), np.ones(same)][:, None]
    return paired_difference(first, second, confidence).interval


def interval(first: Array, second: Array, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the paired difference; k = 1 depends on three counts alone, which repeat."""
    if first.shape[1] > 1:
        return paired_difference(first, second, confidence).interval
    better, worse = int((first > second).sum()), int((first < second).sum())
    return _binary(better, worse, len(first) - better - worse, confidence)


@dataclass(frozen=True)
class Case:
    """One design at one accuracy of the last observed checkpoint."""

    name: str
    n: int
    k: int
    mean: float

    @property
    def world(self) -> World:
        return _world(self.mean)

    def covers_mean(self, rng: np.random.Generator) -> bool:
        low, high = accuracy(self.world.answers(rng, self.n, self.k, [self.world.centre])[0]).interval
        return low <= self.mean <= high

    def covers_gain(self, rng: np.random.Generator, gain: float) -> bool:
        low, high = self._interval(rng, self.world.shift_for(gain))
        return low <= gain <= high

    def passes(self, rng: np.random.Generator, gain: float, threshold: float = 0.0) -> bool:
        return self._interval(rng, self.world.shift_for(gain))[0] > threshold

    def best_passes(self, rng: np.random.Generator, *, confirm: bool) -> bool:
        """The best of twelve on 500 selection questions, of which none is better: three equal, nine worse."""
        gains = [0.0] * 3 + [-0.01] * 3 + [-0.02] * 3 + [-0.04] * 3
        shifts = [self.world.shift_for(gain) for gain in gains]
        *answers, last = self.world.answers(rng, 500, 1, [*shifts, self.world.centre])
        best = int(np.argmax([one.mean() for one in answers]))
        return (self._interval(rng, shifts[best]) if confirm else interval(answers[best], last))[0] > 0

    def _interval(self, rng: np.random.Generator, shift: float) -> tuple[float, float]:
        return interval(*self.world.answers(rng, self.n, self.k, [shift, self.world.centre]))


@functools.cache
def _world(mean: float) -> World:
    return World(mean)


def cases(*means: float) -> list[Case]:
    return [Case(f"{name} at {mean}", n, k, mean) for name, (n, k) in DESIGNS.items() for mean in means]


def share(runs: int, rng: np.random.Generator, event: Callable[[np.random.Generator], bool]) -> str:
    """How often an event happens, in %, with twice its standard error."""
    rate = float(np.mean([event(rng) for _ in range(runs)]))
    return f"{100 * rate:.1f} ± {200 * math.sqrt(max(rate * (1 - rate), 1 / runs) / runs):.1f}"


def show(headings: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    for row in (headings, ["---"] * len(headings), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def coverage(runs: int, rng: np.random.Generator) -> None:
    """95 % intervals: how often do they hold the truth, in %?"""
    rows = [
        [
            case.name,
            share(runs, rng, case.covers_mean),
            *(share(runs, rng, partial(case.covers_gain, gain=gain)) for gain in (0.0, 0.03)),
        ]
        for case in cases(0.1, 0.3, 0.7, 0.95)
    ]
    show(["questions at accuracy", "accuracy", "difference, none", "difference, +3 points"], rows)


def promote(runs: int, rng: np.random.Generator) -> None:
    """No candidate is better: how often is one promoted all the same, in %?"""
    rows = [
        [
            case.name,
            share(runs, rng, partial(case.passes, gain=0.0)),
            share(runs // 2, rng, partial(case.best_passes, confirm=True)),
            share(runs // 2, rng, partial(case.best_passes, confirm=False)),
        ]
        for case in cases(0.1, 0.3, 0.7, 0.95)
    ]
    headings = [
        "questions at accuracy",
        "one equal candidate",
        "best of 12",
        "best of 12, had the selection split decided",
    ]
    show(headings, rows)


def power(runs: int, rng: np.random.Generator) -> None:
    """A candidate is better by so many points: how often is it promoted, in %?"""
    gains = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
    rows = [
        [case.name, *(share(runs // 2, rng, partial(case.passes, gain=gain)) for gain in gains)]
        for case in cases(0.3, 0.7)
    ]
    show(["questions at accuracy", *(f"+{100 * gain:.0f}" for gain in gains)], rows)


def tasks(runs: int, rng: np.random.Generator) -> None:
    """Three confirmation tasks of 500 questions: how often is there a gain on one, in %?"""
    world, rows = _world(0.5), []
    for name, gains in {"no gain": (0, 0, 0), "+5 on one": (0.05, 0, 0), "+5 on all": (0.05, 0.05, 0.05)}.items():
        shifts = [world.shift_for(gain) for gain in gains]
        smallest = [
            min(p_above(*world.answers(rng, 500, 1, [shift, world.centre]), 0.0) for shift in shifts)
            for _ in range(runs // 8)
        ]
        found = [np.mean(np.array(smallest) < alpha) for alpha in (0.05 / 3, 0.05)]
        rows.append([name, *(f"{100 * rate:.1f}" for rate in found)])
    show(["three tasks", "with Holm", "without"], rows)


def guards(runs: int, rng: np.random.Generator) -> None:
    """Non-inferiority and guards, margin 2 points: how often does a candidate pass, in %?"""
    rows = [
        [case.name, *(share(runs // 2, rng, partial(case.passes, gain=gain, threshold=-0.02)) for gain in (-0.02, 0.0))]
        for case in cases(0.3, 0.7)
    ]
    show(["questions at accuracy", "exactly 2 points worse (must not)", "equal (should)"], rows)


def search(runs: int, rng: np.random.Generator) -> None:
    """What does halving lose against asking every candidate everything, in points of true accuracy, and save?"""
    rows = []
    for count in (6, 9, 12, 16, 32, 64):
        for n, spread in ((256, 0.03), (256, 0.1), (1024, 0.03), (1024, 0.1)):
            full, halved = (_search(runs // 8, rng, count, n, spread, kind) for kind in ("full", "halving"))
            losses = [f"{100 * loss:.2f}" for loss in (full[0], halved[0])]
            rows.append([str(count), str(n), str(spread), *losses, f"{100 * (1 - halved[1] / full[1]):.0f} %"])
    show(["candidates", "questions", "spread of true accuracies", "lost: full", "lost: halving", "answers saved"], rows)


def _search(runs: int, rng: np.random.Generator, count: int, n: int, spread: float, kind: str) -> tuple[float, float]:
    """Mean loss and mean number of answers; batches of 16."""
    losses, answers = [], 0
    batches = n // 16
    for run in range(runs):
        shifts = spread * 4 * rng.standard_normal(count)  # about 4 logits for 1 of accuracy near 0.5
        truth = _sigmoid(0.8 * shifts)
        difficulty = SPREAD * rng.standard_normal(n)
        chances = _sigmoid(difficulty[None] + OWN * rng.standard_normal((count, n)) + shifts[:, None])
        correct = rng.random((count, n)) < chances
        alive = np.arange(count)
        for one in rounds(count, batches, "halving" if kind == "halving" else "full"):
            alive = alive[: one.candidates]
            chosen = part(batches, one.share, run)
            columns = np.arange(n) if chosen is None else np.flatnonzero(np.isin(np.arange(n) // 16, list(chosen)))
            answers += len(alive) * len(columns)
            alive = alive[np.argsort(-correct[np.ix_(alive, columns)].mean(axis=1), kind="stable")]
        losses.append(truth.max() - truth[alive[0]])
    return float(np.mean(losses)), answers / runs


PARTS = {f.__name__: f for f in (coverage, promote, power, tasks, guards, search)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, part_ in PARTS.items():
        if options.only in (None, name):
            print(f"\n{part_.__doc__}\n")
            part_(options.runs, np.random.default_rng(options.seed))


if __name__ == "__main__":
    main()
