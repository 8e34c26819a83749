"""Wrong input, each with its own message, before any weight is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    CONFIG,
    line_of_states,
    make_spec,
    random_weights,
    shard_name,
    write_checkpoint,
    write_trajectory,
)
from windows import rewrite, trajectory, truncate, weights, window_error

from relex_core.collect import find_window, refuse_identical_files
from relex_core.errors import SpecError, WindowError
from relex_core.manifest import WindowManifest
from relex_core.storage.local import LocalStore


def remove_shard(root: Path) -> None:
    (weights(root, 3) / shard_name(2, 3)).unlink()


def truncate_shard(root: Path) -> None:
    truncate(weights(root, 3) / shard_name(2, 3))


def remove_index(root: Path) -> None:
    (weights(root, 3) / "model.safetensors.index.json").unlink()


def empty_index(root: Path) -> None:
    (weights(root, 3) / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def index_as_list(root: Path) -> None:
    (weights(root, 3) / "model.safetensors.index.json").write_text("[]")


def index_of_surrogates(root: Path) -> None:
    (weights(root, 3) / "model.safetensors.index.json").write_text(r'{"weight_map": {"embed": "\ud800"}}')


def index_that_points_outside(root: Path) -> None:
    path = weights(root, 3) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["scalar"] = "../../../global_step_4/actor/huggingface/" + shard_name(1, 3)
    path.write_text(json.dumps(index))


def index_that_points_to_the_root(root: Path) -> None:
    path = weights(root, 3) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "/etc/passwd")
    path.write_text(json.dumps(index))


def index_that_names_another_shard(root: Path) -> None:
    path = weights(root, 3) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["scalar"] = shard_name(1, 3)
    path.write_text(json.dumps(index))


def config_only(root: Path) -> None:
    folder = weights(root, 3)
    for path in folder.glob("model*"):
        path.unlink()
    (root / "global_step_3" / "actor" / "optim_world_size_1_rank_0.pt").write_bytes(b"no weights")


def adapter_only(root: Path) -> None:
    config_only(root)
    (weights(root, 3) / "adapter_model.safetensors").write_bytes(b"lora")


def pickles_only(root: Path) -> None:
    config_only(root)
    (weights(root, 3) / "pytorch_model.bin").write_bytes(b"pickle")


def garbage(root: Path) -> None:
    (weights(root, 3) / shard_name(1, 3)).write_bytes(b"\x02\0\0\0\0\0\0\0{]")


def config_not_json(root: Path) -> None:
    (weights(root, 3) / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (remove_shard, "step 3: shard model-00002-of-00003.safetensors is missing"),
        (truncate_shard, "step 3: model-00002-of-00003.safetensors is cut off"),
        (remove_index, "step 3: model.safetensors.index.json is missing"),
        (empty_index, "step 3: model.safetensors.index.json cannot be understood"),
        (index_as_list, "step 3: model.safetensors.index.json cannot be understood"),
        (index_of_surrogates, "step 3: model.safetensors.index.json cannot be understood"),
        (index_that_points_outside, "step 3: model.safetensors.index.json points outside its folder: '../../../global"),
        (
            index_that_points_to_the_root,
            "step 3: model.safetensors.index.json points outside its folder: '/etc/pass",
        ),
        (index_that_names_another_shard, "step 3: tensor scalar is not in model-00001-of-00003.safetensors"),
        (config_only, "step 3: weights are missing: config.json is there, but neither"),
        (adapter_only, "step 3: adapter_config.json is missing beside adapter_model.safetensors"),
        (pickles_only, "step 3: only pickled weights are there"),
        (garbage, "step 3: model-00001-of-00003.safetensors is not a valid safetensors file: the header is not JSON"),
        (config_not_json, "step 3: config.json is not JSON"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, spoil: Callable[[Path], None], problem: str) -> None:
    trajectory(tmp_path, shards=3)
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (1, 2, 3, 4)
    spoil(tmp_path)
    message = window_error(make_spec(tmp_path, t_cut=4))
    assert f"  - {problem}" in message
    assert not re.search("step [124]:", message)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("layer.norm"), "tensor layer.norm is missing"),
        (lambda t: t.update(more=torch.ones(2)), "tensor more is extra: the base has none"),
        (lambda t: t.update(embed=t["embed"].T.contiguous()), "tensor embed has shape [8, 16], the base [16, 8]"),
        (lambda t: t.update(embed=t["embed"].float()), "tensor embed is F32, at the first step BF16"),
        (lambda t: t.update(embed=t["embed"].to(torch.int8)), "tensor embed is I8, in the base BF16"),
    ],
)
def test_checkpoints_of_another_model(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], problem: str
) -> None:
    trajectory(tmp_path)
    rewrite(weights(tmp_path, 3), change)
    message = window_error(make_spec(tmp_path, t_cut=4))
    assert f"  - step 3: {problem}" in message
    assert not re.search("step [124]:", message)
    # skip_incomplete is about torn files; a checkpoint of another model is wrong in any case.
    assert problem in window_error(make_spec(tmp_path, t_cut=4, window={"skip_incomplete": True}))


def test_all_problems_are_listed_at_once_by_step_and_tensor(tmp_path: Path) -> None:
    trajectory(tmp_path)
    rewrite(weights(tmp_path, 2), lambda t: (t.pop("embed"), t.pop("scalar"), t.update(more=torch.ones(1))))
    rewrite(weights(tmp_path, 4), lambda t: t.update({"layer.norm": torch.ones(3, dtype=torch.bfloat16)}))
    (weights(tmp_path, 3) / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 2}))
    problems = [line for line in window_error(make_spec(tmp_path, t_cut=4)).splitlines() if line.startswith("  - ")]
    assert problems == [
        "  - step 2: tensor embed is missing",
        "  - step 2: tensor scalar is missing",
        "  - step 2: tensor more is extra: the base has none",
        "  - step 3: config.json has num_hidden_layers = 2, the base 1: another base",
        "  - step 4: tensor layer.norm has shape [3], the base [8]",
    ]


def test_a_file_that_cannot_be_read_does_not_make_its_tensors_missing(tmp_path: Path) -> None:
    trajectory(tmp_path, shards=3)
    garbage(tmp_path)
    problems = [line for line in window_error(make_spec(tmp_path, t_cut=4)).splitlines() if line.startswith("  - ")]
    assert len(problems) == 1, problems


def test_a_torn_checkpoint_is_reported_with_the_trajectory(tmp_path: Path) -> None:
    trajectory(tmp_path, shards=3)
    truncate_shard(tmp_path)
    assert f"where:    {tmp_path}" in window_error(make_spec(tmp_path, t_cut=4))


def test_several_torn_checkpoints_are_listed_at_once(tmp_path: Path) -> None:
    trajectory(tmp_path, shards=3)
    (weights(tmp_path, 1) / shard_name(1, 3)).unlink()
    (weights(tmp_path, 1) / shard_name(2, 3)).unlink()
    truncate(weights(tmp_path, 3) / shard_name(3, 3))
    problems = re.findall(r"- (step \d+: \S+ \S+)", window_error(make_spec(tmp_path, t_cut=4)))
    assert problems == [
        f"step 1: shard {shard_name(1, 3)}",
        f"step 1: shard {shard_name(2, 3)}",
        f"step 3: {shard_name(3, 3)} is",
    ]


def test_a_dtype_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    base = random_weights()
    states = line_of_states(base, [1, 2, 3])
    states[2] = {name: tensor.float() for name, tensor in states[2].items()}
    write_trajectory(tmp_path, base, states, [1, 2, 3])
    assert "step 3: tensor embed is F32, at the first step BF16" in window_error(make_spec(tmp_path, t_cut=3))


@pytest.mark.parametrize("folders", [("global_step_3", "global_step_03"), ("global_step_3", "checkpoint-3")])
def test_two_folders_of_one_step(tmp_path: Path, folders: tuple[str, str]) -> None:
    trajectory(tmp_path, (1, 2), layout="authors")
    for folder in folders:
        write_checkpoint(tmp_path / folder, random_weights())
        (tmp_path / folder / "trainer_state.json").write_text('{"global_step": 3}')
    message = window_error(make_spec(tmp_path, t_cut=2))
    assert "step 3 is there twice" in message
    assert all(folder in message for folder in folders)


def only_a_readme(base: Path) -> None:
    shutil.rmtree(base)
    base.mkdir()
    (base / "README.md").write_text("a model")


def latin_1_name(base: Path) -> None:
    Path(os.fsdecode(os.fsencode(base) + b"/caf\xe9.json")).write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda base: (base / "model.safetensors").unlink(), "weights are missing: config.json is there"),
        (lambda base: truncate(base / "model.safetensors"), "model.safetensors is cut off"),
        (lambda base: (base / "config.json").unlink(), "config.json is missing"),  # no candidate could be loaded
        (only_a_readme, "no weights"),
        (latin_1_name, "the name of 'caf\\udce9.json' is not UTF-8: rename or remove the file"),
    ],
)
def test_an_incomplete_base(tmp_path: Path, spoil: Callable[[Path], None], problem: str) -> None:
    trajectory(tmp_path)
    spoil(tmp_path / "base")
    message = window_error(make_spec(tmp_path, t_cut=4))
    assert "the base is not a complete checkpoint" in message
    assert problem in message


@pytest.mark.parametrize("base", ["Qwen/Qwen2.5-0.5B", "empty"])
def test_a_base_that_is_not_there_says_so(tmp_path: Path, base: str) -> None:
    trajectory(tmp_path)
    (tmp_path / "empty").mkdir()
    spec = make_spec(tmp_path, t_cut=4).model_copy(update={"base": str(tmp_path / base)})
    message = window_error(spec)
    assert "the base does not exist" in message and str(tmp_path / base) in message
    assert "has to be downloaded first: hf download" in message


def test_a_base_that_is_a_file_says_so(tmp_path: Path) -> None:
    trajectory(tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    with pytest.raises(SpecError, match="this is a file, not a base folder") as caught:
        find_window(make_spec(tmp_path, t_cut=4).model_copy(update={"base": str(file)}))
    assert caught.value.where == str(file) and caught.value.next_step == "give the folder that holds it"


def test_equal_checksums_betray_equal_steps(tmp_path: Path) -> None:
    trajectory(tmp_path)
    manifest = find_window(make_spec(tmp_path, t_cut=4))
    refuse_identical_files(manifest)  # a local store has no checksums

    def with_sums(*sums: str | None) -> WindowManifest:
        checkpoints = [
            c.model_copy(update={"files": tuple(f.model_copy(update={"crc32c": s}) for f in c.files)})
            for c, s in zip(manifest.checkpoints, sums, strict=True)
        ]
        return manifest.model_copy(update={"checkpoints": tuple(checkpoints)})

    refuse_identical_files(with_sums("aa==", "bb==", "cc==", "dd=="))
    refuse_identical_files(with_sums(None, "bb==", None, "dd=="))
    with pytest.raises(WindowError, match="steps 2 and 4 hold identical weights"):
        refuse_identical_files(with_sums("aa==", "bb==", "cc==", "bb=="))


def test_a_store_with_checksums_betrays_a_copied_checkpoint_before_any_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(tmp_path)
    shutil.copy(weights(tmp_path, 2) / "model.safetensors", weights(tmp_path, 4) / "model.safetensors")
    find_window(make_spec(tmp_path, t_cut=4))  # without checksums the fit finds out
    real = LocalStore.list

    def list_with_checksums(store: LocalStore, prefix: str = "") -> Any:
        for info in real(store, prefix):
            yield replace(info, crc32c=str(zlib.crc32(Path(store.uri, info.name).read_bytes())))

    monkeypatch.setattr(LocalStore, "list", list_with_checksums)
    assert "steps 2 and 4 hold identical weights" in window_error(make_spec(tmp_path, t_cut=4))
