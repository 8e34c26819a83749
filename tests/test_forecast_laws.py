"""Laws of the forecast, on trajectories whose truth is known: lines, walks, walks with drift, and what can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from relex_core.forecast import Forecast, forecast_from_grams
from relex_core.forecast.bootstrap import share_interval
from relex_core.forecast.cut import cut_at
from relex_core.forecast.expected import expected_at
from relex_core.forecast.held_out import held_out
from relex_core.forecast.incidents import Incidents, incidents
from relex_core.forecast.modules import membership
from relex_core.forecast.momentum import Momentum, drift_without, momentum, whitened
from relex_core.forecast.null_model import correlation_length, estimate
from relex_core.forecast.nulls import null_models
from relex_core.forecast.predictors import predictors
from relex_core.forecast.walk import compare, shape
from relex_core.forecast.window import increments, window_of

IRREGULAR = np.array([50, *range(60, 200, 10), *range(220, 600, 20)])
NAMES = [f"model.layers.{i}.self_attn.{kind}_proj.weight" for i in range(2) for kind in "qk"]


def walk(
    steps: np.ndarray, share: float, random: np.random.Generator, dimensions: int = 400, momentum: float = 0.0
) -> np.ndarray:
    """Deltas "T d" of a walk with σ² = 1 a step and a drift such that φ = share at the last step."""
    gaps = np.diff(np.concatenate([[0], steps]))
    drift = random.standard_normal(dimensions)
    drift *= np.sqrt(share / (1 - share) / steps[-1]) / np.linalg.norm(drift)
    noise = random.standard_normal((len(steps), dimensions)) / np.sqrt(dimensions)
    if momentum:
        for row in range(1, len(steps)):
            noise[row] = momentum * noise[row - 1] + (1 - momentum) * noise[row]
    return np.asarray((gaps[:, None] * drift + np.sqrt(gaps)[:, None] * noise).cumsum(axis=0))


def forecast_of(deltas: list[np.ndarray], steps: np.ndarray, targets: tuple[int, ...] = ()) -> Forecast:
    grams = {name: rows @ rows.T for name, rows in zip(NAMES, deltas, strict=False)}
    return forecast_from_grams(grams, steps.tolist(), targets=targets)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small products: threads only wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("steps", [np.arange(1, 21), IRREGULAR[:16], np.array([7, 8, 300])])
def test_an_exact_line_has_skill_one_and_is_all_drift(steps: np.ndarray) -> None:
    random = np.random.default_rng(0)
    result = forecast_of([np.outer(steps, random.standard_normal(50)) for _ in range(3)], steps)
    skills = [value for row in result.skill.skill for value in row if value is not None]
    assert skills and min(skills) > 1 - 1e-6
    assert all(item.best_scale == pytest.approx(1, abs=1e-6) for item in result.model.by_horizon)
    assert result.model.null.drift_share == pytest.approx(1, abs=1e-6)
    assert result.model.null.displacement_exponent == pytest.approx(2, abs=1e-6)
    for name in ("pinned", "calibrated", "drift", "weight_extrapolation"):
        assert result.model.predictors[name].skill == pytest.approx(1, abs=1e-5), name
    if len(steps) >= 8:
        assert result.advice.worthwhile == "yes"
        assert result.model.null.drift_share_interval == pytest.approx((1, 1), abs=1e-5)


def test_a_pure_walk_looks_rank_one_and_linear_but_has_no_skill() -> None:
    """Explained variance 8/π² = 0.811 and R² 0.958 as T grows, drift share 0, and advice against it."""
    steps, random = np.arange(1, 81), np.random.default_rng(1)
    results = [forecast_of([walk(steps, 0.0, random, 3000)], steps) for _ in range(3)]
    nulls = [result.model.null for result in results]
    assert np.mean([null.explained_variance for null in nulls]) == pytest.approx(8 / np.pi**2, abs=0.008)
    assert np.mean([null.r_squared for null in nulls]) == pytest.approx(0.958, abs=0.008)
    assert np.mean([null.displacement_exponent for null in nulls]) == pytest.approx(1, abs=0.05)
    assert np.mean([null.drift_share for null in nulls]) < 0.05
    for result in results:
        assert result.model.null.drift_share_interval[0] == 0
        for name, measured in result.model.predictors.items():
            assert measured.skill < 0.005, name
        assert result.model.predictors["relex-scale1.00"].skill < -1
        assert result.advice.worthwhile == "no" and result.auto.predictor == "hold"
        assert result.advice.horizon_limit is None
        assert any("a pure walk of this length 0.81" in reason for reason in result.advice.reasons)


def test_a_walks_shape_by_formula() -> None:
    for steps in (np.arange(1.0, 1001.0), np.arange(10.0, 10010.0, 10.0)):
        explained, r_squared = shape(np.minimum.outer(steps, steps)[None], steps)
        assert explained[0] == pytest.approx(8 / np.pi**2, abs=1e-3)
        assert r_squared[0] == pytest.approx(0.958, abs=1e-3)


@pytest.mark.parametrize(
    ("share", "explained", "r_squared", "overshoot"),
    [(0, 0.811, 0.958, 7.0), (0.25, 0.843, 0.977, 2.86), (0.5, 0.884, 0.990, 1.78), (0.75, 0.935, 0.998, 1.29),
     (0.9, 0.972, 0.9996, 1.10)],
)  # fmt: skip
def test_the_table_of_the_design(share: float, explained: float, r_squared: float, overshoot: float) -> None:
    """In infinitely many dimensions: G_ij = min(t_i, t_j) σ² + t_i t_j d²; the line from step 75 to 500."""
    steps = np.arange(1.0, 76.0)
    gram = np.minimum.outer(steps, steps) * (1 - share) + np.outer(steps, steps) * share / 75
    window = window_of({"a": gram}, steps.tolist())
    _, members = membership(window.names)
    fit = cut_at(window, members, ())
    assert fit.drift.share[-1] == pytest.approx(share, abs=1e-6)
    found = shape(gram[None], steps)
    # the table is for T → ∞
    assert (found[0][0], found[1][0]) == pytest.approx((explained, r_squared), abs=2e-3)
    expected = expected_at(window, members, fit, predictors(), np.array([500.0]))
    assert expected.overshoot[-1, 0] == pytest.approx(overshoot, rel=0.02)
    assert expected.scale[-1, 0] == pytest.approx(1 / overshoot, rel=0.02)


def test_drift_and_walk_on_regular_steps_are_those_of_the_design() -> None:
    rows = walk(np.arange(1, 31), 0.5, np.random.default_rng(2), 300)
    moves = increments((rows @ rows.T)[None], np.arange(1.0, 31.0))
    drift = estimate(moves, 6)
    inner = moves.inner[0]
    far = np.mean([inner[i, j] for i in range(30) for j in range(30) if abs(i - j) > 6])
    band = sum((1 if lag == 0 else 2) * (np.diagonal(inner, lag).mean() - far) for lag in range(7))
    assert drift.square[0] == pytest.approx(far) and drift.walk[0] == pytest.approx(band)
    assert drift.share[0] == pytest.approx(30 * far / (30 * far + band))


@pytest.mark.parametrize("steps", [np.arange(1, 61), IRREGULAR], ids=["regular", "irregular"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_a_known_drift_share_is_recovered_within_its_interval(steps: np.ndarray, share: float) -> None:
    random = np.random.default_rng(round(100 * share) + len(steps))
    inside, estimates = [], []
    for seed in range(40):
        rows = walk(steps, share, random)
        moves = increments((rows @ rows.T)[None], steps.astype(np.float64))
        drift = estimate(moves, correlation_length(increments(rows @ rows.T, steps.astype(np.float64))))
        low, high = share_interval(moves, drift, seed)[0]
        inside.append(low <= share <= high)
        estimates.append(drift.share[0])
        assert high - low < 0.5
    assert np.mean(inside) >= 0.875  # nominal 0.95; 35 of 40 or fewer happen to one in 20 such tests
    assert np.mean(estimates) == pytest.approx(share, abs=0.05)


def test_momentum_is_not_taken_for_drift() -> None:
    random, shares = np.random.default_rng(3), []
    for _ in range(10):
        rows = walk(np.arange(1, 101), 0.0, random, 1000, momentum=0.7)
        moves = increments(rows @ rows.T, np.arange(1.0, 101.0))
        length = correlation_length(moves)
        assert length >= 5
        shares.append(estimate(increments((rows @ rows.T)[None], np.arange(1.0, 101.0)), length).share[0])
    assert np.mean(shares) < 0.1


def walk_with_memory(length: int, decay: float, share: float, random: np.random.Generator) -> np.ndarray:
    """Deltas "T 600" whose increments are stationary, with correlation decay^lag, and φ = share at the last step."""
    noise = random.standard_normal((length, 600)) / np.sqrt(600)
    noise[0] /= np.sqrt(1 - decay**2)
    for row in range(1, length):
        noise[row] += decay * noise[row - 1]
    drift = random.standard_normal(600)
    drift *= np.sqrt(share / (1 - share) / length) / (1 - decay) / np.linalg.norm(drift)
    return np.asarray((noise + drift).cumsum(axis=0))


@pytest.mark.parametrize(("length", "decay"), [(16, 0.9), (24, 0.9), (40, 0.9)])
def test_a_window_too_short_for_its_momentum_shows_no_drift(length: int, decay: float) -> None:
    random, steps = np.random.default_rng(length), np.arange(1, length + 1)
    for _ in range(2):
        result = forecast_of([walk_with_memory(length, decay, 0.0, random)], steps)
        null = result.model.null
        assert null.drift_share_interval[0] == 0 and not null.rank_one and not null.straight
        assert result.advice.worthwhile != "yes" and not result.momentum_resolved
        assert any("too short to tell drift from momentum" in reason for reason in result.advice.reasons)


@pytest.mark.parametrize(("length", "decay"), [(24, 0.5), (40, 0.7), (75, 0.9)])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_drift_is_found_beside_momentum(length: int, decay: float, share: float) -> None:
    random, inside, estimates, decays = np.random.default_rng(length), [], [], []
    for seed in range(8):
        rows = walk_with_memory(length, decay, share, random)
        moves = increments((rows @ rows.T)[None], np.arange(1.0, length + 1))
        found = momentum(replace(moves, inner=moves.inner[0]))
        assert found.low <= found.best <= found.high and found.resolved
        decays.append(found.best)
        null = null_models(window_of({"a": rows @ rows.T}, range(1, length + 1)), np.ones((1, 1)), found, seed).of(0)
        low, high = null.drift_share_interval
        inside.append(low <= share <= high)
        estimates.append(null.drift_share)
        assert share == 0 or low > 0
    assert sum(inside) >= 6  # nominal 0.95: 5 of 8 or fewer happen to one in 170 such tests
    assert np.mean(decays) == pytest.approx(decay, abs=0.05)
    assert np.mean(estimates) == pytest.approx(share, abs=0.08)


def test_drift_that_cannot_be_told_from_momentum_may_be_none() -> None:
    rows = walk_with_memory(40, 0.0, 0.8, np.random.default_rng(5))
    window, everything = window_of({"a": rows @ rows.T}, range(1, 41)), np.ones((1, 1))
    told, untold = (
        null_models(window, everything, Momentum(0.0, 0.0, 0.0, resolved), seed=0).of(0) for resolved in (True, False)
    )
    assert told.drift_share_interval[0] > 0 and told.rank_one and told.straight
    assert untold.drift_share_interval == (0, told.drift_share_interval[1])
    assert not untold.rank_one and not untold.straight


def test_a_long_window_with_momentum_and_drift_is_worthwhile() -> None:
    steps = np.arange(1, 81)
    result = forecast_of([walk_with_memory(80, 0.9, 0.6, np.random.default_rng(11))], steps)
    assert result.momentum_resolved and result.momentum == pytest.approx(0.9, abs=0.03)
    assert result.advice.worthwhile == "yes" and result.model.null.straight


def test_whitening_keeps_drift_and_takes_momentum_away() -> None:
    steps = IRREGULAR.astype(np.float64)
    line = increments(np.outer(steps, steps), steps)
    np.testing.assert_allclose(whitened(line, 0.8).inner, line.inner, rtol=1e-9)
    even = increments(np.zeros((30, 30)), np.arange(1.0, 31.0))
    remembering = replace(even, inner=0.8 ** even.lags.astype(np.float64))
    without, drift = drift_without(replace(remembering, inner=remembering.inner[None]), 0.8)
    np.testing.assert_allclose(without.inner[0], np.diag([1.0, *[(1 + 0.8) / (1 - 0.8)] * 29]), atol=1e-9)
    assert drift.share[0] == pytest.approx(0, abs=1e-9)
    assert drift.walk[0] == pytest.approx(1.8 / 0.2, rel=0.04)  # the long-run variance, but for the first increment


@pytest.mark.parametrize("dimensions", [40, 400])
def test_a_pure_walk_is_seldom_called_rank_one(dimensions: int) -> None:
    random, steps = np.random.default_rng(dimensions), np.arange(1.0, 31.0)
    p_values = []
    for seed in range(60):
        rows = walk(np.arange(1, 31), 0.0, random, dimensions)
        moves = increments((rows @ rows.T)[None], steps)
        p_values.append(compare(moves.inner[0], moves, estimate(moves, 5), 0, seed).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.13  # 8 of 60 or more: one in 100 at a level of 0.05
    assert 0.3 < np.mean(p_values) < 0.7


def test_a_walk_with_drift_is_called_rank_one() -> None:
    steps = np.arange(1, 61)
    result = forecast_of([walk(steps, 0.5, np.random.default_rng(4)) for _ in range(2)], steps)
    assert result.model.null.rank_one and result.model.null.straight
    assert result.advice.not_rank_one == ()


@pytest.mark.parametrize("steps", [np.arange(1, 61), IRREGULAR], ids=["regular", "irregular"])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_drift_beats_holding_and_the_plain_line(steps: np.ndarray, share: float) -> None:
    """Held out inside the window; and beyond it, where the truth is known because it was simulated too."""
    random = np.random.default_rng(5)
    farther = np.concatenate([steps, [2 * steps[-1]]])
    gained = []
    for _ in range(2):
        # the drift share is meant at the end of the window; the drift is the same farther on
        at_the_end = 2 * share / (1 + share)
        rows = walk(farther, at_the_end, random, 1000)
        result = forecast_of([rows[:-1]], steps)
        skills = {name: found.skill for name, found in result.model.predictors.items()}
        assert skills["drift"] > max(0.0, skills["relex-scale1.00"])
        window = window_of({"a": rows @ rows.T}, farther.tolist())
        _, members = membership(window.names)
        held = held_out(window, members, predictors(), ())
        errors = {name: held.of(name)[-1, -1, -1] for name in ("hold", "drift", "relex-scale1.00")}
        assert errors["drift"] < min(errors["hold"], errors["relex-scale1.00"])
        gained.append(1 - errors["drift"] / errors["hold"])
        assert result.advice.worthwhile == "yes"
    # what the model expects: φ h² d² of h σ² + h² d²
    assert np.mean(gained) == pytest.approx(share**2, abs=0.12)


@pytest.mark.parametrize("count", [2, 3])
def test_few_checkpoints(count: int) -> None:
    steps = np.arange(5, 5 + count)
    result = forecast_of([walk(steps, 0.3, np.random.default_rng(6)) for _ in range(2)], steps)
    assert len(result.skill.cuts) == count - 2
    assert result.advice.worthwhile == "unclear" and result.advice.window == "unclear"
    assert "too few" in result.advice.reasons[0]
    assert result.model.null.drift_share_interval == (0, 1)
    assert result.auto.predictor == "hold"


def test_frozen_tensors_have_no_say() -> None:
    steps, random = np.arange(1, 21), np.random.default_rng(7)
    rows = walk(steps, 0.4, random)
    alone = forecast_of([rows], steps)
    grams = {NAMES[0]: rows @ rows.T, "model.norm.weight": np.zeros((20, 20))}
    beside = forecast_from_grams(grams, steps.tolist())
    assert beside.model.predictors == alone.model.predictors
    assert beside.model.shape == alone.model.shape
    assert beside.modules["norm"].shape.r_squared is None
    assert beside.modules["norm"].best_predictor == "hold"
    assert "norm" not in beside.advice.not_rank_one


def test_a_tensor_that_starts_to_move_later() -> None:
    steps, random = np.arange(1, 21), np.random.default_rng(8)
    late = walk(steps, 0.4, random)
    late[:9] = 0
    result = forecast_of([walk(steps, 0.4, random), late], steps)
    assert all(
        found.skill is not None
        for name, found in result.model.predictors.items()
        if "40" not in name and "20" not in name
    )


@pytest.mark.filterwarnings("error")
def test_all_tensors_frozen() -> None:
    result = forecast_from_grams({name: np.zeros((12, 12)) for name in NAMES}, list(range(1, 13)))
    assert result.advice.worthwhile == "unclear" and result.advice.reasons == ("no weight moved",)
    assert result.model.moved == 0 and result.model.null.drift_share is None
    assert result.advice.scales == () and result.advice.not_rank_one == ()
    assert Forecast.model_validate_json(result.model_dump_json()) == result


def incidents_of(change: str) -> Incidents:
    noise = np.random.default_rng(9).standard_normal((60, 500))
    if change == "kink":
        noise[30:] *= 1.5
    if change == "jump":
        noise[20] *= 4
    rows = noise.cumsum(axis=0)
    if change == "outlier":
        rows[25] += 2 * np.random.default_rng(10).standard_normal(500)
    if change == "duplicate":
        rows[40] = rows[39]
    return incidents(rows @ rows.T, np.arange(10.0, 610.0, 10.0), 0)


def test_incidents_are_found_at_their_steps() -> None:
    kink = incidents_of("kink").kink
    assert kink is not None and kink.step == 310 and kink.ratio == pytest.approx(1.5, rel=0.05)
    assert incidents_of("jump") == Incidents((), (), (210,), None)
    assert incidents_of("outlier") == Incidents((), (260,), (), None)
    assert incidents_of("duplicate") == Incidents(((400, 410),), (), (), None)


@pytest.mark.parametrize(("length", "dimensions"), [(16, 50), (24, 500), (60, 20), (60, 1000)])
def test_a_pure_walk_raises_few_false_alarms(length: int, dimensions: int) -> None:
    random, alarms = np.random.default_rng(length), 0
    steps = np.arange(1, length + 1)
    for seed in range(60):
        rows = walk(steps, 0.0, random, dimensions)
        alarms += incidents(rows @ rows.T, steps.astype(np.float64), seed) != Incidents((), (), (), None)
    assert alarms <= 3
