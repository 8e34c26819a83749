"""A short version of benchmarks/simulate_decisions.py: intervals and verdicts in a world whose truth is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "simulate_decisions.py"


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate_decisions", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    module.POPULATION = 20_000
    yield module
    del sys.modules[spec.name]


def rate(runs, event):
    rng = np.random.default_rng(0)
    return np.mean([event(rng) for _ in range(runs)])


@pytest.mark.parametrize("n, k", [(30, 8), (500, 1)])
def test_intervals_hold_the_truth_and_nothing_is_seen_in_nothing(simulate, n, k):
    case = simulate.Case("test", n, k, 0.7)
    assert rate(400, case.covers_mean) == pytest.approx(0.95, abs=0.035)
    assert rate(400, lambda rng: case.covers_gain(rng, 0.03)) == pytest.approx(0.955, abs=0.035)
    assert rate(400, lambda rng: case.passes(rng, 0.0)) <= 0.045  # nominal 0.025


def test_the_best_of_twelve_that_are_no_better_is_seldom_promoted(simulate):
    case = simulate.Case("test", 500, 1, 0.5)
    confirmed = rate(150, lambda rng: case.best_passes(rng, confirm=True))
    naive = rate(150, lambda rng: case.best_passes(rng, confirm=False))
    assert confirmed <= 0.05
    assert naive > confirmed, "on the questions that selected it, the winner looks better than it is"


def test_real_gains_are_found(simulate):
    case = simulate.Case("test", 500, 1, 0.5)
    assert rate(150, lambda rng: case.passes(rng, 0.12)) > 0.9


def test_a_candidate_at_the_margin_does_not_pass_it(simulate):
    case = simulate.Case("test", 500, 1, 0.5)
    assert rate(300, lambda rng: case.passes(rng, -0.05, threshold=-0.05)) <= 0.05
    assert rate(150, lambda rng: case.passes(rng, 0.02, threshold=-0.05)) > 0.6


def test_halving_loses_little_and_saves_much(simulate):
    rng = np.random.default_rng(0)
    (full, asked), (halved, asked_less) = (
        simulate._search(60, rng, 16, 256, 0.1, kind) for kind in ("full", "halving")
    )
    assert asked_less < 0.55 * asked
    assert halved < full + 0.02
