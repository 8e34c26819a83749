"""Error bars for accuracies and for differences of accuracies on the same questions. Pure functions of outcomes.

Outcomes are matrices "n k": n questions, k completions of each, 1.0 where correct, 0.0 where not, NaN where nothing is
known (a grader's time-out); a question without any known outcome is left out. The k completions of one question are not
independent, so the question is the unit (cluster): every variance is one between question means (Miller 2024, arXiv
2411.00640). Quantiles and exact tests are scipy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _stats() -> Any:
    """scipy.stats, which takes seconds to import: the processes that grade import this package, and need none of it."""
    from scipy import stats

    return stats


Outcomes = NDArray[np.float64]
Interval = tuple[float, float]

# With fewer discordant questions than this, a t-interval of the difference is not to be trusted (it would call 4 gains
# and no loss significant, where the exact test says p = 0.125). 25 is the usual limit for McNemar's approximation. With
# k > 1 the differences are graded and the t-interval is right earlier (simulated: docs/evaluation.md).
FEW_DISCORDANT, FEW_DISCORDANT_GRADED = 25, 10


@dataclass(frozen=True)
class Accuracy:
    """Mean outcome with its uncertainty."""

    n: int
    k: int
    mean: float
    standard_error: float
    """Clustered by question: standard deviation of the question means / sqrt(n)."""
    interval: Interval


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the per-question differences first − second, with its uncertainty."""

    n: int
    k: int
    difference: float
    standard_error: float
    interval: Interval
    confidence: float
    p_value: float
    """Two-sided, against no difference."""
    test: str
    """"mcnemar" (exact; k = 1), "sign" (exact; few questions differ), or "t"."""
    better: int
    """Questions on which the first does better."""
    worse: int
    smallest_detectable: float
    """The true difference that would be found with a power of 80 % at this n, k and spread."""


def accuracy(outcomes: ArrayLike, confidence: float = 0.95) -> Accuracy:
    """Mean accuracy with a question-clustered standard error and an interval inside [0, 1].

    k = 1: Wilson's score interval. k > 1: Wilson's with the effective number of trials mean (1 − mean) / SE², at least
    n and at most n k (n where SE = 0), and the t quantile of n − 1 degrees of freedom in the place of the normal one:
    near the middle it is the t-interval of the question means, near 0 and 1 it leans inwards as it must.

    Raises:
        ValueError: fewer than two questions.
    """
    values = _outcomes(outcomes)
    means = _question_means(values)
    n, k = len(means), values.shape[1]
    mean, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(n)
    if k == 1:
        return Accuracy(n, k, mean, error, _wilson(mean, n, confidence))
    trials = min(max(mean * (1 - mean) / error**2, n), n * k) if error else n
    return Accuracy(n, k, mean, error, _clustered_wilson(mean, trials, n, confidence))


