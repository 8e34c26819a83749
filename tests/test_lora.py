"""LoRA runs against full weights: PEFT adapters of real training, the same steps merged by PEFT, both through relex.

The merged checkpoints are float32, so that each weight of about 0.02 is rounded by about 1e-9, and the deltas of about
1e-2 that a fit sees differ by 1e-7 of themselves. Hence 1e-5 for Gram matrices, coefficients, directions and weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_runs import LoraRun, merged, tiny_model, train
from runs import candidate, stored
from safetensors.torch import load_file

from relex_core.collect import collect
from relex_core.evaluate.scratch import local_checkpoint
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit, load_fit
from relex_core.forecast import forecast
from relex_core.forecast.files import read_grams
from relex_core.storage import open_store

STEPS = (2, 3, 5, 6, 8)
ROUNDING = 1e-5

RUNS: dict[str, dict[str, Any]] = {
    "linear": {"r": 4},
    "patterns": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
    },
    "embeddings": {"target_modules": ["q_proj", "up_proj", "embed_tokens", "lm_head"]},
    "whole": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head", "norm"], "bias": "all"},
    "bfloat16 base": {"dtype": torch.bfloat16},
}

EVERYTHING = {
    "fit": {"rank": 2, "trailing_averages": [2]},
    "candidates": {
        "target_steps": [12],
        "scales": [1.0, 0.5],
        "spatial_ranks": ["full", 2],
        "reconstruction_steps": [5],
        "baselines": [
            *("trailing_average", "weight_extrapolation", "first_update", "expo", "pinned", "calibrated", "drift"),
            "auto",
        ],
        "dtype": "float32",
    },
}


@pytest.fixture(scope="module", params=RUNS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """A run, collected, fitted and extrapolated as adapters (written merged) and as full weights."""
    run = train(tmp_path_factory.mktemp("lora"), STEPS, model={"attention_bias": True}, **RUNS[request.param])
    for trajectory in ("adapters", "merged"):
        spec = run.spec(trajectory, **{**EVERYTHING, "candidates": {**EVERYTHING["candidates"], "write": "merged"}})
        collect(spec)
        fit(spec.run_root)
        extrapolate(spec.run_root)
    return run


def grams(run: LoraRun, trajectory: str) -> dict[str, np.ndarray]:
    where = str(run.root / f"run-{trajectory}")
    return read_grams(open_store(where), load_fit(where).fit_key)


def directions(run: LoraRun, column: str) -> dict[str, np.ndarray]:
    """The stored directions of the LoRA run, multiplied out."""
    where = str(run.root / "run-adapters")
    factors = stored(where, f"{column}.factors")
    names = [name.removesuffix(".left") for name in factors if name.endswith(".left")]
    found = {name: (factors[f"{name}.left"] @ factors[f"{name}.right"]).numpy() for name in names}
    return found | {name: tensor.numpy() for name, tensor in stored(where, column).items()}


def test_gram_matrices_are_those_of_the_merged_weights(both: LoraRun) -> None:
    low_rank, dense = grams(both, "adapters"), grams(both, "merged")
    assert {name for name, gram in dense.items() if gram.any()} == set(low_rank)
    for name, gram in low_rank.items():
        norms = np.sqrt(np.diag(dense[name]))
        assert (np.abs(gram - dense[name]) <= ROUNDING * np.outer(norms, norms)).all(), name


def test_fits_are_equal(both: LoraRun) -> None:
    low_rank, dense = (load_fit(str(both.root / f"run-{name}")) for name in ("adapters", "merged"))
    for name, tensor in low_rank.tensors.items():
        other = dense.tensors[name]
        assert tensor.explained_variance == pytest.approx(other.explained_variance, abs=ROUNDING)
        assert tensor.r_squared == pytest.approx(other.r_squared, abs=ROUNDING)
        assert tensor.base_norm == pytest.approx(other.base_norm, rel=1e-6)
        size = tensor.singular_values[0]
        assert np.allclose(tensor.coefficients, other.coefficients, rtol=0, atol=ROUNDING * size)
        assert (tensor.slope, tensor.intercept) == pytest.approx((other.slope, other.intercept), abs=ROUNDING * size)
    assert low_rank.summary.explained_variance == pytest.approx(dense.summary.explained_variance, abs=ROUNDING)
    assert low_rank.summary.moved == dense.summary.moved == low_rank.summary.tensors
    assert (low_rank.steps, low_rank.columns) == (dense.steps, dense.columns)


@pytest.mark.parametrize("column", ["direction", "trailing_average_2"])
def test_stored_directions_are_those_of_the_merged_weights(both: LoraRun, column: str) -> None:
    expected = stored(str(both.root / "run-merged"), column)
    found = directions(both, column)
    assert found.keys() == expected.keys()
    for name, direction in expected.items():
        wanted = direction.numpy()
        assert np.linalg.norm(found[name] - wanted) <= ROUNDING * np.linalg.norm(wanted), name
        assert found[name].shape == wanted.shape


def test_every_candidate_is_that_of_the_merged_weights(both: LoraRun) -> None:
    folders = [{p.name for p in (both.root / f"run-{t}" / "candidates").iterdir()} for t in ("adapters", "merged")]
    assert folders[0] == folders[1] and len(folders[0]) == 16
    base = load_file(both.base / "model.safetensors")
    for name in sorted(folders[0]):
        found, expected = (candidate(str(both.root / f"run-{t}"), name) for t in ("adapters", "merged"))
        assert found.keys() == expected.keys() == base.keys()
        for tensor, weights in expected.items():
            displacement = float((weights - base[tensor].float()).norm())
            # Far from the base the rounding of its own float32 weights is multiplied, too.
            allowed = 3 * ROUNDING * displacement + 1e-7 * float(weights.norm())
            assert float((found[tensor] - weights).norm()) <= allowed, (name, tensor)


def test_the_forecast_is_that_of_the_merged_weights(both: LoraRun) -> None:
    low_rank, dense = (forecast(str(both.root / f"run-{name}")) for name in ("adapters", "merged"))
    assert low_rank.auto.predictor == dense.auto.predictor
    assert low_rank.model.null.drift_share == pytest.approx(dense.model.null.drift_share, abs=1e-3)
    for name, tensor in low_rank.tensors.items():
        mine, other = (t.model_dump(exclude={"explained_variance"}) for t in (tensor, dense.tensors[name]))
        assert mine == pytest.approx(other, abs=1e-3), name
        assert tensor.explained_variance == pytest.approx(dense.tensors[name].explained_variance, abs=ROUNDING)


def displacements(run: LoraRun, weights: dict[str, Any]) -> dict[str, np.ndarray]:
    base = load_file(run.base / "model.safetensors")
    return {name: (weights[name].float() - base[name].float()).double().numpy() for name in weights}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    run = train(tmp_path_factory.mktemp("lora"), STEPS, r=4)
    collect(run.spec("adapters", fit={"rank": 2}))
    fit(str(run.root / "run-adapters"))
    return run


def candidates(run: LoraRun, out: str, **spec: Any) -> str:
    """The fitted run with other candidates, in a copy of its directory."""
    where = run.root / out
    shutil.copytree(run.root / "run-adapters", where)
    collect(run.spec("adapters", out=out, fit={"rank": 2}, candidates=spec))
    return str(where)


@pytest.mark.parametrize("rank", [None, 1, 3, 7])
def test_peft_loads_the_written_adapter_up_to_the_recorded_error(linear: LoraRun, rank: int | None) -> None:
    """The error is that of numpy's SVD of the whole displacement, and what PEFT merges is as far from it."""
    spec: dict[str, Any] = {"target_steps": [16], "dtype": "float32"}
    whole = candidates(linear, f"whole-{rank}", write="merged", **spec)
    low_rank = candidates(linear, f"rank-{rank}", adapter_rank=rank, **spec)
    extrapolate(whole)
    [written] = extrapolate(low_rank)
    wanted = displacements(linear, candidate(whole, written.name))
    folder = Path(low_rank, "candidates", written.name)
    got = displacements(linear, merged(linear.base, folder).state_dict())
    kept = rank or 4
    lost, total = 0.0, 0.0
    assert len(written.truncation_errors) == 14
    assert set(written.adapter_ranks.values()) == {kept}
    for name, matrix in wanted.items():
        norm = np.linalg.norm(matrix)
        if name not in written.truncation_errors:
            assert norm == 0 and not got[name].any()
            continue
        oracle = float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[kept:]) / norm)
        # float32 weights near 0.02 and deltas near 0.01: 1e-5 of the displacement is lost by merging alone.
        assert written.truncation_errors[name] == pytest.approx(oracle, rel=1e-3, abs=1e-5)
        assert np.linalg.norm(got[name] - matrix) / norm == pytest.approx(oracle, rel=1e-3, abs=1e-5)
        lost, total = lost + (oracle * norm) ** 2, total + norm**2
    assert written.truncation_error == pytest.approx((lost / total) ** 0.5, rel=1e-3, abs=1e-6)
    assert written.truncation_error is not None and (written.truncation_error < 0.1 or kept < 4)
    if kept == 7:
        assert written.truncation_error < 1e-2  # four more terms than one step has, of two components
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (kept, kept, {})


