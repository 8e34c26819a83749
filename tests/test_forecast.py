"""Every quantity of the forecast against a brute-force one, computed from full deltas instead of Gram matrices."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from relex_core.errors import DataError, WindowError
from relex_core.forecast import Forecast, forecast_from_grams
from relex_core.forecast.auto import choose
from relex_core.forecast.cut import Cut, cut_at
from relex_core.forecast.eigen import first_eigenvectors
from relex_core.forecast.expected import expected_at
from relex_core.forecast.geometry import geometry
from relex_core.forecast.held_out import HeldOut, held_out
from relex_core.forecast.modules import layer_number, membership, module_type
from relex_core.forecast.null_model import displacement_exponent
from relex_core.forecast.predictors import coefficients, predictors
from relex_core.forecast.skill import fair_pairs, line_table, pooled_line, pooled_skill
from relex_core.forecast.window import Window, increments, window_of

STEPS = np.array([3, 5, 6, 9, 10, 14, 15, 16, 20, 21, 22, 25])
AVERAGES = (3, 5)
TABLE = predictors((1.0, 0.5), AVERAGES)
SIZES = {
    "model.embed_tokens.weight": 40,
    "model.layers.0.self_attn.q_proj.weight": 60,
    "model.layers.1.self_attn.q_proj.weight": 30,
    "model.layers.0.mlp.down_proj.weight": 50,
    "model.norm.weight": 7,
}


def random_deltas(steps: np.ndarray = STEPS, seed: int = 0) -> dict[str, np.ndarray]:
    """Walks with drift, "T d" by tensor; the norm is frozen."""
    random = np.random.default_rng(seed)
    gaps = np.diff(np.concatenate([[0], steps]))[:, None]
    deltas = {}
    for name, size in SIZES.items():
        drift = 0.4 * random.standard_normal(size)
        moves = gaps * drift + np.sqrt(gaps) * random.standard_normal((len(steps), size))
        deltas[name] = moves.cumsum(axis=0) * (0.0 if name == "model.norm.weight" else 1.0)
    return deltas


def grams_of(deltas: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: rows @ rows.T for name, rows in deltas.items()}


DELTAS = random_deltas()
WINDOW = window_of(grams_of(DELTAS), STEPS.tolist())
TYPES, MEMBERS = membership(tuple(DELTAS))
MODEL = len(TYPES) - 1


@pytest.fixture(scope="module")
def held() -> HeldOut:
    return held_out(WINDOW, MEMBERS, TABLE, AVERAGES)


def direction_of(rows: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction, coefficients and line (slope, intercept) by SVD and polyfit."""
    _, _, vt = np.linalg.svd(rows, full_matrices=False)
    v = vt[0] * (1.0 if (rows @ vt[0]).sum() >= 0 else -1.0)
    return v, rows @ v, np.polyfit(steps, rows @ v, 1)


def predicted(name: str, rows: np.ndarray, steps: np.ndarray, share: float, target: float) -> np.ndarray:
    """A predictor written out on full deltas."""
    v, c, (slope, intercept) = direction_of(rows, steps)
    last, at = rows[-1], steps[-1]
    grown = 1 + share * (target - at) / at
    return {
        "hold": last,
        "relex-scale1.00": (slope * target + intercept) * v,
        "relex-scale0.50": 0.5 * (slope * target + intercept) * v,
        "reconstruction": c[-1] * v,
        "pinned": last + slope * (target - at) * v,
        "calibrated": grown * c[-1] * v,
        "drift": grown * last,
        "weight_extrapolation": target / at * last,
        "trailing_average_3": rows[-3:].mean(axis=0),
        "trailing_average_5": rows[-5:].mean(axis=0),
    }[name]


def moved() -> list[tuple[int, str]]:
    return [(row, name) for row, name in enumerate(DELTAS) if DELTAS[name].any()]


@pytest.mark.parametrize("name", TABLE)
def test_held_out_errors_equal_those_of_full_deltas(name: str, held: HeldOut) -> None:
    for at, count in enumerate(held.cuts):
        fit = held.fits[at]
        if name.startswith("trailing_average") and count < int(name[-1]):
            assert np.isnan(held.of(name)[:, at]).all()
            continue
        errors = np.zeros((len(DELTAS), len(STEPS) - count))
        for row, tensor in moved():
            rows = DELTAS[tensor]
            for j in range(count, len(STEPS)):
                guess = predicted(name, rows[:count], STEPS[:count], fit.share[row], STEPS[j])
                errors[row, j - count] = np.square(rows[j] - guess).sum()
        np.testing.assert_allclose(held.of(name)[:, at, count:], MEMBERS @ errors, rtol=1e-6)


