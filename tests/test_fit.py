"""The fit on real files: oracles, laws, dtypes, memory budget."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import random_base, random_walk, stored, write_run
from safetensors.torch import save_file

from relex_core.fit import fit
from relex_core.fit.device import resident_bytes
from relex_core.forecast import forecast
from relex_core.kernels import compiled_library
from relex_core.stripes import BLOCK_COLUMNS

STEPS = [3, 4, 8, 20, 31]


def test_directions_and_lines_equal_the_oracle(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    run = write_run(tmp_path, base, states, fit={"rank": 2})
    artifact = fit(run)
    assert artifact.steps == tuple(STEPS)
    for column, component in (("direction", 0), ("direction_2", 1)):
        directions = stored(run, column)
        for name, direction in directions.items():
            deltas = torch.stack([(states[t][name].double() - base[name].double()).flatten() for t in STEPS])
            u, s, vh = torch.linalg.svd(deltas, full_matrices=False)
            assert direction.shape == base[name].shape and direction.dtype == torch.float32
            assert abs(float(direction.double().flatten() @ vh[component])) == pytest.approx(1, abs=1e-5)
            tensor = artifact.tensors[name]
            coefficients = np.array(tensor.components[component].coefficients)
            assert np.abs(coefficients) == pytest.approx(
                (u[:, component] * s[component]).abs().numpy(), rel=1e-3, abs=1e-7
            )
            slope, intercept = np.polyfit(STEPS, coefficients, 1)
            power0, power1 = tensor.components[component].polynomial
            assert (power1, power0) == pytest.approx((slope, intercept), rel=1e-6, abs=1e-9)
    assert len(stored(run)) == 5
    assert "model.scalar" not in stored(run, "direction_2"), "one number spans one dimension"


def test_an_exact_line_is_recovered_from_irregular_true_steps(tmp_path: Path) -> None:
    """Labels 10, 20, ..., 750 and a direction that grows by 1 a step: the coefficient at 1000 is 1000, not 3250."""
    base = {"w": torch.zeros(50, 3)}
    direction = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    steps = [10, 20, 50, 130, 400, 750]
    run = write_run(tmp_path, base, {t: {"w": t * direction} for t in steps})
    tensor = fit(run).tensors["w"]
    assert tensor.slope * 1000 + tensor.intercept == pytest.approx(1000, rel=1e-5)
    assert tensor.r_squared == pytest.approx(1) and tensor.explained_variance == pytest.approx(1)
    torch.testing.assert_close(stored(run)["w"], direction, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("changed", "read_again"), [(1.0, 7), (0.1, 0 if compiled_library() else 7)])
def test_the_result_does_not_depend_on_budget_stripes_or_threads(
    changed: float, read_again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also covers a tensor of 10 stripes of which 3 stay in memory, or all of them if few weights changed."""
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(10 * 32 * 1024, generator=generator), "b": torch.randn(7), "c": torch.randn(100_000)}
    moving = {name: torch.rand(tensor.shape, generator=generator) < changed for name, tensor in base.items()}
    states = {
        step: {name: torch.where(moving[name], tensor, base[name]) for name, tensor in state.items()}
        for step, state in random_walk(base, [1, 2, 3]).items()
    }
    run = write_run(tmp_path, base, states, out="default")
    roomy = fit(run)
    window = sum(t.numel() for t in base.values()) * 4 * 4
    assert roomy.bytes_read == window

    from relex_core import plan

    monkeypatch.setattr(plan, "MAX_STRIPE_COLUMNS", BLOCK_COLUMNS)
    real = plan.plan_fit

    def narrow(*arguments: object, **named: object) -> plan.FitPlan:
        import dataclasses

        planned = real(*arguments, **named)  # type: ignore[arg-type]
        return dataclasses.replace(planned, buffers=planned.ahead + 3, dear_reads=True)

    monkeypatch.setattr("relex_core.fit.loop.plan_fit", narrow)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    other = write_run(tmp_path, base, states, out="narrow")
    small = fit(other)
    assert small.bytes_read == window + read_again * 32 * 1024 * 4 * 4
    assert small.tensors == roomy.tensors
    for path in sorted(Path(run, "fit").glob("*.safetensors")):
        assert path.read_bytes() == Path(other, "fit", path.name).read_bytes()