def test_an_observed_step_is_written_without_loss(linear: LoraRun) -> None:
    """A multiple of one delta has its rank; the same tensors come back, as PEFT sees them."""
    run = candidates(linear, "expo", baselines=["expo"], expo_alphas=[1.0], target_steps=[16])
    [written] = extrapolate(run, names=["expo-alpha1"])
    assert written.truncation_error is not None and written.truncation_error < 1e-6
    last = displacements(linear, merged(linear.base, linear.adapter(8)).state_dict())
    twice = displacements(linear, merged(linear.base, Path(run, "candidates", written.name)).state_dict())
    for name, matrix in last.items():
        assert np.linalg.norm(twice[name] - 2 * matrix) <= ROUNDING * np.linalg.norm(matrix), name


@pytest.mark.parametrize("name", ["patterns", "embeddings", "whole"])
def test_peft_loads_adapters_of_every_kind(tmp_path: Path, name: str) -> None:
    run = train(tmp_path, (2, 4), model={"attention_bias": True}, merge=False, **RUNS[name])
    spec = run.spec("adapters", candidates={"target_steps": [8], "dtype": "float32"})
    collect(spec)
    fit(spec.run_root)
    [written] = extrapolate(spec.run_root)
    got = displacements(run, merged(run.base, Path(spec.run_root, "candidates", written.name)).state_dict())
    collect(run.spec("adapters", candidates={"target_steps": [8], "dtype": "float32", "write": "merged"}))
    [_] = extrapolate(spec.run_root)
    assert not list(Path(spec.run_root, "candidates", written.name).glob("adapter*"))  # one form at a time
    wanted = displacements(run, candidate(spec.run_root, written.name))
    assert any(matrix.any() for matrix in wanted.values())
    for tensor, matrix in wanted.items():
        lost = np.linalg.norm(got[tensor] - matrix)
        error = written.truncation_errors.get(tensor, 0.0)
        assert lost == pytest.approx(error * np.linalg.norm(matrix), rel=1e-2, abs=1e-6), tensor
    if name == "patterns":
        assert sorted(set(written.adapter_ranks.values())) == [2, 4, 6]


