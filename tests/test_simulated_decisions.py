"""A short version of benchmarks/simulate_decisions.py: intervals and verdicts in a world whose truth is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "simulate_decisions.py"
RUNS = 4000
NOISE = 0.007
"""Two standard errors of a rate of 95 % in so many runs."""


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate_decisions", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def rate(simulate, event, size, runs=RUNS):
    return simulate.rate(runs, np.random.default_rng(0), event, size)


@pytest.mark.parametrize("n, k", [(30, 8), (100, 4), (500, 1)])
@pytest.mark.parametrize("mean, icc", [(0.3, 0.3), (0.5, 0.1), (0.7, 0.6)])
def test_intervals_of_an_accuracy_hold_it_in_95_percent(simulate, n, k, mean, icc):
    assert 0.94 - NOISE <= rate(simulate, simulate.Case(n, k, mean, icc).covers_mean, n) <= 0.96 + NOISE


@pytest.mark.parametrize("icc", [0.1, 0.6, 0.9])
@pytest.mark.parametrize("mean", [0.05, 0.95])
def test_thirty_questions_near_the_edge_are_never_too_sure(simulate, mean, icc):
    assert 0.94 <= rate(simulate, simulate.Case(30, 8, mean, icc).covers_mean, 30) <= 0.985


@pytest.mark.parametrize(
    "n, k, mean, icc, most", [(30, 8, 0.5, 0.3, 0.96), (500, 1, 0.7, 0.3, 0.96), (30, 8, 0.05, 0.6, 1)]
)
@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_intervals_of_a_difference_hold_it_and_nothing_is_seen_in_nothing(simulate, n, k, mean, icc, most, gain):
    case = simulate.Case(n, k, mean, icc)
    assert 0.94 - NOISE <= rate(simulate, lambda rng, runs: case.covers_gain(rng, runs, gain), 5 * n) <= most + NOISE
    assert rate(simulate, lambda rng, runs: case.passes(rng, runs, 0.0), 5 * n) <= 0.025 + NOISE


def test_the_best_of_twelve_that_are_no_better_is_seldom_promoted(simulate):
    case = simulate.Case(500, 1, 0.5)
    confirmed, naive = (
        rate(simulate, lambda rng, runs, c=confirm: case.best_passes(rng, runs, confirm=c), 10_000, 1000)
        for confirm in (True, False)
    )
    assert confirmed <= 0.025 + 2 * NOISE
    assert naive > 0.05, "on the questions that selected it, the winner looks better than it is"


def test_a_candidate_that_only_undoes_what_rl_did_is_seldom_promoted(simulate):
    """The base is 10 points above the last observed checkpoint, and so is the finalist."""
    case = simulate.Case(500, 1, 0.5)
    asked, not_asked = (
        rate(simulate, lambda rng, runs, w=with_base: case.beats_both(rng, runs, 0.1, 0.1, w), 4000, 1000)
        for with_base in (True, False)
    )
    assert asked <= 0.025 + 2 * NOISE
    assert not_asked > 0.9


def test_real_gains_are_found(simulate):
    case = simulate.Case(500, 1, 0.5)
    assert rate(simulate, lambda rng, runs: case.passes(rng, runs, 0.12), 2500, 500) > 0.9
    assert rate(simulate, lambda rng, runs: case.beats_both(rng, runs, 0.12, 0.0), 4000, 500) > 0.9


def test_a_candidate_at_the_margin_does_not_pass_it(simulate):
    case = simulate.Case(500, 1, 0.5)
    assert rate(simulate, lambda rng, runs: case.passes(rng, runs, -0.05, threshold=-0.05), 2500) <= 0.025 + NOISE
    assert rate(simulate, lambda rng, runs: case.passes(rng, runs, 0.02, threshold=-0.05), 2500, 500) > 0.6


def test_halving_loses_little_and_saves_much(simulate):
    rng = np.random.default_rng(0)
    (full, asked), (halved, asked_less) = (
        simulate._search(60, rng, 16, 256, 0.1, kind) for kind in ("full", "halving")
    )
    assert asked_less < 0.55 * asked
    assert halved < full + 0.02


def test_rare_total_losses_are_missed_by_few_questions_with_many_samples_only(simulate):
    """What docs/evaluation.md says of it."""
    few, many = simulate.RareLosses(30, 8, 0.4, 0.05), simulate.RareLosses(240, 1, 0.4, 0.05)
    assert 0.045 <= rate(simulate, few.promoted, 150) <= 0.09
    assert 0.90 <= rate(simulate, few.covered, 150) <= 0.93
    assert rate(simulate, many.promoted, 1200) <= 0.025 + NOISE
    assert rate(simulate, many.covered, 1200) >= 0.94 - NOISE
