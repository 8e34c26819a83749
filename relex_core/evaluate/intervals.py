"""Confidence intervals of a mean over questions, and of a paired difference. Pure functions of arrays.

All take question means "... n" (the mean outcome of each question's k completions, in [0, 1]) and give low and high
"...": the leading axes are independent data sets, so a simulation judges thousands at once with the code that judges
one. How often they hold the truth is in docs/evaluation.md, by benchmarks/simulate_decisions.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bounds = tuple[Array, Array]

# With fewer discordant questions than this, neither spread nor asymptotics are to be trusted: four gains and no loss
# would be called significant, where the exact test says p = 0.125. For k = 1, 25 is the usual limit of McNemar's
# approximation. For k > 1 the differences are graded, and below 6 no exact test can be significant at 5 %.
FEW_DISCORDANT, FEW_DISCORDANT_GRADED = 25, 6


def accuracy_interval(means: Array, k: int, confidence: float) -> Bounds:
    """Wilson's score interval with an effective number of trials and a t quantile (after Korn & Graubard 1998).

    The number of trials is n / D. D is the design effect: the variance of the question means over that of single
    answers, mean (1 − mean), between 1 / k (the k answers of a question are independent) and 1 (they are all alike).
    It is a guess where few questions say anything: with q questions that are not all wrong (or, near 1, all right) the
    weight 2^(1−q) goes to the cautious D = 1. Without that 88 % instead of 97 % are covered at 30 x 8 and 0.05.
    """
    n = means.shape[-1]
    mean = means.mean(axis=-1)
    single = mean * (1 - mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(single > 0, np.clip(means.var(axis=-1, ddof=1) / single, 1 / k, 1.0), 1.0)
    telling = np.minimum((means > 0).sum(axis=-1), (means < 1).sum(axis=-1))
    caution = 0.5 ** np.maximum(telling - 1, 0)
    return wilson(mean, n / (effect + caution * (1 - effect)), t_quantile(confidence, n))


def difference_interval(first: Array, second: Array, k: int, confidence: float) -> Bounds:
    """Of the mean of first − second, the same questions in the same order.

    k = 1: the t-interval of the differences. k > 1: the wider, on each side, of that and of `recovered`, which leans
    inwards near 0 and 1 as the t-interval should. In both cases, where few questions differ (`FEW_DISCORDANT`) or all
    differ by the same amount (the spread is then 0, the uncertainty is not), widened to hold `scored` and `exact`.
    """
    d = first - second
    intervals = [t_interval(d, confidence)]
    if k > 1:
        intervals.append(recovered(first, second, k, confidence))
    low, high = _union(intervals)
    if (sparse := is_sparse(d, k)).any():
        wide_low, wide_high = _union([(low, high), scored(d, confidence), exact(d, confidence)])
        low, high = np.where(sparse, wide_low, low), np.where(sparse, wide_high, high)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def is_sparse(d: Array, k: int) -> NDArray[np.bool_]:
    """Whether so few questions differ, or all so equally, that only exact methods will do."""
    few = (d != 0).sum(axis=-1) < (FEW_DISCORDANT if k == 1 else FEW_DISCORDANT_GRADED)
    equal: NDArray[np.bool_] = few | (np.ptp(d, axis=-1) < 1e-12)  # 2/3 − 1/3 is not quite 1/3 − 0
    return equal


def t_interval(d: Array, confidence: float) -> Bounds:
    """Student's, of the mean of `d`."""
    n = d.shape[-1]
    mean, half = d.mean(axis=-1), t_quantile(confidence, n) * d.std(axis=-1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def recovered(first: Array, second: Array, k: int, confidence: float) -> Bounds:
    """The variances of the difference at its limits, recovered from the two accuracies' own intervals.

    MOVER (Zou & Donner 2008), with the correlation of the question means (Newcombe 1998, method 10, for k = 1).
    """
    a, b = first.mean(axis=-1), second.mean(axis=-1)
    a_low, a_high = accuracy_interval(first, k, confidence)
    b_low, b_high = accuracy_interval(second, k, confidence)
    r = _correlation(first, second)
    low = np.sqrt(_distance(a - a_low, b_high - b, r))
    high = np.sqrt(_distance(a_high - a, b - b_low, r))
    return a - b - low, a - b + high


def scored(d: Array, confidence: float) -> Bounds:
    """Wilson's intervals of the shares of better and worse questions, combined by square-and-add (Newcombe 1998).

    It has a width even where nothing differs. Scaled by the mean size of a difference, 1 where none was seen.
    """
    n, size = d.shape[-1], _size(d)
    up, down = (d > 0).mean(axis=-1), (d < 0).mean(axis=-1)
    z = normal_quantile(confidence)
    up_low, up_high = wilson(up, n, z)
    down_low, down_high = wilson(down, n, z)
    low = up - down - np.hypot(up - up_low, down_high - down)
    high = up - down + np.hypot(up_high - up, down - down_low)
    return size * low, size * high


def exact(d: Array, confidence: float) -> Bounds:
    """Given how many questions differ, the Clopper-Pearson interval of the share of them that is better, scaled alike.

    It holds 0 exactly when McNemar's test (or the sign test) is not significant; infinite, the wrong way round, where
    nothing differs.
    """
    better, worse = (d > 0).sum(axis=-1), (d < 0).sum(axis=-1)
    tail = (1 - confidence) / 2
    low = np.where(better > 0, scipy_special().betaincinv(np.maximum(better, 1), worse + 1, tail), 0.0)
    high = np.where(worse > 0, scipy_special().betaincinv(better + 1, np.maximum(worse, 1), 1 - tail), 1.0)
    differ = better + worse
    scale = _size(d) * differ / d.shape[-1]
    return np.where(differ, scale * (2 * low - 1), np.inf), np.where(differ, scale * (2 * high - 1), -np.inf)


def wilson(mean: Array, trials: Array | float, quantile: float) -> Bounds:
    """Wilson's score interval; `trials` need not be whole, nor `quantile` the normal one."""
    square = quantile**2
    centre = (mean + square / (2 * trials)) / (1 + square / trials)
    half = quantile / (1 + square / trials) * np.sqrt(mean * (1 - mean) / trials + square / (4 * trials**2))
    # At a mean of 0 or 1 the two terms cancel, but for a rounding error on the wrong side.
    return np.clip(centre - half, 0.0, mean), np.clip(centre + half, mean, 1.0)


def t_quantile(confidence: float, n: int) -> float:
    """Two-sided, of n questions."""
    return float(scipy_special().stdtrit(n - 1, (1 + confidence) / 2))


def normal_quantile(confidence: float) -> float:
    """Two-sided."""
    return float(scipy_special().ndtri((1 + confidence) / 2))


def scipy_special() -> Any:
    """Imported when it is needed: the processes that grade import this package, and need none of it."""
    from scipy import special

    return special


def _union(intervals: list[Bounds]) -> Bounds:
    lows, highs = zip(*intervals, strict=True)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def _distance(x: Array, y: Array, r: Array) -> Array:
    return np.maximum(x**2 - 2 * r * x * y + y**2, 0.0)


def _correlation(first: Array, second: Array) -> Array:
    """Pearson's, of the question means; 0 where one of them does not vary."""
    a, b = first - first.mean(axis=-1, keepdims=True), second - second.mean(axis=-1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    product = (a * b).sum(axis=-1)
    return np.where(norm > 0, product / np.where(norm > 0, norm, 1.0), 0.0)


def _size(d: Array) -> Array:
    """Mean size of a difference among the questions that differ; 1 where none does."""
    differ = (d != 0).sum(axis=-1)
    return np.where(differ > 0, np.abs(d).sum(axis=-1) / np.maximum(differ, 1), 1.0)