def test_bfloat16_adapters(tmp_path: Path) -> None:
    """Factors of bfloat16 are read as what they are, and written as such with the loss recorded."""
    run = train(tmp_path, (2, 4, 6), dtype=torch.bfloat16, autocast=False, merge=False, r=4)
    tensors = load_file(run.adapter(6) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    spec = run.spec("adapters", candidates={"target_steps": [12]})
    collect(spec)
    artifact = fit(spec.run_root)
    found = read_grams(open_store(spec.run_root), artifact.fit_key)
    for name, gram in found.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        rows = []
        for step in run.steps:
            own = load_file(run.adapter(step) / "adapter_model.safetensors")
            a, b = (own[f"{prefix}.lora_{side}.weight"].double().numpy() for side in "AB")
            rows.append((2.0 * b @ a).ravel())
        assert np.allclose(gram, np.stack(rows) @ np.stack(rows).T, rtol=1e-9, atol=1e-12 * gram.max())
    [written] = extrapolate(spec.run_root)
    out = load_file(Path(spec.run_root, "candidates", written.name, "adapter_model.safetensors"))
    assert {tensor.dtype for tensor in out.values()} == {torch.bfloat16}
    assert {name: tensor.shape for name, tensor in out.items()} == {name: t.shape for name, t in tensors.items()}
    assert written.truncation_error is not None and 1e-4 < written.truncation_error < 0.2


@pytest.mark.parametrize("which", ["last observed", "candidate"])
def test_evaluation_sees_the_merged_model(
    linear: LoraRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """What local_checkpoint gives to the model library is what PEFT computes without merging."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("RELEX_SCRATCH", str(tmp_path / "scratch"))
    folder = str(linear.adapter(8))
    if which == "candidate":
        run = candidates(linear, "seen", target_steps=[12])
        folder = f"{run}/candidates/{extrapolate(run)[0].name}"
    tokens = torch.arange(12)[None]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(linear.base), folder)
    with local_checkpoint(folder, str(linear.base)) as copy:
        assert sorted(p.name for p in Path(copy).iterdir() if p.name[0] != ".") == [
            *("config.json", "generation_config.json", "model.safetensors")
        ]
        model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        expected, found = adapted.eval()(tokens).logits, model.eval()(tokens).logits
        plain = tiny_model().eval()(tokens).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert not any((tmp_path / "scratch").iterdir())


def test_a_changed_scaling_between_steps_is_seen(tmp_path: Path) -> None:
    """Two steps with the same factors and twice the alpha: the second delta is twice the first."""
    run = train(tmp_path, (2, 4), merge=False, r=4)
    shutil.rmtree(run.adapter(4))
    shutil.copytree(run.adapter(2), run.adapter(4))
    (run.adapter(4) / "trainer_state.json").write_text('{"global_step": 4}')
    path = run.adapter(4) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 16}))
    spec = run.spec("adapters")
    collect(spec)
    artifact = fit(spec.run_root)
    for gram in read_grams(open_store(spec.run_root), artifact.fit_key).values():
        assert np.allclose(gram, gram[0, 0] * np.array([[1, 2], [2, 4]]), rtol=1e-12)
    assert artifact.summary.explained_variance == pytest.approx(1.0)
    assert all(tensor.intercept == pytest.approx(0.0, abs=1e-9) for tensor in artifact.tensors.values())


def test_transposed_weights(tmp_path: Path) -> None:
    """GPT-2 stores its weights "in out" (fan_in_fan_out), some of them square."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 24, "n_positions": 16}
    base = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    targets = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    run = train(tmp_path, (2, 4), base=base, r=2, **targets)
    for trajectory in ("adapters", "merged"):
        spec = run.spec(trajectory, candidates={"target_steps": [6], "dtype": "float32"})
        collect(spec)
        fit(spec.run_root)
        extrapolate(spec.run_root)
    low_rank, dense = grams(run, "adapters"), grams(run, "merged")
    assert len(low_rank) == 3  # c_proj of attention (square) and of the MLP
    for name, gram in low_rank.items():
        assert np.allclose(gram, dense[name], rtol=ROUNDING, atol=ROUNDING * gram.max()), name
    folder = tmp_path / "run-adapters/candidates/relex-step00006-scale1.00"
    got = displacements(run, {n: t for n, t in merged(run.base, folder).state_dict().items() if n != "lm_head.weight"})
    wanted = displacements(run, candidate(str(tmp_path / "run-merged"), folder.name))
    errors = json.loads((folder / "relex.json").read_text())["truncation_errors"]
    assert set(errors) == set(low_rank)
    for name, error in errors.items():
        lost = np.linalg.norm(got[name] - wanted[name]) / np.linalg.norm(wanted[name])
        assert lost == pytest.approx(error, rel=1e-2, abs=ROUNDING), name
