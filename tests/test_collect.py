"""collect on real folders: which checkpoints become the window, read from headers alone."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import (
    SMALL,
    WEIGHTS_FOLDER,
    line_of_states,
    make_spec,
    random_weights,
    shard_name,
    write_checkpoint,
    write_trajectory,
)
from windows import not_ready, trajectory, weights, window_error

from relex_core.collect import find_window
from relex_core.storage import join_uri
from relex_core.storage.local import LocalStore
from relex_core.tables import window_text


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


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        ((1, 2, 3, 4, 5), []),
        ((1, 2, 3, 6, 7, 9, 10), [(3, 6), (7, 9)]),
        ((1, 5, 10, 15, 20, 30), [(20, 30)]),  # the first step and every fifth
        ((10, 20, 45, 60), []),  # no distance is usual
        ((10, 30), []),
    ],
)
def test_gaps_are_reported(tmp_path: Path, steps: tuple[int, ...], gaps: list[tuple[int, int]]) -> None:
    trajectory(tmp_path, steps)
    manifest = find_window(make_spec(tmp_path, max(steps)))
    assert manifest.gaps == gaps
    shown = [line for line in window_text(manifest, "run").splitlines() if line.lstrip().startswith("gaps")]
    assert [line.split(maxsplit=1)[1] for line in shown] == [", ".join(f"{a} to {b}" for a, b in gaps)][: len(gaps)]


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
