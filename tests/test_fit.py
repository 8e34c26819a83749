"""The fit on real files: oracles, laws, dtypes, memory budget, wrong input, resuming."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import random_base, random_walk, stored, write_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relex_core.errors import CheckpointChanged, DataError, SpecError, WindowError, WindowNotReady
from relex_core.fit import fit, fit_shard, load_fit, merge
from relex_core.fit.device import resident_bytes
from relex_core.kernels import compiled_library

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

    monkeypatch.setattr(plan, "MAX_STRIPE_COLUMNS", plan.BLOCK_COLUMNS)
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


@pytest.mark.parametrize("stripe", [512 * 1024, 32 * 1024])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_what_the_base_lacks_too_is_refused_where_the_tensor_moved(
    tmp_path: Path, bad: float, stripe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another place than what moved, and beside a frozen tensor that may hold what it likes."""
    monkeypatch.setattr("relex_core.plan.MAX_STRIPE_COLUMNS", stripe)
    base = {"moved": torch.zeros(200_000), "frozen": torch.full((5,), bad)}
    base["moved"][150_000] = torch.finfo(torch.float32).min  # a mask's value; its square is infinite
    states = {step: {name: tensor.clone() for name, tensor in base.items()} for step in STEPS}
    for step, state in states.items():
        state["moved"][9] = 0.1 * step
    sound = write_run(tmp_path, base, states, out="sound")
    found = fit(sound)
    assert found.tensors["moved"].moved and found.tensors["moved"].base_norm is None
    assert load_fit(sound) == found and fit(sound) == found, "what was written can be read again"
    for tensors in (base, *states.values()):
        tensors["moved"][150_000] = bad
    with pytest.raises(DataError, match=r"base holds NaN.* in tensor moved") as caught:
        fit(write_run(tmp_path / "unsound", base, states))
    assert caught.value.where == str(tmp_path / "unsound" / "base")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_with_step_and_tensor(tmp_path: Path, bad: float) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    states[8]["lm_head.weight"][3, 3] = bad
    with pytest.raises(DataError, match=r"step 8 .* tensor lm_head\.weight") as caught:
        fit(write_run(tmp_path, base, states))
    assert caught.value.exit_code == 4
    assert not Path(tmp_path, "run", "fit", "fit.json").exists()


def test_identical_steps_are_refused(tmp_path: Path) -> None:
    base = random_base(dtype=torch.bfloat16)
    states = random_walk(base, STEPS)
    states[20] = states[8]
    with pytest.raises(WindowError, match="steps 8 and 20 hold identical weights"):
        fit(write_run(tmp_path, base, states))


def test_nearly_identical_steps_are_not_refused(tmp_path: Path) -> None:
    """One weight of one tensor differs: far below what float32 products resolve, but the bytes tell."""
    base = random_base()
    states = random_walk(base, STEPS)
    states[20] = {name: tensor.clone() for name, tensor in states[8].items()}
    states[20]["lm_head.weight"][0, 0] += 1e-7
    assert fit(write_run(tmp_path, base, states)).summary.moved == 5


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(random_base(seed=99), STEPS, size=1e-4)
    run = write_run(tmp_path, base, states, fit={"group_size": 1})
    with pytest.raises(WindowError, match="not the base that the run started from"):
        fit_shard(run, 1, 1)  # while it goes on, not only when all is there
    assert len(list(Path(run, "fit").glob("gram-*"))) < len(base), "hours of reading after it was known"
    with pytest.raises(WindowError, match="not the base that the run started from"):
        fit(run)


def test_a_base_that_is_a_later_step_is_refused(tmp_path: Path) -> None:
    base = random_base(dtype=torch.bfloat16)
    states = random_walk(base, STEPS)
    with pytest.raises(WindowError, match="the base holds the weights of step 20"):
        fit(write_run(tmp_path, states[20], states, fit={"group_size": 1}))


def test_a_base_from_beyond_the_window_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = random_base()
    states = random_walk(base, [*STEPS, 40])
    later = states.pop(40)
    fit(write_run(tmp_path / "right", base, states))
    assert not caplog.records
    fit(write_run(tmp_path / "later", later, states))
    assert "a later checkpoint of the run?" in caplog.text and str(tmp_path / "later" / "base") in caplog.text


def test_a_first_step_that_equals_the_base_is_a_warm_up(tmp_path: Path) -> None:
    """And so is a tensor that comes back to where it began."""
    base = random_base(dtype=torch.bfloat16)
    states = random_walk(base, STEPS)
    states[STEPS[0]] = base
    states[STEPS[-1]]["model.scalar"] = base["model.scalar"]
    assert fit(write_run(tmp_path, base, states, fit={"group_size": 1})).summary.moved == 5


def test_a_base_far_away_but_reached_by_training_is_not_refused(tmp_path: Path) -> None:
    """A window that begins late: step 900 lies far from the base, but no farther than the run moves."""
    base = random_base()
    steps = [900, 910, 920]
    assert fit(write_run(tmp_path, base, random_walk(base, steps))).summary.moved == 5


