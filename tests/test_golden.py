"""Against the authors' implementation on real RLVR runs: tests/data/small, and the larger one where it is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relex_core.collect import collect
from relex_core.extrapolate import extrapolate
from relex_core.fit import FitArtifact, fit
from relex_core.spec import resolve_spec

SMALL = Path(__file__).parent / "data" / "small"
LARGE = Path(__file__).parents[2] / "shared" / "golden"

# Trajectory, base, reference, T_cut, {(rank, reference file): candidate}
RUNS = {
    "small": (SMALL / "run", SMALL / "reference", 16, [20, 40, 80], [8, 16], 40),
    "addition-rlvr": (LARGE / "addition-rlvr", LARGE / "reference", 24, [30, 60, 120], [12, 24], 60),
}
REPORTS = {
    "small": {1: "variance_report_h16_r1.json"},
    "addition-rlvr": {1: "variance_report_h24_r1.json", 3: "variance_report_h24_r3.json"},
}


@pytest.fixture(scope="module", params=RUNS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, Path]]:
    """Run directories of the rank-1 and the rank-3 fit, with all referenced candidates written."""
    trajectory, _, t_cut, targets, observed, rank3_target = RUNS[request.param]
    if not trajectory.exists():
        pytest.skip("the larger golden run is not beside this checkout")
    runs = {}
    for rank in (1, 3):
        run = tmp_path_factory.mktemp(f"{request.param}-rank{rank}")
        spec = {
            "base": str(trajectory / "base"),
            "trajectory": str(trajectory),
            "window": {"t_cut": t_cut},
            "fit": {"rank": rank},
            "candidates": {
                "target_steps": targets if rank == 1 else [rank3_target],
                "reconstruction_steps": observed if rank == 1 else [],
            },
        }
        collect(resolve_spec(spec, where="test", folder=run, out=str(run)))
        fit(str(run))
        extrapolate(str(run))
        runs[rank] = run
    return request.param, runs


def deltas(path: Path, base: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = load_file(path)
    assert weights.keys() == base.keys()
    assert all(weights[name].dtype == base[name].dtype for name in base)
    return torch.cat([(weights[name].double() - base[name].double()).flatten() for name in base])


def test_candidates_equal_the_reference(golden: tuple[str, dict[int, Path]]) -> None:
    """Their deltas are float16 on disk, so a few weights in ten thousand round to the other bf16 neighbour."""
    name, runs = golden
    trajectory, reference, _, targets, observed, rank3_target = RUNS[name]
    base = load_file(trajectory / "base" / "model.safetensors")
    pairs = [(1, f"rank1-step{step}", f"relex-step{step:05d}-scale1.00") for step in targets]
    pairs += [(1, f"reconstruct-step{step}", f"reconstruction-step{step:05d}") for step in observed]
    pairs += [(3, f"rank3-step{rank3_target}", f"relex-step{rank3_target:05d}-scale1.00")]
    for rank, theirs, ours in pairs:
        expected = deltas(reference / f"{theirs}.safetensors", base)
        found = deltas(runs[rank] / "candidates" / ours / "model.safetensors", base)
        identical = float((expected == found).double().mean())
        cosine = float(expected @ found / expected.norm() / found.norm())
        print(f"{name} {theirs}: {100 * identical:.4f} % identical, delta cosine {cosine:.10f}")
        assert identical >= 0.999
        assert cosine >= 0.9999


def test_explained_variances_equal_the_reference(golden: tuple[str, dict[int, Path]]) -> None:
    name, runs = golden
    for rank, report in REPORTS[name].items():
        artifact = FitArtifact.model_validate_json((runs[rank] / "fit" / "fit.json").read_bytes())
        theirs = json.loads((RUNS[name][1] / report).read_text())["per_tensor"]
        assert len(theirs) == len(artifact.tensors)
        for tensor in theirs:
            ours = artifact.tensors[tensor["name"]].explained_variance
            # They report 0 for a tensor that never moved; its explained variance is undefined.
            assert (ours is None and tensor["explained_variance"] == 0) or ours == pytest.approx(
                tensor["explained_variance"], abs=1e-5
            )
