"""The fit with files that are mapped: the same bytes as without; files that change, go or are too many meanwhile."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import random_base, random_walk, save, stored, write_run
from safetensors.torch import save_file
from support import write_checkpoint

from relex_core.checkpoints import reader
from relex_core.checkpoints.reader import Piece, Reader
from relex_core.errors import CheckpointChanged, StorageError
from relex_core.fit import buffers, fit, loop, stream
from relex_core.fit.memory import HostMemory
from relex_core.fit.stream import WindowStream
from relex_core.fit.torch_memory import TorchMemory
from relex_core.kernels import compiled_library
from relex_core.mapped import PAGE
from relex_core.rows import Loaded, Rows

STEPS = [3, 4, 8, 20, 31]

pytestmark = pytest.mark.skipif(compiled_library() is None, reason="files are mapped by the compiled library")


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every stripe: whether the steps' files could be mapped."""
    seen: list[bool] = []
    whole = Rows._map

    def told(self: Rows, readers: Sequence[Reader], pieces: Sequence[Piece], item: int) -> Loaded | None:
        loaded = whole(self, readers, pieces, item)
        if len(readers) > 1:
            seen.append(loaded is not None)
        return loaded

    monkeypatch.setattr(Rows, "_map", told)
    return seen


def write_window(root: Path, dtype: torch.dtype = torch.bfloat16) -> str:
    """Of three groups; the last one has three tensors."""
    base = random_base(dtype=dtype)
    base["model.large.weight"] = torch.randn(200_001, generator=torch.Generator().manual_seed(3)).to(dtype)
    return write_run(root, base, random_walk(base, STEPS), fit={"group_size": 200_000})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_fit_has_the_same_bytes_as_without(
    dtype: torch.dtype, tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fit(write_window(tmp_path / "mapped", dtype))
    assert maps and all(maps)
    maps.clear()
    monkeypatch.setattr(HostMemory, "maps", False)
    read = fit(write_window(tmp_path / "read", dtype))
    assert not maps
    assert (found.tensors, found.bytes_read) == (read.tensors, read.bytes_read)
    mapped, copied = (stored(str(tmp_path / folder / "run")) for folder in ("mapped", "read"))
    assert mapped.keys() == copied.keys()
    assert all(torch.equal(mapped[name], tensor) for name, tensor in copied.items())


def write_large_tensor(root: Path, changed: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """A window of one tensor, of 98 stripes, of which eight fit into memory."""
    for module in ("stripes", "plan", "fit.gram"):
        monkeypatch.setattr(f"relex_core.{module}.BLOCK_COLUMNS", 1024)
    monkeypatch.setattr("relex_core.plan.MAX_STRIPE_COLUMNS", 1024)
    planned = loop.plan_fit
    monkeypatch.setattr(loop, "plan_fit", lambda *a, **k: dataclasses.replace(planned(*a, **k), buffers=8))
    generator = torch.Generator().manual_seed(0)
    base = {"weight": torch.randn(100_000, generator=generator).bfloat16()}
    moves = torch.rand(100_000, generator=generator) < changed
    states = random_walk(base, STEPS, size=0.1)
    for state in states.values():
        state["weight"] = torch.where(moves, state["weight"], base["weight"])
    return write_run(root, base, states)


@pytest.mark.parametrize(("changed", "stripes"), [(1.0, range(150, 199)), (0.1, range(10, 98))])
def test_of_a_tensor_that_does_not_fit_only_what_may_be_packed_is_read(
    changed: float, stripes: range, tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stripes are mapped when they are needed again; before, if most weights change, all but the first ones."""
    fit(write_large_tensor(tmp_path, changed, monkeypatch))
    assert len(maps) in stripes and all(maps)


@pytest.mark.parametrize("held", [True, False], ids=["held", "packed"])
def test_all_that_was_mapped_is_checked(held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases, too, where the steps are read: a base's part may be packed into memory of another stripe."""
    met: list[Loaded] = []
    checked: list[Loaded] = []
    whole, checks, read = Rows._map, buffers.check, WindowStream._read

    def bases(self: Rows, readers: Sequence[Reader], pieces: Sequence[Piece], item: int) -> Loaded | None:
        loaded = whole(self, readers, pieces, item) if len(readers) == 1 else None
        met.extend([loaded] if loaded else [])
        return loaded

    run = write_window(tmp_path) if held else write_large_tensor(tmp_path, 0.1, monkeypatch)
    monkeypatch.setattr(WindowStream, "_read", lambda *given, may_map: read(*given, may_map=True))
    monkeypatch.setattr(Rows, "_map", bases)
    monkeypatch.setattr(buffers, "check", lambda loaded: (checked.extend(loaded), checks(loaded)))
    fit(run)
    unchecked = len({id(loaded) for loaded in met} - {id(loaded) for loaded in checked})
    assert len(met) >= 3 and unchecked == 0


@pytest.mark.parametrize("longer", ["x" * 8, "x" * 9], ids=["another place in its page", "an odd place"])
def test_files_laid_out_otherwise_are_read(longer: str, tmp_path: Path, maps: list[bool]) -> None:
    base = random_base(dtype=torch.bfloat16)
    states = random_walk(base, STEPS)
    plain = fit(write_run(tmp_path / "plain", base, states))
    other = tmp_path / "other"
    save(other / "base", base)
    for step, state in states.items():
        folder = other / "trajectory" / f"global_step_{step}"
        save(folder, state)
        if step == STEPS[1]:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt", "more": longer})
    maps.clear()
    assert fit(write_run(other, base, states)).tensors == plain.tensors
    assert maps and not any(maps)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_are_closed_and_never_too_many_open(
    tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a window in several shards a step."""
    base = random_base(dtype=torch.bfloat16)
    states, sharded = random_walk(base, STEPS), tmp_path / "sharded"
    plain = fit(write_run(tmp_path / "plain", base, states, fit={"group_size": 1}))
    write_checkpoint(sharded / "base", base, shards=len(base))
    for step, state in states.items():
        write_checkpoint(sharded / "trajectory" / f"global_step_{step}", state, shards=len(base))
    run = write_run(sharded, base, states, fit={"group_size": 1})
    gc.collect()
    before, most, whole = open_files(), [0], loop.decompose

    def counted(*arguments: object) -> object:
        most.append(open_files())
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "decompose", counted)
    monkeypatch.setattr(reader, "most_open", lambda: len(STEPS) + 3)
    maps.clear()
    assert fit(run).tensors == plain.tensors
    gc.collect()
    assert any(maps) and not all(maps), "some are mapped, others read"
    assert max(most) - before <= len(STEPS) + 3 + 8 and open_files() <= before


def during(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen once, between the Gram matrix and the direction of the sixth and last tensor."""
    whole, calls = loop.decompose, []

    def decompose(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 6:
            happens()
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "decompose", decompose)


@pytest.mark.parametrize("change", ["cut", "written to"])
@pytest.mark.parametrize(("label", "folder"), [("base", "base"), ("step 8", "trajectory/global_step_8")])
def test_a_file_that_changes_while_it_is_mapped_is_refused(
    label: str, folder: str, change: str, tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_window(tmp_path)
    path = tmp_path / folder / "model.safetensors"
    content, status = path.read_bytes(), path.stat()

    def happens() -> None:
        if change == "cut":
            os.truncate(path, PAGE)
        else:
            with path.open("r+b") as file:
                file.write(content)

    with monkeypatch.context() as patch:
        during(patch, happens)
        with pytest.raises(CheckpointChanged, match=label) as caught:
            fit(run)
    assert all(maps) and caught.value.exit_code == 4 and str(path) in str(caught.value.where)
    assert not Path(run, "fit", "fit.json").exists() and len(list(Path(run, "fit").glob("direction*"))) == 2
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fit(run).tensors == fit(write_window(tmp_path / "other")).tensors


def test_a_file_that_is_deleted_while_it_is_mapped_keeps_its_bytes(
    tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_window(tmp_path)
    during(monkeypatch, (tmp_path / "trajectory" / "global_step_8" / "model.safetensors").unlink)
    assert fit(run).tensors == fit(write_window(tmp_path / "other")).tensors
    assert all(maps)


def test_bytes_that_could_not_be_had_are_refused_although_the_file_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a disk fails."""
    run = write_window(tmp_path)
    path = tmp_path / "trajectory" / "global_step_8" / "model.safetensors"
    content, status = path.read_bytes(), path.stat()
    arrays: list[np.ndarray] = []
    whole = Rows._map

    def kept(self: Rows, readers: Sequence[Reader], pieces: Sequence[Piece], item: int) -> Loaded | None:
        loaded = whole(self, readers, pieces, item)
        assert loaded is not None
        if len(readers) > 1:
            arrays.append(loaded.rows)
        return loaded

    def happens() -> None:
        os.truncate(path, 0)
        for array in arrays:
            array[STEPS.index(8), : 2 * PAGE].tobytes()
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(Rows, "_map", kept)
    during(monkeypatch, happens)
    with pytest.raises(StorageError, match="could not be had") as caught:
        fit(run)
    assert path.name in str(caught.value.where) and caught.value.exit_code == 5
    assert not Path(run, "fit", "fit.json").exists()


def test_nan_in_a_file_that_is_being_written_is_not_blamed_on_the_run(
    tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, grams = write_window(tmp_path), stream.block_grams
    path = tmp_path / "trajectory" / "global_step_8" / "model.safetensors"

    def written_to(*given: object) -> object:
        with path.open("r+b") as file:
            file.seek(8 + int.from_bytes(path.read_bytes()[:8], "little"))
            file.write(b"\xff" * (path.stat().st_size - file.tell()))
        return grams(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "block_grams", written_to)
    with pytest.raises(CheckpointChanged, match="step 8"):
        fit(run)
    assert any(maps)


def test_nothing_is_mapped_for_a_device_that_copies(
    tmp_path: Path, maps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "choose_memory", lambda _: TorchMemory(torch.device("cpu")))
    found = fit(write_window(tmp_path))
    assert not maps and found.device == "cpu"