def test_skill_and_best_scale_of_the_line_equal_brute_force(held: HeldOut) -> None:
    table = line_table(held, MODEL)
    for at, count in enumerate(held.cuts):
        for j in range(count, len(STEPS)):
            truth = np.concatenate([rows[j] for rows in DELTAS.values()])
            last = np.concatenate([rows[count - 1] for rows in DELTAS.values()])
            guess = np.concatenate(
                [
                    predicted("relex-scale1.00", rows[:count], STEPS[:count], 0.0, STEPS[j])
                    if rows.any()
                    else np.zeros(rows.shape[1])
                    for rows in DELTAS.values()
                ]
            )
            hold = np.square(truth - last).sum()
            assert table.skill[at, j] == pytest.approx(1 - np.square(truth - guess).sum() / hold, rel=1e-6)
            (scale,), (residual,), *_ = np.linalg.lstsq(guess[:, None], truth, rcond=None)
            assert table.best_scale[at, j] == pytest.approx(scale, rel=1e-6)
            assert table.best_scale_skill[at, j] == pytest.approx(1 - residual / hold, rel=1e-6)
    assert np.isnan(table.skill[0, : held.cuts[0]]).all()


def test_horizons_are_optimizer_steps(held: HeldOut) -> None:
    assert held.horizons[held.cuts.tolist().index(4), -1] == 25 - 9
    assert held.windows[held.cuts.tolist().index(4), -1] == pytest.approx(16 / 9)


def test_pooling_adds_errors_not_skills(held: HeldOut) -> None:
    pairs = fair_pairs(held)
    ratio = held.of("drift")[MODEL][pairs].sum() / held.of("hold")[MODEL][pairs].sum()
    assert pooled_skill(held, "drift", pairs)[MODEL] == pytest.approx(1 - ratio)
    line = pooled_line(held, pairs, slice(None))
    assert line.skill[MODEL] == pytest.approx(pooled_skill(held, "relex-scale1.00", pairs)[MODEL])
    assert (line.best_scale_skill[: MODEL + 1] >= line.skill[: MODEL + 1] - 1e-12)[
        np.isfinite(line.skill[: MODEL + 1])
    ].all()


def mixing_weights(name: str, cut: Cut, target: float) -> np.ndarray:
    """The predictor as a mix of the observed deltas: W(τ) = W_0 + Σ_i weight_i Δ_i, "N k"."""
    values = coefficients(name, TABLE, cut, np.array([float(target)]))[:, 0, :]
    return np.einsum("nkf,nf->nk", cut.mixing(), values)


@pytest.mark.parametrize("name", TABLE)
def test_every_predictor_is_a_mix_of_observed_deltas(name: str) -> None:
    fit = cut_at(WINDOW, MEMBERS, AVERAGES)
    weights = mixing_weights(name, fit, 60)
    for row, tensor in moved():
        expected = predicted(name, DELTAS[tensor], STEPS, fit.share[row], 60)
        np.testing.assert_allclose(weights[row] @ DELTAS[tensor], expected, rtol=1e-5, atol=1e-6 * abs(expected).max())


def test_calibrated_is_the_null_models_own_ratio() -> None:
    """ĉ(τ) = c_T Σ u_i [min(t_i, τ) σ² + t_i τ d²] / Σ u_i [min(t_i, T) σ² + t_i T d²] (design.md section 1)."""
    fit = cut_at(WINDOW, MEMBERS, AVERAGES)
    v, c, _ = direction_of(DELTAS["model.layers.0.mlp.down_proj.weight"], STEPS)
    group, row, target, last = TYPES.index("mlp.down_proj"), 3, 100.0, float(STEPS[-1])
    walk, square = fit.drift.walk[group], fit.drift.square[group]
    assert square > 0
    above = (c * (np.minimum(STEPS, target) * walk + STEPS * target * square)).sum()
    below = (c * (np.minimum(STEPS, last) * walk + STEPS * last * square)).sum()
    weights = mixing_weights("calibrated", fit, target)[row]
    coefficient = weights @ DELTAS["model.layers.0.mlp.down_proj.weight"] @ v
    assert coefficient == pytest.approx(c[-1] * above / below, rel=1e-6)


