"""What a fit refuses, and what it only tells: non-finite weights, identical steps, another base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import random_base, random_walk, write_run
from safetensors.torch import save_file

from relex_core.errors import CheckpointChanged, DataError, SpecError, WindowError
from relex_core.fit import device, fit, fit_shard, load_fit
from relex_core.fit.device import choose_memory

STEPS = [3, 4, 8, 20, 31]


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


def test_identical_steps_are_refused_whatever_lies_between(tmp_path: Path) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    states[8] = {name: tensor.clone() for name, tensor in states[4].items()}
    states[8]["lm_head.weight"][0, 0] += 1e-7
    states[20] = states[4]
    with pytest.raises(WindowError, match="steps 4 and 20 hold identical weights"):
        fit(write_run(tmp_path, base, states))


def test_a_run_that_never_moved_is_refused(tmp_path: Path) -> None:
    """As it is on a store that tells checksums."""
    base = random_base(dtype=torch.bfloat16)
    with pytest.raises(WindowError, match="steps 3 and 4 hold identical weights") as caught:
        fit(write_run(tmp_path, base, dict.fromkeys(STEPS, base)))
    assert "window.first to 4" in caught.value.next_step


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


def test_a_tensor_that_jumps_and_stands_still_is_no_other_base(tmp_path: Path) -> None:
    """Whatever group or shard it is in."""
    base = random_base()
    states = random_walk(base, STEPS)
    for number, state in enumerate(states.values()):
        state["model.scalar"] = base["model.scalar"] + 1 + 1e-6 * number
    run = write_run(tmp_path, base, states, fit={"group_size": 1})
    shards = len(base)
    for shard in range(1, shards + 1):
        fit_shard(run, shard, shards)
    assert fit(run).summary.moved == 5


def test_a_base_about_as_far_as_another_model_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A window that begins late may lie far from its base; how far, only the user can judge."""
    base = random_base()
    states = random_walk(random_base(seed=99), [900, 910, 920], size=1e-2)
    fit(write_run(tmp_path, base, states))
    assert f"was the run started from {tmp_path}/base?" in caplog.text


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
        ({"trailing_averages": [6]}, {"temporal": "polynomial", "degree": 5}, {"device": "cuda"})
    ):
        if section.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(SpecError):
            fit(write_run(tmp_path, base, states, out=f"run{number}", fit=section))


def test_a_device_that_only_torch_knows_is_refused() -> None:
    for name in ("abacus", "meta"):
        with pytest.raises(SpecError, match=name):
            choose_memory(name)


def test_a_cuda_driver_without_torch_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(device, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert choose_memory("auto").name.startswith("cpu")
    assert 'extra "cuda"' in caplog.text
