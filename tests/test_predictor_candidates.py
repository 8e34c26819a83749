"""Candidates from the forecast and cut directions, on real files, against brute force from the full deltas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import candidate, random_base, random_walk, stored, write_run
from safetensors.torch import load_file

from relex_core.extrapolate import extrapolate
from relex_core.fit import fit
from relex_core.forecast import forecast, forecast_from_grams
from relex_core.spatial import cut, noise_edge_rank, spectrum

STEPS = [3, 5, 8, 11, 14, 17, 21, 24, 30]
AHEAD = 60
FROZEN = "model.layers.0.norm.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 walk with drift of irregular steps; nothing is forecast before extrapolate needs it."""
    root = tmp_path_factory.mktemp("predictors")
    base = random_base()
    states = random_walk(base, STEPS)
    for state in states.values():
        state[FROZEN] = base[FROZEN]
    out = write_run(
        root,
        base,
        states,
        candidates={
            "target_steps": [11, AHEAD],
            "spatial_ranks": ["full", 2, "auto", 100],
            "baselines": ["last_observed", "pinned", "calibrated", "drift", "auto"],
        },
    )
    fit(out)
    extrapolate(out)
    return root


def deltas(run: Path) -> dict[str, np.ndarray]:
    """By tensor, "T d" in float64."""
    base = load_file(run / "base" / "model.safetensors")
    states = [load_file(run / "trajectory" / f"global_step_{step}" / "model.safetensors") for step in STEPS]
    return {n: np.stack([(s[n].double() - w.double()).numpy().ravel() for s in states]) for n, w in base.items()}


def displacement(run: Path, name: str) -> dict[str, np.ndarray]:
    base = load_file(run / "base" / "model.safetensors")
    found = candidate(str(run / "run"), name)
    return {n: (found[n].double() - w.double()).numpy().ravel() for n, w in base.items()}


