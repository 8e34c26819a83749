"""Files mapped over memory: real files, cut and changed while they are in use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_core.checkpoints.contents import TensorInfo
from relex_core.checkpoints.reader import FileRange, Piece
from relex_core.errors import CheckpointChanged
from relex_core.fit.device import resident_bytes
from relex_core.fit.memory import HostMemory
from relex_core.kernels import compiled_library
from relex_core.mapped import PAGE, MappedRows, lost_pages, mapping_library
from relex_core.rows import Rows, check
from relex_core.storage import LocalStore

pytestmark = pytest.mark.skipif(compiled_library() is None, reason="files are mapped by the compiled library")


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


def resident(kind: str) -> int:
    """Bytes: of files (RssFile), or of memory of its own (RssAnon)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024


def test_rows_hold_memory_or_files_but_never_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4000 * PAGE
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(content)
    plain, piece = [PlainReader(tmp_path / "file")], [Piece("", 8, size, 0)]
    held, kinds = Rows(1, size + PAGE, HostMemory().buffer), ("RssFile", "RssAnon")
    before = [resident(kind) for kind in kinds]
    for may_map in (True, False, True, False):
        loaded = held.load(plain, piece, 8, may_map=may_map)
        assert loaded.rows[0, : size - 8].tobytes() == content[8:] and bool(loaded.files) is may_map
        check([loaded])
        del loaded
        gc.collect()
        of_files, own = ((resident(kind) - was) / size for kind, was in zip(kinds, before, strict=True))
        used, unused = (of_files, own) if may_map else (own, of_files)
        assert used > 0.7 and unused < 0.5, (may_map, of_files, own)
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
