"""Which checkpoints count as complete, beside a trainer that is at work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import (
    WEIGHTS_FOLDER,
    make_spec,
)
from windows import not_ready, trajectory, truncate, weights, window_error

from relex_core.collect import find_window
from relex_core.observe import observe
from relex_core.storage.local import LocalStore


@pytest.mark.parametrize("layout", WEIGHTS_FOLDER)
def test_a_newest_checkpoint_still_being_written_is_waited_for(tmp_path: Path, layout: str) -> None:
    trajectory(tmp_path, layout=layout)
    truncate(weights(tmp_path, 4, layout) / "model.safetensors")
    message = not_ready(make_spec(tmp_path, t_cut=4))
    assert "step 3" in message
    assert "step 4: model.safetensors is cut off" in message
    # It does not keep an earlier window waiting.
    assert find_window(make_spec(tmp_path, t_cut=3)).steps == (1, 2, 3)


@pytest.mark.parametrize("layout", WEIGHTS_FOLDER)
def test_a_torn_checkpoint_below_a_complete_one_is_refused(tmp_path: Path, layout: str) -> None:
    trajectory(tmp_path, layout=layout)
    truncate(weights(tmp_path, 2, layout) / "model.safetensors")
    spec = make_spec(tmp_path, t_cut=4)
    assert "step 2: model.safetensors is cut off" in window_error(spec)
    skipping = make_spec(tmp_path, t_cut=4, window={"skip_incomplete": True})
    assert find_window(skipping).steps == (1, 3, 4)


def test_torn_checkpoints_outside_the_window_do_not_matter(tmp_path: Path) -> None:
    trajectory(tmp_path, (1, 2, 3, 4, 5, 6))
    for step in (1, 6):
        truncate(weights(tmp_path, step) / "model.safetensors")
    assert find_window(make_spec(tmp_path, t_cut=4, window={"first": 2})).steps == (2, 3, 4)


def test_with_skip_incomplete_a_torn_first_checkpoint_does_not_end_the_wait(tmp_path: Path) -> None:
    trajectory(tmp_path, (1, 2))
    for step in (1, 2):
        truncate(weights(tmp_path, step) / "model.safetensors")
    assert "step 1" in window_error(make_spec(tmp_path, t_cut=4))
    not_ready(make_spec(tmp_path, t_cut=4, window={"skip_incomplete": True}))


def test_verl_s_tracker_says_what_is_complete(tmp_path: Path) -> None:
    trajectory(tmp_path)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("3")
    message = not_ready(make_spec(tmp_path, t_cut=4))
    assert "latest_checkpointed_iteration.txt says that step 3 is the last complete one" in message
    assert find_window(make_spec(tmp_path, t_cut=3)).steps == (1, 2, 3)
    tracker.write_text("4\n")
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (1, 2, 3, 4)
    tracker.unlink()  # a copied trajectory
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (1, 2, 3, 4)


def test_verl_s_tracker_caught_while_it_is_rewritten_is_no_verdict(tmp_path: Path) -> None:
    trajectory(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("")  # open(..., "w") truncates first
    assert "latest_checkpointed_iteration.txt names no step yet" in not_ready(make_spec(tmp_path, t_cut=4))


def test_steps_beyond_verl_s_tracker_may_still_be_in_work(tmp_path: Path) -> None:
    trajectory(tmp_path, (1, 2))
    truncate(weights(tmp_path, 1) / "model.safetensors")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("0")
    not_ready(make_spec(tmp_path, t_cut=2))


def test_the_trainer_state_is_the_hf_trainer_s_marker(tmp_path: Path) -> None:
    trajectory(tmp_path, layout="hf")
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    assert "step 4: trainer_state.json, the marker of HF Trainer / TRL, is not there" in not_ready(
        make_spec(tmp_path, t_cut=4)
    )
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    assert "step 2: trainer_state.json" in window_error(make_spec(tmp_path, t_cut=3))


def test_a_trainer_state_of_another_step_is_refused(tmp_path: Path) -> None:
    trajectory(tmp_path, layout="hf")
    (tmp_path / "checkpoint-3").rename(tmp_path / "checkpoint-30")
    message = window_error(make_spec(tmp_path, t_cut=4))
    assert "name says step 30, its trainer state says step 3" in message
    assert "checkpoint-30/trainer_state.json" in message


def test_a_half_written_trainer_state_says_nothing_about_the_step(tmp_path: Path) -> None:
    trajectory(tmp_path, layout="hf")
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": ')
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (1, 2, 3, 4)


def test_a_file_written_between_listing_and_reading_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(tmp_path, layout="authors")
    real = LocalStore.list

    def list_while_written(store: LocalStore, prefix: str = "") -> Any:
        listed = list(real(store, prefix))
        os.utime(weights(tmp_path, 4, "authors") / "model.safetensors")
        return iter(listed)

    monkeypatch.setattr(LocalStore, "list", list_while_written)
    assert "step 4: model.safetensors: the file was replaced while" in not_ready(make_spec(tmp_path, t_cut=4))


def test_a_checkpoint_deleted_between_listing_and_reading_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(tmp_path, layout="hf")
    real = LocalStore.list

    def list_while_deleted(store: LocalStore, prefix: str = "") -> Any:
        listed = list(real(store, prefix))
        shutil.rmtree(tmp_path / "checkpoint-1", ignore_errors=True)
        return iter(listed)

    monkeypatch.setattr(LocalStore, "list", list_while_deleted)
    assert [(s.folder.step, bool(s.incomplete)) for s in observe(str(tmp_path))][:2] == [(1, True), (2, False)]