def brute_force(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First singular direction, its coefficients and their line (slope, intercept)."""
    _, _, vt = np.linalg.svd(rows, full_matrices=False)
    v = vt[0] * (np.sign((rows @ vt[0]).sum()) or 1.0)
    return v, rows @ v, np.polyfit(STEPS, rows @ v, 1)


def test_drift_and_calibrated_equal_those_of_the_full_deltas(run: Path) -> None:
    observed = deltas(run)
    found = forecast_from_grams({name: rows @ rows.T for name, rows in observed.items()}, STEPS)
    drift, calibrated = displacement(run, f"drift-step{AHEAD:05d}"), displacement(run, f"calibrated-step{AHEAD:05d}")
    shares = set()
    for name, rows in observed.items():
        share = found.modules[found.tensors[name].module].null.drift_share or 0.0
        shares.add(round(share, 3))
        factor = 1 + share * (AHEAD - STEPS[-1]) / STEPS[-1]
        np.testing.assert_allclose(drift[name], factor * rows[-1], rtol=1e-3, atol=1e-7)
        if rows.any():
            v, c, _ = brute_force(rows)
            np.testing.assert_allclose(calibrated[name], factor * c[-1] * v, rtol=1e-2, atol=1e-6)
    assert len(shares) > 2  # module types differ, and each has its own


def test_what_a_candidate_took_from_the_forecast_is_its_provenance_and_key(run: Path) -> None:
    found = forecast(str(run / "run"))
    shares = {name: group.null.drift_share or 0.0 for name, group in found.modules.items()}
    folder = run / "run" / "candidates"
    provenance = {path.name: json.loads((path / "relex.json").read_text()) for path in folder.iterdir()}
    for name, written in provenance.items():
        guided = name.startswith(("drift", "calibrated", "auto"))
        assert written["drift_shares"] == (shares if guided else {})
        assert set(written["predictors"]) == (set(found.modules) if name.startswith("auto") else set())
    assert "model.layers.0.mlp.weight" in provenance[f"pinned-step{AHEAD:05d}-scale1.00-srank2"]["spatial_ranks"]
    # Another φ under the same name is another candidate.
    path = run / "run" / "forecast.json"
    text = path.read_text()
    assert (run / "run" / "spatial.json").exists()
    try:
        changed = json.loads(text)
        for group in changed["modules"].values():
            group["null"]["drift_share"] = 0.125
        path.write_text(json.dumps(changed))
        keys = {c.name: c.key for c in extrapolate(str(run / "run"))}
        different = {name for name, key in keys.items() if key != provenance[name]["key"]}
        assert different == {name for name in keys if name.startswith(("drift", "calibrated", "auto"))}
    finally:
        path.write_text(text)
        extrapolate(str(run / "run"))


@pytest.mark.parametrize("method", ["relex", "pinned", "calibrated"])
def test_a_cut_direction_is_that_of_the_singular_value_decomposition(run: Path, method: str) -> None:
    observed, directions = deltas(run), stored(str(run / "run"))
    scale = "" if method == "calibrated" else "-scale1.00"
    full = displacement(run, f"{method}-step{AHEAD:05d}{scale}")
    two = displacement(run, f"{method}-step{AHEAD:05d}{scale}-srank2")
    for name, direction in directions.items():
        left = observed[name][-1] if method == "pinned" else 0.0  # what is not along the direction stays whole
        coefficient = (full[name] - left) @ direction.double().numpy().ravel()
        matrix = direction.double().numpy()
        if matrix.ndim == 2:
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            matrix = (u[:, :2] * s[:2]) @ vt[:2]
        np.testing.assert_allclose(two[name] - left, coefficient * matrix.ravel(), atol=3e-7)
        if matrix.ndim == 2 and min(matrix.shape) > 2:
            assert np.linalg.norm(two[name] - left) < 0.999 * np.linalg.norm(full[name] - left)


def test_a_rank_beyond_the_matrix_is_the_full_direction(run: Path) -> None:
    for name, weights in displacement(run, f"relex-step{AHEAD:05d}-scale1.00-srank100").items():
        assert np.array_equal(weights, displacement(run, f"relex-step{AHEAD:05d}-scale1.00")[name])


def test_auto_ranks_are_those_of_the_noise_edge(run: Path) -> None:
    ranks = json.loads((run / "run" / "spatial.json").read_text())["ranks"]
    directions = stored(str(run / "run"))
    for name, rank in ranks.items():
        s = np.linalg.svd(directions[name].double().numpy(), compute_uv=False)
        beta = min(directions[name].shape) / max(directions[name].shape)
        edge = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * np.median(s)
        assert rank == max((s > edge).sum(), 1)
    assert set(ranks) == {name for name, v in directions.items() if v.ndim == 2}


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 40), rank=st.integers(1, 8), seed=st.integers(0, 99))
def test_pieces_of_a_cut_matrix_are_those_of_the_truncated_one(m: int, n: int, rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32)
    found = spectrum(matrix)
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(found.values[: len(s)], s, rtol=1e-6, atol=1e-6)
    small = cut(matrix, found, rank)
    expected = ((u[:, :rank] * s[:rank]) @ vt[:rank]).ravel()
    start, stop = sorted((seed % (m * n), (7 * seed) % (m * n) + 1))
    np.testing.assert_allclose(small.elements(start, stop), expected[start:stop], rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(2500, 6), (6, 2500), (9, 9)])
def test_a_matrix_of_several_blocks_is_cut_like_numpys_svd(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    small = cut(matrix, spectrum(matrix), 3)
    assert (small.left.shape, small.right.shape) == ((shape[0], 3), (3, shape[1]))
    assert np.allclose(small.left @ small.right, (u[:, :3] * sigma[:3]) @ vt[:3], atol=1e-9)
    for gram in (small.left.T @ small.left, small.right @ small.right.T):  # the terms are singular ones: `compressed`
        assert np.allclose(gram, np.diag(np.diag(gram)), atol=1e-9)


@pytest.mark.parametrize("shape", [(60, 60), (30, 120), (150, 50)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_noise_edge_finds_a_planted_rank(shape: tuple[int, int], rank: int) -> None:
    random = np.random.default_rng(rank)
    m, n = shape
    planted = np.linalg.qr(random.standard_normal((m, rank)))[0] @ np.linalg.qr(random.standard_normal((n, rank)))[0].T
    noise = random.standard_normal(shape) / np.sqrt(max(shape))
    values = spectrum(4 * planted + noise).values
    assert noise_edge_rank(values, max(shape)) == rank
    pure = spectrum(noise).values
    assert noise_edge_rank(pure, max(shape)) == 1
