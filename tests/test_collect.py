"""collect on real folders: which checkpoints become the window, and every way to be refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import (
    CONFIG,
    SMALL,
    WEIGHTS_FOLDER,
    line_of_states,
    make_spec,
    random_weights,
    shard_name,
    write_checkpoint,
    write_trajectory,
)

from relex_core.collect import collect, find_window, load_spec_of, refuse_identical_files
from relex_core.errors import CheckpointChanged, DataError, SpecError, WindowError, WindowNotReady
from relex_core.manifest import FileRecord, WindowManifest, load_manifest
from relex_core.observe import observe
from relex_core.spec import RunSpec
from relex_core.storage import join_uri
from relex_core.storage.local import LocalStore


def trajectory(root: Path, steps: Sequence[int] = (1, 2, 3, 4), layout: str = "verl", **kwargs: Any) -> Path:
    base = random_weights()
    return write_trajectory(root, base, line_of_states(base, steps), steps, layout, **kwargs)


def weights(root: Path, step: int, layout: str = "verl") -> Path:
    return root / WEIGHTS_FOLDER[layout].format(step)


def window_error(spec: RunSpec) -> str:
    """The message of a permanent refusal (exit status 4)."""
    with pytest.raises(DataError) as caught:
        find_window(spec)
    assert caught.value.exit_code == 4
    return str(caught.value)


def not_ready(spec: RunSpec) -> str:
    """The message of "try again later" (exit status 3)."""
    with pytest.raises(WindowNotReady) as caught:
        find_window(spec)
    assert caught.value.exit_code == 3
    return str(caught.value)


def truncate(path: Path, count: int = 1) -> None:
    os.truncate(path, path.stat().st_size - count)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Load a checkpoint's only file, change the tensors, and save them again."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


# --- what is understood -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", WEIGHTS_FOLDER)
def test_every_layout_single_and_sharded(tmp_path: Path, layout: str, shards: int) -> None:
    steps = (7, 20, 35)
    trajectory(tmp_path, steps, layout, shards=shards)
    manifest = find_window(make_spec(tmp_path, t_cut=35))
    assert manifest.steps == steps
    assert [c.uri for c in manifest.checkpoints] == [str(weights(tmp_path, step, layout)) for step in steps]
    shard_files = ["model.safetensors"] if shards == 1 else [shard_name(i, 3) for i in (1, 2, 3)]
    expected = sorted([*shard_files, *([] if shards == 1 else ["model.safetensors.index.json"])])
    for checkpoint in manifest.checkpoints:
        assert [file.name for file in checkpoint.files] == expected
        for file in checkpoint.files:
            status = Path(checkpoint.uri, file.name).stat()
            assert (file.size, file.generation) == (status.st_size, status.st_mtime_ns)
    assert {(t.name, t.shape, t.dtype) for t in manifest.tensors} == {
        (name, tuple(tensor.shape), "BF16") for name, tensor in random_weights().items()
    }
    assert {file.name for file in manifest.base.files} == {*expected, "config.json"}


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_float_dtypes(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    base = random_weights(dtype=dtype)
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2]), [1, 2])
    assert {t.dtype for t in find_window(make_spec(tmp_path, t_cut=2)).tensors} == {name}


def test_mixed_dtypes_and_integer_buffers(tmp_path: Path) -> None:
    base = {
        "a": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.ones(3, dtype=torch.float32),
        "ids": torch.arange(4),
        "mask": torch.tensor([True, False]),
    }
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2]), [1, 2])
    found = {t.name: t.dtype for t in find_window(make_spec(tmp_path, t_cut=2)).tensors}
    assert found == {"a": "BF16", "b": "F32", "ids": "I64", "mask": "BOOL"}


def test_the_base_may_have_another_float_dtype(tmp_path: Path) -> None:
    base = random_weights(dtype=torch.bfloat16)
    states = line_of_states({name: tensor.float() for name, tensor in base.items()}, [1, 2])
    write_trajectory(tmp_path, base, states, [1, 2])
    assert {t.dtype for t in find_window(make_spec(tmp_path, t_cut=2)).tensors} == {"F32"}


def test_the_order_of_tensors_is_that_of_the_base_s_bytes(tmp_path: Path) -> None:
    trajectory(tmp_path, shards=2)
    manifest = find_window(make_spec(tmp_path, t_cut=4))
    in_files = []
    for shard in (1, 2):
        data = (tmp_path / "base" / shard_name(shard, 2)).read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        header.pop("__metadata__", None)
        in_files += sorted(header, key=lambda name: header[name]["data_offsets"])
    assert [t.name for t in manifest.tensors] == in_files


def test_the_real_run(tmp_path: Path) -> None:
    spec = {"base": str(SMALL / "run" / "base"), "trajectory": str(SMALL / "run")}
    manifest = find_window(make_spec(tmp_path, t_cut=16).model_copy(update=spec))
    assert manifest.steps == tuple(range(1, 17))
    names = {file.name for file in manifest.base.files}
    assert names == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert len(manifest.tensors) == 24


def test_companions_of_the_base_are_recorded_and_code_is_not(tmp_path: Path) -> None:
    trajectory(tmp_path)
    kept = {"config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", "tokenizer.model"}
    dropped = {"modeling_x.py", "trainer_state.json", "relex.json", "optimizer.pt", "adapter_config.json", "README.md"}
    for name in (kept | dropped) - {"config.json"}:
        (tmp_path / "base" / name).write_text("x")
    files = {file.name for file in find_window(make_spec(tmp_path, t_cut=4)).base.files}
    assert files == kept | {"model.safetensors"}


def test_folders_that_are_no_steps_are_ignored(tmp_path: Path) -> None:
    trajectory(tmp_path, layout="hf")
    for name in (
        "checkpoint-5-tmp",
        "tmp-checkpoint-6",
        "checkpoint-",
        "checkpoint-x",
        "checkpoint-" + "9" * 200,
        "runs",
    ):
        write_checkpoint(tmp_path / name, random_weights(7))
    (tmp_path / "checkpoint-8").write_text("a file, not a folder")
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (1, 2, 3, 4)


# --- which steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"t_cut": 50}, (10, 20, 45)),  # 50 itself is not there, but 60 is
        ({"t_cut": 60}, (10, 20, 45, 60)),
        ({"t_cut": 60, "first": 20}, (20, 45, 60)),
        ({"t_cut": 60, "first": 21}, (45, 60)),
        ({"t_cut": 20, "first": 10, "every": 10}, (10, 20)),
        ({"t_cut": 60, "min_checkpoints": 4}, (10, 20, 45, 60)),
    ],
)
def test_steps_of_the_window(tmp_path: Path, window: dict[str, Any], expected: tuple[int, ...]) -> None:
    trajectory(tmp_path, (10, 20, 45, 60))
    assert find_window(make_spec(tmp_path, window["t_cut"], window=window)).steps == expected


def test_every_waits_for_each_of_its_steps(tmp_path: Path) -> None:
    trajectory(tmp_path, (10, 20, 40, 50))
    message = not_ready(make_spec(tmp_path, 50, window={"first": 10, "every": 10}))
    assert "steps are missing: 30\n" in message


def test_t_cut_not_reached(tmp_path: Path) -> None:
    trajectory(tmp_path)
    message = not_ready(make_spec(tmp_path, t_cut=5))
    assert "the last complete checkpoint is step 4" in message
    assert "step 5 or later" in message


def test_nothing_there_yet(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", random_weights())
    assert "no step folder is there yet" in not_ready(make_spec(tmp_path, t_cut=5))


def test_too_few_checkpoints(tmp_path: Path) -> None:
    trajectory(tmp_path, (5, 80))
    message = window_error(make_spec(tmp_path, t_cut=75))
    assert "t_cut=75 keeps 1 checkpoint (step 5)" in message
    assert "t_cut=80 keeps 2 checkpoints (step 5, step 80)" in window_error(
        make_spec(tmp_path, t_cut=80, window={"min_checkpoints": 3})
    )


# --- completion -------------------------------------------------------------------------------------------------------


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


# --- wrong input, each with its own message ---------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda base: (base / "model.safetensors").unlink(), "weights are missing: config.json is there"),
        (lambda base: truncate(base / "model.safetensors"), "model.safetensors is cut off"),
        (lambda base: (base / "config.json").unlink(), "config.json is missing"),  # no candidate could be loaded
        (shutil.rmtree, "no weights"),
    ],
)
def test_an_incomplete_base(tmp_path: Path, spoil: Callable[[Path], None], problem: str) -> None:
    trajectory(tmp_path)
    spoil(tmp_path / "base")
    message = window_error(make_spec(tmp_path, t_cut=4))
    assert "the base is not a complete checkpoint" in message
    assert problem in message


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


# --- no weight is read ------------------------------------------------------------------------------------------------


def spoil_weights(path: Path) -> None:
    """Overwrite every weight of a file with NaN, and leave its size and modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        file.seek(start)
        file.write(b"\xff" * (status.st_size - start))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_weights_themselves_make_no_difference(tmp_path: Path) -> None:
    trajectory(tmp_path, shards=2)
    before = find_window(make_spec(tmp_path, t_cut=4))
    for path in tmp_path.rglob("*.safetensors"):
        spoil_weights(path)
    assert all(tensor.isnan().all() for tensor in load_file(tmp_path / "base" / shard_name(1, 2)).values())
    assert find_window(make_spec(tmp_path, t_cut=4)) == before