def test_geometry_equals_that_of_full_deltas(held: HeldOut) -> None:
    shapes = geometry(WINDOW, held.fits, MEMBERS)
    for row, tensor in moved():
        rows, at = DELTAS[tensor], len(TYPES) + row
        v, c, (slope, intercept) = direction_of(rows, STEPS)
        values = np.square(np.linalg.svd(rows, compute_uv=False))
        np.testing.assert_allclose(shapes.explained_variance[at], (values.cumsum() / values.sum())[:8], rtol=1e-9)
        residual = c - slope * STEPS - intercept
        total = np.square(c - c.mean()).sum()
        assert shapes.r_squared[at] == pytest.approx(1 - np.square(residual).sum() / total, rel=1e-9)
        lagged = (residual[1:] * residual[:-1]).sum() / np.square(residual).sum()
        assert shapes.residual_autocorrelation[at] == pytest.approx(lagged, rel=1e-6)
        off = np.linalg.norm(rows[-1] - c[-1] * v) / np.linalg.norm(rows[-1])
        assert shapes.off_direction[at] == pytest.approx(off, rel=1e-6)
        moves = np.diff(np.vstack([np.zeros(rows.shape[1]), rows]), axis=0)
        units = moves / np.linalg.norm(moves, axis=1, keepdims=True)
        assert shapes.step_cosine[at] == pytest.approx((units[1:] * units[:-1]).sum(axis=1).mean(), rel=1e-9)
        for cut, count in enumerate(held.cuts):
            early, _, _ = direction_of(rows[:count], STEPS[:count])
            assert shapes.direction_cosine[at, cut] == pytest.approx(early @ v, rel=1e-6)
    assert np.isnan(shapes.explained_variance[-1]).all()


def test_increments_and_displacement_equal_those_of_full_deltas() -> None:
    rows = DELTAS["model.embed_tokens.weight"]
    moves = np.diff(np.vstack([np.zeros(rows.shape[1]), rows]), axis=0)
    found = increments(WINDOW.grams[0], WINDOW.steps)
    np.testing.assert_allclose(found.inner, moves @ moves.T, atol=1e-9 * np.square(moves).sum())
    np.testing.assert_array_equal(found.gaps, np.diff(np.concatenate([[0], STEPS])))
    path, times = np.vstack([np.zeros(rows.shape[1]), rows]), np.concatenate([[0], STEPS])
    apart: dict[int, list[float]] = {}
    for i in range(len(times)):
        for j in range(i):
            apart.setdefault(int(times[i] - times[j]), []).append(float(np.square(path[i] - path[j]).sum()))
    near = sorted(h for h in apart if h <= times[-1] / 2)
    logs = np.log([np.mean(apart[h]) for h in near])
    slope = np.polyfit(np.log(near), logs, 1, w=1 / np.sqrt(near))[0]
    assert displacement_exponent(WINDOW.grams[:1], WINDOW.steps)[0] == pytest.approx(slope, rel=1e-9)


def test_lags_count_steps_in_between() -> None:
    regular = increments(np.eye(5), np.arange(10.0, 60.0, 10.0)).lags
    np.testing.assert_array_equal(regular, np.abs(np.subtract.outer(range(5), range(5))))
    late_start = increments(np.eye(4), np.array([50.0, 60.0, 70.0, 80.0])).lags
    np.testing.assert_array_equal(late_start[0], [0, 1, 2, 3])


def test_expected_skill_and_overshoot_equal_the_models_own_arithmetic() -> None:
    fit = cut_at(WINDOW, MEMBERS, AVERAGES)
    target, ahead = 75.0, 50.0
    found = expected_at(WINDOW, MEMBERS, fit, TABLE, np.array([target]))
    errors = dict.fromkeys(TABLE, 0.0)
    above = below = 0.0
    for row, tensor in moved():
        for name in TABLE:
            guess = predicted(name, DELTAS[tensor], STEPS, fit.share[row], target)
            centre = predicted("drift", DELTAS[tensor], STEPS, fit.share[row], target)
            errors[name] += float(np.square(guess - centre).sum())
        _, c, (slope, intercept) = direction_of(DELTAS[tensor], STEPS)
        calibrated = c[-1] * (1 + fit.share[row] * ahead / 25)
        above += (slope * target + intercept) * calibrated
        below += calibrated**2
    drift = fit.drift
    share = np.nan_to_num(drift.share)
    unknown = (ahead * drift.walk + ahead**2 * drift.square * (1 - share))[:MODEL].sum()
    for name in TABLE:
        skill = 1 - (errors[name] + unknown) / (errors["hold"] + unknown)
        assert found.skill[name][MODEL, 0] == pytest.approx(skill, rel=1e-5, abs=1e-8)
    assert found.overshoot[MODEL, 0] == pytest.approx(above / below, rel=1e-6)


def test_first_eigenvectors_equal_lapack() -> None:
    random = np.random.default_rng(0)
    walks = random.standard_normal((20, 40, 200)).cumsum(axis=1)
    noise = random.standard_normal((5, 40, 41))  # no gap to speak of: the fallback
    grams = np.concatenate([x @ x.transpose(0, 2, 1) for x in (walks, noise)] + [np.zeros((1, 40, 40))])
    values, vectors = first_eigenvectors(grams)
    exact, exact_vectors = np.linalg.eigh(grams)
    np.testing.assert_allclose(values, exact[:, -1], rtol=1e-9)
    cosines = np.abs((vectors * exact_vectors[:, :, -1]).sum(axis=1))
    np.testing.assert_allclose(cosines[:-1], 1.0, atol=1e-7)
    assert values[-1] == 0 and not vectors[-1].any()


