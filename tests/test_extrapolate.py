"""Candidates on real files: the formulas, dtypes, sharding, completeness, and that Hugging Face loads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import candidate, random_base, random_walk, stored, write_run
from safetensors import safe_open
from safetensors.torch import load_file

from relex_core.candidate import write_companions
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound, SpecError, WindowNotReady
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit, load_fit

STEPS = [2, 5, 6, 11]
GOLDEN = Path(__file__).parent / "data" / "small" / "run"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """Folder, base and states of a float32 run with every baseline, fitted and extrapolated."""
    root = tmp_path_factory.mktemp("extrapolate")
    base = random_base()
    base["positions"] = torch.arange(6)
    states = random_walk(base, STEPS)
    for step, state in states.items():
        state["model.layers.0.norm.weight"] = base["model.layers.0.norm.weight"]
        state["positions"] = torch.arange(6) + step
    baselines = ["last_observed", "trailing_average", "weight_extrapolation", "first_update", "expo", "pinned"]
    run = write_run(
        root,
        base,
        states,
        fit={"rank": 2, "trailing_averages": [3]},
        candidates={
            "target_steps": [6, 20],
            "scales": [1.0, 0.25, 0.0],
            "baselines": baselines,
            "reconstruction_steps": [5],
            "expo_alphas": [0.3],
        },
    )
    fit(run)
    extrapolate(run)
    return root, base, states


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "run" / "candidates").iterdir()}


def test_candidates_are_named_and_complete(fitted: tuple[Path, dict, dict]) -> None:
    root, base, _ = fitted
    assert names(root) == {
        *(f"relex-step{step:05d}-scale{scale}" for step in (6, 20) for scale in ("1.00", "0.25", "0.00")),
        *(f"pinned-step00020-scale{scale}" for scale in ("1.00", "0.25", "0.00")),
        "reconstruction-step00005",
        "trailing_average-3",
        "weight_extrapolation-step00020",
        "first_update-alpha3",
        "first_update-alpha10",
        "expo-alpha0.3",
    }
    for name in names(root):
        tensors = candidate(str(root / "run"), name)
        assert list(tensors.keys()) == list(load_file(root / "base" / "model.safetensors").keys())
        assert all(tensors[n].shape == base[n].shape and tensors[n].dtype == base[n].dtype for n in base)
        provenance = json.loads((root / "run" / "candidates" / name / "relex.json").read_text())
        assert provenance["name"] == name and provenance["window_digest"].startswith("sha256:")
        assert provenance["files"].keys() == {"config.json", "model.safetensors"}


def test_every_candidate_is_the_base_plus_its_mix(fitted: tuple[Path, dict, dict]) -> None:
    root, base, states = fitted
    run = str(root / "run")
    artifact = load_fit(run)
    v1, v2 = stored(run, "direction"), stored(run, "direction_2")
    first, last = states[STEPS[0]], states[STEPS[-1]]
    for name, w0 in base.items():
        if name == "positions":
            continue
        tensor = artifact.tensors[name]
        line = [[0.0, 0.0], *([list(c.polynomial) for c in tensor.components])][1:]

        def along(values: list[float], name: str = name, w0: torch.Tensor = w0) -> torch.Tensor:
            directions = [v.get(name, torch.zeros_like(w0)).double() for v in (v1, v2)]
            return sum((c * v for c, v in zip(values, directions, strict=False)), torch.zeros_like(w0).double())

        def at(step: float, line: list[list[float]] = line) -> list[float]:
            return [intercept + slope * step for intercept, slope in line]

        observed = [c.coefficients[1] for c in tensor.components]
        moved = [late - now for late, now in zip(at(20), at(11), strict=True)]
        base64, last64, first64 = w0.double(), last[name].double(), first[name].double()
        expected = {
            "relex-step00020-scale1.00": base64 + along(at(20)),
            "relex-step00006-scale0.25": base64 + 0.25 * along(at(6)),
            "reconstruction-step00005": base64 + along(observed),
            "pinned-step00020-scale0.25": last64 + 0.25 * along(moved),
            "trailing_average-3": sum(states[t][name].double() for t in STEPS[-3:]) / 3,
            "weight_extrapolation-step00020": base64 + 20 / 11 * (last64 - base64),
            "expo-alpha0.3": last64 + 0.3 * (last64 - base64),
            "first_update-alpha10": base64 + 10 * (first64 - base64),
        }
        for candidate_name, weights in expected.items():
            found = candidate(run, candidate_name)[name].double()
            torch.testing.assert_close(found, weights, rtol=1e-5, atol=2e-7)


def test_scale_zero_is_the_base_bit_for_bit_and_integers_are_as_last_observed(
    fitted: tuple[Path, dict, dict],
) -> None:
    root, base, _ = fitted
    tensors = candidate(str(root / "run"), "relex-step00020-scale0.00")
    for name, weights in base.items():
        if name != "positions":
            assert torch.equal(tensors[name].view(torch.int32), weights.view(torch.int32))
    assert tensors["positions"].tolist() == [11, 12, 13, 14, 15, 16]
    pinned = candidate(str(root / "run"), "pinned-step00020-scale0.00")
    last = load_file(root / "trajectory" / "global_step_11" / "model.safetensors")
    for name in base:
        torch.testing.assert_close(pinned[name], last[name], rtol=1e-6, atol=1e-9)


def test_a_second_call_changes_nothing_and_options_write_more(fitted: tuple[Path, dict, dict]) -> None:
    root, _, _ = fitted
    run = str(root / "run")
    before = {path: path.stat().st_mtime_ns for path in (root / "run" / "candidates").rglob("*.*")}
    extrapolate(run)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    written = extrapolate(run, target_steps=[77], scales=[0.5])
    assert [c.name for c in written] == ["relex-step00077-scale0.50"]
    assert written[0].target_step == 77 and written[0].scale == 0.5
    shutil.rmtree(root / "run" / "candidates" / "relex-step00077-scale0.50")


def test_the_window_is_not_read_again(fitted: tuple[Path, dict, dict]) -> None:
    """Only the first and the last observed checkpoint may be needed."""
    root, _, _ = fitted
    hidden = root / "trajectory" / "global_step_5"
    hidden.rename(root / "hidden")
    try:
        extrapolate(str(root / "run"), target_steps=[33])
    finally:
        (root / "hidden").rename(hidden)
    assert "relex-step00033-scale1.00" in names(root)
    for scale in ("1.00", "0.25", "0.00"):
        shutil.rmtree(root / "run" / "candidates" / f"relex-step00033-scale{scale}")


def test_dtype_and_sharding(tmp_path: Path) -> None:
    """The base is sharded bf16, the run float32 in one file: the output is sharded like the base, float32."""
    from safetensors.torch import save_file

    base = random_base(dtype=torch.bfloat16)
    root = tmp_path
    (root / "base").mkdir()
    order = list(base)
    weight_map = {}
    for number, inside in enumerate((order[:3], order[3:]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: base[name] for name in inside}, root / "base" / shard)
        weight_map |= dict.fromkeys(inside, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (root / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "base" / "config.json").write_text(json.dumps({"model_type": "x", "dtype": "bfloat16"}))
    (root / "base" / "tokenizer.json").write_text("{}")
    (root / "base" / "remote_code.py").write_text("raise SystemExit")
    states = random_walk({n: t.float() for n, t in base.items()}, STEPS)
    for step, state in states.items():
        folder = root / "trajectory" / f"global_step_{step}"
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
    for number, (dtype, expected) in enumerate(
        [("checkpoint", torch.float32), ("base", torch.bfloat16), ("float16", torch.float16)]
    ):
        run = write_run(root, base, states, out=f"run{number}", candidates={"target_steps": [20], "dtype": dtype})
        fit(run)
        extrapolate(run)
        folder = Path(run, "candidates", "relex-step00020-scale1.00")
        tensors = candidate(run, folder.name)
        assert {tensor.dtype for tensor in tensors.values()} == {expected}
        assert json.loads((folder / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")
        written = json.loads((folder / "model.safetensors.index.json").read_text())
        assert written["weight_map"] == weight_map
        assert written["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "relex.json",
            "tokenizer.json",
        ]
        with safe_open(folder / "model-00001-of-00002.safetensors", "pt") as shard:
            assert shard.metadata()["format"] == "pt"


def test_overflow_of_the_written_dtype_is_refused(tmp_path: Path) -> None:
    base = {"w": torch.full((4,), 60_000.0)}
    states = {t: {"w": base["w"] + 10.0 * t} for t in (1, 2)}
    run = write_run(tmp_path, base, states, candidates={"target_steps": [1000], "dtype": "float16"})
    fit(run)
    with pytest.raises(DataError, match=r"relex-step01000-scale1\.00 is not finite in tensor w"):
        extrapolate(run)
    assert not list(Path(run).glob("candidates/*/model.safetensors"))


@pytest.mark.parametrize("dtype", ["checkpoint", "float16"])
def test_a_frozen_mask_of_infinities_is_copied(tmp_path: Path, dtype: str) -> None:
    base = random_base() | {"mask": torch.tensor([-torch.inf, 0.0, torch.nan])}
    states = {step: state | {"mask": base["mask"]} for step, state in random_walk(random_base(), [2, 4, 9]).items()}
    run = write_run(tmp_path, base, states, candidates={"target_steps": [20], "dtype": dtype})
    fit(run)
    if dtype == "float16":  # there infinities may be numbers that were too large
        with pytest.raises(DataError, match="not finite in tensor mask"):
            extrapolate(run)
        return
    for written in extrapolate(run):
        assert candidate(run, written.name)["mask"].view(torch.int32).equal(base["mask"].view(torch.int32))


def test_a_candidate_whose_weights_were_deleted_is_written_again(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), candidates={"target_steps": [20, 30]})
    fit(run)
    extrapolate(run)
    folder = Path(run, "candidates", "relex-step00020-scale1.00")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.safetensors").unlink()
    extrapolate(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_candidate_whose_weights_are_deleted_before_its_mark_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), candidates={"target_steps": [20, 30]})
    fit(run)
    gone, kept = (Path(run, "candidates", f"relex-step000{step}-scale1.00") for step in (20, 30))

    def companions(*arguments: Any) -> None:
        write_companions(*arguments)
        (gone / "model.safetensors").unlink(missing_ok=True)

    monkeypatch.setattr("relex_core.extrapolate.write_companions", companions)
    with pytest.raises(ObjectNotFound, match="were deleted before it was complete: model") as caught:
        extrapolate(run)
    assert caught.value.where == str(gone) and "run the same command again" in caught.value.next_step
    assert not (gone / "relex.json").exists() and (kept / "relex.json").exists()
    monkeypatch.undo()
    assert len(extrapolate(run)) == 2


def test_a_fit_of_another_window_is_refused(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    run = write_run(tmp_path, base, states)
    fit(run)
    other = write_run(tmp_path, base, states, out="other", window={"t_cut": 6})
    shutil.copytree(Path(run, "fit"), Path(other, "fit"))
    with pytest.raises(WindowNotReady, match="the fit is of another window"):
        extrapolate(other)


def test_checkpoints_that_no_candidate_needs_may_be_gone(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), candidates={"baselines": ["weight_extrapolation"]})
    fit(run)
    shutil.rmtree(tmp_path / "trajectory" / "global_step_2")
    assert extrapolate(run, target_steps=[40])
    shutil.rmtree(tmp_path / "trajectory" / "global_step_11")
    assert extrapolate(run, target_steps=[50])
    with pytest.raises(CheckpointChanged, match="step 11"):
        extrapolate(run)


def test_state_that_the_fit_stored_and_that_is_gone_is_not_taken_from_the_base(tmp_path: Path) -> None:
    base = {**random_base(), "positions": torch.arange(6)}
    states = random_walk(base, STEPS)
    for step, state in states.items():
        state["positions"] = torch.arange(6) + step
    run = write_run(tmp_path, base, states, candidates={"target_steps": [20]})
    assert fit(run).changed_state == ("positions",)
    [stored] = Path(run, "fit").glob("state-*")
    stored.unlink()
    with pytest.raises(DataError, match="what the fit stored of tensor positions is gone"):
        extrapolate(run)


def test_float64_checkpoints_keep_their_precision(tmp_path: Path) -> None:
    base = {"w": torch.randn(50, 3, dtype=torch.float64)}
    states = {t: {"w": base["w"] + 1e-9 * t * torch.ones(50, 3, dtype=torch.float64)} for t in (1, 2, 3)}
    run = write_run(tmp_path, base, states, candidates={"baselines": ["expo"], "expo_alphas": [0.0]})
    fit(run)
    extrapolate(run)
    torch.testing.assert_close(candidate(run, "expo-alpha0")["w"], states[3]["w"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_a_stored_direction_that_is_gone_or_torn_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), candidates={"target_steps": [20]})
    fit(run)
    damage(Path(run, "fit", "direction-00001-of-00001.safetensors"))
    with pytest.raises(DataError, match=r"(what the fit stored of .* is gone|stored direction is damaged)") as raised:
        extrapolate(run)
    assert "delete RUN/fit and run relex fit again" in str(raised.value)
    assert not list(Path(run).glob("candidates/*/relex.json"))


def test_impossible_candidates_are_refused(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    run = write_run(tmp_path, base, states, candidates={"reconstruction_steps": [4]})
    fit(run)
    with pytest.raises(SpecError, match="step 4 was not observed"):
        extrapolate(run)


@given(target=st.integers(0, 10_000), scale=st.sampled_from([1.0, 0.5, -1.0]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_negating_the_deltas_negates_the_prediction(tmp_path: Path, target: int, scale: float) -> None:
    base = {"w": torch.zeros(30, 4)}
    deltas = random_walk({"w": torch.zeros(30, 4)}, [1, 2, 3])
    found = []
    for sign in (1, -1):
        root = tmp_path / f"{sign}-{target}-{scale}"
        run = root / "run"
        if not run.exists():
            write_run(root, base, {t: {"w": sign * state["w"]} for t, state in deltas.items()})
            fit(str(run))
        (written,) = extrapolate(str(run), target_steps=[target], scales=[scale])
        found.append(candidate(str(run), written.name)["w"])
    torch.testing.assert_close(found[0], -found[1], rtol=1e-5, atol=1e-7)


def test_hugging_face_loads_a_candidate(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from relex_core.collect import collect
    from relex_core.spec import resolve_spec

    spec = {
        "base": str(GOLDEN / "base"),
        "trajectory": str(GOLDEN),
        "window": {"t_cut": 16},
        "candidates": {"target_steps": [40]},
    }
    run = str(tmp_path / "run")
    collect(resolve_spec(spec, where="test", folder=tmp_path, out=run))
    fit(run)
    (written,) = extrapolate(run)
    folder = Path(run, "candidates", written.name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    loaded = dict(model.state_dict())
    for name, tensor in candidate(run, written.name).items():
        assert torch.equal(loaded[name], tensor)
    assert model(**tokenizer("12+34=", return_tensors="pt")).logits.isfinite().all()
