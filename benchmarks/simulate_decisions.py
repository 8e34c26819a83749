"""How often are intervals and verdicts right? Simulated runs with known truth; prints the tables of docs/evaluation.md.

    python benchmarks/simulate_decisions.py [--runs 4000] [--only NAME]

The world: a model's chance on a question is a draw from a Beta distribution with the model's accuracy as its mean, and
with the intraclass correlation `icc`: 0, every question is equally hard; 1, the model always or never finds it. What is
hard for one model is mostly hard for another: a Gaussian copula with correlation `alike`. The truth is a model's mean
over all questions that could be asked, not over those that were. Answers are Bernoulli draws: greedy ones (k = 1) and
sampled ones (k > 1). Thousands of data sets are judged at once by the functions that judge one.

`losses` has a world of its own, `RareLosses`: many small gains and a few total losses, which add up to nothing.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from relex_core.evaluate.intervals import accuracy_interval, difference_interval
from relex_core.evaluate.search import part, rounds

Array = NDArray[np.float64]
Event = Callable[[np.random.Generator, int], NDArray[np.bool_]]

DESIGNS = {"30 x 8": (30, 8), "500": (500, 1), "5000": (5000, 1)}
COVERAGE = {"30 x 8": (30, 8), "30": (30, 1), "100 x 4": (100, 4), "500": (500, 1)}
ACCURACIES = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
CORRELATIONS = (0.0, 0.1, 0.3, 0.6, 0.9)
LEVELS = 1 << 14
"""The Beta distribution is made of so many equally likely chances; the truth is their mean, exactly."""
ANSWERS_AT_ONCE = 1_000_000
SPREAD, OWN = 1.5, 0.7
"""For `search`: standard deviations of difficulty and of a model's own strengths, in logits."""


@functools.cache
def chances(mean: float, icc: float) -> Array:
    """The equally likely chances of a model of that accuracy "LEVELS"."""
    if icc == 0:
        return np.full(LEVELS, mean)
    quantiles = (np.arange(LEVELS) + 0.5) / LEVELS
    size = (1 - icc) / icc
    values: Array = stats.beta.ppf(quantiles, mean * size, (1 - mean) * size)
    return values


@dataclass(frozen=True)
class Case:
    """One design, and the accuracy of the last observed checkpoint."""

    n: int
    k: int
    mean: float
    icc: float = 0.35
    alike: float = 0.8

    def truth(self, gain: float = 0.0) -> float:
        return float(chances(round(self.mean + gain, 6), self.icc).mean())

    def answers(self, rng: np.random.Generator, runs: int, *gains: float) -> list[Array]:
        """Question means "runs n" of models with these gains over the last observed one, on the same new questions."""
        common = rng.standard_normal((runs, self.n))
        means = []
        for gain in gains:
            own = rng.standard_normal((runs, self.n))
            place = special.ndtr(math.sqrt(self.alike) * common + math.sqrt(1 - self.alike) * own)
            level = np.minimum((LEVELS * place).astype(int), LEVELS - 1)
            means.append(rng.binomial(self.k, chances(round(self.mean + gain, 6), self.icc)[level]) / self.k)
        return means

    def covers_mean(self, rng: np.random.Generator, runs: int) -> NDArray[np.bool_]:
        [answers] = self.answers(rng, runs, 0.0)
        return _holds(accuracy_interval(answers, self.k, 0.95), self.truth())

    def covers_gain(self, rng: np.random.Generator, runs: int, gain: float) -> NDArray[np.bool_]:
        interval = difference_interval(*self.answers(rng, runs, gain, 0.0), self.k, 0.95)
        return _holds(interval, self.truth(gain) - self.truth())

    def passes(
        self, rng: np.random.Generator, runs: int, gain: float, threshold: float = 0.0, confidence: float = 0.95
    ) -> NDArray[np.bool_]:
        low, _ = difference_interval(*self.answers(rng, runs, gain, 0.0), self.k, confidence)
        return low > threshold

    def beats_both(
        self, rng: np.random.Generator, runs: int, gain: float, base: float, with_base: bool = True
    ) -> NDArray[np.bool_]:
        """The rule `superior`: better than the last observed checkpoint, and than the base, `base` above that."""
        finalist, *references = self.answers(rng, runs, gain, 0.0, base)
        lows = [difference_interval(finalist, reference, self.k, 0.95)[0] for reference in references]
        return (lows[0] > 0) & ((lows[1] > 0) | (not with_base))

    def best_passes(self, rng: np.random.Generator, runs: int, *, confirm: bool) -> NDArray[np.bool_]:
        """The best of twelve on 500 selection questions, of which none is better: three equal, nine worse."""
        gains = [0.0] * 3 + [-0.01] * 3 + [-0.02] * 3 + [-0.04] * 3
        selection = Case(500, 1, self.mean, self.icc, self.alike)
        *candidates, last = selection.answers(rng, runs, *gains, 0.0)
        best = np.argmax([one.mean(axis=1) for one in candidates], axis=0)
        if not confirm:
            chosen = np.array(candidates)[best, np.arange(runs)]
            return difference_interval(chosen, last, 1, 0.95)[0] > 0
        found = np.empty(runs, dtype=bool)
        for index in np.unique(best):
            mine = best == index
            found[mine] = self.passes(rng, int(mine.sum()), gains[index])
        return found


