"""Intervals and tests against scipy, brute force and simulation."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from relex_core.evaluate import intervals
from relex_core.evaluate.statistics import accuracy, p_above, paired_difference, smallest_detectable

OUTCOMES = arrays(np.float64, st.tuples(st.integers(2, 40), st.integers(1, 4)), elements=st.sampled_from([0.0, 1.0]))


def discordant(better, worse, same):
    first = [1] * better + [0] * worse + [1] * same
    second = [0] * better + [1] * worse + [1] * same
    return np.array(first)[:, None], np.array(second)[:, None]


COUNTS = [(0, 5), (0, 50), (1, 50), (31, 50), (50, 50), (700, 1000)]


def t_confidence(n):
    """The confidence whose normal quantile is the t quantile of n questions at 95 %."""
    return 2 * stats.norm.cdf(stats.t.ppf(0.975, n - 1)) - 1


@pytest.mark.parametrize("correct, n", COUNTS)
def test_single_samples_get_wilsons_interval_with_a_t_quantile(correct, n):
    estimate = accuracy([[1.0]] * correct + [[0.0]] * (n - correct))
    expected = stats.binomtest(correct, n).proportion_ci(t_confidence(n), method="wilson")
    p = correct / n
    assert estimate.mean == pytest.approx(p)
    assert estimate.standard_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert estimate.interval == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("correct, n", COUNTS)
def test_wilson_is_scipys(correct, n):
    expected = stats.binomtest(correct, n).proportion_ci(0.9, method="wilson")
    assert intervals.wilson(np.array(correct / n), n, intervals.normal_quantile(0.9)) == pytest.approx(
        (expected.low, expected.high)
    )


@pytest.mark.parametrize("better, worse", [(0, 3), (5, 0), (7, 2), (20, 20)])
def test_the_exact_interval_is_clopper_and_pearsons(better, worse):
    first, second = discordant(better, worse, 50)
    expected = stats.binomtest(better, better + worse).proportion_ci(0.95, method="exact")
    share = (better + worse) / (50 + better + worse)
    got = intervals.exact((first - second)[:, 0], 0.95)
    assert got == pytest.approx((share * (2 * expected.low - 1), share * (2 * expected.high - 1)))


def test_many_data_sets_at_once_are_judged_like_each_alone():
    rng = np.random.default_rng(4)
    outcomes = rng.binomial(1, rng.beta(0.1, 0.5, (2, 40, 30, 1)), (2, 40, 30, 8)).astype(float)
    first, second = outcomes.mean(axis=-1)
    low, high = intervals.accuracy_interval(first, 8, 0.95)
    d_low, d_high = intervals.difference_interval(first, second, 8, 0.95)
    for i in range(40):
        assert accuracy(outcomes[0, i]).interval == pytest.approx((low[i], high[i]))
        assert paired_difference(outcomes[0, i], outcomes[1, i]).interval == pytest.approx((d_low[i], d_high[i]))


def test_repeating_every_answer_does_not_make_the_interval_narrower():
    once = np.random.default_rng(0).integers(0, 2, (60, 1)).astype(float)
    eight_times = np.repeat(once, 8, axis=1)
    assert accuracy(eight_times).standard_error == pytest.approx(accuracy(once).standard_error)
    # 60 questions x 8 taken for independent would be sqrt(8) narrower.
    low, high = accuracy(eight_times).interval
    expected = stats.t.interval(0.95, 59, once.mean(), stats.sem(once[:, 0]))
    assert (low, high) == pytest.approx(expected, abs=0.01)  # sqrt(8) would be 0.08


def test_sampled_answers_near_the_middle_get_nearly_the_t_interval_of_question_means():
    outcomes = np.random.default_rng(1).binomial(1, 0.5, (2000, 8)).astype(float)
    expected = stats.t.interval(0.95, 1999, outcomes.mean(), stats.sem(outcomes.mean(axis=1)))
    assert accuracy(outcomes).interval == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_at_the_edges_the_questions_count_as_trials(value):
    wilson = stats.binomtest(int(30 * value), 30).proportion_ci(t_confidence(30), "wilson")
    assert accuracy(np.full((30, 8), value)).interval == pytest.approx((wilson.low, wilson.high))


@given(OUTCOMES)
def test_the_interval_lies_in_the_unit_range_and_holds_the_mean(outcomes):
    estimate = accuracy(outcomes)
    low, high = estimate.interval
    assert 0 <= low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= high <= 1
    assert high > low


@pytest.mark.parametrize("better, worse", [(0, 1), (4, 0), (7, 2), (20, 20), (60, 31)])
def test_mcnemar_is_exact(better, worse):
    """Against the sum of binomial terms: all splits of the discordant pairs that are no likelier than this one."""
    total = better + worse
    terms = [math.comb(total, i) / 2**total for i in range(total + 1)]
    expected = sum(term for term in terms if term <= terms[better] * (1 + 1e-9))
    result = paired_difference(*discordant(better, worse, 50))
    assert (result.better, result.worse, result.test) == (better, worse, "mcnemar")
    assert result.p_value == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 4])
def test_many_discordant_questions_give_scipys_paired_t_interval(k):
    """For k > 1 it is the wider of two that agree away from 0 and 1."""
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, (2, 200, k)).astype(float)
    result = paired_difference(first, second, confidence=0.9)
    oracle = stats.ttest_rel(first.mean(axis=1), second.mean(axis=1))
    low, high = oracle.confidence_interval(0.9)
    assert result.interval == pytest.approx((low, high), abs=1e-9 if k == 1 else 1e-3)
    assert result.interval[0] <= low + 1e-12 and result.interval[1] >= high - 1e-12
    assert result.standard_error == pytest.approx(abs(result.difference / oracle.statistic))
    if k > 1:
        assert (result.test, result.p_value) == ("t", pytest.approx(oracle.pvalue))


def test_sampled_answers_near_the_edge_lean_inwards():
    """From 0.02 to 0.1, on 30 questions x 8: the t-interval is symmetric, and reaches below what can be true."""
    rng = np.random.default_rng(5)
    first, second = (rng.binomial(1, p, (30, 8)).astype(float) for p in (0.1, 0.02))
    low, high = paired_difference(first, second).interval
    t = stats.ttest_rel(first.mean(axis=1), second.mean(axis=1)).confidence_interval()
    middle = first.mean() - second.mean()
    assert high - middle > middle - low - 1e-12
    assert low <= t.low and high > t.high


def test_few_discordant_questions_never_contradict_the_exact_test():
    for better in range(25):
        for worse in range(25 - better):
            result = paired_difference(*discordant(better, worse, 300))
            low, high = result.interval
            assert low <= result.difference <= high
            assert (low > 0 or high < 0) <= (result.p_value < 0.05), (better, worse)


@pytest.mark.parametrize("k", [1, 3])
def test_agreement_everywhere_is_not_certainty(k):
    """Equal on all of n questions: the difference is 0, its interval shrinks with n but never to nothing."""
    widths = []
    for n in (5, 50, 500):
        outcomes = np.ones((n, k))
        result = paired_difference(outcomes, outcomes)
        low, high = result.interval
        assert (result.difference, result.p_value, low) == (0, 1, -high)
        assert result.smallest_detectable > high
        widths.append(high)
    assert widths == sorted(widths, reverse=True)
    wilson = stats.binomtest(0, 500).proportion_ci(0.95 if k == 1 else t_confidence(500), method="wilson")
    assert widths[-1] >= wilson.high * (1 - 1e-9)
    assert widths[-1] == pytest.approx(wilson.high, rel=0.01 if k > 1 else 1e-6)


def test_always_better_is_significant_only_with_enough_questions():
    assert paired_difference(np.ones((4, 1)), np.zeros((4, 1))).interval[0] < 0
    many = paired_difference(np.ones((100, 1)), np.zeros((100, 1)))
    assert many.interval[0] > 0.9
    assert many.interval[0] < 1 == many.interval[1]


@given(OUTCOMES, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_swapping_negates(first, random):
    second = np.array([[float(random.random() < 0.5) for _ in row] for row in first])
    result, swapped = paired_difference(first, second), paired_difference(second, first)
    assert swapped.difference == pytest.approx(-result.difference)
    assert swapped.interval == pytest.approx((-result.interval[1], -result.interval[0]))
    assert swapped.p_value == pytest.approx(result.p_value)
    order = random.sample(range(len(first)), len(first))
    shuffled = paired_difference(first[order], second[order])
    assert shuffled.interval == pytest.approx(result.interval)


def test_unpaired_shapes_and_single_questions_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(np.ones((3, 1)), np.ones((4, 1)))
    with pytest.raises(ValueError, match="n >= 2"):
        accuracy([[1.0]])


@functools.cache
def interval(better, worse, n):
    return paired_difference(*discordant(better, worse, n - better - worse)).interval


def coverage(draw, truth, repetitions=600, seed=0):
    rng = np.random.default_rng(seed)
    intervals = (draw(rng) for _ in range(repetitions))
    return np.mean([low <= truth <= high for low, high in intervals])


def test_clustered_intervals_cover_the_truth():
    """30 questions x 8 samples whose difficulty varies: the case in which independent samples would cover 70 %."""

    def draw(rng):
        return accuracy(rng.binomial(1, rng.beta(0.6, 0.4, (30, 1)), (30, 8))).interval

    assert 0.925 <= coverage(draw, 0.6) <= 0.975


@pytest.mark.parametrize("n, share", [(400, 0.3), (400, 0.02)])
def test_paired_intervals_cover_the_truth_and_seldom_see_a_gain_in_nothing(n, share):
    """No true difference; a share of the questions is answered differently by chance: many, or very few."""
    false_gains = []

    def draw(rng):
        better, worse, _ = rng.multinomial(n, [share / 2, share / 2, 1 - share])
        low, high = interval(better, worse, n)
        false_gains.append(low > 0)
        return low, high

    assert coverage(draw, 0.0) >= 0.93
    assert np.mean(false_gains) <= 0.04  # nominal 0.025


def test_the_smallest_detectable_difference_is_found_four_times_in_five():
    n, share = 500, 0.3
    error = math.sqrt(share / n)
    gain = smallest_detectable(float(stats.t.ppf(0.975, n - 1)) * error, n)
    rng, found = np.random.default_rng(3), []
    for _ in range(600):
        better, worse, _ = rng.multinomial(n, [(share + gain) / 2, (share - gain) / 2, 1 - share])
        found.append(interval(better, worse, n)[0] > 0)
    assert 0.75 <= np.mean(found) <= 0.86


def test_unknown_outcomes_are_left_out():
    """A question counts with its known samples; one without any does not count at all."""
    nan = math.nan
    known = accuracy([[1, 0], [1, nan], [0, 0], [nan, nan]])
    assert (known.n, known.mean) == (3, 0.5)
    assert known.standard_error == pytest.approx(0.5 / math.sqrt(3))
    pair = paired_difference([[1.0], [1.0], [nan], [0.0]], [[0.0], [1.0], [1.0], [nan]])
    assert (pair.n, pair.better, pair.worse, pair.difference) == (2, 1, 0, 0.5)
    with pytest.raises(ValueError, match="fewer than two"):
        accuracy([[1.0], [nan]])


@pytest.mark.parametrize("better, worse", [(8, 1), (30, 12), (60, 10)])
@pytest.mark.parametrize("threshold", [0.0, -0.02, 0.01])
def test_p_above_inverts_the_interval(better, worse, threshold):
    first, second = discordant(better, worse, 300)
    p = p_above(first, second, threshold)
    assert 1e-12 < p < 0.5
    assert paired_difference(first, second, 1 - 1.001 * p).interval[0] > threshold
    assert paired_difference(first, second, 1 - 0.999 * p).interval[0] <= threshold
    assert p_above(second, first, 0.0) == 1.0


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 8])
def test_an_interval_holds_its_own_mean_at_the_edges(mean: float, k: int) -> None:
    for n in range(2, 200):
        low, high = intervals.accuracy_interval(np.full(n, mean), k, 0.95)
        assert 0 <= low <= mean <= high <= 1 and high - low > 0