def test_a_checkpoint_replaced_after_collect_is_reported_with_its_step(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    run = write_run(tmp_path, base, states)
    path = tmp_path / "trajectory" / "global_step_8" / "model.safetensors"
    save_file(states[20], path)
    with pytest.raises(CheckpointChanged, match="step 8"):
        fit(run)


def test_more_than_the_window_has_is_refused(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    for number, section in enumerate(
        ({"trailing_averages": [6]}, {"temporal": "polynomial", "degree": 5}, {"device": "cuda"}, {"device": "abacus"})
    ):
        if section.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(SpecError):
            fit(write_run(tmp_path, base, states, out=f"run{number}", fit=section))


def test_a_finished_fit_is_not_done_again_and_another_fit_is_not_mixed_in(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), fit={"group_size": 1})
    first = fit(run)
    assert fit(run) == first
    assert not list(Path(run, "fit").glob("gram-*")), "group files are gone when the fit is done"
    files = [re.sub(r".*/", "", str(path)) for path in Path(run, "fit").glob("direction-*")]
    assert sorted(files) == [f"direction-{i:05d}-of-00005.safetensors" for i in range(1, 6)]

    other = write_run(tmp_path, base, {}, out="other", window={"t_cut": 20}, fit={"group_size": 1})
    shutil.copytree(Path(run, "fit"), Path(other, "fit"))
    refitted = fit(other)
    assert refitted.steps == (3, 4, 8, 20) and refitted.fit_key != first.fit_key
    metadata = load_file(Path(other, "fit", files[0]))
    assert metadata.keys() <= base.keys()


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_give_the_same_fit_in_any_order(tmp_path: Path, shards: int) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    whole = write_run(tmp_path, base, states, fit={"group_size": 400})
    expected = fit(whole)
    run = write_run(tmp_path, base, states, out="shards", fit={"group_size": 400})
    for shard in range(shards, 1, -1):
        fit_shard(run, shard, shards)
    with pytest.raises(WindowNotReady, match="tensor groups are not fitted yet"):
        merge(run)
    fit_shard(run, 1, shards)
    merged = merge(run)
    assert merged.tensors == expected.tensors and merged.bytes_read == expected.bytes_read
    for path in sorted(Path(whole, "fit").glob("*.safetensors")):
        assert path.read_bytes() == Path(run, "fit", path.name).read_bytes()


def test_a_fit_that_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    first = fit(run)
    Path(run, "fit", "fit.json").write_text('{"window_digest": "of another version"}')
    with pytest.raises(DataError, match="not a fit"):
        load_fit(run)
    assert fit(run).tensors == first.tensors


@pytest.mark.parametrize("key", ["this fit's", "another's"])
def test_a_group_without_its_tensors_fits_is_fitted_again(tmp_path: Path, key: str) -> None:
    """As one that a version between two releases left."""
    base = random_base()
    states = random_walk(base, STEPS)
    expected = fit(write_run(tmp_path, base, states))
    run = write_run(tmp_path, base, states, out="interrupted")
    fit_shard(run, 1, 1)
    [left] = Path(run, "fit").glob("gram-*")
    with safe_open(left, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(left)
    facts = json.loads(metadata["facts"])
    del facts["tensors"]
    metadata |= {"facts": json.dumps(facts)} | ({"fit_key": "another"} if key == "another's" else {})
    save_file(tensors, left, metadata)
    with pytest.raises(WindowNotReady, match="not fitted yet"):
        merge(run)
    assert fit(run).tensors == expected.tensors


def test_the_merge_takes_the_eigenvectors_that_the_directions_were_mixed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed again, on another machine, they may have other signs, or be others where two eigenvalues are equal."""
    base = random_base()
    states = random_walk(base, STEPS)
    expected = fit(write_run(tmp_path, base, states))
    run = write_run(tmp_path, base, states, out="shards")
    fit_shard(run, 1, 1)
    for routine in ("eigh", "svd", "qr", "lstsq"):
        monkeypatch.delattr(np.linalg, routine)
    assert merge(run).tensors == expected.tensors


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


def test_processes_that_fit_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    base = {f"t{number}": torch.randn(300) for number in range(30)}
    run = write_run(tmp_path, base, random_walk(base, STEPS), fit={"group_size": 1})
    command = [sys.executable, "-m", "relex_core", "fit", run]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert load_fit(run).summary.moved == 30
    assert not list(Path(run, "fit").glob("gram-*"))


def test_the_merge_holds_one_groups_gram_matrices_at_a_time(tmp_path: Path) -> None:
    base = {f"t{number}": torch.randn(8) for number in range(200)}
    run = write_run(tmp_path, base, random_walk(base, range(1, 101)), fit={"group_size": 256})
    fit_shard(run, 1, 1)
    tracemalloc.start()
    try:
        artifact = merge(run)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert artifact.summary.moved == 200
    all_grams = 200 * 100 * 100 * 8
    assert peak < 0.8 * all_grams


def test_a_merge_that_comes_second_takes_what_the_first_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    from relex_core.fit import merging

    second = merging.merge_groups

    def after_another(run: str) -> object:
        second(run)
        return second(run)  # whose groups are gone now

    monkeypatch.setattr(merging, "merge_groups", after_another)
    assert merge(run) == load_fit(run)


def test_a_merge_that_comes_too_late_clears_what_its_shard_left(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    [left] = Path(run, "fit").glob("gram-*")
    kept = left.read_bytes()
    artifact = merge(run)
    left.write_bytes(kept)
    assert merge(run) == artifact
    assert not left.exists()


def test_a_group_file_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    from relex_core.fit import group_results

    [group], real = Path(run, "fit").glob("gram-*"), group_results.read_header
    seen = []

    def replaced(*arguments: Any) -> Any:
        header = real(*arguments)
        if len(seen) == 1:  # the first look sees only whether it is there
            shutil.copy(group, group.with_name("copy"))
            group.with_name("copy").replace(group)
        seen.append(header)
        return header

    monkeypatch.setattr(group_results, "read_header", replaced)
    assert merge(run).summary.moved == 5
    assert len(seen) == 3
