"""verl's FSDP shards, saved by real torch.distributed processes, against torch.load and the same run as safetensors."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.tensor  # torch.load needs it for DTensors
from fsdp.trajectories import JOBS, STEPS, actor, saved  # noqa: F401
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import write_checkpoint

from relex_core.capture import capture_step
from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Checkpoint, Extent, StoredTensor
from relex_core.checkpoints.reader import Piece, TensorReader
from relex_core.collect import collect, find_window
from relex_core.errors import CheckpointChanged, WindowError, WindowNotReady
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit
from relex_core.inspect import inspect_trajectory
from relex_core.observe import observe
from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import ObjectInfo, open_store, write_bytes

Oracle = dict[str, torch.Tensor]


def opened(folder: Path) -> Checkpoint:
    store = open_store(str(folder))
    return open_checkpoint(store, [info for info in store.list() if "/" not in info.name])


def read_all(folder: Path, checkpoint: Checkpoint) -> dict[str, bytes]:
    reader = TensorReader("test", open_store(str(folder)), checkpoint.tensors)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        data = bytearray(tensor.nbytes)
        reader.read([Piece(name, 0, tensor.nbytes, 0)], memoryview(data))
        found[name] = bytes(data)
    assert reader.bytes_read == sum(map(len, found.values()))
    return found


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def oracle(folder: Path) -> Oracle:
    """The first replica's shards put together, as torch loads them."""
    ranks = []
    for file in sorted(folder.glob("model_world_size_*.pt")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ranks.append(torch.load(file, weights_only=True, mmap=True))
    whole = {}
    for name, first in ranks[0].items():
        shards = [rank[name]._local_tensor for rank in ranks[: first.device_mesh.mesh.shape[-1]]]
        whole[name] = torch.cat(shards)
        assert whole[name].shape == first.shape
    return whole


@pytest.mark.parametrize("name", [name for name in JOBS if name not in ("odd", "sharded_tensor")])
def test_tensors_are_those_of_torch_load(saved: Path, name: str) -> None:  # noqa: F811
    source = JOBS[name][2]
    for folder in sorted((saved / name).glob("global_step_*/actor")):
        checkpoint, expected = opened(folder), oracle(folder)
        assert checkpoint.problems == []
        assert {n: t.shape for n, t in checkpoint.tensors.items()} == {n: tuple(t.shape) for n, t in expected.items()}
        found = read_all(folder, checkpoint)
        assert found == {n: raw(t) for n, t in expected.items()}
        reference = load_file(saved / source / folder.parent.name / "actor" / "huggingface" / "model.safetensors")
        assert {n: found[n] for n in reference} == {n: raw(t) for n, t in reference.items()}
        assert [info.name for info in checkpoint.files] == sorted(p.name for p in folder.glob("model_*.pt"))


def test_shards_are_uneven_and_some_are_empty(saved: Path) -> None:  # noqa: F811
    """Else the test above would show less than it seems to."""
    tensors = opened(actor(saved / "fsdp2-float32", 1)).tensors
    assert [extent.nbytes // 32 for extent in tensors["lm_head.weight"].extents] == [14, 14, 12]
    assert len(tensors["model.scalar"].extents) == 1
    assert {tensor.dtype for tensor in tensors.values()} == {"F32"}


def spec(base: Path | str, trajectory: Path | str, out: Path | str, t_cut: int = max(STEPS)) -> RunSpec:
    data = {
        "base": str(base),
        "trajectory": str(trajectory),
        "window": {"t_cut": t_cut},
        "fit": {"rank": 2, "group_size": 5_000},
        "candidates": {"target_steps": [9], "baselines": ["last_observed", "weight_extrapolation", "first_update"]},
    }
    return resolve_spec(data, where="test", folder=Path.cwd(), out=str(out))


def run_all(run: RunSpec) -> dict[str, bytes]:
    """All stages that write weights; the tensors' bytes of every file of the fit and of the candidates."""
    collect(run)
    fit(run.run_root)
    extrapolate(run.run_root)
    store, found = open_store(run.run_root), {}
    for info in store.list():
        if info.name.endswith(".safetensors"):
            data = bytearray(info.size)
            store.read_into(info.name, info.generation, 0, memoryview(data))
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            header.pop("__metadata__")  # the digest of the window, which knows where the files lie
            found[info.name] = json.dumps(header).encode() + data[8 + length :]
    return found


@pytest.mark.parametrize("name", ["fsdp2-float32", "fsdp2-bfloat16", "fsdp1-float32"])
def test_all_stages_give_the_same_bytes_as_on_safetensors(saved: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    """The base is bfloat16, as on the hub; verl's shards are float32 unless told otherwise."""
    mine = run_all(spec(saved / "base", saved / name, tmp_path / "mine"))
    theirs = run_all(spec(saved / "base", saved / JOBS[name][2], tmp_path / "theirs"))
    assert mine == theirs
    assert len([file for file in mine if file.startswith("candidates/")]) >= 3


def test_all_stages_on_gcs(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    uri = f"gs://{new_bucket(fake_gcs)}/rl"
    for folder in ("base", "fsdp2-float32"):
        store = open_store(f"{uri}/{folder}")
        for path in sorted((saved / folder).rglob("*")):
            if path.is_file():
                write_bytes(store, path.relative_to(saved / folder).as_posix(), path.read_bytes())
    report = inspect_trajectory(f"{uri}/fsdp2-float32")
    assert [(step.layout, step.problems) for step in report.steps] == [("verl, FSDP shards", ())] * len(STEPS)
    mine = run_all(spec(f"{uri}/base", f"{uri}/fsdp2-float32", f"{uri}/run"))
    assert mine == run_all(spec(saved / "base", saved / "float32", tmp_path / "local"))


@pytest.mark.parametrize("name", ["tied-fsdp2", "tied-fsdp1"])
def test_tied_weights_may_be_stored_twice(saved: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    """The base has no lm_head.weight. FSDP2 saves the tied tensor's storage once, FSDP1 a copy of it."""
    golden = spec(saved / "golden" / "base", saved / "golden", tmp_path / "theirs", t_cut=4)
    mine = spec(saved / "golden" / "base", saved / name, tmp_path / "mine", t_cut=4)
    checkpoint = opened(actor(saved / name, 2))
    assert checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    same = checkpoint.tensors["lm_head.weight"].extents == checkpoint.tensors["model.embed_tokens.weight"].extents
    assert same == (name == "tied-fsdp2")
    assert run_all(mine) == run_all(golden)


def copied(root: Path, out: Path) -> Path:
    shutil.copytree(root, out)
    return out


def test_equal_bytes_alone_are_no_tie(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    trajectory = copied(saved / "tied-fsdp2", tmp_path / "untied")
    for path in trajectory.glob("*/actor/huggingface/config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    message = refused(spec(saved / "golden" / "base", trajectory, tmp_path / "run", t_cut=4))
    assert "tensor lm_head.weight is extra: the base has none" in message


@pytest.mark.parametrize("with_config", [True, False])
def test_captured_shards_are_tied_as_their_config_says_or_the_bases(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    with_config: bool,
) -> None:
    """The originals are gone. Earlier versions of relex captured no config."""
    base, trajectory = copied(saved / "golden" / "base", tmp_path / "base"), tmp_path / "trajectory"
    mine = spec(base, copied(saved / "tied-fsdp2", trajectory), tmp_path / "mine", t_cut=4)
    for path in trajectory.glob("*/actor/huggingface/config.json"):
        if not with_config:
            path.unlink()
    for step in observe(str(trajectory)):
        capture_step(mine.run_root, step)
    shutil.rmtree(trajectory)
    assert run_all(mine) == run_all(spec(base, saved / "golden", tmp_path / "theirs", t_cut=4))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    expected = "has tie_word_embeddings = True, the base False" if with_config else "tensor lm_head.weight is extra"
    assert expected in refused(mine)


def test_a_config_alone_is_no_tie(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    """The config says tied, the bytes do not."""
    folder = copied(actor(saved / "fsdp2-bfloat16", 1), tmp_path / "actor")
    (folder / "huggingface" / "config.json").write_text('{"tie_word_embeddings": true}')
    checkpoint = opened(folder)
    assert (checkpoint.problems, checkpoint.tied) == ([], {})


def refused(run: RunSpec) -> str:
    with pytest.raises(WindowError) as caught:
        find_window(run)
    return str(caught.value)


def test_a_missing_rank_is_waited_for(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    trajectory = copied(saved / "fsdp2-bfloat16", tmp_path / "run")
    newest = actor(trajectory, 4) / "model_world_size_2_rank_1.pt"
    whole = newest.read_bytes()
    run = spec(saved / "base", trajectory, tmp_path / "out")
    newest.unlink()
    with pytest.raises(WindowNotReady, match="1 of 2 shards are there; that of rank 1 is missing"):
        find_window(run)
    for cut in (0, 50, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:cut])
        with pytest.raises(WindowNotReady, match=r"rank_1\.pt is cut off"):
            find_window(run)
    newest.write_bytes(whole)
    assert find_window(run).steps == tuple(STEPS)
    (trajectory / "latest_checkpointed_iteration.txt").write_text("2")
    with pytest.raises(WindowNotReady, match="says that step 2 is the last complete one"):
        find_window(run)


def lose_rank(folder: Path) -> None:
    (folder / "model_world_size_2_rank_0.pt").unlink()


def mix_worlds(folder: Path) -> None:
    shutil.copy(folder / "model_world_size_2_rank_0.pt", folder / "model_world_size_4_rank_0.pt")


def rank_beyond(folder: Path) -> None:
    shutil.copy(folder / "model_world_size_2_rank_0.pt", folder / "model_world_size_2_rank_2.pt")


def same_rank_twice(folder: Path) -> None:
    shutil.copy(folder / "model_world_size_2_rank_0.pt", folder / "model_world_size_2_rank_1.pt")


def other_file(folder: Path) -> None:
    shutil.copy(folder / "optim_world_size_2_rank_1.pt", folder / "model_world_size_2_rank_1.pt")


def plain_file(value: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        torch.save(value, folder / "model_world_size_2_rank_1.pt")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lose_rank, "1 of 2 shards are there; that of rank 0 is missing"),
        (mix_worlds, "shards of different world sizes lie together: 2, 4"),
        (rank_beyond, "model_world_size_2_rank_2.pt is a rank beyond its own world size"),
        (same_rank_twice, "tensor lm_head.weight: its shards have 20 rows together, the tensor has shape [40, 8]"),
        (other_file, "entry 'state' is no tensor"),
        (plain_file([1, 2]), "it is no state dict"),
        (plain_file({"x": torch.ones(2)}), "tensor x is not in the shards of both rank 0 and rank 1"),
    ],
)
def test_damaged_shards_are_named(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    spoil: Callable[[Path], None],
    problem: str,
) -> None:
    trajectory = copied(saved / "fsdp2-bfloat16", tmp_path / "run")
    spoil(actor(trajectory, 2))
    message = refused(spec(saved / "base", trajectory, tmp_path / "out"))
    assert f"step 2: {problem}" in message or (f"step 2: model_world_size_2_rank_1.pt cannot be read: data.pkl: "
        f"{problem}" in message)  # fmt: skip
    assert "step 1:" not in message
    if "missing" not in problem:
        local_dir = actor(trajectory, 2)
        assert f"python -m verl.model_merger merge --backend fsdp --local_dir {local_dir} --target_dir" in message


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("columns", "tensor x: it is placed as (Shard(dim=1)); only Replicate and one Shard(dim=0) are read"),
        ("partial", "tensor x: it is placed as (Partial)"),
        ("strided", "tensor x: it is placed as (_StridedShard(dim=0))"),
        ("twice", "tensor x: it is placed as (Shard(dim=0), Shard(dim=1))"),
        ("transposed", "tensor x: its part in model_world_size_1_rank_0.pt is not contiguous (stride [1, 4])"),
        ("float8", "it names 'torch._utils._rebuild_tensor_v3'"),
        ("complex", "it names 'torch.ComplexFloatStorage'"),
        ("sparse", "it names 'torch._utils._rebuild_sparse_tensor'"),
        ("number", "entry 'x' is no tensor"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(saved: Path, name: str, problem: str) -> None:  # noqa: F811
    checkpoint = opened(saved / "odd" / name)
    assert problem in checkpoint.wrong[0]
    assert "verl.model_merger" in checkpoint.wrong[-1]
    assert (checkpoint.incomplete, checkpoint.tensors) == ([], {})


@pytest.mark.parametrize("name", ["parameter", "view", "replicated"])
def test_other_ways_to_save_a_tensor(saved: Path, name: str) -> None:  # noqa: F811
    checkpoint = opened(saved / "odd" / name)
    assert checkpoint.problems == []
    square = torch.arange(16.0).reshape(4, 4)
    assert read_all(saved / "odd" / name, checkpoint) == {"x": raw(square[1:3] if name == "view" else square)}


def test_sharded_tensors_of_fsdp1_are_refused_by_name(saved: Path) -> None:  # noqa: F811
    checkpoint = opened(actor(saved / "sharded_tensor", 1))
    assert (
        "sharded_tensor.api.ShardedTensor', which is not part of what is read here (FSDP1 without a device mesh)"
        in (checkpoint.wrong[0])
    )


def save_ranks(folder: Path, *states: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    for rank, state in enumerate(states):
        torch.save(state, folder / f"model_world_size_{len(states)}_rank_{rank}.pt")
    return folder


def test_plain_tensors_are_replicas(tmp_path: Path) -> None:
    """Buffers are saved whole by every rank; parts that look like them are not taken for the whole."""
    table = torch.arange(6.0)
    folder = save_ranks(tmp_path / "same", {"x": table}, {"x": table.clone()})
    assert read_all(folder, opened(folder)) == {"x": raw(table)}
    assert opened(save_ranks(tmp_path / "bytes", {"x": table}, {"x": table + 1})).wrong[0] == (
        "tensor x: its bytes differ between the ranks although it is not sharded"
    )
    assert opened(save_ranks(tmp_path / "shapes", {"x": table}, {"x": table[:5]})).wrong[0] == (
        "tensor x: its shape, dtype or placement differs between the ranks"
    )
    assert opened(save_ranks(tmp_path / "lora", {"q.lora_A.weight": table})).wrong[0] == (
        "the shards hold LoRA adapters beside the base, no merged weights"
    )


def test_weights_decide_which_folder_of_a_step_is_read(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    """Hugging Face weights where verl saved them too, else the shards; without weights the folder with the config."""
    trajectory = copied(saved / "fsdp2-bfloat16", tmp_path / "run")
    source = saved / "bfloat16" / "global_step_1" / "actor" / "huggingface" / "model.safetensors"
    shutil.copy(source, actor(trajectory, 1) / "huggingface" / "model.safetensors")
    for path in actor(trajectory, 4).glob("model_*.pt"):
        path.unlink()
    steps = inspect_trajectory(str(trajectory)).steps
    assert [(step.layout, step.complete) for step in steps] == [
        ("verl", True),
        ("verl, FSDP shards", True),
        ("verl", False),
    ]
    assert "weights are missing: config.json is there" in steps[2].problems[0]
    assert find_window(spec(saved / "base", trajectory, tmp_path / "out", t_cut=2)).steps == (1, 2)


def test_shards_are_no_base(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    base = copied(actor(saved / "fsdp2-bfloat16", 1), tmp_path / "base")
    shutil.copy(base / "huggingface" / "config.json", base / "config.json")
    message = refused(spec(base, saved / "fsdp2-bfloat16", tmp_path / "out"))
    assert "its weights are FSDP shards, which only the steps of a trajectory may be" in message


def test_a_replaced_shard_is_noticed(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    trajectory = copied(saved / "fsdp2-bfloat16", tmp_path / "run")
    run = spec(saved / "base", trajectory, tmp_path / "out")
    collect(run)
    file = actor(trajectory, 2) / "model_world_size_2_rank_1.pt"
    file.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointChanged, match="step 2"):
        fit(run.run_root)


class CountingStore:
    """Bytes in memory; counts the reads."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.uri, self.files, self.reads = "memory", files, 0

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        buffer[:] = self.files[key][offset : offset + len(buffer)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.booleans(), st.data())
def test_any_byte_range_of_any_extents(sizes: list[int], one_file: bool, data: st.DataObject) -> None:
    """Extents of one tensor that lie side by side in one file are read at once, as one range of safetensors is."""
    whole = bytes(range(100, 100 + sum(sizes)))
    files: dict[str, bytes] = {}
    extents = []
    for number, size in enumerate(sizes):
        start = sum(sizes[:number])
        name = "all" if one_file else f"f{number}"
        offset = len(files.get(name, b"")) if one_file else 3
        files[name] = files.get(name, b"").ljust(offset, b"-") + whole[start : start + size]
        extents.append(Extent(ObjectInfo(name, 0, 1), offset, size))
    store = CountingStore(files)
    tensor = StoredTensor("x", "U8", (len(whole),), tuple(extents))
    reader = TensorReader("test", store, {"x": tensor})  # type: ignore[arg-type]
    start = data.draw(st.integers(0, len(whole)))
    middle = data.draw(st.integers(start, len(whole)))
    stop = data.draw(st.integers(middle, len(whole)))
    buffer = bytearray(stop - start + 2)
    reader.read([Piece("x", start, middle, 1), Piece("x", middle, stop, 1 + middle - start)], memoryview(buffer))
    assert bytes(buffer) == b"\0" + whole[start:stop] + b"\0"
    assert store.reads <= (1 if one_file else len(sizes))


@pytest.mark.slow
def test_files_beyond_4_gib(tmp_path: Path) -> None:
    """zip64: sizes and offsets beyond 32 bits, as every shard of a 32B model has them."""
    large = torch.arange(2**29 + 5, dtype=torch.int64)
    save_ranks(tmp_path, {"large": large, "small": torch.arange(10.0), "empty": torch.zeros(0, 3)})
    checkpoint = opened(tmp_path)
    assert checkpoint.problems == []
    reader = TensorReader("test", open_store(str(tmp_path)), checkpoint.tensors)
    tail, small = bytearray(40), bytearray(40)
    reader.read([Piece("large", large.nbytes - 40, large.nbytes, 0)], memoryview(tail))
    reader.read([Piece("small", 0, 40, 0)], memoryview(small))
    assert bytes(tail) == raw(large[-5:])
    assert bytes(small) == raw(torch.arange(10.0))


def test_a_safetensors_step_is_read_as_before(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0, 3)}
    checkpoint = opened(write_checkpoint(tmp_path / "step", tensors))
    assert [len(tensor.extents) for tensor in checkpoint.tensors.values()] == [1, 1]
    assert read_all(tmp_path / "step", checkpoint) == {name: raw(tensor) for name, tensor in tensors.items()}