def test_auto_chooses_the_smallest_error_and_is_judged_in_time(held: HeldOut) -> None:
    auto, pairs = choose(held), fair_pairs(held)
    totals = {name: held.of(name)[MODEL][pairs].sum() for name in TABLE}
    best = min((name for name in TABLE if np.isfinite(totals[name])), key=lambda name: totals[name])
    assert auto.model == best
    error = 0.0
    for at, count in enumerate(held.cuts):
        if not pairs[at].any():
            continue
        known = pairs & (np.arange(len(STEPS)) < count)
        sums = {name: held.of(name)[MODEL][known].sum() for name in TABLE}
        known_best = min((name for name in TABLE if np.isfinite(sums[name])), key=lambda name: sums[name])
        if count < 8 or sums[known_best] >= 0.98 * sums["hold"]:
            known_best = "hold"
        error += held.of(known_best)[MODEL, at][pairs[at]].sum()
    assert auto.skill == pytest.approx(1 - error / totals["hold"])


def test_module_types() -> None:
    types = {
        "model.layers.3.self_attn.q_proj.weight": "q_proj",
        "model.layers.3.self_attn.q_proj.bias": "q_proj.bias",
        "model.layers.3.mlp.down_proj.weight": "mlp.down_proj",
        "model.layers.3.mlp.experts.17.up_proj.weight": "mlp.experts.up_proj",
        "model.layers.3.mlp.gate.weight": "mlp.gate",
        "model.layers.3.self_attn.q_norm.weight": "norm",
        "model.layers.3.input_layernorm.weight": "norm",
        "transformer.h.0.attn.c_attn.weight": "c_attn",
        "transformer.wte.weight": "embed",
        "model.embed_tokens.weight": "embed",
        "model.norm.weight": "norm",
        "lm_head.weight": "lm_head",
        "visual.blocks.1.attn.qkv.weight": "visual.qkv",
        "model.layers.0.self_attn.q_proj.lora_A.weight": "q_proj.lora_A",
        "scalar": "scalar",
    }
    assert {name: module_type(name) for name in types} == types
    assert layer_number("model.layers.3.mlp.up_proj.weight") == 3
    assert layer_number("lm_head.weight") is None


def test_the_forecast_is_plain_json_without_large_arrays() -> None:
    result = forecast_from_grams(grams_of(DELTAS), STEPS.tolist(), targets=[50, 100])
    assert Forecast.model_validate_json(result.model_dump_json()) == result
    assert set(result.modules) == {"embed", "q_proj", "mlp.down_proj", "norm"}
    assert result.modules["norm"].moved == 0 and result.modules["norm"].null.drift_share is None
    assert result.tensors["model.norm.weight"].explained_variance == (None,) * 4
    assert result == forecast_from_grams(grams_of(DELTAS), STEPS.tolist(), targets=[50, 100])
    per_tensor = result.tensors["model.embed_tokens.weight"].model_dump_json()
    assert len(per_tensor) < 500


def test_a_checkpoint_of_step_zero_is_the_base() -> None:
    padded = {name: np.pad(gram, (1, 0)) for name, gram in grams_of(DELTAS).items()}
    with_base = forecast_from_grams(padded, [0, *STEPS.tolist()], targets=[50])
    assert with_base == forecast_from_grams(grams_of(DELTAS), STEPS.tolist(), targets=[50])


@pytest.mark.parametrize(
    ("grams", "steps", "error", "match"),
    [
        ({"a": np.eye(1)}, [1], WindowError, "at least 2"),
        ({"a": np.eye(2)}, [2, 2], WindowError, "do not ascend"),
        ({"a": np.eye(3)}, [1, 2], DataError, "shape"),
        ({"a": np.full((2, 2), np.nan)}, [1, 2], DataError, "not finite"),
    ],
)
def test_wrong_input_is_refused(
    grams: dict[str, np.ndarray], steps: list[int], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        forecast_from_grams(grams, steps)


def test_import_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, relex_core.forecast; assert not {'torch', 'numpy'} & set(sys.modules)"
    code += "; import relex_core.forecast.files; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_windows_cut_from_a_window_are_windows() -> None:
    cut = WINDOW.until(4)
    assert isinstance(cut, Window) and cut.length == 4 and cut.grams.shape == (len(DELTAS), 4, 4)
