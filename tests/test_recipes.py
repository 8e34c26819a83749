"""Candidates by name and by formula, on a fit made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from relex_core.errors import SpecError
from relex_core.fit.artifact import Component, FitArtifact, Summary, TensorFit
from relex_core.fit.basis import trend_basis
from relex_core.forecast.predictors import predictors
from relex_core.guidance import Guidance
from relex_core.mixes import Mix
from relex_core.recipes import Recipe, candidate_recipes, relex_recipes, worth_writing
from relex_core.spec import CandidatesSpec

STEPS = (2, 4, 8)
BASE = np.array([1.0, -2.0, 0.5, 3.0])
DELTAS = np.array([[0.1, 0.0, -0.2, 0.3], [0.25, 0.1, -0.3, 0.7], [0.4, -0.1, -0.9, 1.1]])
OBSERVED = BASE + DELTAS
"""W at the three steps, "T d"."""
DIRECTIONS = {
    "direction": np.array([0.5, 0.5, -0.5, 0.5]),
    "direction_2": np.array([0.5, -0.5, 0.5, 0.5]),
    "trailing_average_2": DELTAS[1:].mean(axis=0),
}
SLOPE, INTERCEPT = 0.2, 0.3


def component(coefficients: Sequence[float], *polynomial: float) -> Component:
    return Component(coefficients=tuple(coefficients), polynomial=polynomial, r_squared=1.0)


def fit_of(*components: Component, basis: str = "rank", degree: int = 1) -> tuple[FitArtifact, TensorFit]:
    tensor = TensorFit(
        numel=4,
        explained_variance=1.0,
        singular_values=(1.0, 0.0, 0.0),
        coefficients=components[0].coefficients,
        slope=components[0].polynomial[1],
        intercept=components[0].polynomial[0],
        r_squared=1.0,
        components=components,
        moved=True,
        base_norm=1.0,
    )
    summary = Summary(
        tensors=1,
        moved=1,
        explained_variance=1.0,
        explained_variance_median=1.0,
        r_squared_median=1.0,
        relative_update=0.1,
    )
    artifact = FitArtifact(
        window_digest="w",
        fit_key="k",
        steps=STEPS,
        t_cut=8,
        basis=basis,
        rank=len(components),
        degree=degree,
        columns=tuple(DIRECTIONS),
        tensors={"w": tensor},
        changed_state=(),
        summary=summary,
        seconds=0,
        bytes_read=0,
        peak_rss_bytes=0,
        device="cpu",
    )
    return artifact, tensor


RANK_1 = fit_of(component((0.7, 1.1, 1.9), INTERCEPT, SLOPE))
RANK_2 = fit_of(component((0.7, 1.1, 1.9), INTERCEPT, SLOPE), component((-0.1, 0.2, 0.1), -0.05, 0.02))
V1, V2 = DIRECTIONS["direction"], DIRECTIONS["direction_2"]


def applied(mix: Mix, columns: dict[str, np.ndarray] = DIRECTIONS) -> np.ndarray:
    """W_0 + Σ a_j D_j + Σ b_t Δ_t."""
    weights = BASE.copy()
    for name, value in mix.columns.items():
        weights += value * columns[name]
    for step, value in mix.observed.items():
        weights += value * DELTAS[STEPS.index(step)]
    return weights


SHARE = 0.4
GUIDANCE = Guidance(drift_shares={"mlp": SHARE, "head": 0.9}, predictors={"mlp": "drift"}, modules={"w": "mlp"})


def weights_of(recipe: Recipe, fit: tuple[FitArtifact, TensorFit] = RANK_1) -> np.ndarray:
    return applied(recipe.mix(fit[0], "w", GUIDANCE))


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0, -1.0])
def test_relex_is_the_line_along_the_direction(scale: float) -> None:
    got = weights_of(Recipe("relex", target_step=20, scale=scale))
    np.testing.assert_allclose(got, BASE + scale * (SLOPE * 20 + INTERCEPT) * V1, rtol=1e-12)


def test_relex_of_rank_2_adds_both_lines() -> None:
    got = weights_of(Recipe("relex", target_step=20, scale=0.5), RANK_2)
    np.testing.assert_allclose(got, BASE + 0.5 * ((SLOPE * 20 + INTERCEPT) * V1 + (0.02 * 20 - 0.05) * V2), rtol=1e-12)


def test_relex_with_a_polynomial() -> None:
    fit = fit_of(component((0.7, 1.1, 1.9), 0.3, 0.2, -0.01), degree=2)
    got = weights_of(Recipe("relex", target_step=20, scale=1.0), fit)
    np.testing.assert_allclose(got, BASE + (0.3 + 0.2 * 20 - 0.01 * 400) * V1, rtol=1e-12)


def test_reconstruction_is_the_coefficient_along_the_direction() -> None:
    got = weights_of(Recipe("reconstruction", target_step=4), RANK_2)
    np.testing.assert_allclose(got, BASE + 1.1 * V1 + 0.2 * V2, rtol=1e-12)


def test_weight_extrapolation() -> None:
    got = weights_of(Recipe("weight_extrapolation", target_step=20))
    np.testing.assert_allclose(got, BASE + (20 / 8) * (OBSERVED[-1] - BASE), rtol=1e-12)


def test_expo() -> None:
    got = weights_of(Recipe("expo", alpha=0.5))
    np.testing.assert_allclose(got, OBSERVED[-1] + 0.5 * (OBSERVED[-1] - BASE), rtol=1e-12)


def test_first_update() -> None:
    got = weights_of(Recipe("first_update", alpha=10.0))
    np.testing.assert_allclose(got, BASE + 10 * (OBSERVED[0] - BASE), rtol=1e-12)


def test_trailing_average() -> None:
    got = weights_of(Recipe("trailing_average", count=2))
    np.testing.assert_allclose(got, (OBSERVED[1] + OBSERVED[2]) / 2, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pinned_line_goes_through_the_last_observed_checkpoint(scale: float) -> None:
    got = weights_of(Recipe("pinned", target_step=20, scale=scale))
    np.testing.assert_allclose(got, OBSERVED[-1] + scale * SLOPE * (20 - 8) * V1, rtol=1e-12)
    at_the_end = weights_of(Recipe("pinned", target_step=8, scale=scale), RANK_2)
    np.testing.assert_allclose(at_the_end, OBSERVED[-1], rtol=1e-12)


def test_the_drift_step_goes_on_by_the_drift_share_of_the_tensor_s_module_type() -> None:
    got = weights_of(Recipe("drift", target_step=20))
    np.testing.assert_allclose(got, OBSERVED[-1] + SHARE * (20 - 8) / 8 * DELTAS[-1], rtol=1e-12)


def test_calibrated_is_the_coefficient_to_expect_under_walk_and_drift() -> None:
    steps, walk = np.array(STEPS), 3.0
    square = SHARE * walk / ((1 - SHARE) * STEPS[-1])  # φ = t d² / (t d² + σ²)
    u = np.array(RANK_1[1].coefficients)
    ahead, now = (u @ (np.minimum(steps, t) * walk + steps * t * square) for t in (20, 8))
    got = weights_of(Recipe("calibrated", target_step=20))
    np.testing.assert_allclose(got, BASE + u[-1] * ahead / now * V1, rtol=1e-12)
    both = weights_of(Recipe("calibrated", target_step=20), RANK_2)
    np.testing.assert_allclose(both, BASE + (1 + SHARE * 12 / 8) * (1.9 * V1 + 0.1 * V2), rtol=1e-12)


@pytest.mark.parametrize(
    ("predictor", "same"),
    [
        ("hold", Recipe("expo", alpha=0.0)),
        ("relex-scale0.75", Recipe("relex", target_step=20, scale=0.75)),
        ("reconstruction", Recipe("reconstruction", target_step=8)),
        ("pinned", Recipe("pinned", target_step=20, scale=1.0)),
        ("calibrated", Recipe("calibrated", target_step=20)),
        ("drift", Recipe("drift", target_step=20)),
        ("weight_extrapolation", Recipe("weight_extrapolation", target_step=20)),
        ("trailing_average_2", Recipe("trailing_average", count=2)),
    ],
)
def test_auto_does_what_the_chosen_predictor_does(predictor: str, same: Recipe) -> None:
    guidance = replace(GUIDANCE, predictors={"mlp": predictor, "head": "hold"})
    artifact, _ = RANK_1
    assert Recipe("auto", target_step=20).mix(artifact, "w", guidance) == same.mix(artifact, "w", GUIDANCE)


def test_auto_knows_every_predictor_of_the_forecast() -> None:
    artifact, _ = RANK_1
    for name in predictors(averages=(2, 3)):
        assert Recipe("auto", target_step=20).mix(artifact, "w", replace(GUIDANCE, predictors={"mlp": name})) != Mix()


def test_auto_takes_the_very_scale_that_the_forecast_measured() -> None:
    scales = (1.0, 0.125, 1.004, 0.1 + 0.2, -0.5)
    names = [name for name in predictors(scales=scales, averages=()) if name.startswith("relex-scale")]
    assert names == [f"relex-scale{s}" for s in ("1.00", "0.125", "1.004", "0.30000000000000004", "-0.50")]
    for name, scale in zip(names, scales, strict=True):
        got = Recipe("auto", target_step=20).mix(RANK_1[0], "w", replace(GUIDANCE, predictors={"mlp": name}))
        assert got == Recipe("relex", target_step=20, scale=scale).mix(RANK_1[0], "w")


def test_an_average_that_is_not_stored_is_mixed_from_the_checkpoints() -> None:
    guidance = replace(GUIDANCE, predictors={"mlp": "trailing_average_3"})
    got = applied(Recipe("auto", target_step=20).mix(RANK_1[0], "w", guidance))
    np.testing.assert_allclose(got, OBSERVED.mean(axis=0), rtol=1e-12)


def test_auto_is_written_only_where_it_says_something_new() -> None:
    recipes = [Recipe("auto", target_step=step) for step in (20, 40)] + [Recipe("drift", target_step=20)]

    def written(*choices: str) -> list[str]:
        guidance = Guidance(predictors={f"type{row}": name for row, name in enumerate(choices)})
        return [recipe.name for recipe in worth_writing(recipes, guidance)]

    assert written("hold", "hold") == ["drift-step00020"]
    assert written("hold", "trailing_average_5") == ["auto-step00020", "drift-step00020"]
    assert written("hold", "pinned") == ["auto-step00020", "auto-step00040", "drift-step00020"]
    recipes = recipes[:2]
    assert written("hold", "hold") == ["auto-step00020"]  # a decision compares at least one candidate


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_per_parameter_is_a_least_squares_line_for_every_weight(degree: int, scale: float) -> None:
    basis = trend_basis(STEPS, degree)
    columns = dict(zip(basis.names, basis.mixing.T @ DELTAS, strict=True))
    fit = fit_of(component((0.0,), 0.0, 0.0), basis="per_parameter", degree=degree)
    got = applied(Recipe("relex", target_step=20, scale=scale).mix(fit[0], "w"), columns)
    oracle = [np.polyval(np.polyfit(STEPS, delta, degree), 20) for delta in DELTAS.T]
    np.testing.assert_allclose(got, BASE + scale * np.array(oracle), rtol=1e-9)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("relex", target_step=20, scale=1.0),
        Recipe("reconstruction", target_step=4),
        Recipe("pinned", target_step=20, scale=1.0),
        Recipe("weight_extrapolation", target_step=20),
        Recipe("expo", alpha=0.5),
        Recipe("first_update", alpha=10.0),
        Recipe("trailing_average", count=2),
        Recipe("calibrated", target_step=20),
        Recipe("drift", target_step=20),
        Recipe("auto", target_step=20),
    ],
)
def test_a_tensor_that_never_moved_stays_the_base(recipe: Recipe) -> None:
    artifact, tensor = RANK_1
    frozen = artifact.model_copy(update={"tensors": {"w": tensor.model_copy(update={"moved": False})}})
    assert recipe.mix(frozen, "w", GUIDANCE) == Mix()


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe("relex", target_step=500, scale=1.0), "relex-step00500-scale1.00"),
        (Recipe("relex", target_step=75, scale=0.25), "relex-step00075-scale0.25"),
        (Recipe("relex", target_step=75, scale=0.125), "relex-step00075-scale0.125"),
        (Recipe("relex", target_step=1234567, scale=-1.0), "relex-step1234567-scale-1.00"),
        (Recipe("weight_extrapolation", target_step=500), "weight_extrapolation-step00500"),
        (Recipe("first_update", alpha=300.0), "first_update-alpha300"),
        (Recipe("trailing_average", count=20), "trailing_average-20"),
        (Recipe("reconstruction", target_step=75), "reconstruction-step00075"),
        (Recipe("expo", alpha=0.5), "expo-alpha0.5"),
        (Recipe("pinned", target_step=500, scale=0.5), "pinned-step00500-scale0.50"),
        (Recipe("calibrated", target_step=500), "calibrated-step00500"),
        (Recipe("drift", target_step=500), "drift-step00500"),
        (Recipe("auto", target_step=500), "auto-step00500"),
        (Recipe("relex", target_step=500, scale=1.0, spatial_rank=4), "relex-step00500-scale1.00-srank4"),
        (Recipe("calibrated", target_step=500, spatial_rank="auto"), "calibrated-step00500-srankauto"),
    ],
)
def test_names_are_those_of_the_contract(recipe: Recipe, name: str) -> None:
    assert recipe.name == name


@pytest.mark.parametrize("scale", [1e308, -1000.5, float("inf"), float("nan")])
def test_a_scale_out_of_bounds_is_refused(scale: float) -> None:
    with pytest.raises(SpecError, match=f"a scale of {scale:g}".replace("+", r"\+")) as caught:
        relex_recipes([20], [1.0, scale])
    assert "from -1000 to 1000" in caught.value.expected and "--scale" in caught.value.next_step


def test_every_name_fits_into_a_folder() -> None:
    alphas = (-0.1 - 0.2, 1e-300 / 3)
    spec = CandidatesSpec(target_steps=(2**53 - 1,), scales=alphas, expo_alphas=alphas, baselines=("expo", "pinned"))
    assert max(len(r.name) for r in candidate_recipes(spec, STEPS, 8, (), "rank")) < 100


def test_different_candidates_have_different_names() -> None:
    scales = [1.0, 0.1, 0.1 + 1e-9, 0.3, 0.1 + 0.2, 1e-7, 2e-7, 100.0]
    names = {recipe.name for recipe in relex_recipes([1, 2, 10**6], scales)}
    assert len(names) == 3 * len(scales)
    assert all("/" not in name for name in names)


def recipes(steps: Sequence[int] = STEPS, t_cut: int = 8, averages: Sequence[int] = (), **spec: Any) -> list[str]:
    basis = spec.pop("basis", "rank")
    found = candidate_recipes(CandidatesSpec.model_validate(spec), steps, t_cut, averages, basis)
    return [recipe.name for recipe in found]


def test_without_targets_two_four_and_six_windows() -> None:
    assert recipes() == [
        "relex-step00016-scale1.00",
        "relex-step00032-scale1.00",
        "relex-step00048-scale1.00",
    ]


def test_the_spec_s_candidates_in_a_fixed_order() -> None:
    everything = recipes(
        averages=(2, 3),
        target_steps=(4, 8, 20),
        scales=(1.0, 0.5),
        reconstruction_steps=(4,),
        expo_alphas=(0.5, 1.0),
        baselines=(
            "last_observed",
            "trailing_average",
            "weight_extrapolation",
            "first_update",
            "expo",
            "pinned",
        ),
    )
    assert everything == [
        *(f"relex-step{step:05d}-scale{scale}" for step in (4, 8, 20) for scale in ("1.00", "0.50")),
        "reconstruction-step00004",
        "trailing_average-2",
        "trailing_average-3",
        "weight_extrapolation-step00020",  # at or before the last observed step it would be no extrapolation
        *(f"first_update-alpha{alpha}" for alpha in (2, 4, 10)),  # target / first observed step
        "expo-alpha0.5",
        "expo-alpha1",
        "pinned-step00020-scale1.00",
        "pinned-step00020-scale0.50",
    ]


def test_predictors_and_spatial_ranks() -> None:
    everything = recipes(
        target_steps=(4, 20),
        spatial_ranks=("full", 4, "auto"),
        baselines=("pinned", "calibrated", "drift", "auto"),
    )
    suffixes = ("", "-srank4", "-srankauto")
    assert everything == [
        *(f"relex-step{step:05d}-scale1.00{suffix}" for step in (4, 20) for suffix in suffixes),
        *(f"pinned-step00020-scale1.00{suffix}" for suffix in suffixes),
        *(f"calibrated-step00020{suffix}" for suffix in suffixes),
        "drift-step00020",
        "auto-step00020",
    ]


def test_spatial_ranks_need_a_direction() -> None:
    with pytest.raises(SpecError, match="spatial_ranks needs"):
        recipes(spatial_ranks=(4,), basis="per_parameter")


def test_repeated_targets_and_scales_are_one_candidate() -> None:
    assert recipes(target_steps=(20, 20), scales=(1.0, 1.0)) == ["relex-step00020-scale1.00"]


def test_a_reconstruction_needs_an_observed_step() -> None:
    with pytest.raises(SpecError, match="step 5 was not observed") as caught:
        recipes(reconstruction_steps=(4, 5))
    assert "2, 4, 8" in caught.value.expected and "candidates.target_steps" in caught.value.next_step


@pytest.mark.parametrize("baseline", ["pinned", "calibrated", "auto"])
def test_what_follows_the_direction_needs_one(baseline: str) -> None:
    with pytest.raises(SpecError, match=f"{baseline} needs"):
        recipes(baselines=(baseline,), basis="per_parameter")