def paired_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Compare two candidates on the same questions, row by row.

    The interval is the t-interval of the per-question differences. Where fewer than 25 questions differ (10 for
    k > 1), or all differ by the same amount (the spread is then 0, not the uncertainty: two candidates that agree on
    all of 10 questions may still differ on the eleventh), it is widened to hold two more: see `_sparse_intervals`.

    Raises:
        ValueError: the shapes differ, or there are fewer than two questions with known outcomes.
    """
    a, b = _outcomes(first), _outcomes(second)
    if a.shape != b.shape:
        raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} cannot be paired")
    known = np.isfinite(a).any(axis=1) & np.isfinite(b).any(axis=1)
    d = _question_means(a[known]) - _question_means(b[known])
    n, k = len(d), a.shape[1]
    better, worse = int((d > 0).sum()), int((d < 0).sum())
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
    sparse = (
        better + worse < (FEW_DISCORDANT if k == 1 else FEW_DISCORDANT_GRADED) or np.ptp(d) < 1e-12
    )  # 2/3 − 1/3 is not quite 1/3 − 0
    intervals = [_t_interval(mean, error, n, confidence)]
    if sparse:
        intervals += _sparse_intervals(d, better, worse, confidence)
    low, high = max(min(low for low, _ in intervals), -1.0), min(max(high for _, high in intervals), 1.0)
    exact = k == 1 or sparse
    p_value = _sign_test(better, worse) if exact else float(_stats().ttest_1samp(d, 0.0).pvalue)
    return PairedDifference(
        n=n,
        k=k,
        difference=mean,
        standard_error=error,
        interval=(low, high),
        confidence=confidence,
        p_value=p_value,
        test="mcnemar" if k == 1 else "sign" if sparse else "t",
        better=better,
        worse=worse,
        smallest_detectable=smallest_detectable((high - low) / 2, n, confidence),
    )


def p_above(first: ArrayLike, second: ArrayLike, threshold: float) -> float:
    """Smallest α at which the (1 − α) interval of first − second lies wholly above `threshold`: the inverted interval.

    Twice the one-sided p-value of "the difference is at most `threshold`"; 1.0 if not even a 2 % interval does.
    """
    low, high = math.log(1e-12), math.log(0.98)  # of α
    if paired_difference(first, second, 1 - math.exp(high)).interval[0] <= threshold:
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        above = paired_difference(first, second, 1 - math.exp(middle)).interval[0] > threshold
        low, high = (low, middle) if above else (middle, high)
    return math.exp(high)


def smallest_detectable(half_width: float, n: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """The true difference whose interval of that half width would exclude 0 with the given power.

    (t_(1−α/2) + t_power) · SE with n − 1 degrees of freedom, where SE = half width / t_(1−α/2).
    """
    t_confidence = _stats().t.ppf((1 + confidence) / 2, n - 1)
    return float(half_width * (1 + _stats().t.ppf(power, n - 1) / t_confidence))


def _outcomes(outcomes: ArrayLike) -> Outcomes:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise ValueError(f"outcomes have shape {values.shape}; expected (n, k) with n >= 2 questions")
    return values


def _question_means(values: Outcomes) -> Outcomes:
    """Mean known outcome of each question "n" that has one."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    means: Outcomes = np.where(known, values, 0.0).sum(axis=1)[counts > 0] / counts[counts > 0]
    if len(means) < 2:
        raise ValueError("outcomes are known of fewer than two questions")
    return means


def _t_interval(mean: float, error: float, n: int, confidence: float) -> Interval:
    half = float(_stats().t.ppf((1 + confidence) / 2, n - 1)) * error
    return mean - half, mean + half


def _clustered_wilson(mean: float, trials: float, n: int, confidence: float) -> Interval:
    """Wilson's formula with a t quantile and an effective number of trials (after Korn & Graubard 1998)."""
    t = float(_stats().t.ppf((1 + confidence) / 2, n - 1))
    centre = (mean + t * t / (2 * trials)) / (1 + t * t / trials)
    half = t / (1 + t * t / trials) * math.sqrt(mean * (1 - mean) / trials + (t / (2 * trials)) ** 2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _wilson(mean: float, trials: int, confidence: float) -> Interval:
    return _proportion(round(mean * trials), trials, confidence, "wilson")


@lru_cache(10_000)  # scipy takes a millisecond, and the same counts come again and again
def _proportion(successes: int, trials: int, confidence: float, method: str) -> Interval:
    result = _stats().binomtest(successes, trials).proportion_ci(confidence, method=method)
    return float(result.low), float(result.high)


@lru_cache(10_000)
def _sign_test(better: int, worse: int) -> float:
    """Exact two-sided p-value of as many gains and losses as that (McNemar's test where k = 1)."""
    return float(_stats().binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sparse_intervals(d: Outcomes, better: int, worse: int, confidence: float) -> list[Interval]:
    """Two intervals of the mean of `d` "n" that stay honest when few questions differ.

    *Score*: Wilson's intervals of the shares of better and worse questions, combined by square-and-add (Newcombe 1998;
    Zou & Donner 2008); it has a width even where nothing differs. *Exact*: given that many discordant questions, the
    Clopper-Pearson interval of the share that is better; it holds 0 exactly when McNemar's test (or the sign test) is
    not significant. Both are scaled by the mean size of a difference, 1 where none was seen.
    """
    n, discordant = len(d), better + worse
    size = float(np.abs(d).sum()) / discordant if discordant else 1.0
    up, down = better / n, worse / n
    up_low, up_high = _wilson(up, n, confidence)
    down_low, down_high = _wilson(down, n, confidence)
    low = up - down - math.hypot(up - up_low, down_high - down)
    high = up - down + math.hypot(up_high - up, down - down_low)
    intervals = [(size * low, size * high)]
    if discordant:
        share_low, share_high = _proportion(better, discordant, confidence, "exact")
        scale = size * discordant / n
        intervals.append((scale * (2 * share_low - 1), scale * (2 * share_high - 1)))
    return intervals