def test_two_reads_per_weight_file_and_none_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_weights(big=(1024, 1024), small=(3,))  # 2 MiB a checkpoint
    write_trajectory(tmp_path, base, [base] * 5, [1, 2, 3, 4, 5])
    reads: list[tuple[str, int]] = []
    header = 8 + struct.unpack("<Q", (tmp_path / "base" / "model.safetensors").read_bytes()[:8])[0]
    real = LocalStore.read_into

    def counted(store: LocalStore, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        reads.append((join_uri(store.uri, key), offset + len(buffer)))
        real(store, key, generation, offset, buffer)

    monkeypatch.setattr(LocalStore, "read_into", counted)
    find_window(make_spec(tmp_path, t_cut=5))
    ends = [end for name, end in reads if name.endswith(".safetensors")]
    assert len(ends) == 2 * 6
    assert max(ends) == header


# --- the run directory ------------------------------------------------------------------------------------------------


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
    with pytest.raises(DataError, match="not a window manifest"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"base": "b", "trajectory": "t", "run_root": "r", "window": {"t_cut": 0}}']
)
def test_a_damaged_spec_in_the_run_directory_is_refused(tmp_path: Path, text: str) -> None:
    trajectory(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text(text)
    for read in (lambda: load_spec_of(str(tmp_path / "run")), lambda: collect(make_spec(tmp_path, t_cut=4))):
        with pytest.raises(DataError, match="not a resolved spec") as caught:
            read()
        assert caught.value.exit_code == 4


def test_an_empty_run_directory_is_not_ready(tmp_path: Path) -> None:
    for load in (load_manifest, load_spec_of):
        with pytest.raises(WindowNotReady, match="relex collect"):
            load(str(tmp_path))


def test_a_changed_checkpoint_is_noticed_when_it_is_opened_for_reading(tmp_path: Path) -> None:
    from relex_core.checkpoints.reader import Piece, open_checkpoint_reader

    trajectory(tmp_path)
    record = collect(make_spec(tmp_path, t_cut=4)).checkpoints[1]
    reader = open_checkpoint_reader("step 2", record.uri, record.files)
    os.utime(weights(tmp_path, 2) / "model.safetensors")
    with pytest.raises(CheckpointChanged, match="checkpoint changed: step 2"):
        reader.read([Piece("embed", 0, 4, 0)], memoryview(bytearray(4)))
    with pytest.raises(CheckpointChanged, match="step 2 is not the checkpoint that was collected"):
        open_checkpoint_reader("step 2", record.uri, record.files)
    gone = (FileRecord(name="gone.safetensors", size=1, generation=1),)
    with pytest.raises(CheckpointChanged, match="is not the checkpoint that was collected"):
        open_checkpoint_reader("step 2", record.uri, gone)
