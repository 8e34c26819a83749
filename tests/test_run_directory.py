"""RUN/spec.json and RUN/window.json: written once, kept, and refused where they do not belong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import (
    line_of_states,
    make_spec,
    random_weights,
    write_trajectory,
)
from windows import trajectory, weights

from relex_core.collect import collect, find_window
from relex_core.errors import CheckpointChanged, DataError, SpecError, WindowError, WindowNotReady
from relex_core.fit import fit
from relex_core.manifest import FileRecord, load_manifest
from relex_core.spec import load_spec_of
from relex_core.storage import ObjectInfo
from relex_core.storage.local import LocalStore


def test_collect_writes_spec_and_window(tmp_path: Path) -> None:
    trajectory(tmp_path)
    spec = make_spec(tmp_path, t_cut=4)
    manifest = collect(spec)
    run = str(tmp_path / "run")
    assert load_manifest(run) == manifest
    assert load_spec_of(run) == spec
    data = json.loads((tmp_path / "run" / "window.json").read_text())
    assert set(data) == {"base", "checkpoints", "tensors", "t_cut", "digest"}
    assert data["checkpoints"][0]["step"] == 1
    assert set(data["checkpoints"][0]["files"][0]) == {"name", "size", "generation", "crc32c"}
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["steps"]) for event in events] == [("collected", 4)]


def test_find_window_writes_nothing(tmp_path: Path) -> None:
    trajectory(tmp_path)
    find_window(make_spec(tmp_path, t_cut=4))
    assert not (tmp_path / "run").exists()


def test_the_digest_covers_every_file_and_generation(tmp_path: Path) -> None:
    trajectory(tmp_path)
    spec = make_spec(tmp_path, t_cut=4)
    before = find_window(spec).digest
    assert find_window(spec).digest == before
    os.utime(weights(tmp_path, 2) / "model.safetensors")
    assert find_window(spec).digest != before


def test_a_collected_window_is_kept(tmp_path: Path) -> None:
    trajectory(tmp_path)
    spec = make_spec(tmp_path, t_cut=4)
    first = collect(spec)
    written = (tmp_path / "run" / "window.json").read_bytes()
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2, 3], speed=0.1), [1, 2, 3])  # the trainer goes on
    shutil.rmtree(tmp_path / "global_step_4")
    assert collect(spec) == first
    assert (tmp_path / "run" / "window.json").read_bytes() == written


def test_a_run_directory_belongs_to_one_window_and_fit(tmp_path: Path) -> None:
    trajectory(tmp_path)
    collect(make_spec(tmp_path, t_cut=4))
    with pytest.raises(SpecError, match="belongs to another spec: window, fit differ") as caught:
        collect(make_spec(tmp_path, t_cut=3, fit={"rank": 2}))
    assert caught.value.exit_code == 2
    assert "'t_cut': 4" in caught.value.expected
    assert load_spec_of(str(tmp_path / "run")).window.t_cut == 4


def test_a_fit_that_cannot_be_is_refused_before_the_window_is_written(tmp_path: Path) -> None:
    """And the corrected spec is taken; until the fit has begun also another fit of the same window."""
    trajectory(tmp_path)
    with pytest.raises(SpecError, match="the last 20 checkpoints, but the window holds 4"):
        collect(make_spec(tmp_path, t_cut=4, fit={"trailing_averages": [20]}))
    assert not (tmp_path / "run/window.json").exists()
    first = collect(make_spec(tmp_path, t_cut=4, fit={"trailing_averages": [3]}))
    again = make_spec(tmp_path, t_cut=4, fit={"trailing_averages": [2]})
    assert collect(again) == first and load_spec_of(str(tmp_path / "run")) == again
    fit(str(tmp_path / "run"))
    with pytest.raises(SpecError, match="belongs to another spec: fit differ"):
        collect(make_spec(tmp_path, t_cut=4, fit={"trailing_averages": [3]}))


@pytest.mark.parametrize("moment", ["window.json", "spec.json"])
def test_two_specs_that_start_at_once_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other one runs to its end when the first is about to write."""
    trajectory(tmp_path)
    one, other = make_spec(tmp_path, t_cut=4), make_spec(tmp_path, t_cut=3)
    real, waiting = LocalStore.create, [other]

    def create(store: LocalStore, key: str, data: bytes) -> ObjectInfo:
        if key == moment and waiting:
            collect(waiting.pop())
        return real(store, key, data)

    monkeypatch.setattr(LocalStore, "create", create)
    with pytest.raises(SpecError, match="belongs to another spec: window differ"):
        collect(one)
    assert collect(other).t_cut == 3 and load_spec_of(other.run_root) == other


