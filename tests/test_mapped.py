"""Files mapped over memory: real files, cut and changed while they are in use; and the fit that uses them."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import random_base, random_walk, save, stored, write_run
from safetensors.torch import save_file
from support import write_checkpoint
from test_kernels import library  # noqa: F401

from relex_core.checkpoints import reader
from relex_core.checkpoints.contents import TensorInfo
from relex_core.checkpoints.reader import FileRange, Piece, Reader
from relex_core.errors import CheckpointChanged, StorageError
from relex_core.fit import buffers, fit, loop
from relex_core.fit.device import resident_bytes
from relex_core.fit.memory import HostMemory
from relex_core.fit.stream import WindowStream
from relex_core.mapped import PAGE, MappedRows, lost_pages, mapping_library
from relex_core.rows import Loaded, Rows, check
from relex_core.storage import LocalStore

STEPS = [3, 4, 8, 20, 31]

pytestmark = [
    pytest.mark.usefixtures("library"),
    pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux only"),
]


def mapped_rows(rows: int, row_bytes: int) -> MappedRows:
    found = mapping_library()
    assert found is not None
    return MappedRows(found, rows, row_bytes)


def map_files(rows: MappedRows, paths: Sequence[Path], offsets: Sequence[int], count: int) -> None:
    files = [os.open(path, os.O_RDONLY) for path in paths]
    rows.map(files, offsets, count)
    for file in files:
        os.close(file)


@settings(deadline=None, max_examples=40)
@given(
    pages=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    shift=st.integers(0, PAGE - 1),
    count=st.integers(1, 3 * PAGE),
    seed=st.integers(0, 2**16),
)
def test_rows_hold_the_bytes_of_their_files(
    pages: list[int], shift: int, count: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(seed)
    rows = mapped_rows(len(pages), 4 * PAGE)
    paths, offsets = [folder / str(row) for row in range(len(pages))], [page * PAGE + shift for page in pages]
    for _ in range(2):  # over what was mapped before
        contents = [generator.bytes(offset + count) for offset in offsets]
        for path, content in zip(paths, contents, strict=True):
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        map_files(rows, paths, offsets, count)
        for row, content, offset in zip(np.asarray(rows), contents, offsets, strict=True):
            seen = row[shift : shift + count]
            assert seen.tobytes() == content[offset:] and not seen.flags.writeable


def test_an_array_keeps_its_addresses_and_gives_them_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"held" * PAGE)

    def held() -> np.ndarray:
        rows = mapped_rows(1, PAGE)
        map_files(rows, [path], [0], PAGE)
        return np.asarray(rows)[0, 4:8]

    kept = held()
    for _ in range(5000):  # more than can be taken at the same time
        mapped_rows(1, PAGE)
    assert kept.tobytes() == b"held"


def test_rows_that_were_let_go_hold_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2000 * PAGE)
    rows, before = mapped_rows(1, 2000 * PAGE), resident_bytes()
    map_files(rows, [path], [0], 2000 * PAGE)
    np.asarray(rows)[0].max()
    assert resident_bytes() - before > 1500 * PAGE
    rows.clear()
    assert resident_bytes() - before < 500 * PAGE


def test_lost_pages_are_counted_and_the_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4 * PAGE)
    rows, before = mapped_rows(1, 4 * PAGE), lost_pages()
    map_files(rows, [path], [0], 4 * PAGE)
    os.truncate(path, PAGE)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: np.asarray(rows)[0, : 4 * PAGE].tobytes(), range(4)))
    assert 3 <= lost_pages() - before <= 12, "at most once a thread and page"
    assert np.asarray(rows)[0, : 4 * PAGE].tobytes() == b"x" * PAGE + bytes(3 * PAGE)
    path.write_bytes(b"y" * 4 * PAGE)
    map_files(rows, [path], [0], 4 * PAGE)
    assert np.asarray(rows)[0, : 4 * PAGE].tobytes() == b"y" * 4 * PAGE


@pytest.mark.parametrize(
    "another",
    [
        "data = mmap.mmap(file, 0, prot=mmap.PROT_READ); os.truncate(file, 0); data[0]",
        "os.kill(os.getpid(), signal.SIGBUS); time.sleep(10)",
        "faulthandler.enable(); more = MappedRows(mapping_library(), 1, 1); "
        "data = mmap.mmap(file, 0, prot=mmap.PROT_READ); os.truncate(file, 0); data[0]",
    ],
)
def test_other_bus_errors_end_the_process_as_ever(another: str, tmp_path: Path) -> None:
    script = f"""
import faulthandler, mmap, os, signal, sys, time
from relex_core.mapped import MappedRows, mapping_library
rows = MappedRows(mapping_library(), 1, mmap.PAGESIZE)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, b"x" * mmap.PAGESIZE)
rows.map([file], [0], mmap.PAGESIZE)
{another}
print("went on")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGBUS and ended.stdout == ""


class PlainReader:
    """Reads a file, or shows that it lies there."""

    label, tensors, bytes_read = "plain", MappingProxyType[str, TensorInfo]({}), 0

    def __init__(self, path: Path) -> None:
        self._store, self._info = LocalStore(str(path.parent)), LocalStore(str(path.parent)).stat(path.name)

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        for piece in pieces:
            part = buffer[piece.at : piece.at + piece.stop - piece.start]
            self._store.read_into(self._info.name, self._info.generation, piece.start, part)

    def file_range(self, pieces: Iterable[Piece]) -> FileRange:
        (piece,) = pieces
        file = self._store.open_file(self._info.name, self._info.generation)
        return FileRange(self.label, file, piece.start, piece.stop - piece.start, lambda _: None)


def test_rows_hold_memory_or_files_but_never_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4000 * PAGE
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(content)
    plain, piece = [PlainReader(tmp_path / "file")], [Piece("", 8, size, 0)]
    held, before = Rows(1, size + PAGE, HostMemory().buffer), resident_bytes()

    def loaded(may_map: bool) -> Loaded:
        found = held.load(plain, piece, 8, may_map=may_map)
        assert found.rows[0, : size - 8].tobytes() == content[8:] and bool(found.files) is may_map
        del found
        gc.collect()
        assert resident_bytes() - before < 1.5 * size
        return held.load(plain, piece, 8, may_map=may_map)

    for may_map in (True, False, True, False, True):
        check([loaded(may_map)])
    monkeypatch.setattr(MappedRows, "map", lambda *_: (_ for _ in ()).throw(OSError("no such thing here")))
    assert not held.load(plain, piece, 8).files, "what cannot be mapped is read"


def test_a_file_that_is_cut_is_refused_before_its_time_says_so(tmp_path: Path) -> None:
    """Bytes behind the cut, in the same page, are zeros then, and nobody gets a signal."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    store, status = LocalStore(str(tmp_path)), path.stat()
    file = store.open_file("file", store.stat("file").generation, PAGE)
    file.check()
    os.truncate(path, PAGE - 100)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointChanged, match="cut or grew"):
        file.check()


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
