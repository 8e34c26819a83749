"""Error bars for accuracies and for differences of accuracies on the same questions. Pure functions of outcomes.

Outcomes are matrices "n k": n questions, k completions of each, 1.0 where correct, 0.0 where not, NaN where nothing is
known (a grader's time-out); a question without any known outcome is left out. The k completions of one question are not
independent, so the question is the unit (cluster): every variance is one between question means (Miller 2024, arXiv
2411.00640). Intervals are in `intervals`; quantiles and exact tests are scipy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relex_core.evaluate.intervals import accuracy_interval, difference_interval, is_sparse, t_quantile


def scipy_stats() -> Any:
    """scipy.stats, which takes seconds to import: the processes that grade import this package, and need none of it."""
    from scipy import stats

    return stats


Outcomes = NDArray[np.float64]
Interval = tuple[float, float]


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

    The interval is Wilson's with an effective number of trials: see `intervals.accuracy_interval`.

    Raises:
        ValueError: fewer than two questions.
    """
    values = _outcomes(outcomes)
    means = _question_means(values)
    n, k = len(means), values.shape[1]
    low, high = accuracy_interval(means, k, confidence)
    return Accuracy(n, k, float(means.mean()), _standard_error(means), (float(low), float(high)))


def paired_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Compare two candidates on the same questions, row by row.

    The interval: see `intervals.difference_interval`. Where few questions differ, or all by the same amount (two
    candidates that agree on all of 10 questions may still differ on the eleventh), it agrees with the exact test.

    Raises:
        ValueError: the shapes differ, or there are fewer than two questions with known outcomes.
    """
    a, b = _outcomes(first), _outcomes(second)
    if a.shape != b.shape:
        raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} cannot be paired")
    known = np.isfinite(a).any(axis=1) & np.isfinite(b).any(axis=1)
    first_means, second_means = _question_means(a[known]), _question_means(b[known])
    d = first_means - second_means
    n, k = len(d), a.shape[1]
    better, worse = int((d > 0).sum()), int((d < 0).sum())
    sparse = bool(is_sparse(d, k))
    low, high = map(float, difference_interval(first_means, second_means, k, confidence))
    p_value = _sign_test(better, worse) if k == 1 or sparse else float(scipy_stats().ttest_1samp(d, 0.0).pvalue)
    return PairedDifference(
        n=n,
        k=k,
        difference=float(d.mean()),
        standard_error=_standard_error(d),
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
    t_confidence = t_quantile(confidence, n)
    return float(half_width * (1 + scipy_stats().t.ppf(power, n - 1) / t_confidence))


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


@lru_cache(10_000)
def _sign_test(better: int, worse: int) -> float:
    """Exact two-sided p-value of as many gains and losses as that (McNemar's test where k = 1)."""
    return float(scipy_stats().binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _standard_error(means: Outcomes) -> float:
    return float(means.std(ddof=1)) / math.sqrt(len(means))