def test_tensor_order_and_sharding_do_not_matter(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    plain = fit(write_run(tmp_path / "plain", base, states))
    names = sorted(base, reverse=True)
    root = tmp_path / "sharded"
    for folder, tensors in [(root / "base", base)] + [
        (root / "trajectory" / f"global_step_{step}", state) for step, state in states.items()
    ]:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
        for shard, inside in shards.items():
            save_file({name: tensors[name] for name in inside}, folder / shard)
        weight_map = {name: shard for shard, inside in shards.items() for name in inside}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = fit(write_run(root, base, states))
    assert sharded.tensors == plain.tensors
    assert list(sharded.tensors) != list(plain.tensors)


@pytest.mark.parametrize(
    ("base_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)],
)
def test_float_dtypes_may_differ_between_base_and_run(
    tmp_path: Path, base_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    base = random_base(dtype=base_dtype)
    states = {
        step: {name: tensor.to(dtype) for name, tensor in state.items()}
        for step, state in random_walk({n: t.float() for n, t in base.items()}, STEPS).items()
    }
    artifact = fit(write_run(tmp_path, base, states))
    for name, tensor in artifact.tensors.items():
        deltas = torch.stack([(states[t][name].double() - base[name].double()).flatten() for t in STEPS])
        values = torch.linalg.svdvals(deltas)
        assert tensor.singular_values[0] == pytest.approx(float(values[0]), rel=1e-5)


def test_tensors_that_stand_still_have_no_r_squared_and_no_say_in_its_median(tmp_path: Path) -> None:
    """The norm moved once, before the first checkpoint; the embedding is the base's, rounded to bfloat16."""
    base = random_base()
    still = {
        "model.layers.0.norm.weight": base["model.layers.0.norm.weight"] + 2**-6,
        "model.embed_tokens.weight": base["model.embed_tokens.weight"],
    }
    states = {
        step: {name: tensor.bfloat16() for name, tensor in (state | still).items()}
        for step, state in random_walk(base, list(range(1, 25))).items()
    }
    run = write_run(tmp_path, base, states)
    artifact = fit(run)
    moving = [tensor.r_squared for name, tensor in artifact.tensors.items() if name not in still]
    assert all(artifact.tensors[name].moved and artifact.tensors[name].r_squared is None for name in still)
    assert artifact.summary.r_squared_median == np.median(np.array(moving, dtype=np.float64))
    result = forecast(run)
    for name, shape in result.tensors.items():
        assert (shape.r_squared is None) == (shape.residual_autocorrelation is None) == (name in still)
    standing = result.modules["norm"].null
    assert (standing.r_squared, standing.line_p_value, standing.straight) == (None, None, False)


def test_small_deltas_of_float32_checkpoints_survive_on_disk(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    base = {"w": 0.02 * torch.randn(5000, generator=generator)}
    true = 3e-6 * torch.randn(5000, generator=generator).double()
    states = {t: {"w": (base["w"].double() + t * true).float()} for t in (1, 2, 3, 4)}
    run = write_run(tmp_path, base, states)
    fit(run)
    assert float(stored(run)["w"].double() @ true / true.norm()) > 0.99999


def test_tensors_that_never_move_and_integers(tmp_path: Path) -> None:
    base = {
        "frozen": torch.randn(9),
        "moving": torch.randn(9),
        "positions": torch.arange(5),
        "counter": torch.tensor([0, 7]),
        "mask": torch.tensor([True, False, True]),
    }
    states = random_walk(base, [1, 2, 3])
    for step, state in states.items():
        state["frozen"] = base["frozen"].clone()
        state["counter"] = torch.tensor([step, 7])
    run = write_run(tmp_path, base, states)
    artifact = fit(run)
    frozen = artifact.tensors["frozen"]
    assert not frozen.moved and frozen.explained_variance is None and frozen.r_squared is None
    assert set(artifact.tensors) == {"frozen", "moving"}
    assert set(stored(run)) == {"moving"}
    kept = stored(run, "state")
    assert set(kept) == {"counter"} and kept["counter"].tolist() == [3, 7]


def test_columns_of_the_per_parameter_basis_and_averages(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    run = write_run(tmp_path, base, states, fit={"basis": "per_parameter", "trailing_averages": [2, 5]})
    assert fit(run).columns == ("trend0", "trend1", "trailing_average_2", "trailing_average_5")
    average = stored(run, "trailing_average_2")["lm_head.weight"]
    expected = (states[20]["lm_head.weight"] + states[31]["lm_head.weight"]) / 2 - base["lm_head.weight"]
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-8)


def test_bfloat16_directions(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), fit={"direction_dtype": "bfloat16"})
    fit(run)
    direction = stored(run)["lm_head.weight"]
    assert direction.dtype == torch.bfloat16 and float(direction.double().norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("tensors", "numel", "steps", "options"),
    [
        (6, 1_000_000, 8, {}),
        (700, 64, 80, {}),
        (1, 6_000_000, 3, {"rank": 3, "direction_dtype": "bfloat16"}),
    ],
)
def test_the_promised_memory_is_kept(
    tmp_path: Path, tensors: int, numel: int, steps: int, options: dict[str, Any]
) -> None:
    """In a process of its own, with the smallest budget that the plan accepts for this window."""
    base = {f"w{i}": torch.randn(numel).bfloat16() for i in range(tensors)}
    states = random_walk(base, list(range(1, steps + 1)))
    run = write_run(tmp_path, base, states, fit={"group_size": "8MiB", **options})
    command = [sys.executable, "-m", "relex_core", "fit", run, "--memory-budget"]
    refused = subprocess.run([*command, "1MiB"], capture_output=True, text=True)
    assert refused.returncode == 2
    found = re.search(r"at least (\d+) MiB", refused.stderr)
    assert found, refused.stderr
    smallest = int(found[1]) + 1  # the two processes need not hold quite the same
    subprocess.run([*command, f"{smallest}MiB"], check=True, capture_output=True)
    artifact = json.loads(Path(run, "fit", "fit.json").read_text())
    assert artifact["peak_rss_bytes"] < 1.02 * smallest * 2**20


def test_frozen_weights_are_read_once_whatever_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64, which the kernels leave to numpy: nothing is packed."""
    monkeypatch.setattr("relex_core.plan.MAX_STRIPE_COLUMNS", 32 * 1024)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    base = {"frozen": torch.randn(2_000_000, dtype=torch.float64), "moving": torch.randn(9)}
    states = random_walk({"moving": base["moving"]}, STEPS)
    run = write_run(tmp_path, base, {step: {**base, **state} for step, state in states.items()})
    artifact = fit(run, memory_budget=100 * 2**20 + resident_bytes())
    assert artifact.bytes_read == 6 * (2_000_000 * 8 + 9 * 4)
    assert not artifact.tensors["frozen"].moved