def test_a_window_of_another_spec_is_not_fitted(tmp_path: Path) -> None:
    trajectory(tmp_path)
    collect(make_spec(tmp_path, t_cut=4))
    spec = make_spec(tmp_path, t_cut=3)
    (tmp_path / "run/spec.json").write_text(spec.model_dump_json())
    for use in (lambda: collect(spec), lambda: fit(spec.run_root)):
        with pytest.raises(SpecError, match="the window of another spec: t_cut 4"):
            use()


def test_candidates_margins_and_budget_may_change(tmp_path: Path) -> None:
    trajectory(tmp_path)
    first = collect(make_spec(tmp_path, t_cut=4))
    changed = make_spec(
        tmp_path,
        t_cut=4,
        candidates={"target_steps": [9]},
        decision={"min_gain": 0.1},
        fit={"memory_budget": "1GiB", "device": "cpu"},
    )
    assert collect(changed) == first
    assert load_spec_of(str(tmp_path / "run")) == changed


def test_a_directory_that_holds_no_window_yet_can_be_taken_over(tmp_path: Path) -> None:
    """A mistyped base must not cost the user the run directory."""
    trajectory(tmp_path)
    spec = make_spec(tmp_path, t_cut=4)
    with pytest.raises(WindowError):
        collect(spec.model_copy(update={"base": str(tmp_path / "bsae")}))
    assert collect(spec).steps == (1, 2, 3, 4)
    assert load_spec_of(str(tmp_path / "run")) == spec


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["checkpoints"].pop(),
        lambda data: data.update(t_cut=3),
        lambda data: data["tensors"][0].update(dtype="F32"),
        lambda data: data["base"]["files"][0].update(size=1),
        lambda data: data.update(digest=""),
    ],
)
def test_a_window_edited_by_hand_is_refused(tmp_path: Path, edit: Callable[[Any], object]) -> None:
    trajectory(tmp_path)
    spec = make_spec(tmp_path, t_cut=4)
    collect(spec)
    path = tmp_path / "run" / "window.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    for read in (lambda: load_manifest(str(tmp_path / "run")), lambda: collect(spec)):
        with pytest.raises(DataError, match="does not match its own digest") as caught:
            read()
        assert caught.value.exit_code == 4


def test_steps_out_of_order_in_a_manifest_are_refused(tmp_path: Path) -> None:
    trajectory(tmp_path)
    manifest = collect(make_spec(tmp_path, t_cut=4))
    path = tmp_path / "run" / "window.json"
    for checkpoints in (manifest.checkpoints[::-1], (manifest.checkpoints[0], *manifest.checkpoints)):
        # Even with a digest that fits.
        path.write_text(manifest.model_copy(update={"checkpoints": checkpoints}).with_digest().model_dump_json())
        with pytest.raises(DataError, match="steps are out of order"):
            load_manifest(str(tmp_path / "run"))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"base": 1}', "not json"])
def test_no_manifest_at_all_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "window.json").write_text(text)
    with pytest.raises(DataError, match="the file is not what this version of relex writes"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"base": "b", "trajectory": "t", "run_root": "r", "window": {"t_cut": 0}}']
)
def test_a_damaged_spec_in_the_run_directory_is_refused(tmp_path: Path, text: str) -> None:
    trajectory(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text(text)
    for read in (lambda: load_spec_of(str(tmp_path / "run")), lambda: collect(make_spec(tmp_path, t_cut=4))):
        with pytest.raises(DataError, match="the file is not what this version of relex writes") as caught:
            read()
        assert caught.value.exit_code == 4


def test_an_empty_run_directory_is_not_ready(tmp_path: Path) -> None:
    for load in (load_manifest, load_spec_of):
        with pytest.raises(WindowNotReady, match="relex collect"):
            load(str(tmp_path))


def test_a_changed_checkpoint_is_noticed_when_it_is_opened_for_reading(tmp_path: Path) -> None:
    from relex_core.checkpoints.reader import Piece, open_step

    trajectory(tmp_path)
    record = collect(make_spec(tmp_path, t_cut=4)).checkpoints[1]
    reader = open_step(record)
    os.utime(weights(tmp_path, 2) / "model.safetensors")
    with pytest.raises(CheckpointChanged, match="checkpoint changed: step 2"):
        reader.read([Piece("embed", 0, 4, 0)], memoryview(bytearray(4)))
    with pytest.raises(CheckpointChanged, match="step 2 is not the checkpoint that was collected"):
        open_step(record)
    gone = (FileRecord(name="gone.safetensors", size=1, generation=1),)
    with pytest.raises(CheckpointChanged, match="is not the checkpoint that was collected"):
        open_step(record.model_copy(update={"files": gone}))