@dataclass(frozen=True)
class RareLosses:
    """A finalist that is no better: it gains a little on many questions and loses a few completely."""

    n: int
    k: int
    gains: float
    """Share of the questions, with a chance of 0.4 of the last observed checkpoint."""
    losses: float
    """Share of the questions, with a chance of 1 of the last observed checkpoint and 0 of the finalist."""

    @property
    def gain(self) -> float:
        """In chance on each of the gained questions."""
        return self.losses / self.gains

    def interval(self, rng: np.random.Generator, runs: int) -> tuple[Array, Array]:
        kind = rng.random((runs, self.n))
        gained, lost = kind < self.gains, (kind >= self.gains) & (kind < self.gains + self.losses)
        alike = (rng.random((runs, self.n)) < 0.5) * 1.0  # both always or never right on the others
        finalist = np.where(gained, 0.4 + self.gain, np.where(lost, 0.0, alike))
        last = np.where(gained, 0.4, np.where(lost, 1.0, alike))
        first, second = (rng.binomial(self.k, chance) / self.k for chance in (finalist, last))
        return difference_interval(first, second, self.k, 0.95)

    def promoted(self, rng: np.random.Generator, runs: int) -> NDArray[np.bool_]:
        return self.interval(rng, runs)[0] > 0

    def covered(self, rng: np.random.Generator, runs: int) -> NDArray[np.bool_]:
        return _holds(self.interval(rng, runs), 0.0)


def _holds(interval: tuple[Array, Array], truth: float) -> NDArray[np.bool_]:
    low, high = interval
    return (low - 1e-12 <= truth) & (truth <= high + 1e-12)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def rate(runs: int, rng: np.random.Generator, event: Event, size: int = 10_000) -> float:
    """How often an event happens; `size` answers a run bound the memory."""
    block = max(ANSWERS_AT_ONCE // size, 1)
    happened = [event(rng, min(block, runs - start)) for start in range(0, runs, block)]
    return float(np.concatenate(happened).mean())


def share(runs: int, rng: np.random.Generator, event: Event, size: int = 10_000) -> str:
    """As `rate`, in %, with twice its standard error."""
    found = rate(runs, rng, event, size)
    return f"{100 * found:.1f} ± {200 * math.sqrt(max(found * (1 - found), 1 / runs) / runs):.1f}"


def cases(*means: float) -> dict[str, Case]:
    return {f"{name} at {mean}": Case(n, k, mean) for name, (n, k) in DESIGNS.items() for mean in means}


def show(headings: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    for row in (headings, ["---"] * len(headings), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def coverage(runs: int, rng: np.random.Generator) -> None:
    """95 % intervals of one accuracy: how often do they hold the truth, in %, by intraclass correlation?"""
    rows = []
    for (name, (n, k)), mean in product(COVERAGE.items(), ACCURACIES):
        found = [
            f"{100 * rate(5 * runs, rng, Case(n, k, mean, icc).covers_mean, n):.1f}" if k > 1 or icc == 0 else ""
            for icc in CORRELATIONS
        ]
        rows.append([f"{name} at {mean}", *found])
    show(["questions at accuracy", *map(str, CORRELATIONS)], rows)


def differences(runs: int, rng: np.random.Generator) -> None:
    """95 % intervals of a difference: how often do they hold the truth, in % (lowest to highest of 6 worlds)?

    The worlds: gains of 0, 3 and 10 points (near 1: 0, 1 and 3), models alike at 0.5 and at 0.9.
    """
    rows = []
    for (name, (n, k)), mean in product(COVERAGE.items(), ACCURACIES):
        gains = (0.0, 0.03, 0.1) if mean < 0.9 else (0.0, 0.01, 0.03)
        row = [f"{name} at {mean}"]
        for icc in CORRELATIONS[1:]:
            if k == 1 and icc not in (0.3, 0.9):  # it matters through how often the two models agree, no more
                row.append("")
                continue
            found = [
                100 * rate(runs, rng, partial(Case(n, k, mean, icc, alike).covers_gain, gain=gain), 5 * n)
                for gain, alike in product(gains, (0.5, 0.9))
            ]
            row.append(f"{min(found):.1f} to {max(found):.1f}")
        rows.append(row)
    show(["questions at accuracy", *map(str, CORRELATIONS[1:])], rows)


def promote(runs: int, rng: np.random.Generator) -> None:
    """No candidate is better: how often is one promoted all the same, in %?"""
    rows = [
        [
            name,
            share(runs, rng, partial(case.passes, gain=0.0), 5 * case.n),
            share(runs // 2, rng, partial(case.best_passes, confirm=True)),
            share(runs // 2, rng, partial(case.best_passes, confirm=False)),
        ]
        for name, case in cases(0.1, 0.3, 0.7, 0.95).items()
    ]
    headings = [
        "questions at accuracy",
        "one equal candidate",
        "best of 12",
        "best of 12, had the selection split decided",
    ]
    show(headings, rows)


def losses(runs: int, rng: np.random.Generator) -> None:
    """No gain in all: small ones on many questions, total losses on few. Promoted, and 0 in the interval, in %?"""
    rows = []
    for n, k, gains, lost in (
        (30, 8, 0.4, 0.05),
        (240, 1, 0.4, 0.05),
        (100, 8, 0.1, 0.025),
        (100, 8, 0.2, 0.02),
        (100, 4, 0.1, 0.025),
        (400, 1, 0.1, 0.025),
        (800, 1, 0.1, 0.025),
    ):
        world = RareLosses(n, k, gains, lost)
        name = f"{n} x {k}" if k > 1 else str(n)
        found = [share(5 * runs, rng, event, 5 * n) for event in (world.promoted, world.covered)]
        rows.append([name, f"+{100 * world.gain:.3g} on {100 * gains:.3g} %", f"{100 * lost:.3g} %", *found])
    show(["questions", "gains, points", "lost completely", "promoted", "interval holds 0"], rows)


def base(runs: int, rng: np.random.Generator) -> None:
    """Promoted, in %, with and without asking for better than the base; 500 questions, last observed at 0.6."""
    case, rows = Case(500, 1, 0.6), []
    for above, gain in product((-0.1, 0.0, 0.05), (0.0, 0.05, 0.1)):
        found = [
            share(runs // 2, rng, partial(case.beats_both, gain=gain, base=above, with_base=asked), 8 * case.n)
            for asked in (True, False)
        ]
        rows.append([f"{100 * above:+.0f}", f"{100 * gain:+.0f}", *found])
    show(["base against last observed", "finalist against last observed", "with", "without"], rows)


def power(runs: int, rng: np.random.Generator) -> None:
    """A candidate is better by so many points: how often is it promoted, in %?"""
    gains = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
    rows = [
        [name, *(share(runs // 2, rng, partial(case.passes, gain=gain), 5 * case.n) for gain in gains)]
        for name, case in cases(0.3, 0.7).items()
    ]
    show(["questions at accuracy", *(f"+{100 * gain:.0f}" for gain in gains)], rows)


def tasks(runs: int, rng: np.random.Generator) -> None:
    """Three confirmation tasks of 500 questions: how often is there a gain on one, in %?"""
    case, rows = Case(500, 1, 0.5), []

    def found(rng: np.random.Generator, runs: int, gains: tuple[float, ...], confidence: float) -> NDArray[np.bool_]:
        return np.any([case.passes(rng, runs, gain, confidence=confidence) for gain in gains], axis=0)

    for name, gains in {"no gain": (0, 0, 0), "+5 on one": (0.05, 0, 0), "+5 on all": (0.05, 0.05, 0.05)}.items():
        asked = (1 - 0.05 / 3, 0.95)
        rows.append([name, *(share(runs // 2, rng, partial(found, gains=gains, confidence=c)) for c in asked)])
    show(["three tasks", "with Holm", "without"], rows)


def guards(runs: int, rng: np.random.Generator) -> None:
    """Non-inferiority and guards, margin 2 points: how often does a candidate pass, in %?"""
    rows = [
        [
            name,
            *(
                share(runs // 2, rng, partial(case.passes, gain=gain, threshold=-0.02), 5 * case.n)
                for gain in (-0.02, 0.0)
            ),
        ]
        for name, case in cases(0.3, 0.7).items()
    ]
    show(["questions at accuracy", "exactly 2 points worse (must not)", "equal (should)"], rows)


def search(runs: int, rng: np.random.Generator) -> None:
    """What does halving lose against asking every candidate everything, in points of true accuracy, and save?"""
    rows = []
    for count in (6, 9, 12, 16, 32, 64):
        for n, spread in ((256, 0.03), (256, 0.1), (1024, 0.03), (1024, 0.1)):
            full, halved = (_search(runs // 40, rng, count, n, spread, kind) for kind in ("full", "halving"))
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


PARTS = {f.__name__: f for f in (coverage, differences, promote, losses, base, power, tasks, guards, search)}


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
